"""What hospitals said of one round's release: checked when it arrives, kept for good.

Rules (SPEC 11.8 to 11.10): a message counts only under the name of the hospital that signed it,
or whose signed promise has its digest; the first of a kind stands; messages may arrive in any
order and more than once. A signed commitment to another set of the round is evidence, and
ends the release.
"""

import contextlib
import logging
from dataclasses import dataclass, field

from vitalring.aggregator.release_store import Bound, Key, Refused, RoundStore
from vitalring.database import transaction
from vitalring.errors import RecordError, SignatureError
from vitalring.protocol import trust
from vitalring.protocol.cbor import R, digest
from vitalring.protocol.release import (
    PartPromise,
    ReleaseNonce,
    ReleaseRefusal,
    SetCommitment,
    member_sets,
    nonce_commitment,
)
from vitalring.protocol.signing import sign, verify
from vitalring.protocol.threshold.params import ThresholdParams
from vitalring.protocol.threshold.pieces import SecretPiece

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Party:
    """What a hospital needs to take part, all rounds alike; no pieces where its share is lost."""

    study: trust.Study
    params: ThresholdParams
    hospital: int
    signing_seed: bytes = field(repr=False)
    pieces: tuple[SecretPiece, ...] = field(repr=False)
    patience_ms: int


_EARLY = 4
"""Messages of one hospital and step that may wait; they are large, and from whom is unproven."""


