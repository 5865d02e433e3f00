"""A round of the sum over two servers, from the last half to one set and this gateway's sum.

What a gateway has, what the other told, what it signed: each is on disk before it is sent, is
said again byte for byte after a restart, and is never replaced (SPEC 10.6 to 10.8). So each
gateway gives one sum a round, and two sums that differ by one update are never both given.
"""

import sqlite3
from dataclasses import dataclass, field

from vitalring.database import transaction
from vitalring.errors import RecordError, StorageError
from vitalring.gateway import contributions, log, store
from vitalring.protocol import agreement, two_server
from vitalring.protocol.agreement import Closing, UpdateShare
from vitalring.protocol.cbor import decode, digest
from vitalring.protocol.records import Federation, SealedUpdate
from vitalring.protocol.signing import Signed, merge, sign


class SecondSetError(RecordError):
    """The other gateway signed two different sets of one round: both are kept."""


@dataclass(frozen=True)
class Holder:
    """One of two gateways: its log's key, and which share it holds."""

    key: log.LogKey = field(repr=False)
    federation: Federation
    role: int

    @property
    def other(self) -> int:
        """Return the other gateway's role."""
        return two_server.VECTOR if self.role == two_server.SEED else two_server.SEED


@dataclass(frozen=True)
class Agreement:
    """What the database has of a round's agreement; all of it but `own` comes later."""

    own: bytes
    theirs: bytes | None
    half: bytes | None
    both: bytes | None
    given_up: bool


def open_share(message: bytes) -> tuple[SealedUpdate, bytes]:
    """Read a half, for `admission.screen`: its update, and link with share. Raises RecordError."""
    half = decode(UpdateShare, message)
    return half.update, half.update.ciphertexts + half.share


def state(db: sqlite3.Connection, plan: bytes) -> Agreement | None:
    """Return how far a round's agreement is, None while its updates are admitted."""
    row = db.execute(
        "SELECT own, theirs, half, agreed, given_up FROM agreements WHERE plan = ?", (plan,)
    ).fetchone()
    return Agreement(row[0], row[1], row[2], row[3], bool(row[4])) if row else None


def hold(db: sqlite3.Connection, holder: Holder, closing: Closing) -> bytes:
    """Stop to admit: sign which updates are here, once (SPEC 10.6).

    The caller admits nothing to this round from here on. Raises StorageError.
    """
    if (known := state(db, closing.digest)) is not None:
        return known.own
    with transaction(db):
        rows = db.execute(
            "SELECT digest FROM admitted WHERE plan = ? ORDER BY digest", (closing.digest,)
        ).fetchall()
        held = agreement.ShareSet(closing.digest, closing.plan.round, tuple(d for (d,) in rows))
        own = sign(held, [holder.key.seed])
        # The round is the key: a second plan of this round number could never be agreed on.
        db.execute(
            "INSERT INTO agreements (round, plan, own) VALUES (?, ?, ?)",
            (closing.plan.round, closing.digest, own),
        )
    return own


def take_set(
    db: sqlite3.Connection, holder: Holder, closing: Closing, theirs: bytes
) -> bytes | None:
    """Take what the other gateway has; return our signature on the set that both have.

    None where that set is below `min_cohort`: then nothing is signed and nothing will be summed.
    Raises SecondSetError for another set than it told before, SignatureError or RecordError.
    """
    known = _known(db, closing)
    agreement.open_share_set(theirs, holder.federation, holder.other, closing)
    if known.theirs is not None:
        if known.theirs != theirs:
            raise _second(db, known.theirs, theirs, closing)
        return known.half
    if known.given_up:
        raise RecordError(f"round {closing.plan.round} ended before the other gateway told its set")
    record, _ = agreement.agree(_in_order(holder, known.own, theirs), holder.federation, closing)
    half = sign(record, [holder.key.seed]) if record.count >= closing.plan.min_cohort else None
    with transaction(db):
        db.execute(
            "UPDATE agreements SET theirs = ?, half = ? WHERE plan = ? AND theirs IS NULL",
            (theirs, half, closing.digest),
        )
    return half


