"""From a sealed box to a counted update: the checks, cheap ones first (SPEC 10.2).

`check` touches no state but reads; `fold` writes tag, entry and the new sum in
one transaction, so an update is counted once or not at all, whatever happens
in between. Under a joint key the update itself is kept by it too, for the hospitals
that recompute the sum.
"""

import sqlite3
from collections.abc import Callable
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
    digest_of,
    tag_of,
)


@dataclass(frozen=True)
class Admission:
    """An update that passed every check. `update` is its encoding, `entry` that of the log."""

    digest: bytes
    tag: bytes
    entry: bytes
    residues: Residues
    update: bytes = field(repr=False)


Open = Callable[[bytes], tuple[SealedUpdate, bytes]]
"""From a message to an update and what the scheme decodes of it. Raises RecordError."""


def open_update(message: bytes) -> tuple[SealedUpdate, bytes]:
    """Read an update that carries all of its ciphertexts. Raises RecordError."""
    update = decode(SealedUpdate, message)
    return update, update.ciphertexts


def check(
    store: sqlite3.Connection,
    current: RoundChecks | None,
    box: bytes,
    secret: PrivateKey,
    now_ms: int,
    open_message: Open = open_update,
) -> Admission | None:
    """Return the update in `box`, or None where it is counted already.

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
    ring = check_ring(current, update)
    # 5. A tag counts once, and so do ciphertexts. The same update is a retry; other ciphertexts
    #    under this tag are a second vote, these ciphertexts under another tag a copied one.
    digest, tag = digest_of(update), tag_of(update)
    rows = store.execute(
        "SELECT tag, digest FROM admitted WHERE plan = ? AND (tag = ? OR digest = ?)",
        (update.plan, tag, digest),
    ).fetchall()
    if (tag, digest) in rows:
        return None
    if rows:
        what = "tag" if rows[0][0] == tag else "set of ciphertexts"
        raise RefusedError(
            Reason.DOUBLE_SIGNED, f"another update with this {what} is counted already"
        )
    # 6. The sum has room: beyond n_max its fields could overflow.
    admitted = store.execute(
        "SELECT admitted FROM rounds WHERE plan = ?", (update.plan,)
    ).fetchone()[0]
    if admitted >= current.plan.codec.n_max:
        raise RefusedError(
            Reason.ROUND_FULL, f"the round holds {admitted} updates, its codec's most"
        )
    # 7. The ciphertexts are in their one encoding, residues reduced, none transparent.
    # 8. A member of the ring signed exactly this.
    residues = check_content(current, ring, update, content)
    entry = encode(AcceptedUpdate(update.plan, update.ring, digest, update.signature))
    return Admission(digest, tag, entry, residues, message)


def fold(
    store: sqlite3.Connection,
    current: RoundChecks,
    admission: Admission,
    spent_us: int,
    *,
    keep: bool,
    add: bool = True,
) -> None:
    """Count an update: its tag, its log entry and the new encrypted sum, in one transaction.

    `spent_us` is the time its checks took, for the round's report. With `keep` the update itself
    stays too, until the hospitals have recomputed the sum (SPEC 10.4); without `add` there is no
    running sum, because what is summed is known later (SPEC 10.7). Raises RefusedError where
    the sum would be no ciphertext any more.
    """
    plan = current.plan_digest
    with transaction(store):
        encoded = _sum_with(store, current, admission) if add else None
        store.execute(
            "INSERT INTO admitted VALUES (?, ?, ?, ?)",
            (plan, admission.digest, admission.tag, admission.entry),
        )
        store.execute(
            "UPDATE rounds SET sum = ?, admitted = admitted + 1, admission_us = admission_us + ? "
            "WHERE plan = ?",
            (encoded, spent_us, plan),
        )
        if keep:
            contributions.keep(store, plan, admission.digest, admission.update)


def _sum_with(store: sqlite3.Connection, current: RoundChecks, admission: Admission) -> bytes:
    row = store.execute("SELECT sum FROM rounds WHERE plan = ?", (current.plan_digest,)).fetchone()
    total = admission.residues
    if row[0] is not None:
        total = current.scheme.add(current.scheme.decode_sum(row[0]), admission.residues)
    try:
        return current.scheme.encode_sum(total)
    except CiphertextError as error:
        # Two devices that conspire can send ciphertexts that cancel one another.
        raise RefusedError(Reason.BAD_CIPHERTEXT, f"the sum with it: {error}") from error


def _receipts(signed: bytes) -> tuple[bytes, ...]:
    """Return the digests of receipts that we signed ourselves."""
    return decode(Receipts, decode(Signed, signed).payload).digests
