"""What a device remembers: what it knows of the log, its rounds and its outbox.

One SQLite file, with the privacy budget's table beside these (`budget.py`).
A finished update stays in the outbox, byte for byte, until its receipt
arrives or its deadline has passed; what was spent on it stays spent.
"""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vitalring.database import open_database, transaction
from vitalring.edge_agent import budget, rosters
from vitalring.protocol.checkpoint import Checkpoint
from vitalring.protocol.merkle import CompactRange

LAYOUT = 4
SCHEMA = """
CREATE TABLE known_log (
    id INTEGER PRIMARY KEY CHECK (id = 1), origin TEXT NOT NULL, size INTEGER NOT NULL,
    root BLOB NOT NULL
);
CREATE TABLE read_log (
    id INTEGER PRIMARY KEY CHECK (id = 1), size INTEGER NOT NULL, hashes BLOB NOT NULL
);
CREATE TABLE rounds (
    context BLOB PRIMARY KEY, plan BLOB NOT NULL, round INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (
        status IN ('charged', 'ready', 'counted', 'missed', 'restored', 'sat_out')
    ),
    timings TEXT NOT NULL DEFAULT '{}'
);
CREATE TABLE outbox (
    plan BLOB PRIMARY KEY, round INTEGER NOT NULL, digest BLOB NOT NULL,
    sealed_update BLOB NOT NULL,
    submit_at_ms INTEGER NOT NULL, deadline_ms INTEGER NOT NULL,
    spare_bytes INTEGER NOT NULL, expiry_s INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0
);
"""

_CURE = (
    "records of another version are not read. Let the device's studies end under the version that "
    "wrote it, found the federation anew, move the file away, and take off [floors] epsilon what "
    "`vitalring privacy report` of that version says was spent"
)


@dataclass(frozen=True)
class Pending:
    """A finished update that waits for its receipt.

    `spare_bytes` and `expiry_s` make what is sent of it look like any other device's.
    """

    plan: bytes
    round: int
    digest: bytes
    update: bytes
    submit_at_ms: int
    deadline_ms: int
    spare_bytes: int
    expiry_s: int
    attempts: int


def open_state(state_dir: Path) -> sqlite3.Connection:
    """Open the device's database in `state_dir`. Raises StorageError."""
    schema = f"{SCHEMA}{rosters.SCHEMA}{budget.SCHEMA}"
    return open_database(state_dir / "agent.sqlite", schema, LAYOUT, _CURE)


def known_checkpoint(db: sqlite3.Connection) -> Checkpoint | None:
    """Return the newest checkpoint this device accepted."""
    row = db.execute("SELECT origin, size, root FROM known_log").fetchone()
    return Checkpoint(*row) if row else None


def remember_checkpoint(db: sqlite3.Connection, checkpoint: Checkpoint) -> None:
    """Keep a checkpoint that was proved consistent with the one before."""
    with transaction(db):
        db.execute(
            "INSERT OR REPLACE INTO known_log VALUES (1, ?, ?, ?)",
            (checkpoint.origin, checkpoint.size, checkpoint.root),
        )


def read_range(db: sqlite3.Connection) -> CompactRange:
    """Return the part of the log whose entries this device has searched."""
    row = db.execute("SELECT size, hashes FROM read_log").fetchone()
    if row is None:
        return CompactRange()
    return CompactRange(row[0], tuple(row[1][i : i + 32] for i in range(0, len(row[1]), 32)))


def remember_range(db: sqlite3.Connection, searched: CompactRange) -> None:
    """Keep how far the log is searched; the caller holds the transaction."""
    db.execute(
        "INSERT OR REPLACE INTO read_log VALUES (1, ?, ?)",
        (searched.size, b"".join(searched.hashes)),
    )


def status_of(db: sqlite3.Connection, context: bytes) -> tuple[str, bytes] | None:
    """Return the status and plan digest of this device's round in `context`, or None."""
    row: tuple[str, bytes] | None = db.execute(
        "SELECT status, plan FROM rounds WHERE context = ?", (context,)
    ).fetchone()
    return row


def mark(
    db: sqlite3.Connection, status: str, context: bytes, plan: bytes, round_number: int
) -> None:
    """Note a round this state did not know; the caller holds the transaction.

    `charged`: its privacy is spent. `sat_out`: the coin fell so.
    """
    db.execute(
        "INSERT OR IGNORE INTO rounds (context, plan, round, status) VALUES (?, ?, ?, ?)",
        (context, plan, round_number, status),
    )


def mark_restored(db: sqlite3.Connection, context: bytes, plan: bytes, round_number: int) -> None:
    """Note that the log shows an own update that this state had lost, or not made yet.

    No other is made then. The caller holds the transaction.
    """
    db.execute(
        "INSERT INTO rounds (context, plan, round, status) VALUES (?, ?, ?, 'restored') "
        "ON CONFLICT (context) DO UPDATE SET plan = excluded.plan, status = 'restored' "
        "WHERE status IN ('charged', 'sat_out')",
        (context, plan, round_number),
    )


def put_outbox(
    db: sqlite3.Connection, context: bytes, pending: Pending, timings: Mapping[str, float]
) -> None:
    """Keep a finished update until its receipt; from now on it is never made again."""
    with transaction(db):
        db.execute(
            "INSERT INTO outbox VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)",
            (
                pending.plan,
                pending.round,
                pending.digest,
                pending.update,
                pending.submit_at_ms,
                pending.deadline_ms,
                pending.spare_bytes,
                pending.expiry_s,
            ),
        )
        db.execute(
            "UPDATE rounds SET status = 'ready', timings = ? WHERE context = ?",
            (json.dumps(timings), context),
        )


def outbox(db: sqlite3.Connection, due_before_ms: int | None = None) -> list[Pending]:
    """Return the updates that wait for a receipt, the next to be sent first.

    With `due_before_ms` only those whose deadline was before that.
    """
    rows = db.execute(
        "SELECT plan, round, digest, sealed_update, submit_at_ms, deadline_ms, "
        "spare_bytes, expiry_s, attempts FROM outbox "
        "WHERE ?1 IS NULL OR deadline_ms < ?1 ORDER BY submit_at_ms",
        (due_before_ms,),
    )
    return [Pending(*row) for row in rows]


def note_attempt(db: sqlite3.Connection, plan: bytes, next_at_ms: int) -> None:
    """Count a submission and set when the next one is due if no receipt comes."""
    # Forgotten, it is submitted again, which the gateway takes for the retry that it is.
    with transaction(db, flushed=False):
        db.execute(
            "UPDATE outbox SET attempts = attempts + 1, submit_at_ms = ? WHERE plan = ?",
            (next_at_ms, plan),
        )


def settle(db: sqlite3.Connection, plan: bytes, counted: bool) -> None:
    """Drop an update from the outbox: counted by a receipt, or missed."""
    # Forgotten, the receipts settle it again: the broker holds them retained. Budget and log are
    # not touched here.
    with transaction(db, flushed=False):
        db.execute("DELETE FROM outbox WHERE plan = ?", (plan,))
        db.execute(
            "UPDATE rounds SET status = ? WHERE plan = ? AND status = 'ready'",
            ("counted" if counted else "missed", plan),
        )