def take_half(db: sqlite3.Connection, holder: Holder, closing: Closing, half: bytes) -> bytes:
    """Take the other gateway's signature; return the set with both.

    Raises SecondSetError where it signed another set than follows from what both told,
    SignatureError or RecordError.
    """
    known = _known(db, closing)
    theirs = agreement.open_half_agreed(half, holder.federation, holder.other)
    if (theirs.plan, theirs.round) != (closing.digest, closing.plan.round):
        raise RecordError(f"a signed set of round {theirs.round} or of another plan came")
    if known.half is None:
        raise RecordError(f"no set of round {closing.plan.round} was signed here")
    if decode(Signed, known.half).payload != decode(Signed, half).payload:
        raise _second(db, known.half, half, closing)
    if known.both is not None:
        return known.both
    if known.given_up:
        raise RecordError(f"round {closing.plan.round} ended before both gateways had signed")
    both = merge([known.half, half])
    with transaction(db):
        db.execute("UPDATE agreements SET agreed = ? WHERE plan = ?", (both, closing.digest))
    return both


def settle(
    db: sqlite3.Connection, holder: Holder, closing: Closing, scheme: two_server.ShareSum
) -> None:
    """Sum the shares of the agreed set, forget all others, and delete the shares (SPEC 10.8).

    Afterwards the round is closed as any other: it counts the updates that both gateways have.
    Raises RecordError where no set is agreed on.
    """
    known = _known(db, closing)
    if known.theirs is None or known.both is None:
        raise RecordError(f"round {closing.plan.round} has no set that both gateways signed")
    agreed = agreement.open_agreed(known.both, holder.federation)
    record, common = agreement.agree(
        _in_order(holder, known.own, known.theirs), holder.federation, closing
    )
    if record != agreed or agreed.count < closing.plan.min_cohort:
        raise RecordError(f"the set of round {closing.plan.round} is not the one that was signed")
    with transaction(db):
        row = db.execute(
            "SELECT sum FROM rounds WHERE plan = ? AND status = 'open'", (closing.digest,)
        ).fetchone()
        if row is None:
            raise RecordError(f"round {closing.plan.round} is over: nothing more is summed")
        if row[0] is not None:
            return
        db.execute(
            "UPDATE rounds SET sum = ?, admitted = ? WHERE plan = ?",
            (_sum(db, closing, common, scheme), len(common), closing.digest),
        )
        _keep_only(db, closing.digest, set(common))
        contributions.forget(db, closing.digest)


def give_up(db: sqlite3.Connection, closing: Closing) -> bool:
    """End a round on which the other gateway does not agree; False where both signed already.

    Every half is deleted, so this gateway can never sum any of them.
    """
    known = _known(db, closing)
    if known.both is not None:
        return False
    with transaction(db):
        db.execute("UPDATE agreements SET given_up = 1 WHERE plan = ?", (closing.digest,))
        db.execute("UPDATE rounds SET admitted = 0 WHERE plan = ?", (closing.digest,))
        _keep_only(db, closing.digest, set())
        contributions.forget(db, closing.digest)
    return True


def _sum(
    db: sqlite3.Connection,
    closing: Closing,
    common: tuple[bytes, ...],
    scheme: two_server.ShareSum,
) -> bytes:
    """Add the shares one by one: one is in memory at a time."""
    total = None
    for name in common:
        row = db.execute(
            "SELECT content FROM contributions WHERE plan = ? AND digest = ?",
            (closing.digest, name),
        ).fetchone()
        if row is None:
            raise StorageError(
                f"the share of update {name.hex()} is gone from the database: "
                "the round's sum cannot be made"
            )
        residues = scheme.residues(decode(UpdateShare, row[0]).share)
        total = residues if total is None else scheme.add(total, residues)
    if total is None:
        raise RecordError("a sum of no updates")
    return scheme.encode_sum(total)


def _keep_only(db: sqlite3.Connection, plan: bytes, digests: set[bytes]) -> None:
    rows = db.execute("SELECT digest FROM admitted WHERE plan = ?", (plan,)).fetchall()
    db.executemany(
        "DELETE FROM admitted WHERE plan = ? AND digest = ?",
        [(plan, name) for (name,) in rows if name not in digests],
    )


def _known(db: sqlite3.Connection, closing: Closing) -> Agreement:
    known = state(db, closing.digest)
    if known is None:
        raise RecordError(f"round {closing.plan.round} still admits updates")
    return known


def _in_order(holder: Holder, own: bytes, theirs: bytes) -> tuple[bytes, bytes]:
    return (own, theirs) if holder.role == two_server.VECTOR else (theirs, own)


def _second(
    db: sqlite3.Connection, first: bytes, second: bytes, closing: Closing
) -> SecondSetError:
    """Keep what contradicts: with the first it shows that the other gateway signed both."""
    with transaction(db):
        store.put_object(db, digest(first), first)
        store.put_object(db, digest(second), second)
    return SecondSetError(
        f"the other gateway signed {digest(second).hex()} after {digest(first).hex()} for round "
        f"{closing.plan.round}: refused"
    )
