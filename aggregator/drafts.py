"""A round's plan, or its model, as several hospitals come to sign it (SPEC 11.14).

The hospitals take turns: the first one drafts at once, each later one only after those before
it had their time. Everybody signs the drafts of others that say what it would say itself.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from vitalring.aggregator.cosign import Draft
from vitalring.errors import RecordError, SignatureError
from vitalring.protocol.cbor import encode
from vitalring.protocol.records import Federation, GlobalModel, RoundPlan
from vitalring.protocol.signing import sign_payload, verify

_log = logging.getLogger(__name__)

Drafted = TypeVar("Drafted", RoundPlan, GlobalModel)


class Drafts(Generic[Drafted]):
    """The drafts of one matter: the plan of a round, or its model."""

    def __init__(
        self,
        kind: type[Drafted],
        number: int,
        federation: Federation,
        hospital: int,
        seed: bytes,
        quorum: int,
        from_ms: int,
    ) -> None:
        """Begin a matter; this hospital drafts from `from_ms` on, unless others did."""
        self.kind: type[Drafted] = kind
        self.number = number
        self._keys = [each.aggregator_key for each in federation.hospitals]
        self._hospital, self._seed, self._quorum = hospital, seed, quorum
        self._from_ms = from_ms
        self._own: Draft | None = None
        self._refused: set[bytes] = set()
        self.signature: bytes | None = None

    @property
    def draft(self) -> bytes | None:
        """Return what this hospital drafted, signed by it alone."""
        return self._own.own if self._own else None

    def advance(
        self,
        make: Callable[[], Drafted],
        check: Callable[[Drafted], None],
        drafts: Mapping[int, bytes],
        signatures: Mapping[int, bytes],
        now_ms: int,
    ) -> bytes | None:
        """Draft in turn, and sign what others drafted.

        `make` returns this hospital's own record, as of now; `check` raises RecordError unless
        a record is what this hospital would say. `drafts` and `signatures` are the newest of
        other hospitals, of whatever matter. Returns the own draft once a quorum signed it.
        """
        if self._own is None and now_ms >= self._from_ms:
            self._own = Draft(make(), self._seed, self._quorum)
        for hospital, content in drafts.items():
            self._consider(hospital, content, check)
        if self._own is None:
            return None
        for hospital, content in signatures.items():
            if self._opened(hospital, content) is not None:
                self._own.add(content)
        return self._own.complete()

    def _consider(self, hospital: int, content: bytes, check: Callable[[Drafted], None]) -> None:
        record = None if content in self._refused else self._opened(hospital, content)
        if record is None:
            return
        signed = sign_payload(encode(record), [self._seed])
        if signed == self.signature:
            return
        try:
            check(record)
            self.signature = signed
        except RecordError as error:
            _log.warning("the draft of hospital %d is not signed: %s", hospital, error)
            self._refused.add(content)

    def _opened(self, hospital: int, content: bytes) -> Drafted | None:
        """Return a record of this matter that this hospital signed, None for anything else."""
        try:
            record = verify(self.kind, content, {self._keys[hospital]}, 1)
        except (RecordError, SignatureError):
            return None
        return record if record.round == self.number else None
