"""A round's plan, or its model, as several hospitals come to sign it (SPEC 11.14).

The hospitals take turns: the first one drafts at once, each later one only after those before
it had their time. Everybody signs the draft of the first hospital whose draft says what it
would say itself, so that all come to sign the same. Whoever's turn it is puts the signatures
together, also of a draft whose hospital is gone.
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
        """Begin a matter; this hospital drafts from `from_ms` on, its turn."""
        self.kind: type[Drafted] = kind
        self.number = number
        self._keys = [each.aggregator_key for each in federation.hospitals]
        self._hospital, self._seed, self._quorum = hospital, seed, quorum
        self._from_ms = from_ms
        self._own: Drafted | None = None
        self._chosen: tuple[Drafted, Draft] | None = None
        # What was opened already: of each hospital its draft and signature, newest.
        self._open: dict[tuple[int, str], tuple[bytes, Drafted | None]] = {}
        # Drafts that were refused, of each hospital the newest: said once.
        self._refused: dict[int, Drafted] = {}

    @property
    def draft(self) -> bytes | None:
        """Return what this hospital drafted, signed by it alone."""
        return sign_payload(encode(self._own), [self._seed]) if self._own else None

    @property
    def signature(self) -> bytes | None:
        """Return the draft that this hospital goes along with, signed by it alone."""
        return self._chosen[1].own if self._chosen else None

    def advance(
        self,
        make: Callable[[], Drafted],
        check: Callable[[Drafted], None],
        drafts: Mapping[int, bytes],
        signatures: Mapping[int, bytes],
        now_ms: int,
    ) -> bytes | None:
        """Draft in turn, and sign one draft.

        `make` returns this hospital's own record, as of now; `check` raises RecordError unless
        a record is what this hospital would say. `drafts` and `signatures` are the newest of
        other hospitals, of whatever matter. From this hospital's turn on, returns the signed
        draft once a quorum signed it.
        """
        turn = now_ms >= self._from_ms
        standing = {
            hospital: record
            for hospital, content in drafts.items()
            if (record := self._opened(hospital, "draft", content)) is not None
        }
        # What was drafted long ago, or before the hospital knew better, is drafted anew.
        if turn and (self._own is None or self._fault(self._own, check)):
            self._own = make()
        if self._own is not None:
            standing[self._hospital] = self._own
        chosen = self._choose(standing, check)
        if chosen is None:
            self._chosen = None
            return None
        if self._chosen is None or self._chosen[0] != chosen:
            self._chosen = (chosen, Draft(chosen, self._seed, self._quorum))
        if not turn:
            return None
        draft = self._chosen[1]
        for step, contents in (("draft", drafts), ("signature", signatures)):
            for hospital, content in contents.items():
                if self._opened(hospital, step, content) is not None:
                    draft.add(content)
        return draft.complete()

    def _choose(
        self, standing: Mapping[int, Drafted], check: Callable[[Drafted], None]
    ) -> Drafted | None:
        for hospital, record in sorted(standing.items()):
            fault = self._fault(record, check)
            if fault is None:
                return record
            if hospital != self._hospital and self._refused.get(hospital) != record:
                self._refused[hospital] = record
                _log.warning("the draft of hospital %d is not signed: %s", hospital, fault)
        return None

    @staticmethod
    def _fault(record: Drafted, check: Callable[[Drafted], None]) -> RecordError | None:
        try:
            check(record)
        except RecordError as error:
            return error
        return None

    def _opened(self, hospital: int, step: str, content: bytes) -> Drafted | None:
        """Return a record of this matter that this hospital signed, None for anything else."""
        known = self._open.get((hospital, step))
        if known is not None and known[0] == content:
            return known[1]
        record: Drafted | None
        try:
            record = verify(self.kind, content, {self._keys[hospital]}, 1)
        except (RecordError, SignatureError):
            record = None
        if record is not None and record.round != self.number:
            record = None
        self._open[hospital, step] = (content, record)
        return record
