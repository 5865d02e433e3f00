"""The enrolment office at work: it calls for ring keys and checks who answers (SPEC 13.5).

Checks stand in the order of their cost, so that hostile bytes pay for themselves: nothing is
verified for who has no voucher, and nothing is kept of what is refused but a count.
"""

import logging
import sqlite3
import time
from collections import Counter
from enum import StrEnum

from nacl.public import PrivateKey

from vitalring.database import transaction
from vitalring.errors import RecordError, RefusedError, SignatureError, VitalRingError
from vitalring.gateway import enrolment as kept
from vitalring.gateway.enrolment import EnrolledKey
from vitalring.protocol import enrolment, sealing
from vitalring.protocol.cbor import decode
from vitalring.protocol.enrolment import Enrolment, EnrolmentCall
from vitalring.protocol.records import Federation

_log = logging.getLogger(__name__)
_WRITE_COUNTS_S = 10.0
"""Hostile bytes must not cost disk writes: counts of refusals are written so often at most."""


class EnrolmentReason(StrEnum):
    """Why an enrolment was refused. The order is the order of the checks, cheap ones first."""

    NO_CALL = "no_call"
    BAD_SEAL = "bad_seal"
    MALFORMED = "malformed"
    OTHER_CALL = "other_call"
    UNKNOWN_VOUCHER = "unknown_voucher"
    REVOKED = "revoked"
    VOUCHER_USED = "voucher_used"
    KNOWN_KEY = "known_key"
    BAD_PROOF = "bad_proof"


