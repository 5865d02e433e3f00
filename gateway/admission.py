"""From a sealed box to a counted update: the checks, cheap ones first (SPEC 10.2).

`screen` makes all checks but that of the ring signature, on one update; `judge` verifies the
signatures of several together; `count` writes their tags, entries and the new sum in one
transaction, so that an update is counted once or not at all, whatever happens in between.
Under a joint key the updates themselves are kept by it too, for the hospitals that recompute
the sum.
"""

import contextlib
import functools
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nacl.public import PrivateKey

from vitalring.database import transaction
from vitalring.errors import CiphertextError, Reason, RecordError, RefusedError
from vitalring.gateway import contributions
from vitalring.protocol.cbor import decode, encode
from vitalring.protocol.records import AcceptedUpdate, Receipts, SealedUpdate
from vitalring.protocol.sealing import unseal
from vitalring.protocol.signing import Signed
from vitalring.protocol.update import (
    Residues,
    RoundChecks,
    check_content,
    check_ring,
    check_signatures,
    digest_of,
    tag_of,
)


@dataclass(frozen=True, eq=False)
class Admission:
    """An update that passed the checks so far. `update` is its encoding, `entry` the log's.

    `tag` is proven when the signature is verified.
    """

    plan: bytes
    ring: int
    digest: bytes
    tag: bytes
    signature: bytes = field(repr=False)
    entry: bytes = field(repr=False)
    residues: Residues = field(repr=False)
    update: bytes = field(repr=False)

    @property
    def held_bytes(self) -> int:
        """Return about how much memory it takes while it waits."""
        return self.residues.nbytes + len(self.update) + 2 * len(self.signature)


Open = Callable[[bytes], tuple[SealedUpdate, bytes]]
"""From a message to an update and what the scheme decodes of it. Raises RecordError."""


def open_update(message: bytes) -> tuple[SealedUpdate, bytes]:
    """Read an update that carries all of its ciphertexts. Raises RecordError."""
    update = decode(SealedUpdate, message)
    return update, update.ciphertexts


def screen(
    store: sqlite3.Connection,
    current: RoundChecks | None,
    box: bytes,
    secret: PrivateKey,
    now_ms: int,
    open_message: Open = open_update,
) -> Admission | None:
    """Return the update in `box`, its signature yet to be verified; None for one counted already.

    Raises RefusedError with the first reason that applies.
    """
    # 1. It opens with our key and its padding is ours.
    message = unseal(box, secret)
    # 2. It is the one encoding of an update.
    try:
        update, content = open_message(message)
    except RecordError as error:
        raise RefusedError(Reason.MALFORMED, str(error)) from error
    # 3. It belongs to the round that is open, and the round's time is not over.
    if current is None or update.plan != current.plan_digest:
        row = store.execute("SELECT receipts FROM rounds WHERE plan = ?", (update.plan,)).fetchone()
        if row and row[0] and digest_of(update) in _receipts(row[0]):
            return None  # a retry that crossed its receipt
        reason = Reason.TOO_LATE if row else Reason.UNKNOWN_PLAN
        raise RefusedError(reason, f"no open round has plan {update.plan.hex()}")
    if now_ms > current.plan.deadline_ms:
        raise RefusedError(Reason.TOO_LATE, f"round {current.plan.round} is past its deadline")
    # 4. It names a ring of the roster and carries a signature of that ring's length.
    check_ring(current, update)
    # 5. A tag counts once, and so do ciphertexts.
    # 6. The sum has room: beyond n_max its fields could overflow.
    digest, tag = digest_of(update), tag_of(update)
    if _is_counted(store, current, digest, tag):
        return None
    # 7. The ciphertexts are in their one encoding, residues reduced, none transparent.
    residues = check_content(current, update, content)
    entry = encode(AcceptedUpdate(update.plan, update.ring, digest, update.signature))
    return Admission(
        update.plan, update.ring, digest, tag, update.signature, entry, residues, message
    )


@dataclass(frozen=True)
class Judged:
    """What became of updates that waited for their signatures to be verified.

    `valid` are to be counted, `refused` are not, those that came `again` are counted already, and
    on the `undecided` the passes were used up. All are in the order of arrival.
    """

    valid: tuple[Admission, ...] = ()
    refused: tuple[tuple[Admission, RefusedError], ...] = ()
    again: tuple[Admission, ...] = ()
    undecided: tuple[Admission, ...] = ()


