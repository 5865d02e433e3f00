"""What a process computes once and all its devices read: objects, studies, model, key.

Everything here is public and verified before it is kept, so the virtual
devices of a simulation may share it; a real device has one workshop of its own.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitalring.edge_agent import announcement
from vitalring.edge_agent.announcement import Announced
from vitalring.errors import ModelError, RecordError, TransportError
from vitalring.files import write_atomic
from vitalring.models.artefact import Artefact, artefact_from_bytes
from vitalring.models.runtime import TrainableModel
from vitalring.protocol import limits, trust
from vitalring.protocol.cbor import digest
from vitalring.protocol.records import Federation, Receipts, RoundPlan
from vitalring.protocol.secure_sum import KEYLESS, UpdateEncryptor
from vitalring.protocol.signing import Signed
from vitalring.protocol.weights import unpack_weights

_STUDIES_KEPT = 4
"""Each has the rings of its roster: another roster takes the place of the one before."""
_WEIGHTS_KEPT = 2
"""Weights serve one round; another process of a simulation may be a round behind."""

Fetch = Callable[[bytes], bytes]


class Workshop:
    """Verified public things of a federation, by digest.

    `fetch` asks the broker for an object; what it returns is believed only if
    it has the digest that was asked for.
    """

    def __init__(self, federation: Federation, cache_dir: Path, fetch: Fetch) -> None:
        self.federation = federation
        self._cache_dir = cache_dir
        self._fetch = fetch
        self._studies: dict[tuple[bytes, bytes, bytes], trust.Study] = {}
        self._models: dict[bytes, TrainableModel] = {}
        self._encryptors: dict[bytes, UpdateEncryptor] = {}
        self._announced: tuple[bytes, Announced] | None = None
        self._with_roster: Announced | None = None
        self._round: tuple[bytes, trust.Study, RoundPlan] | None = None
        self._receipts: tuple[bytes, Receipts] | None = None
        self._weights: tuple[bytes, npt.NDArray[np.float32]] | None = None

    def object(self, name: bytes) -> bytes:
        """Return the object with SHA-256 `name`, from the cache or the broker.

        Raises TransportError where nobody has it.
        """
        return self._kept(self._cache_dir, name, limits.MAX_OBJECT_BYTES)

    def record(self, name: bytes) -> bytes:
        """Return a signed record as `object` does. It is yet to be verified, so it is small."""
        return self._kept(self._cache_dir, name, Signed.MAX_BYTES)

    def _kept(self, folder: Path, name: bytes, most: int) -> bytes:
        path = folder / name.hex()
        if path.is_file():
            cached = path.read_bytes()
            # A cache on a failing card is no reason to trust other bytes.
            if digest(cached) == name:
                return cached
        content = self._fetch(name)
        if digest(content) != name:
            raise TransportError(f"the broker has other bytes under {name.hex()}")
        # Signed plans name digests, not sizes; nothing fills our disk because it is named.
        if len(content) > most:
            raise RecordError(f"{name.hex()} has {len(content)} bytes, at most {most} are allowed")
        write_atomic(path, content)
        return content

    def study(self, plan: RoundPlan) -> trust.Study:
        """Return the study of a round plan, its records verified (SPEC 9.2 to 9.4)."""
        names = (plan.study_plan, plan.roster, plan.sum_key)
        if names not in self._studies:
            records = [self.record(name) for name in names]
            self._studies[names] = trust.open_study(self.federation, *records)
            for old in list(self._studies)[:-_STUDIES_KEPT]:
                del self._studies[old]
        return self._studies[names]

    def announced(self, data: bytes) -> Announced:
        """Return an announcement, verified as far as that is the same for all devices."""
        if self._announced is None or self._announced[0] != data:
            self._announced = (data, announcement.read(data, self.federation))
        return self._announced[1]

    def check_roster(self, announced: Announced) -> None:
        """Check the roster of an announcement, once for all devices (`announcement`)."""
        if self._with_roster is not announced:
            announcement.check_roster(announced, self.federation)
            self._with_roster = announced

    def receipts(self, data: bytes) -> Receipts:
        """Return a round's receipts, opened; verified once for all devices."""
        if self._receipts is None or self._receipts[0] != data:
            self._receipts = (data, trust.open_receipts(data, self.federation))
        return self._receipts[1]

    def round(self, signed_plan: bytes) -> tuple[trust.Study, RoundPlan]:
        """Return a signed round plan, opened, with its study; verified once for all devices."""
        if self._round is None or self._round[0] != signed_plan:
            study = self.study(trust.peek_round_plan(signed_plan, self.federation))
            self._round = (signed_plan, study, trust.open_round_plan(signed_plan, study))
        return self._round[1:]

    def model(self, study: trust.Study) -> TrainableModel:
        """Return the network that the study trains, its artefact checked by digest."""
        name = study.plan.model.artefact
        if name not in self._models:
            self._models[name] = TrainableModel(self._artefact(study, ()))
        return self._models[name]

    def artefact(self, study: trust.Study) -> Artefact:
        """Return the study's artefact with all its companions, each checked by digest."""
        return self._artefact(study, study.plan.model.companions)

    def _artefact(self, study: trust.Study, companions: tuple[bytes, ...]) -> Artefact:
        model = study.plan.model
        artefact = artefact_from_bytes(
            self.object(model.info),
            self.object(model.artefact),
            tuple(self.object(name) for name in companions),
            digest=model.info,
        )
        if artefact.info.dimension != model.dimension:
            raise ModelError(
                f"artefact {model.artefact.hex()} has {artefact.info.dimension} parameters, "
                f"study {study.plan.study} says {model.dimension}"
            )
        return artefact

    def weights(self, plan: RoundPlan, dimension: int) -> npt.NDArray[np.float32]:
        """Return the weights (d,) that a round starts from."""
        return self.named_weights(plan.weights, dimension)

    def named_weights(self, name: bytes, dimension: int) -> npt.NDArray[np.float32]:
        """Return the weights (d,) whose bytes have the digest `name`."""
        if self._weights is None or self._weights[0] != name:
            folder = self._cache_dir / "weights"
            content = self._kept(folder, name, 4 * dimension)
            self._weights = (name, unpack_weights(content, dimension))
            _keep_newest(folder, _WEIGHTS_KEPT)
        return self._weights[1]

    def encryptor(self, study: trust.Study) -> UpdateEncryptor:
        """Return what encrypts updates to the study's key."""
        if study.sum_key_digest not in self._encryptors:
            self._encryptors[study.sum_key_digest] = study.encryptor(
                self.object(study.sum_key.key) if study.plan.secure_sum not in KEYLESS else b""
            )
        return self._encryptors[study.sum_key_digest]


def _keep_newest(folder: Path, count: int) -> None:
    # Another process may be at the same folder.
    with contextlib.suppress(OSError):
        for path in sorted(folder.iterdir(), key=lambda each: each.stat().st_mtime)[:-count]:
            path.unlink(missing_ok=True)