class EnrolmentRefusedError(VitalRingError):
    """An enrolment that is not taken, with the reason that the office counts."""

    def __init__(self, reason: EnrolmentReason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason


class Office:
    """The enrolment office of the host's gateway."""

    def __init__(
        self, db: sqlite3.Connection, federation: Federation, sealing_key: PrivateKey
    ) -> None:
        self._db = db
        self._federation = federation
        self._sealing_key = sealing_key
        self._record: bytes | None = None
        self._call: EnrolmentCall | None = None
        self._standing: tuple[bytes, kept.Standing] | None = None
        self._refused: Counter[EnrolmentReason] = Counter()
        self._write_counts_at = 0.0

    def look(self, now_ms: int) -> bytes | None:
        """Look whether a command opened or closed a call; return the signed one that is open."""
        record = kept.current_call(self._db)
        if record != self._record:
            self._record = record
            self._call = None if record is None else enrolment.open_call(record, self._federation)
        if self._refused and time.monotonic() >= self._write_counts_at:
            kept.count_refused(self._db, {str(each): n for each, n in self._refused.items()})
            self._refused.clear()
            self._write_counts_at = time.monotonic() + _WRITE_COUNTS_S
        return self._record if self._call and now_ms <= self._call.closes_ms else None

    def take(self, box: bytes, roster: bytes, now_ms: int) -> EnrolledKey | None:
        """Take what came on the topic for enrolments; None where it was refused or is known.

        `roster` is the digest of the newest roster. Raises StorageError.
        """
        try:
            return self.check(box, roster, now_ms)
        except EnrolmentRefusedError as refusal:
            self._refused[refusal.reason] += 1
            # The detail names a device, which no log of a service does.
            _log.debug("enrolment refused: %s", refusal.reason)
            return None

    def check(self, box: bytes, roster: bytes, now_ms: int) -> EnrolledKey | None:
        """Check an enrolment and keep its key, None for one that came before (SPEC 13.5).

        Raises EnrolmentRefusedError or StorageError.
        """
        # 1. A call is open.
        call = self._call if self.look(now_ms) else None
        if call is None:
            raise EnrolmentRefusedError(EnrolmentReason.NO_CALL, "no call for keys is open")
        # 2. and 3. It is an enrolment, sealed to us, and 4. an answer to this call.
        answer = self._open(box, call)
        # 5. The voucher is known, and 6. its device is not revoked.
        said = self._said(roster)
        voucher = self._voucher(answer, said)
        if voucher is None:
            raise EnrolmentRefusedError(EnrolmentReason.UNKNOWN_VOUCHER, "nobody has this voucher")
        if kept.is_barred(self._db, voucher, said.revoked):
            raise EnrolmentRefusedError(EnrolmentReason.REVOKED, f"{voucher} was revoked")
        # 7. A device has one key in an epoch; the same once more is a retry.
        row = self._db.execute(
            "SELECT key FROM enrolled WHERE epoch = ? AND device = ?", (call.epoch, voucher)
        ).fetchone()
        if row is not None and row[0] == answer.key:
            return None
        if row is not None:
            raise EnrolmentRefusedError(
                EnrolmentReason.VOUCHER_USED, f"{voucher} has a key in epoch {call.epoch}"
            )
        # 8. The key is new, in all epochs.
        if self._db.execute("SELECT 1 FROM enrolled WHERE key = ?", (answer.key,)).fetchone():
            raise EnrolmentRefusedError(EnrolmentReason.KNOWN_KEY, "this key is enrolled already")
        # 9. Who answers has the secret, and the voucher's.
        try:
            enrolment.check_proofs(answer, call)
        except SignatureError as error:
            raise EnrolmentRefusedError(EnrolmentReason.BAD_PROOF, str(error)) from error
        key = EnrolledKey(voucher, call.epoch, answer.key)
        with transaction(self._db):
            # A command may have closed the call meanwhile; then its list is final.
            if kept.current_call(self._db) != self._record or not kept.enrol(self._db, key):
                raise EnrolmentRefusedError(EnrolmentReason.NO_CALL, "the call was closed")
        return key

    def _open(self, box: bytes, call: EnrolmentCall) -> Enrolment:
        if len(box) != enrolment.BOX_BYTES:
            raise EnrolmentRefusedError(
                EnrolmentReason.MALFORMED, f"{len(box)} bytes, not {enrolment.BOX_BYTES}"
            )
        try:
            message = sealing.unseal(box, self._sealing_key)
        except RefusedError as error:
            raise EnrolmentRefusedError(EnrolmentReason.BAD_SEAL, str(error)) from error
        try:
            answer = decode(Enrolment, message)
        except RecordError as error:
            raise EnrolmentRefusedError(EnrolmentReason.MALFORMED, str(error)) from error
        try:
            enrolment.check_call(answer, call)
        except RecordError as error:
            raise EnrolmentRefusedError(EnrolmentReason.OTHER_CALL, str(error)) from error
        return answer

    def _said(self, roster: bytes) -> kept.Standing:
        """Return what the logged rosters say of keys, read once for each newest roster."""
        if self._standing is None or self._standing[0] != roster:
            self._standing = roster, kept.standing(self._db)
        return self._standing[1]

    def _voucher(self, answer: Enrolment, said: kept.Standing) -> str | None:
        """Return whose device the voucher is, None where it is none."""
        if answer.previous is None:
            found = self._db.execute(
                "SELECT device FROM tickets WHERE hash = ?",
                (enrolment.ticket_hash(answer.ticket),),
            ).fetchone()
        else:
            found = self._db.execute(
                "SELECT device FROM enrolled WHERE key = ? AND epoch = ?",
                (answer.previous.key, answer.previous.epoch),
            ).fetchone()
            # A key that no roster ever had vouches for nobody; a revoked one names its device.
            known = answer.previous.key in said.kept or answer.previous.key in said.revoked
            if not known or (found and self._went_on(found[0], answer.previous.epoch, said)):
                found = None
        return found[0] if found else None

    def _went_on(self, device: str, epoch: int, said: kept.Standing) -> bool:
        """Tell whether a roster has a later key of a device than that of an epoch.

        The device has erased the older one then. Who learned it before must not come back with it.
        """
        later = self._db.execute(
            "SELECT key FROM enrolled WHERE device = ? AND epoch > ?", (device, epoch)
        )
        return any(key in said.kept for (key,) in later)
