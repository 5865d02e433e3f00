"""The gateway's one database: log, rounds and what was admitted.

Arrival order is kept nowhere: admitted updates are keyed by digest, and no
table carries a time or a running number of an update (SPEC 10.4). `contributions` are
the counted updates themselves, where hospitals recompute the sum; `words` names the
signed records in which hospitals commit to a set of updates or refuse it; `agreements` is what
two gateways told each other of a round whose shares they hold; `rosters` are those of the log;
the last six tables are the enrolment office's (`gateway.enrolment`).
"""

import sqlite3
from pathlib import Path

from vitalring.database import is_made, open_database, open_read_only
from vitalring.errors import ConfigError

FILE = "gateway.sqlite"
LAYOUT = 6
SCHEMA = """
CREATE TABLE entries (position INTEGER PRIMARY KEY, entry BLOB NOT NULL);
CREATE TABLE nodes (
    level INTEGER NOT NULL, position INTEGER NOT NULL, hash BLOB NOT NULL,
    PRIMARY KEY (level, position)
) WITHOUT ROWID;
CREATE TABLE checkpoints (size INTEGER PRIMARY KEY, note BLOB NOT NULL);
CREATE TABLE objects (digest BLOB PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE rounds (
    round INTEGER PRIMARY KEY,
    plan BLOB NOT NULL UNIQUE,
    signed_plan BLOB NOT NULL,
    position INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('open', 'closed', 'done')),
    sum BLOB,
    admitted INTEGER NOT NULL DEFAULT 0,
    opened_ms INTEGER NOT NULL,
    admission_us INTEGER NOT NULL DEFAULT 0,
    report BLOB,
    receipts BLOB,
    model BLOB
);
CREATE TABLE rosters (position INTEGER PRIMARY KEY, record BLOB NOT NULL UNIQUE);
CREATE TABLE admitted (
    plan BLOB NOT NULL, digest BLOB NOT NULL, tag BLOB NOT NULL, entry BLOB NOT NULL,
    PRIMARY KEY (plan, digest), UNIQUE (plan, tag)
) WITHOUT ROWID;
CREATE TABLE contributions (
    plan BLOB NOT NULL, digest BLOB NOT NULL, content BLOB NOT NULL,
    PRIMARY KEY (plan, digest)
) WITHOUT ROWID;
CREATE TABLE words (
    plan BLOB NOT NULL, hospital INTEGER NOT NULL, slot TEXT NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY (plan, hospital, slot)
) WITHOUT ROWID;
CREATE TABLE agreements (
    round INTEGER PRIMARY KEY, plan BLOB NOT NULL UNIQUE, own BLOB NOT NULL,
    theirs BLOB, half BLOB, agreed BLOB, given_up INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE calls (id INTEGER PRIMARY KEY CHECK (id = 1), record BLOB NOT NULL);
CREATE TABLE tickets (hash BLOB PRIMARY KEY, device TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE enrolled (
    epoch INTEGER NOT NULL, device TEXT NOT NULL, key BLOB NOT NULL UNIQUE,
    PRIMARY KEY (epoch, device)
) WITHOUT ROWID;
CREATE TABLE barred (device TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE pardoned (key BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE refused_enrolments (reason TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
"""

_CURE = (
    "records of another version are not read: end the study under the version that wrote it, or "
    "found the federation anew with an empty state_dir"
)


def open_store(state_dir: Path) -> sqlite3.Connection:
    """Open the gateway's database in `state_dir`. Raises StorageError."""
    return open_database(state_dir / FILE, SCHEMA, LAYOUT, _CURE)


def read_store(state_dir: Path) -> sqlite3.Connection:
    """Open the database without writing, beside a running gateway.

    Raises ConfigError where there is none: whoever only asks must not make one, which the
    gateway's own user could then not open.
    """
    path = state_dir / FILE
    if not is_made(path):
        raise ConfigError(f"{path} does not exist: the gateway has not run yet")
    return open_read_only(path)


def write_store(state_dir: Path) -> sqlite3.Connection:
    """Open the database to write beside a running gateway, as `read_store` does otherwise.

    Raises ConfigError where there is none, StorageError.
    """
    read_store(state_dir).close()
    return open_store(state_dir)


def put_object(store: sqlite3.Connection, digest: bytes, content: bytes) -> None:
    """Keep a content-addressed object; the caller holds a transaction."""
    store.execute("INSERT OR IGNORE INTO objects VALUES (?, ?)", (digest, content))


def get_object(store: sqlite3.Connection, digest: bytes) -> bytes | None:
    """Return the object with this SHA-256, or None."""
    row = store.execute("SELECT content FROM objects WHERE digest = ?", (digest,)).fetchone()
    return row[0] if row else None