class Messages:
    """The messages of one round, of all hospitals."""

    def __init__(self, store: RoundStore, party: Party, bound: Bound, number: int) -> None:
        self._store, self._party, self._bound, self._number = store, party, bound, number
        self._sets = member_sets(party.params.access)
        self._hospitals = party.study.federation.hospitals
        # What cannot be checked before something else has arrived.
        self._early: dict[Key, bytes] = {}
        self._shown = store.keys()
        self._said: dict[tuple[str, int], bytes] | None = None
        self.commitments: dict[int, SetCommitment] = {}
        self.nonces: dict[int, ReleaseNonce] = {}
        self.promises: dict[tuple[int, int], PartPromise] = {}
        self.refusing: set[int] = set()
        for key in self._shown:
            self._note(key, store.get(key))

    def has(self, hospital: int, step: str, attempt: int) -> bool:
        """Tell whether a message is there, and shown if it is ours."""
        return self._shown.get((hospital, step, attempt), False)

    def get(self, hospital: int, step: str, attempt: int) -> bytes:
        """Return a message that is there."""
        return self._store.get((hospital, step, attempt))

    def said(self) -> dict[tuple[str, int], bytes]:
        """Return what this hospital shows, by step and attempt."""
        # Asked for often, and large.
        if self._said is None:
            self._said = {
                (step, attempt): self._store.get((hospital, step, attempt))
                for (hospital, step, attempt), shown in self._shown.items()
                if hospital == self._party.hospital and shown and step != "evidence"
            }
        return dict(self._said)

    @property
    def refused(self) -> Refused | None:
        """Return why this hospital decrypts nothing of the round, None if it may."""
        refusal = self._store.refusal(self._bound.set)
        return refusal[1] if refusal else None

    def refuse(self, refused: Refused) -> None:
        """Refuse the round; the first reason stands."""
        with transaction(self._store.db):
            self.write_refusal(refused)

    def write_refusal(self, refused: Refused) -> None:
        """Refuse the round within the caller's transaction."""
        bound = self._bound
        record = ReleaseRefusal(bound.plan, bound.report, refused.reason, refused.subject)
        content = sign(record, [self._party.signing_seed])
        self._store.refuse(bound.set, content, refused)
        _log.error(
            "round %d is not decrypted here: %s: %s", self._number, refused.reason, refused.detail
        )

    def say(self, step: str, attempt: int, content: bytes, *, shown: bool = True) -> None:
        """Keep a message of our own; the caller holds a transaction and then calls `reload`."""
        self._store.put((self._party.hospital, step, attempt), content, shown=shown)

    def show(self, step: str, attempt: int) -> None:
        """Let out a message of our own that was kept back; likewise."""
        self._store.show((self._party.hospital, step, attempt))

    def reload(self) -> None:
        """Take over what a transaction wrote."""
        before, self._shown, self._said = self._shown, self._store.keys(), None
        for key in self._shown.keys() - before.keys():
            self._note(key, self._store.get(key))

    def hear(self, hospital: int, step: str, attempt: int, content: bytes) -> Refused | None:
        """Take a message; return what makes this hospital refuse the round, if it does.

        Messages of other rounds and plans are left aside. Raises RecordError or SignatureError,
        naming hospital and step; nothing has changed then.
        """
        if not 0 <= hospital < len(self._hospitals):
            raise RecordError(f"there is no hospital {hospital} in this federation")
        name = f"hospital {hospital} ({self._hospitals[hospital].name}), {step!r} {attempt}"
        try:
            return self._hear((hospital, step, attempt), content)
        except (RecordError, SignatureError) as error:
            raise type(error)(f"{name}: {error}") from error

    def _hear(self, key: Key, content: bytes) -> Refused | None:
        hospital, step, attempt = key
        if step in ("promise", "check", "part"):
            if not 0 <= attempt < len(self._sets) or hospital not in self._sets[attempt]:
                raise RecordError(f"it is no member of set {attempt}")
        elif attempt != 0:
            raise RecordError("there is no such attempt")
        match step:
            case "commitment":
                return self._hear_commitment(key, content)
            case "nonce":
                self._hear_nonce(key, content)
            case "promise":
                return self._hear_promise(key, content)
            case "check" | "part":
                self._hear_bytes(key, content)
            case "refusal":
                self._hear_refusal(key, content)
            case _:
                raise RecordError("there is no such step in a release")
        return None

    def _hear_commitment(self, key: Key, content: bytes) -> Refused | None:
        record = self._open(SetCommitment, key, content)
        if (record.sum_key, record.round) != (self._bound.sum_key, self._number):
            return None
        named = Bound(record.sum_key, record.plan, record.report, record.set)
        if key[0] == self._party.hospital:
            return self._hear_own(key, content)
        if named != self._bound:
            return self._refuse_mismatch(key[0], content)
        self._keep(key, content)
        self._hear_early((key[0], "nonce", 0))
        return None

    def _refuse_mismatch(self, hospital: int, content: bytes) -> Refused:
        if (hospital, "evidence", 0) not in self._shown:
            with transaction(self._store.db):
                self._store.put((hospital, "evidence", 0), content)
            self.reload()
        name = self._hospitals[hospital].name
        return Refused(
            "set_mismatch",
            digest(content),
            f"hospital {hospital} ({name}) signed for another set of round {self._number}: the "
            "gateway showed it other updates, or it lies; compare both commitments with the log",
        )

    def _hear_own(self, key: Key, content: bytes) -> Refused | None:
        """Refuse a round for which our key signed what we do not remember (SPEC 11.10)."""
        if key in self._shown and self._store.get(key) == content:
            return None
        return Refused(
            "second_request",
            digest(content),
            f"this hospital's key signed another {key[1]} in round {self._number}: its database "
            "was lost or taken from a backup, or somebody else has its key",
        )

    def _hear_nonce(self, key: Key, content: bytes) -> None:
        record = self._open(ReleaseNonce, key, content)
        if not self._concerns(record.plan, record.set):
            return
        commitment = self.commitments.get(key[0])
        if commitment is None:
            self._wait(key, content)
            return
        if nonce_commitment(record.set, key[0], record.value) != commitment.nonce:
            raise RecordError("this nonce is not the one that its commitment promised")
        self._keep(key, content)

    def _hear_promise(self, key: Key, content: bytes) -> Refused | None:
        record = self._open(PartPromise, key, content)
        if not self._concerns(record.plan, record.set):
            return None
        if key[0] == self._party.hospital:
            return self._hear_own(key, content)
        if record.members != self._sets[key[2]]:
            raise RecordError(f"it is for members {record.members}, not {self._sets[key[2]]}")
        self._keep(key, content)
        self._hear_early((key[0], "check", key[2]))
        self._hear_early((key[0], "part", key[2]))
        return None

    def _hear_bytes(self, key: Key, content: bytes) -> None:
        hospital, step, attempt = key
        if hospital == self._party.hospital:
            return
        most = self._party.study.plan.groups * self._party.params.partial_bytes
        if not 0 < len(content) <= most:
            raise RecordError(f"{len(content)} bytes, where at most {most} are a {step}")
        promise = self.promises.get((hospital, attempt))
        if promise is None:
            self._wait(key, content)
            return
        if digest(content) != (promise.check if step == "check" else promise.part):
            raise RecordError(f"this {step} is not the one that it promised")
        self._keep(key, content)

    def _hear_refusal(self, key: Key, content: bytes) -> None:
        record = self._open(ReleaseRefusal, key, content)
        same = (record.plan, record.report) == (self._bound.plan, self._bound.report)
        if same and key[0] != self._party.hospital and key not in self._shown:
            self._keep(key, content)

    def _wait(self, key: Key, content: bytes) -> None:
        """Put a message aside, in place of the oldest of its hospital and step if need be."""
        self._early.pop(key, None)
        alike = [other for other in self._early if other[:2] == key[:2]]
        for oldest in alike[: len(alike) - _EARLY + 1]:
            del self._early[oldest]
        self._early[key] = content

    def _hear_early(self, key: Key) -> None:
        """Take again what came too early; what does not fit was of another round, or a lie."""
        content = self._early.pop(key, None)
        if content is not None:
            with contextlib.suppress(RecordError, SignatureError):
                self._hear(key, content)

    def _open(self, cls: type[R], key: Key, content: bytes) -> R:
        return verify(cls, content, {self._hospitals[key[0]].aggregator_key}, 1)

    def _concerns(self, plan: bytes, set_: bytes) -> bool:
        """Tell whether a message is of this round's plan. Raises RecordError for another set."""
        if plan != self._bound.plan:
            return False
        if set_ != self._bound.set:
            raise RecordError(f"it is for set {set_.hex()}, not {self._bound.set.hex()}")
        return True

    def _keep(self, key: Key, content: bytes) -> None:
        """Keep the first message of a kind. Raises RecordError for a second, other one."""
        if key in self._shown:
            if key[0] != self._party.hospital and self._store.get(key) != content:
                raise RecordError("it said something else before, which stands")
            return
        if key[0] == self._party.hospital:
            return
        with transaction(self._store.db):
            self._store.put(key, content)
        self.reload()

    def _note(self, key: Key, content: bytes) -> None:
        """Remember a kept record as what it says. Its signature was checked when it came."""
        hospital, step, attempt = key
        if step == "commitment":
            self.commitments[hospital] = self._open(SetCommitment, key, content)
        elif step == "nonce":
            self.nonces[hospital] = self._open(ReleaseNonce, key, content)
        elif step == "promise":
            self.promises[hospital, attempt] = self._open(PartPromise, key, content)
        elif step == "refusal":
            self.refusing.add(hospital)
