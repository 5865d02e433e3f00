"""The gateway's log: an RFC 6962 tree in SQLite with signed checkpoints (SPEC 8).

Every function that appends runs inside the caller's transaction, so an entry
and what it records are kept together or not at all.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from vitalring.errors import StorageError
from vitalring.protocol import checkpoint as notes
from vitalring.protocol import limits, tiles
from vitalring.protocol.cbor import digest, encode
from vitalring.protocol.merkle import (
    CompactRange,
    NodeReader,
    leaf_hash,
    prove_consistency,
    prove_inclusion,
)
from vitalring.protocol.records import ConsistencyProof, LoggedObject
from vitalring.protocol.signing import public_key


@dataclass(frozen=True)
class LogKey:
    """The name under which a log signs, which is its origin, and its Ed25519 seed."""

    origin: str
    seed: bytes

    def __repr__(self) -> str:
        return f"LogKey({self.origin!r})"

    @property
    def public(self) -> bytes:
        """Return the public key, which names the hospital in the federation's record."""
        return public_key(self.seed)


def size(store: sqlite3.Connection) -> int:
    """Return the number of entries."""
    found: int = store.execute("SELECT COALESCE(MAX(position) + 1, 0) FROM entries").fetchone()[0]
    return found


def append(store: sqlite3.Connection, entries: Sequence[bytes]) -> int:
    """Append entries; return the position of the first."""
    first = size(store)
    _, completed = _range(store, first).grow(leaf_hash(entry) for entry in entries)
    store.executemany(
        "INSERT INTO entries VALUES (?, ?)", [(first + i, e) for i, e in enumerate(entries)]
    )
    store.executemany(
        "INSERT INTO nodes VALUES (?, ?, ?)", [(n.level, n.index, n.hash) for n in completed]
    )
    return first


def append_object(store: sqlite3.Connection, kind: str, content: bytes) -> int:
    """Keep a signed record as an object and append the entry that names it."""
    name = digest(content)
    store.execute("INSERT OR IGNORE INTO objects VALUES (?, ?)", (name, content))
    return append(store, [encode(LoggedObject(kind, name))])


def sign_checkpoint(store: sqlite3.Connection, key: LogKey) -> bytes:
    """Sign the log as it stands and remember the note. Called once a transaction, at its end.

    Nothing signed here is ever contradicted: entries are append-only and the
    note is kept by the transaction that wrote the entries it covers.
    """
    count = size(store)
    root = _range(store, count).root()
    note = notes.sign(notes.Checkpoint(key.origin, count, root), key.seed, key.origin)
    store.execute("INSERT OR REPLACE INTO checkpoints VALUES (?, ?)", (count, note))
    return note


def latest_checkpoint(store: sqlite3.Connection) -> bytes | None:
    """Return the newest signed checkpoint, or None before the first."""
    row = store.execute("SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1").fetchone()
    return row[0] if row else None


def inclusion(store: sqlite3.Connection, position: int, tree_size: int) -> tuple[bytes, ...]:
    """Prove that the entry at `position` is in the tree of `tree_size` entries."""
    return tuple(prove_inclusion(_reader(store), position, tree_size))


def recent_consistency(store: sqlite3.Connection, tree_size: int) -> tuple[ConsistencyProof, ...]:
    """Prove that the trees of the latest checkpoints are prefixes of this one."""
    rows = store.execute(
        "SELECT size FROM checkpoints WHERE size < ? ORDER BY size DESC LIMIT ?",
        (tree_size, limits.RECENT_CHECKPOINTS),
    )
    return tuple(
        ConsistencyProof(
            old,
            tuple(prove_consistency(_reader(store), old, tree_size)),
        )
        for (old,) in rows
    )


def entries(store: sqlite3.Connection, first: int, end: int) -> list[bytes]:
    """Return the entries from `first` up to, not including, `end`."""
    rows = store.execute(
        "SELECT entry FROM entries WHERE position >= ? AND position < ? ORDER BY position",
        (first, end),
    )
    return [entry for (entry,) in rows]


def tile_bytes(store: sqlite3.Connection, tile: tiles.Tile) -> bytes:
    """Return the content of a tile or an entry bundle."""
    if tile.level is None:
        return tiles.encode_bundle(entries(store, tile.span.start, tile.span.stop))
    return tiles.encode_hashes(_reader(store), tile)


def _range(store: sqlite3.Connection, tree_size: int) -> CompactRange:
    hashes, begin = [], 0
    for level in reversed(range(tree_size.bit_length())):
        if tree_size >> level & 1:
            hashes.append(_node(store, level, begin >> level))
            begin += 1 << level
    return CompactRange(tree_size, tuple(hashes))


def _reader(store: sqlite3.Connection) -> NodeReader:
    return lambda level, position: _node(store, level, position)


def _node(store: sqlite3.Connection, level: int, position: int) -> bytes:
    row = store.execute(
        "SELECT hash FROM nodes WHERE level = ? AND position = ?", (level, position)
    ).fetchone()
    if row is None:
        raise StorageError(
            f"node {position} of level {level} is gone from the log's database: "
            "restore it from a backup"
        )
    found: bytes = row[0]
    return found
