"""A hospital's own sum of a round: fetch every update, check it, add it up (SPEC 11.6, 11.7).

A state machine without I/O but its spool: the caller publishes what `requests` says and feeds
what comes on the hospital's own topic. Nothing that a gateway says is believed: an update
counts for its ring signature, the sum for its digest, the set for its receipts. At most one
window of updates is in memory; their ciphertexts are spooled to a file of the state folder,
since the sums of groups are made of them later.
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from vitalring.aggregator.release_store import Refused
from vitalring.errors import CiphertextError, ConfigError, RecordError, RefusedError, StorageError
from vitalring.protocol import limits, trust
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.chunks import ChunkLimits, Reassembler
from vitalring.protocol.records import EncryptedSum, Receipts, RoundReport, SealedUpdate
from vitalring.protocol.release import SetPart, SetRequest
from vitalring.protocol.secure_sum import SumScheme
from vitalring.protocol.update import (
    Residues,
    RoundChecks,
    check_content,
    check_ring,
    check_signatures,
    digest_of,
    round_checks,
)

WINDOW_BYTES = 4 * limits.MIB
_UPDATE_OVERHEAD_BYTES = 256
"""Of an encoded `SealedUpdate` besides its ciphertexts and its signature; more than CBOR takes."""
_PART_OVERHEAD_BYTES = 1024
_BATCH = 1_024
"""Signatures that are verified together at most: those of a ring cost little more than one."""


class RefusalError(RecordError):
    """This round's set is not one to decrypt a sum of; `refused` says why, for the log."""

    def __init__(self, reason: str, subject: bytes, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.refused = Refused(reason, subject, detail)


@dataclass(frozen=True, eq=False)
class Recomputed:
    """A round's set as this hospital checked it itself, in the order of the receipts.

    `contributions` are the digests of updates, `tags` those of their signers, `total` the
    residues of their sum and `total_bytes` its encoding.
    """

    contributions: tuple[bytes, ...]
    tags: tuple[bytes, ...]
    total: Residues = field(repr=False)
    total_bytes: bytes = field(repr=False)
    scheme: SumScheme = field(repr=False)
    min_cohort: int
    spool: Path

    def sums(self, assignment: Sequence[Sequence[int]]) -> list[Residues]:
        """Return the sum of each group of updates, given by their places in `contributions`.

        Memory is one update and a sum for each group. Raises ConfigError for groups that share
        an update or are smaller than `min_cohort`, which nobody may decrypt; StorageError.
        """
        places = [place for group in assignment for place in group]
        if (
            len(set(places)) != len(places)
            or min(map(len, assignment), default=0) < self.min_cohort
        ):
            raise ConfigError(
                f"groups of {[len(group) for group in assignment]} updates: each needs "
                f"{self.min_cohort} at least, and an update belongs to one group alone"
            )
        if len(assignment) == 1 and len(places) == len(self.contributions):
            return [self.total]
        size, scheme = self.scheme.update_bytes, self.scheme
        made = []
        try:
            with self.spool.open("rb") as file:
                for group in assignment:
                    total: Residues | None = None
                    for place in group:
                        file.seek(place * size)
                        residues = scheme.decode(file.read(size))
                        total = residues if total is None else scheme.add(total, residues)
                    assert total is not None  # noqa: S101 - a group is not empty
                    made.append(total)
        except (OSError, CiphertextError) as error:
            raise StorageError(f"{self.spool} cannot be read again: {error}") from error
        return made

    def discard(self) -> None:
        """Delete the spooled ciphertexts: the round is over."""
        self.spool.unlink(missing_ok=True)


@dataclass(frozen=True, eq=False)
class _Opened:
    """An update that passed every check but that of its signature."""

    update: SealedUpdate
    digest: bytes
    residues: Residues


@dataclass(frozen=True)
class _Unproven:
    """An update that is part of the sum already, its signature yet to be verified."""

    digest: bytes
    ring: int
    signature: bytes = field(repr=False)


class Recomputation:
    """Fetches and adds up the updates of one closed round."""

    def __init__(
        self,
        study: trust.Study,
        signed_plan: bytes,
        signed_report: bytes,
        signed_receipts: bytes,
        spool: Path,
        *,
        window_bytes: int = WINDOW_BYTES,
        patience_s: float = 30.0,
    ) -> None:
        """Begin with what the gateway says of the round; `spool` is a file that is replaced.

        A request is repeated after `patience_s` without its answer. Raises RefusalError where
        no set of this round may be decrypted, RecordError or SignatureError for records that do
        not verify, StorageError.
        """
        plan = trust.open_round_plan(signed_plan, study)
        self._report = trust.open_report(signed_report, study.federation)
        self._receipts = trust.open_receipts(signed_receipts, study.federation)
        self._checks = round_checks(plan, digest(signed_plan), study.scheme(), study.rings)
        _check_told(self._checks, self._report, self._receipts)
        self._spool = _Spool(spool)
        size = encoded_update_bytes(study)
        self._window = max(1, window_bytes // size)
        self._reassembler = Reassembler(_chunk_limits(self._window * size + _PART_OVERHEAD_BYTES))
        self._patience_s = patience_s
        self._asked_at: float | None = None
        # Updates in the sum; the last of them are unproven, and nobody sees the sum until none is.
        self._added = 0
        self._unproven: list[_Unproven] = []
        self._tags: list[bytes] = []
        self._seen: set[bytes] = set()
        self._total: Residues | None = None

    @property
    def complete(self) -> bool:
        """Tell whether every update of the receipts is here."""
        return len(self._tags) == len(self._receipts.digests)

    def requests(self, now_s: float) -> SetRequest | None:
        """Return what to ask the gateway now: None while an answer may come, or all is here.

        `now_s` is a time in seconds from any steady origin.
        """
        waits = self._asked_at is not None and now_s - self._asked_at < self._patience_s
        if self.complete or waits:
            return None
        self._asked_at = now_s
        first = self._added
        count = min(self._window, len(self._receipts.digests) - first)
        return SetRequest(self._checks.plan_digest, first, count)

    def feed(self, frame: bytes, now_s: float) -> None:
        """Take a frame from the hospital's own topic.

        Frames and answers that are malformed, foreign or late are dropped: whoever can write
        there can delay a hospital, and the request is repeated. Raises RefusalError for an
        answer to what was asked that is not what the receipts promise, StorageError.
        """
        try:
            message = self._reassembler.add(frame, now_s)
            part = None if message is None else decode(SetPart, message)
        except (RefusedError, RecordError):
            return
        if part is not None:
            self.feed_part(part)

    def feed_part(self, part: SetPart) -> None:
        """Take an answer; as `feed`."""
        if part.plan != self._checks.plan_digest or part.first != self._added or self.complete:
            return
        if not part.updates:
            self._prove()
            wanted = self._receipts.digests[part.first]
            raise RefusalError(
                "missing_update", wanted, f"the gateway has no update {wanted.hex()} to show"
            )
        self._asked_at = None
        self._take(part.updates)

    def give_up(self) -> None:
        """End the round: the gateway shows nothing more. Raises RefusalError, always."""
        self._prove()
        raise RefusalError("missing_update", b"", "the gateway shows no more updates")

    def result(self) -> Recomputed:
        """Compare the sum and return it. Raises RefusalError, or ConfigError before the end."""
        if not self.complete or self._total is None:
            raise ConfigError("the sum is compared when every update is here")
        self._spool.close()
        name, scheme, digests = (
            self._checks.plan_digest,
            self._checks.scheme,
            self._receipts.digests,
        )
        try:
            encoded = scheme.encode_sum(self._total)
        except CiphertextError as error:
            raise RefusalError("sum_mismatch", self._report.sum, str(error)) from error
        if digest(encode(EncryptedSum(name, digests, encoded))) != self._report.sum:
            raise RefusalError(
                "sum_mismatch",
                self._report.sum,
                f"the {len(digests)} updates do not add up to the sum that the report names",
            )
        minimum = self._checks.plan.min_cohort
        return Recomputed(
            digests,
            tuple(self._tags),
            self._total,
            encoded,
            scheme,
            minimum,
            self._spool.path,
        )

    def discard(self) -> None:
        """Give up: delete what was spooled."""
        self._spool.discard()

    def _take(self, contents: Sequence[bytes]) -> None:
        """Check updates as their gateway must have, and add them (SPEC 11.7).

        Signatures are verified together; the first update in order that fails is the one that
        is refused, as if each had been checked alone.
        """
        for content in contents:
            try:
                opened = self._open(content, self._added)
            except RefusalError:
                self._prove()
                raise
            self._add(opened)
            if len(self._unproven) == _BATCH:
                self._prove()
        if self._added == len(self._receipts.digests):
            self._prove()

    def _open(self, content: bytes, place: int) -> _Opened:
        """Check all of the update due at a place of the receipts but its signature."""
        digests = self._receipts.digests
        # 1. There is room for it in the receipts.
        if place == len(digests):
            raise RefusalError(
                "bad_update", digest(content), "the gateway shows more updates than it counted"
            )
        wanted = digests[place]
        # 2. It is the one encoding of an update to this plan.
        try:
            update = decode(SealedUpdate, content)
        except RecordError as error:
            raise RefusalError("bad_update", wanted, str(error)) from error
        found = digest_of(update)
        if update.plan != self._checks.plan_digest:
            raise RefusalError("bad_update", found, "an update to another plan is among them")
        # 3. It is the next one of the receipts, which are sorted.
        if found != wanted:
            raise self._out_of_place(found, place)
        # 4. It names a ring of the roster, and its ciphertexts decode.
        try:
            check_ring(self._checks, update)
            return _Opened(update, found, check_content(self._checks, update))
        except RefusedError as error:
            raise RefusalError("bad_update", found, str(error)) from error

    def _add(self, opened: _Opened) -> None:
        """Add an update to the sum, and keep its ciphertexts."""
        update, residues = opened.update, opened.residues
        self._spool.append(update.ciphertexts)
        add = self._checks.scheme.add
        self._total = residues if self._total is None else add(self._total, residues)
        self._added += 1
        self._unproven.append(_Unproven(opened.digest, update.ring, update.signature))

    def _prove(self) -> None:
        """Check the signatures of what was added. Raises RefusalError, which ends the round."""
        items = [(each.ring, each.digest, each.signature) for each in self._unproven]
        # No more passes than updates are ever needed, and what fails ends the round here.
        verdicts = check_signatures(self._checks, items, max_passes=max(1, len(items)))
        for each, verdict in zip(self._unproven, verdicts, strict=True):
            # 5. Its ring signed it.
            if verdict.tag is None:
                raise RefusalError("bad_update", each.digest, str(verdict.error))
            # 6. Its signer is counted once.
            if verdict.tag in self._seen:
                raise RefusalError(
                    "double_update", each.digest, "the signer of this update is counted twice"
                )
            self._tags.append(verdict.tag)
            self._seen.add(verdict.tag)
        self._unproven.clear()

    def _out_of_place(self, found: bytes, place: int) -> RefusalError:
        digests = self._receipts.digests
        wanted = digests[place]
        if found in digests[:place]:
            return RefusalError("double_update", found, "the gateway shows this update twice")
        if found in digests:
            return RefusalError(
                "missing_update", wanted, f"the gateway leaves out update {wanted.hex()}"
            )
        return RefusalError("bad_update", found, "the gateway counted no such update")


class _Spool:
    """Ciphertexts one after the other; a crash leaves a file that is made anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.unlink(missing_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            self._file = os.fdopen(descriptor, "wb")
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error}") from error

    def append(self, ciphertexts: bytes) -> None:
        assert self._file is not None  # noqa: S101 - nothing is appended after `close`
        try:
            self._file.write(ciphertexts)
        except OSError as error:
            raise StorageError(f"{self.path} cannot be written: {error}") from error

    def close(self) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                raise StorageError(f"{self.path} cannot be written: {error}") from error
            self._file = None

    def discard(self) -> None:
        with contextlib.suppress(StorageError):
            self.close()
        self.path.unlink(missing_ok=True)


def _check_told(checks: RoundChecks, report: RoundReport, receipts: Receipts) -> None:
    """SPEC 11.6: report and receipts are of this round, agree, and there are enough updates."""
    number, told = checks.plan.round, len(receipts.digests)
    if report.plan != checks.plan_digest or receipts.plan != checks.plan_digest:
        raise RecordError(f"report or receipts are not of the plan of round {number}")
    if report.status != "summed":
        raise RecordError(f"round {number} closed without a sum: there is nothing to recompute")
    if told < checks.plan.min_cohort:
        raise RefusalError(
            "too_few", b"", f"{told} updates; none below {checks.plan.min_cohort} is decrypted"
        )
    if told != report.admitted or told > checks.plan.codec.n_max:
        raise RefusalError(
            "sum_mismatch",
            report.sum,
            f"the report counts {report.admitted} updates, the receipts {told}, "
            f"and a sum holds {checks.plan.codec.n_max}",
        )


def encoded_update_bytes(study: trust.Study) -> int:
    """Return what an encoded `SealedUpdate` of a study takes at most, in bytes."""
    signature = max(ring.signature_bytes for ring in study.rings)
    return study.scheme().update_bytes + signature + _UPDATE_OVERHEAD_BYTES


def _chunk_limits(part_bytes: int) -> ChunkLimits:
    """Return limits under which one answer fits, and a second one that crosses it."""
    return ChunkLimits(
        max_transfer_bytes=part_bytes,
        max_open_transfers=2,
        max_total_bytes=2 * part_bytes + limits.MIB,
    )
