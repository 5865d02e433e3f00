"""From a sealed box to a counted update: the checks, cheap ones first (SPEC 10.2).

`check` touches no state but reads; `fold` writes tag, entry and the new sum in
one transaction, so an update is counted once or not at all, whatever happens
in between.
"""

import sqlite3
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from nacl.public import PrivateKey

from vitalring.database import transaction
from vitalring.errors import CiphertextError, Reason, RecordError, RefusedError, SignatureError
from vitalring.protocol import lsag
from vitalring.protocol.cbor import decode, encode
from vitalring.protocol.records import AcceptedUpdate, Receipts, RoundPlan, SealedUpdate
from vitalring.protocol.sealing import unseal
from vitalring.protocol.secure_sum import SumScheme
from vitalring.protocol.signing import Signed
from vitalring.protocol.update import round_context, update_digest

Residues = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class OpenRound:
    """A round that takes updates, with what its checks need computed once."""

    plan: RoundPlan
    plan_digest: bytes
    scheme: SumScheme
    rings: list[lsag.Ring]
    context: bytes
    tag_base: bytes


@dataclass(frozen=True)
class Admission:
    """An update that passed every check."""

    digest: bytes
    tag: bytes
    entry: bytes
    residues: Residues


def open_round(
    plan: RoundPlan, plan_digest: bytes, scheme: SumScheme, rings: list[lsag.Ring]
) -> OpenRound:
    """Prepare the checks of a round."""
    context = round_context(plan)
    return OpenRound(plan, plan_digest, scheme, rings, context, lsag.tag_base(context))


def check(
    store: sqlite3.Connection,
    current: OpenRound | None,
    box: bytes,
    secret: PrivateKey,
    now_ms: int,
) -> Admission | None:
    """Return the update in `box`, or None where it is counted already.

    Raises RefusedError with the first reason that applies.
    """
    # 1. It opens with our key and its padding is ours.
    message = unseal(box, secret)
    # 2. It is the one encoding of an update.
    try:
        update = decode(SealedUpdate, message)
    except RecordError as error:
        raise RefusedError(Reason.MALFORMED, str(error)) from error
    # 3. It belongs to the round that is open, and the round's time is not over.
    if current is None or update.plan != current.plan_digest:
        row = store.execute("SELECT receipts FROM rounds WHERE plan = ?", (update.plan,)).fetchone()
        if row and row[0] and _digest_of(update) in _receipts(row[0]):
            return None  # a retry that crossed its receipt
        reason = Reason.TOO_LATE if row else Reason.UNKNOWN_PLAN
        raise RefusedError(reason, f"no open round has plan {update.plan.hex()}")
    if now_ms > current.plan.deadline_ms:
        raise RefusedError(Reason.TOO_LATE, f"round {current.plan.round} is past its deadline")
    # 4. It names a ring of the roster and carries a signature of that ring's length.
    if update.ring >= len(current.rings):
        raise RefusedError(Reason.UNKNOWN_RING, f"the roster has no ring {update.ring}")
    ring = current.rings[update.ring]
    if len(update.signature) != lsag.signature_bytes(len(ring.keys)):
        raise RefusedError(
            Reason.BAD_SIGNATURE, "the signature has another length than its ring asks"
        )
    # 5. A tag counts once, and so do ciphertexts. The same update is a retry; other ciphertexts
    #    under this tag are a second vote, these ciphertexts under another tag a copied one.
    digest = _digest_of(update)
    tag = update.signature[:32]
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
    try:
        residues = current.scheme.decode(update.ciphertexts)
    except CiphertextError as error:
        raise RefusedError(Reason.BAD_CIPHERTEXT, str(error)) from error
    # 8. A member of the ring signed exactly this.
    try:
        lsag.verify(ring, current.context, digest, update.signature, tag_base=current.tag_base)
    except SignatureError as error:
        raise RefusedError(Reason.BAD_SIGNATURE, str(error)) from error
    entry = encode(AcceptedUpdate(update.plan, update.ring, digest, update.signature))
    return Admission(digest, tag, entry, residues)


def fold(
    store: sqlite3.Connection, current: OpenRound, admission: Admission, spent_us: int
) -> None:
    """Count an update: its tag, its log entry and the new encrypted sum, in one transaction.

    `spent_us` is the time its checks took, for the round's report. Raises RefusedError where the
    sum would be no ciphertext any more.
    """
    plan = current.plan_digest
    with transaction(store):
        stored = store.execute("SELECT sum FROM rounds WHERE plan = ?", (plan,)).fetchone()[0]
        total = admission.residues
        if stored is not None:
            total = current.scheme.add(current.scheme.decode_sum(stored), admission.residues)
        try:
            encoded = current.scheme.encode_sum(total)
        except CiphertextError as error:
            # Two devices that conspire can send ciphertexts that cancel one another.
            raise RefusedError(Reason.BAD_CIPHERTEXT, f"the sum with it: {error}") from error
        store.execute(
            "INSERT INTO admitted VALUES (?, ?, ?, ?)",
            (plan, admission.digest, admission.tag, admission.entry),
        )
        store.execute(
            "UPDATE rounds SET sum = ?, admitted = admitted + 1, admission_us = admission_us + ? "
            "WHERE plan = ?",
            (encoded, spent_us, plan),
        )


def _digest_of(update: SealedUpdate) -> bytes:
    return update_digest(update.plan, update.ring, update.ciphertexts)


def _receipts(signed: bytes) -> tuple[bytes, ...]:
    """Return the digests of receipts that we signed ourselves."""
    return decode(Receipts, decode(Signed, signed).payload).digests
