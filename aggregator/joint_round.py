"""A closed round on its way to a mean update, as one of several hospitals sees it.

Fetch and add up what the gateway counted (`recompute`), decrypt together (`release`), unpack.
A state machine: the caller carries messages and tells the time.
"""

import functools
import logging
import sqlite3
from pathlib import Path

from vitalring.aggregator.goals import Goal, OpenFields
from vitalring.aggregator.groups import assign
from vitalring.aggregator.optimisers import Vector
from vitalring.aggregator.recompute import Recomputation, Recomputed, RefusalError
from vitalring.aggregator.release import Opened, Party, Refused, Release
from vitalring.errors import (
    CiphertextError,
    DataError,
    EncodingRangeError,
    RecordError,
    SignatureError,
)
from vitalring.protocol import trust
from vitalring.protocol.cbor import digest, encode
from vitalring.protocol.ciphertext import Residues
from vitalring.protocol.packing import unpack_fields
from vitalring.protocol.records import RoundPlan
from vitalring.protocol.release import ReleaseRefusal
from vitalring.protocol.signing import sign

_log = logging.getLogger(__name__)

_PATIENCES = 10
"""A gateway that brings no update for so many times the hospitals' patience is given up."""


class JointRound:
    """One round that the gateway closed with a sum."""

    def __init__(
        self,
        db: sqlite3.Connection,
        party: Party,
        signed_plan: bytes,
        signed_report: bytes,
        signed_receipts: bytes,
        spool: Path,
    ) -> None:
        """Begin, or begin anew: what was said of the release before is on disk.

        `spool` is a file for the round's ciphertexts. Raises RecordError or SignatureError for
        records that do not verify, StorageError.
        """
        self._db, self._party = db, party
        self._plan: RoundPlan = trust.open_round_plan(signed_plan, party.study)
        self._plan_digest, self._report_digest = digest(signed_plan), digest(signed_report)
        self._recomputation: Recomputation | None = None
        self._recomputed: Recomputed | None = None
        self._release: Release | None = None
        self._refused: Refused | None = None
        self._counts: tuple[int, ...] = ()
        self._heard: dict[tuple[int, str, int], bytes] = {}
        # The first update not yet here when the gateway was last asked, and since when.
        self._asked: int | None = None
        self._since_ms: int | None = None
        try:
            self._recomputation = Recomputation(
                party.study,
                signed_plan,
                signed_report,
                signed_receipts,
                spool,
                patience_s=party.patience_ms / 1000,
            )
        except RefusalError as error:
            self._refuse(error.refused)

    @property
    def outcome(self) -> Opened | Refused | None:
        """Return how the round's release ended for this hospital, None while it goes on."""
        return self._refused or (self._release.outcome if self._release else None)

    def request(self, now_s: float) -> bytes | None:
        """Return what to ask the gateway now, if anything."""
        if self._recomputation is None:
            return None
        request = self._recomputation.requests(now_s)
        if request is None:
            return None
        if request.first != self._asked:
            self._asked, self._since_ms = request.first, None
        return encode(request)

    def feed(self, frame: bytes, now_s: float) -> None:
        """Take a frame of the gateway's answer. Raises StorageError."""
        if self._recomputation is None:
            return
        try:
            self._recomputation.feed(frame, now_s)
        except RefusalError as error:
            self._refuse(error.refused)

    def hear(self, hospital: int, step: str, attempt: int, content: bytes) -> None:
        """Take what another hospital says; before the sum is recomputed it is kept for later."""
        if self._release is not None:
            self._release.hear(hospital, step, attempt, content)
        else:
            self._heard[(hospital, step, attempt)] = content

    def advance(self, now_ms: int) -> None:
        """Do whatever is possible now. Raises StorageError."""
        if self._recomputation is not None:
            self._watch(self._recomputation, now_ms)
        if self._recomputation is not None and self._recomputation.complete:
            self._begin_release(self._recomputation)
        if self._release is not None:
            self._release.advance(now_ms)

    def said(self) -> dict[tuple[str, int], bytes]:
        """Return what stands on this hospital's topics, by step and attempt."""
        if self._release is not None:
            return self._release.said()
        if self._refused is None:
            return {}
        record = ReleaseRefusal(
            self._plan_digest, self._report_digest, self._refused.reason, self._refused.subject
        )
        return {("refusal", 0): sign(record, [self._party.signing_seed])}

    def mean(self, goal: Goal) -> Vector | None:
        """Return the mean update (v,), None where nothing was opened or it cannot be used."""
        opened = self.outcome
        if not isinstance(opened, Opened):
            return None
        groups: list[OpenFields] = [
            (functools.partial(unpack_fields, plaintext, self._party.params.bfv, count), count)
            for plaintext, count in zip(opened.plaintexts, self._counts, strict=True)
        ]
        try:
            return goal.decode(groups, self._plan_digest)
        except (CiphertextError, EncodingRangeError, RecordError, DataError) as error:
            # One hostile device can spoil a sum; it must not be able to stop the study.
            _log.error("round %d: the sum cannot be used: %s", self._plan.round, error)
            return None

    def close(self) -> None:
        """Delete the round's ciphertexts from this hospital's disk."""
        if self._recomputation is not None:
            self._recomputation.discard()
        if self._recomputed is not None:
            self._recomputed.discard()

    def _begin_release(self, recomputation: Recomputation) -> None:
        self._recomputation = None
        try:
            recomputed = recomputation.result()
        except RefusalError as error:
            recomputation.discard()
            self._refuse(error.refused)
            return
        self._recomputed = recomputed
        self._release = Release(
            self._db,
            self._party,
            self._plan_digest,
            self._report_digest,
            self._plan.round,
            recomputed.contributions,
            recomputed.total_bytes,
            self._sums,
        )
        heard, self._heard = self._heard, {}
        for key, content in heard.items():
            try:
                self._release.hear(*key, content)
            except (RecordError, SignatureError) as error:
                _log.info("%s of hospital %d does not count: %s", key[1], key[0], error)

    def _sums(self, seed: bytes) -> list[Residues]:
        """Return the sums of the groups that follow from a seed; of all updates without one."""
        recomputed = self._recomputed
        assert recomputed is not None  # noqa: S101 - a release begins after it
        groups = [list(range(len(recomputed.tags)))]
        if seed:
            plan = self._party.study.plan
            groups = assign(recomputed.tags, seed, plan.groups, plan.min_cohort)
        self._counts = tuple(len(group) for group in groups)
        return recomputed.sums(groups)

    def _watch(self, recomputation: Recomputation, now_ms: int) -> None:
        """Give up on a gateway that brings nothing any more."""
        if self._since_ms is None:
            self._since_ms = now_ms
        elif now_ms - self._since_ms > _PATIENCES * self._party.patience_ms:
            try:
                recomputation.give_up()
            except RefusalError as error:
                self._refuse(error.refused)

    def _refuse(self, refused: Refused) -> None:
        _log.error("round %d is not decrypted here: %s", self._plan.round, refused.detail)
        if self._recomputation is not None:
            self._recomputation.discard()
        self._recomputation, self._refused = None, refused