def judge(
    store: sqlite3.Connection,
    current: RoundChecks | None,
    waiting: Sequence[Admission],
    max_passes: int,
) -> Judged:
    """Verify the signatures of updates, in the order of their arrival, all of one ring together.

    At most `max_passes` passes are made over each ring. The outcome is as if each update had
    been checked and counted before the next one came, but for those undecided.
    """
    valid: list[Admission] = []
    refused: list[tuple[Admission, RefusedError]] = []
    again: list[Admission] = []
    undecided: list[Admission] = []

    def is_new(each: Admission) -> bool:
        # 3., 5. and 6. once more: much may have been counted since it was screened, an earlier
        # one of these may have its tag, or fill the round.
        try:
            if current is None or each.plan != current.plan_digest:
                refused.append((each, RefusedError(Reason.TOO_LATE, "the round closed meanwhile")))
                return False
            if not _is_counted(store, current, each.digest, each.tag, valid):
                return True
            again.append(each)
        except RefusedError as refusal:
            refused.append((each, refusal))
        return False

    new = [each for each in waiting if is_new(each)]
    if current is None or not new:
        return Judged((), tuple(refused), tuple(again), ())
    # 8. A member of the ring signed exactly this.
    items = [(each.ring, each.digest, each.signature) for each in new]
    verdicts = check_signatures(current, items, max_passes)
    for each, verdict in zip(new, verdicts, strict=True):
        if not is_new(each):
            continue
        if verdict.error is not None:
            refused.append((each, RefusedError(Reason.BAD_SIGNATURE, str(verdict.error))))
        else:
            (undecided if verdict.tag is None else valid).append(each)
    return Judged(tuple(valid), tuple(refused), tuple(again), tuple(undecided))


def count(
    store: sqlite3.Connection,
    current: RoundChecks,
    valid: Sequence[Admission],
    spent_us: int,
    *,
    keep: bool,
    add: bool = True,
) -> list[tuple[Admission, RefusedError]]:
    """Count updates: their tags, log entries and the new encrypted sum, in one transaction.

    `spent_us` is the time that their checks took, for the round's report. With `keep` the
    updates themselves stay too, until the hospitals have recomputed the sum (SPEC 10.4); without
    `add` there is no running sum, because what is summed is known later (SPEC 10.7). Returns
    those with which the sum would be no ciphertext any more: they are not counted.
    """
    plan = current.plan_digest
    refused: list[tuple[Admission, RefusedError]] = []
    with transaction(store):
        added, encoded = list(valid), None
        if add:
            added, encoded, refused = _sum_with(store, current, valid)
        for each in added:
            store.execute(
                "INSERT INTO admitted VALUES (?, ?, ?, ?)",
                (plan, each.digest, each.tag, each.entry),
            )
            if keep:
                contributions.keep(store, plan, each.digest, each.update)
        if added:
            store.execute(
                "UPDATE rounds SET sum = ?, admitted = admitted + ?, "
                "admission_us = admission_us + ? WHERE plan = ?",
                (encoded, len(added), spent_us, plan),
            )
    return refused


def counted(store: sqlite3.Connection, plan: bytes) -> int:
    """Return how many updates of a round are counted."""
    row = store.execute("SELECT admitted FROM rounds WHERE plan = ?", (plan,)).fetchone()
    return int(row[0])


def _is_counted(
    store: sqlite3.Connection,
    current: RoundChecks,
    digest: bytes,
    tag: bytes,
    before: Sequence[Admission] = (),
) -> bool:
    """Tell whether this very update is counted; `before` are those that will be.

    The same update is a retry; other ciphertexts under its tag are a second vote, these
    ciphertexts under another tag a copied one. Raises RefusedError for these, and where the sum
    has no room.
    """
    plan = current.plan_digest
    rows = store.execute(
        "SELECT tag, digest FROM admitted WHERE plan = ? AND (tag = ? OR digest = ?)",
        (plan, tag, digest),
    ).fetchall()
    rows += [(each.tag, each.digest) for each in before if tag == each.tag or digest == each.digest]
    if (tag, digest) in rows:
        return True
    if rows:
        what = "tag" if rows[0][0] == tag else "set of ciphertexts"
        raise RefusedError(
            Reason.DOUBLE_SIGNED, f"another update with this {what} is counted already"
        )
    admitted = counted(store, plan)
    if admitted + len(before) >= current.plan.codec.n_max:
        raise RefusedError(
            Reason.ROUND_FULL, f"the round holds {admitted + len(before)} updates, its codec's most"
        )
    return False


def _sum_with(
    store: sqlite3.Connection, current: RoundChecks, valid: Sequence[Admission]
) -> tuple[list[Admission], bytes | None, list[tuple[Admission, RefusedError]]]:
    """Return the updates that can be added, the sum with them, and those that cannot."""
    scheme = current.scheme
    row = store.execute("SELECT sum FROM rounds WHERE plan = ?", (current.plan_digest,)).fetchone()
    encoded: bytes | None = row[0]
    start = None if encoded is None else scheme.decode_sum(encoded)

    def with_one(total: Residues | None, each: Admission) -> Residues:
        return each.residues if total is None else scheme.add(total, each.residues)

    if len(valid) > 1:
        with contextlib.suppress(CiphertextError):
            total = functools.reduce(with_one, valid, start)
            if total is not None:
                return list(valid), scheme.encode_sum(total), []
    # Devices that conspire can send ciphertexts that cancel one another: one by one it shows
    # with which of them the sum is none.
    total, added = start, list[Admission]()
    refused: list[tuple[Admission, RefusedError]] = []
    for each in valid:
        tried = with_one(total, each)
        try:
            encoded = scheme.encode_sum(tried)
        except CiphertextError as error:
            refused.append((each, RefusedError(Reason.BAD_CIPHERTEXT, f"the sum with it: {error}")))
            continue
        total = tried
        added.append(each)
    return added, encoded, refused


def _receipts(signed: bytes) -> tuple[bytes, ...]:
    """Return the digests of receipts that we signed ourselves."""
    return decode(Receipts, decode(Signed, signed).payload).digests
