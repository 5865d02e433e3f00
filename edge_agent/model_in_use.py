"""Which model a device predicts with: where it comes from, how it was verified, and its bytes.

In the folder `model/` of the device's state, `in-use.json` names the files that belong to it by
their digests. It is written last and as a whole, so a reader or a power cut sees the old model or
the new one. Reading compares every digest again: a file that a failing card or a person changed
is refused by name, and never reaches the runtime. Who may write the state folder may write a
model of his own there; nothing in it is proof against the device's owner.

A model is only ever replaced by a newer one. The signed opening time of its round tells, so an
old plan that is shown again brings no old model back.
"""

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from vitalring.errors import ModelError, StorageError
from vitalring.files import write_atomic
from vitalring.protocol import trust
from vitalring.protocol.cbor import decode, digest
from vitalring.protocol.records import GlobalModel, RoundPlan
from vitalring.protocol.signing import Signed
from vitalring.protocol.weights import pack_weights, unpack_weights
from vitalring.schema import Pattern, Range, Size, from_plain, to_plain

Array = npt.NDArray[np.float32]

FOLDER = "model"
IN_USE = "in-use.json"
_READS = 3
"""A reader that meets a renewal in between reads again."""

_Hex = Annotated[str, Pattern("[0-9a-f]{64}")]
_Whole = Annotated[int, Range(0, 2**53)]


@dataclass(frozen=True)
class Origin:
    """Verified weights: of which study, after how many rounds, and on whose word.

    `record` is the digest of the signed round plan or final model that names the weights,
    `opens_ms` the signed opening time of that round. `log_entries` is the size of the checkpoint
    under which the record was proved to be in the log; 0 where no such proof came with it.
    """

    study: trust.Study
    round: int
    final: bool
    weights: bytes
    record: bytes
    opens_ms: int
    signatures: int
    log_entries: int


