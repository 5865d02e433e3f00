"""The rosters in the log, one after another; the newest is the one that counts (SPEC 10.11).

The first is logged with the study's records, each later one with the first round plan that names
it, in the same transaction. So the newest roster of the log is that of the newest round.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import replace

from vitalring.gateway import log, store
from vitalring.protocol import trust
from vitalring.protocol.cbor import digest

KIND = "roster"


def append(db: sqlite3.Connection, records: Sequence[bytes]) -> None:
    """Log signed rosters, which the caller checked; it holds the transaction."""
    for record in records:
        position = log.append_object(db, KIND, record)
        db.execute("INSERT INTO rosters VALUES (?, ?)", (position, digest(record)))


def newest(db: sqlite3.Connection) -> bytes | None:
    """Return the signed roster that the log holds last, or None while the log is empty."""
    row = db.execute("SELECT record FROM rosters ORDER BY position DESC LIMIT 1").fetchone()
    return store.get_object(db, row[0]) if row else None


def all_logged(db: sqlite3.Connection) -> list[bytes]:
    """Return all signed rosters of the log, in its order."""
    rows = db.execute("SELECT record FROM rosters ORDER BY position").fetchall()
    return [store.get_object(db, name) or b"" for (name,) in rows]


def position(db: sqlite3.Connection) -> int:
    """Return where the newest roster stands in the log, whose study is logged."""
    found: int = db.execute("SELECT MAX(position) FROM rosters").fetchone()[0]
    return found


def current(db: sqlite3.Connection, study: trust.Study) -> trust.Study:
    """Return a study under the newest roster of the log: itself where that is its own."""
    record = newest(db)
    if record is None or digest(record) == study.roster_digest:
        return study
    # Checked before it was logged.
    roster = trust.open_roster(record, study.federation)
    return replace(study, roster=roster, roster_digest=digest(record))
