"""Hospitals' words about a closed round: checked, kept and logged, each once (SPEC 10.1).

A hospital commits to a round's set once and refuses it once for each reason: that bounds what
it can make the log grow by. Another commitment of the same hospital is evidence in the hands
of those it was shown to, not a second vote.
"""

import sqlite3

from vitalring.database import transaction
from vitalring.errors import RecordError
from vitalring.gateway import log, store
from vitalring.protocol import commitments, trust
from vitalring.protocol.cbor import digest
from vitalring.protocol.release import SetCommitment

KIND_OF_STEP = {"commitment": commitments.COMMITMENT, "refusal": commitments.REFUSAL}
"""What a gateway logs of the steps that hospitals say to one another (`topics.STEPS`)."""


def take(
    db: sqlite3.Connection,
    key: log.LogKey,
    study: trust.Study,
    hospital: str,
    kind: str,
    record: bytes,
) -> bool:
    """Log what came on `hospital`'s own topic; False where it is logged already.

    Raises SignatureError or RecordError for a word that is not the hospital's, not about the
    round that is closed, or contradicts its first.
    """
    name = digest(record)
    if db.execute("SELECT 1 FROM words WHERE record = ?", (name,)).fetchone() is not None:
        return False
    # 1. A round is closed.
    row = db.execute("SELECT round, plan, report FROM rounds WHERE status = 'closed'").fetchone()
    if row is None:
        raise RecordError(f"a {kind} of {hospital} came while no round is closed")
    closed = commitments.ClosedRound(row[0], row[1], digest(row[2]))
    # 2. It is about this round, and the topic's hospital signed it.
    signer, word = commitments.open_word(kind, record, study, closed)
    if study.federation.hospitals[signer].name != hospital:
        raise RecordError(
            f"{study.federation.hospitals[signer].name} signed the {kind} on {hospital}'s topic"
        )
    # 3. It is the first of its kind from this hospital.
    with transaction(db):
        kept = db.execute(
            "INSERT OR IGNORE INTO words VALUES (?, ?, ?, ?)",
            (closed.plan, signer, commitments.slot(word), name),
        ).rowcount
        if not kept:
            raise RecordError(f"{hospital} signed another {kind} of round {closed.number} before")
        log.append_object(db, kind, record)
        log.sign_checkpoint(db, key)
    return True


def committed(
    db: sqlite3.Connection, study: trust.Study, closed: commitments.ClosedRound
) -> list[tuple[int, SetCommitment]]:
    """Return the commitments to a round's set that the log holds, by hospital."""
    rows = db.execute(
        "SELECT record FROM words WHERE plan = ? AND slot = ? ORDER BY hospital",
        (closed.plan, commitments.COMMITMENT),
    ).fetchall()
    found = []
    for (name,) in rows:
        record = store.get_object(db, name) or b""
        signer, word = commitments.open_word(commitments.COMMITMENT, record, study, closed)
        if isinstance(word, SetCommitment):
            found.append((signer, word))
    return found
