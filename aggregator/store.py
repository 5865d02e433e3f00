"""The aggregator's database: its rounds, the server's state and the weights."""

import sqlite3
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitalring.aggregator import rosters
from vitalring.aggregator.optimisers import ServerState
from vitalring.aggregator.release_store import RELEASE_SCHEMA
from vitalring.database import open_database
from vitalring.errors import RecordError

FILE = "aggregator.sqlite"
LAYOUT = 3
SCHEMA = """
CREATE TABLE rounds (
    round INTEGER PRIMARY KEY,
    proposal BLOB NOT NULL,
    plan BLOB NOT NULL UNIQUE,
    released BLOB,
    model BLOB,
    macro_f1 REAL,
    seconds REAL
);
CREATE TABLE state (round INTEGER PRIMARY KEY, weights BLOB NOT NULL, memory BLOB NOT NULL);
"""
SCHEMA += rosters.SCHEMA + RELEASE_SCHEMA

_CURE = (
    "records of another version are not read: end the study under the version that wrote it, or "
    "found the federation anew with an empty state_dir"
)


@dataclass(frozen=True)
class Round:
    """A round as the aggregator knows it.

    `proposal` and `model` are the bundles that go to the gateway; `released`
    is the digest of the one sum that may be decrypted.
    """

    number: int
    proposal: bytes
    plan: bytes
    released: bytes | None
    model: bytes | None


def open_store(state_dir: Path) -> sqlite3.Connection:
    """Open the aggregator's database in `state_dir`. Raises StorageError."""
    return open_database(state_dir / FILE, SCHEMA, LAYOUT, _CURE)


def latest(db: sqlite3.Connection) -> Round | None:
    """Return the newest round, or None before the first."""
    row = db.execute(
        "SELECT round, proposal, plan, released, model FROM rounds ORDER BY round DESC LIMIT 1"
    ).fetchone()
    return Round(*row) if row else None


def state_bytes(state: ServerState) -> bytes:
    """Return the state in the one encoding that hospitals compare: float64, weights first."""
    rows = (state.weights, *state.memory)
    return b"".join(row.astype("<f8").tobytes() for row in rows)


def state_from_bytes(data: bytes, dimension: int, slots: int) -> ServerState:
    """Read a state of `slots` vectors beside that of the weights. Raises RecordError."""
    if len(data) != 8 * dimension * (1 + slots):
        raise RecordError(
            f"a state of {len(data)} bytes is not one of {dimension} weights and {slots} memories"
        )
    weights, *memory = np.frombuffer(data, "<f8").reshape(1 + slots, dimension).astype(np.float64)
    return ServerState(weights, tuple(memory))


def save_state(db: sqlite3.Connection, round_number: int, state: ServerState) -> None:
    """Keep the server's state after a round; the caller holds a transaction."""
    memory = np.stack(state.memory) if state.memory else np.zeros((0, state.weights.size))
    db.execute(
        "INSERT OR REPLACE INTO state VALUES (?, ?, ?)",
        (round_number, state.weights.tobytes(), memory.tobytes()),
    )


def forget_before(db: sqlite3.Connection, round_number: int) -> None:
    """Drop what only a round in progress needs; the caller holds a transaction."""
    db.execute("DELETE FROM state WHERE round < ?", (round_number,))
    db.execute("UPDATE rounds SET proposal = x'' WHERE round < ?", (round_number,))


def load_state(db: sqlite3.Connection, round_number: int) -> ServerState:
    """Return the server's state after a round; 0 is the start."""
    weights, memory = db.execute(
        "SELECT weights, memory FROM state WHERE round = ?", (round_number,)
    ).fetchone()
    vector = np.frombuffer(weights, np.float64)
    rows = np.frombuffer(memory, np.float64).reshape(-1, vector.size)
    return ServerState(vector, tuple(rows))