@dataclass(frozen=True)
class ModelInUse:
    """What `in-use.json` says; it has these keys and no other. Digests are SHA-256 in hex.

    `round` counts the rounds of training behind the weights. `signatures` of at least `quorum`
    aggregators stand under the record that names the `weights` of all devices. `personal` is the
    digest of the whole weights with the device's own head, or "" where the head is that of all.
    """

    federation: str
    study: str
    study_plan: _Hex
    round: _Whole
    final: bool
    record: _Hex
    opens_ms: _Whole
    signatures: Annotated[int, Range(1, 64)]
    quorum: Annotated[int, Range(1, 64)]
    log_entries: _Whole
    classes: Annotated[tuple[str, ...], Size(2, 100)]
    input_shape: Annotated[tuple[Annotated[int, Range(1, 2**31)], ...], Size(1, 4)]
    weights: _Hex
    personal: Annotated[str, Pattern("(?:[0-9a-f]{64})?")]
    int8: _Hex
    features: Annotated[str, Pattern("(?:[0-9a-f]{64})?")]
    checksum: Annotated[str, Pattern("(?:[0-9a-f]{64})?")] = ""

    @property
    def head(self) -> str:
        """Say whose head the model has: `personal` or `global`."""
        return "personal" if self.personal else "global"

    def to_json(self) -> bytes:
        """Return the one text that stands for this, with a checksum over the rest of it."""
        bare = json.dumps(to_plain(replace(self, checksum="")), indent=2).encode()
        whole = replace(self, checksum=hashlib.sha256(bare).hexdigest())
        return json.dumps(to_plain(whole), indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> "ModelInUse":
        """Read what `to_json` wrote, and nothing else. Raises ModelError."""
        try:
            table = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{IN_USE} is not JSON ({error})") from error
        found = from_plain(cls, table, ModelError)
        if found.to_json() != text:
            raise ModelError(f"{IN_USE} is not as the agent wrote it: its checksum does not fit")
        return found


@dataclass(frozen=True)
class Loaded:
    """The model in use, with its files as they were verified. `features` may be empty."""

    about: ModelInUse
    int8: bytes = field(repr=False)
    weights: Array = field(repr=False)
    features: bytes = field(repr=False)


def of_plan(study: trust.Study, signed: bytes, plan: RoundPlan, log_entries: int) -> Origin:
    """Return the origin of the weights that a verified round starts from."""
    return Origin(
        study=study,
        round=plan.round - 1,
        final=False,
        weights=plan.weights,
        record=digest(signed),
        opens_ms=plan.opens_ms,
        signatures=len(decode(Signed, signed).signatures),
        log_entries=log_entries,
    )


def of_final(study: trust.Study, signed: bytes, model: GlobalModel, last: RoundPlan) -> Origin:
    """Return the origin of a study's verified final model; `last` is the plan of its round."""
    return Origin(
        study=study,
        round=model.round,
        final=True,
        weights=model.weights,
        record=digest(signed),
        opens_ms=last.opens_ms,
        signatures=len(decode(Signed, signed).signatures),
        log_entries=0,
    )


def is_due(state_dir: Path, origin: Origin) -> bool:
    """Tell whether the model in use is older than `origin`, or there is none that can be read."""
    try:
        loaded = load(state_dir)
    except ModelError:
        return True
    if loaded is None:
        return True
    now = loaded.about
    return (origin.opens_ms, origin.final) > (now.opens_ms, now.final)


def renew(
    state_dir: Path,
    origin: Origin,
    int8: bytes,
    weights: Array,
    input_shape: tuple[int, ...],
    *,
    personal: bytes = b"",
    features: bytes = b"",
) -> ModelInUse:
    """Put a model in use: `weights` (d,) of all devices, and the int8 model made of them.

    With `personal`, the digest of weights with a head of the device's own, the int8 model is made
    of those; they are not kept here. Raises ModelError where the weights are not the ones that
    were signed, StorageError where the disk fails; the older model then stays in use.
    """
    plan = origin.study.plan
    raw = pack_weights(weights)
    if digest(raw) != origin.weights:
        raise ModelError(f"the weights are not those that study {plan.study} signed")
    about = ModelInUse(
        federation=plan.federation,
        study=plan.study,
        study_plan=origin.study.plan_digest.hex(),
        round=origin.round,
        final=origin.final,
        record=origin.record.hex(),
        opens_ms=origin.opens_ms,
        signatures=origin.signatures,
        quorum=plan.quorum,
        log_entries=origin.log_entries,
        classes=tuple(plan.model.classes),
        input_shape=input_shape,
        weights=origin.weights.hex(),
        personal=personal.hex(),
        int8=hashlib.sha256(int8).hexdigest(),
        features=hashlib.sha256(features).hexdigest() if features else "",
    )
    folder = state_dir / FOLDER
    _make_private(folder)
    kept = _file_names(about)
    write_atomic(folder / kept["int8"], int8)
    write_atomic(folder / kept["weights"], raw)
    if features:
        write_atomic(folder / kept["features"], features)
    # From here on the new model is in use; before, nothing has changed.
    write_atomic(folder / IN_USE, about.to_json())
    for path in folder.iterdir():
        if path.name not in {IN_USE, *kept.values()}:
            # A reader that has it open reads on; one that comes too late reads again.
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    return ModelInUse.from_json(about.to_json())


def load(state_dir: Path) -> Loaded | None:
    """Return the model in use, every digest compared; None where there is none yet.

    Raises:
        ModelError: a file is missing or changed; it names the file.
    """
    for attempt in range(_READS):
        text = _read_in_use(state_dir)
        if text is None:
            return None
        try:
            return _load(state_dir / FOLDER, ModelInUse.from_json(text))
        except FileNotFoundError as error:
            # Renewed while we read? Then the next attempt finds the new files.
            if attempt + 1 == _READS or _read_in_use(state_dir) == text:
                raise ModelError(
                    f"{error.filename} is missing; the agent writes it again with the next model"
                ) from error
    raise ModelError(f"{state_dir / FOLDER} changes faster than it can be read; try again")


def version(state_dir: Path) -> tuple[int, int, int] | None:
    """Return what changes with every renewal, without reading a file; None without a model."""
    try:
        found = (state_dir / FOLDER / IN_USE).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def describe(state_dir: Path) -> dict[str, Any]:
    """Return the model in use in words for a person, its digests compared again just now.

    `state` is `none` before the first verified model, `refused` where a file does not fit, with
    the reason, and otherwise `verified`.
    """
    try:
        loaded = load(state_dir)
    except ModelError as error:
        return {"state": "refused", "reason": str(error)}
    if loaded is None:
        return {"state": "none", "reason": "no verified model yet"}
    about = loaded.about
    shown = {key: value for key, value in asdict(about).items() if key != "checksum"}
    return {"state": "verified", "head": about.head, **shown, "verification": in_words(about)}


def in_words(about: ModelInUse) -> str:
    """Say on whose word a model is used."""
    logged = (
        f"in the log of {about.log_entries} entries"
        if about.log_entries
        else "not proved to be in the log"
    )
    kind = "final model" if about.final else "round plan"
    signers = "1 aggregator" if about.signatures == 1 else f"{about.signatures} aggregators"
    return f"{kind} signed by {signers}, quorum {about.quorum}; {logged}"


def _make_private(folder: Path) -> None:
    """Let nobody but the owner read a model with a head that was fitted to one person."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
    except OSError as error:
        raise StorageError(f"{folder} cannot be made: {error}") from error


def _file_names(about: ModelInUse) -> dict[str, str]:
    names = {
        "int8": f"model-int8-{about.int8[:16]}.tflite",
        "weights": f"weights-{about.weights[:16]}.bin",
    }
    if about.features:
        names["features"] = f"features-{about.features[:16]}.json"
    return names


def _load(folder: Path, about: ModelInUse) -> Loaded:
    content = {"features": b""}
    for kind, name in _file_names(about).items():
        path = folder / name
        try:
            content[kind] = path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}") from error
        if hashlib.sha256(content[kind]).hexdigest() != getattr(about, kind):
            raise ModelError(
                f"{path} is not what was verified: its SHA-256 does not fit; the agent writes it "
                "again with the next model"
            )
    weights = unpack_weights(content["weights"], len(content["weights"]) // 4)
    return Loaded(about, content["int8"], weights, content["features"])


def _read_in_use(state_dir: Path) -> bytes | None:
    path = state_dir / FOLDER / IN_USE
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
