"""The windows of a device and what is said of them, in one SQLite file.

Rules kept here: the windows that a block completed, the labels it gave, the samples of the window
begun and the place where the source goes on are written in one transaction, so a power cut loses
and doubles nothing; the file is bounded, and what is dropped is counted; a window's label follows
from the annotations that stand at the moment, so late ones reach it and withdrawn ones leave it,
and it depends on no other window.

Other processes may write annotations (`mark`) and read everything; one process cuts windows.
"""

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vitalring.database import open_database, transaction
from vitalring.edge_agent.sensing.config import SensingConfig
from vitalring.edge_agent.sensing.cutting import Carry, Signal, Window
from vitalring.edge_agent.sensing.labels import (
    MAX_ANNOTATIONS,
    Annotation,
    Change,
    Verdict,
    key_of,
    verdict,
)
from vitalring.edge_agent.sensing.rules import Hold
from vitalring.errors import ConfigError
from vitalring.mqtt import new_client_id

FILE = "sensing.sqlite"
_LAYOUT = 1
_PAGE = 1000
_SCHEMA = """
CREATE TABLE windows (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    start_ms INTEGER NOT NULL, end_ms INTEGER NOT NULL, stored_ms INTEGER NOT NULL,
    label TEXT, conflict INTEGER NOT NULL
);
CREATE INDEX windows_by_time ON windows (start_ms, number);
CREATE INDEX windows_unlabelled ON windows (number) WHERE label IS NULL;
CREATE TABLE samples (number INTEGER PRIMARY KEY, x BLOB NOT NULL);
CREATE TRIGGER windows_dropped AFTER DELETE ON windows
    BEGIN DELETE FROM samples WHERE number = OLD.number; END;
CREATE TABLE annotations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    origin TEXT NOT NULL, key TEXT NOT NULL,
    start_ms INTEGER NOT NULL, end_ms INTEGER NOT NULL, label TEXT NOT NULL,
    UNIQUE (origin, key)
);
CREATE INDEX annotations_by_time ON annotations (start_ms, end_ms);
CREATE TABLE carry (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    times BLOB NOT NULL, samples BLOB NOT NULL, skip INTEGER NOT NULL, last_us INTEGER
);
CREATE TABLE streams (
    name TEXT PRIMARY KEY, source TEXT NOT NULL, position BLOB NOT NULL,
    last_us INTEGER, received_ms INTEGER
);
CREATE TABLE holds (rule TEXT PRIMARY KEY, since_us INTEGER, last_us INTEGER);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Place:
    """Where a stream stands after a block: what its source goes on from, and its last sample."""

    stream: str
    source: str
    position: bytes
    last_us: int | None


@dataclass(frozen=True, eq=False)
class Intake:
    """What a block of samples brings: all of it is kept, or nothing."""

    place: Place
    counts: Mapping[str, int]
    carry: Carry | None = None
    windows: tuple[Window, ...] = field(default=(), repr=False)
    holds: Mapping[str, Hold] = field(default_factory=dict)
    changes: Sequence[tuple[str, Change]] = ()
    """Annotations by their origin."""


class Buffer:
    """The device's buffer, opened by the process that cuts its windows, or to write a mark."""

    def __init__(self, state_dir: Path, config: SensingConfig) -> None:
        """Open or create it. Raises StorageError, or ConfigError where it holds other windows."""
        self.path = state_dir / FILE
        self._config = config
        self._min_overlap = config.labels.min_overlap if config.labels else 1.0
        self._longest_ms = config.sensor.layout.longest_ms
        self._looked_ms: int | None = None
        self.db = open_database(self.path, _SCHEMA, _LAYOUT)
        try:
            self._check_shape()
        except BaseException:
            self.db.close()
            raise

    def close(self) -> None:
        """Close the database."""
        self.db.close()

    def _check_shape(self) -> None:
        sensor = self._config.sensor
        shape = json.dumps(
            {
                "sampling_hz": sensor.sampling_hz,
                "window": sensor.window,
                "channels": sensor.channels,
                "inputs": sensor.inputs,
                "scale": sensor.scale,
            }
        )
        with transaction(self.db):
            self.db.execute("INSERT OR IGNORE INTO about VALUES ('shape', ?)", (shape,))
            kept = self.db.execute("SELECT value FROM about WHERE name = 'shape'").fetchone()[0]
        if kept != shape:
            raise ConfigError(
                f"{self.path} holds windows of another sensor ({kept}), [sensor] says {shape}: "
                "move the file away to begin anew"
            )

    def session(self, name: str) -> str:
        """Return the client id under which a broker keeps messages for us, drawn once."""
        with transaction(self.db):
            self.db.execute(
                "INSERT OR IGNORE INTO about VALUES (?, ?)", (f"session {name}", new_client_id())
            )
        row = self.db.execute(
            "SELECT value FROM about WHERE name = ?", (f"session {name}",)
        ).fetchone()
        return str(row[0])

    def carry(self) -> Carry:
        """Return where cutting stands."""
        width = self._config.sensor.width
        row = self.db.execute("SELECT times, samples, skip, last_us FROM carry").fetchone()
        if row is None:
            return Carry.start(width)
        times, samples, skip, last_us = row
        return Carry(
            np.frombuffer(times, "<i8").astype(np.int64),
            np.frombuffer(samples, "<f4").astype(np.float32).reshape(-1, width),
            skip,
            last_us,
        )

    def position(self, stream: str, source: str) -> bytes:
        """Return where a stream's source goes on; no bytes at the first start of this source."""
        row = self.db.execute(
            "SELECT position FROM streams WHERE name = ? AND source = ?", (stream, source)
        ).fetchone()
        return bytes(row[0]) if row else b""

    def hold(self, rule: str) -> Hold:
        """Return how long a rule's condition has been met."""
        row = self.db.execute("SELECT since_us, last_us FROM holds WHERE rule = ?", (rule,))
        return Hold(*(row.fetchone() or (None, None)))

    def last_number(self) -> int:
        """Return the number of the newest window ever cut, kept or not."""
        return last_number(self.db)

    def handed(self) -> int:
        """Return the number of the last window known to have been handed on."""
        return self._counter("handed")

    def windows_after(self, number: int, most: int) -> list[Window]:
        """Return the kept windows with greater numbers, at most so many, the oldest first."""
        width = self._config.sensor.width
        rows = self.db.execute(
            "SELECT start_ms, end_ms, x, number FROM windows JOIN samples USING (number) "
            "WHERE number > ? ORDER BY number LIMIT ?",
            (number, most),
        )
        return [Window(start, end, _signal(x, width), number) for start, end, x, number in rows]

    def keep(self, intake: Intake, handed: int, now_ms: int) -> tuple[Window, ...]:
        """Write what a block brought; return its windows with their numbers. Raises StorageError.

        `handed` is the number of the last window handed on so far.
        """
        with transaction(self.db):
            windows = self._insert(intake.windows, now_ms)
            for origin, change in intake.changes:
                self._apply(origin, change)
            self._keep_place(intake, now_ms)
            self._count(intake.counts)
            self.db.execute("INSERT OR REPLACE INTO counters VALUES ('handed', ?)", (handed,))
            self._drop(now_ms)
        return windows

    def note_handed(self, handed: int) -> None:
        """Remember the number of the last window handed on."""
        with transaction(self.db):
            self.db.execute("INSERT OR REPLACE INTO counters VALUES ('handed', ?)", (handed,))

    def tidy(self, now_ms: int) -> None:
        """Drop what is too old, while nothing arrives too."""
        if self._may_be_old(now_ms):
            with transaction(self.db):
                self._drop(now_ms)

    def annotate(
        self, changes: Iterable[tuple[str, Change]], counts: Mapping[str, int] | None = None
    ) -> None:
        """Set and withdraw annotations, by origin and key, and label anew what they touch."""
        with transaction(self.db):
            for origin, change in changes:
                self._apply(origin, change)
            self._count(counts or {})

    def replace(self, origin: str, annotations: frozenset[Annotation], bad: int) -> None:
        """Make `annotations` all that an origin says; `bad` of its lines cannot be read."""
        kept = {
            Annotation(start, end, label): key
            for key, start, end, label in self.db.execute(
                "SELECT key, start_ms, end_ms, label FROM annotations WHERE origin = ?", (origin,)
            )
        }
        changes = [Change(key, None) for each, key in kept.items() if each not in annotations]
        changes += [
            Change(key_of(each), each)
            for each in sorted(annotations - kept.keys(), key=lambda each: each.start_ms)
        ]
        with transaction(self.db):
            for change in changes:
                self._apply(origin, change)
            self.db.execute(
                "INSERT OR REPLACE INTO counters VALUES ('bad_annotation_lines', ?)", (bad,)
            )

    def count(self, counts: Mapping[str, int]) -> None:
        """Add to counters."""
        with transaction(self.db):
            self._count(counts)

    def labelled(self, said: Annotation) -> int:
        """Count the windows of an annotation's time that have its label."""
        row = self.db.execute(
            "SELECT COUNT(*) FROM windows "
            "WHERE start_ms > ? AND start_ms < ? AND end_ms > ? AND label = ?",
            (said.start_ms - self._longest_ms, said.end_ms, said.start_ms, said.label),
        )
        return int(row.fetchone()[0])

    def _insert(self, windows: Sequence[Window], now_ms: int) -> tuple[Window, ...]:
        if not windows:
            return ()
        about = self._annotations(min(w.start_ms for w in windows), max(w.end_ms for w in windows))
        stored = []
        for window in windows:
            said = verdict(window.start_ms, window.end_ms, about, self._min_overlap)
            number = self.db.execute(
                "INSERT INTO windows (start_ms, end_ms, stored_ms, label, conflict) "
                "VALUES (?, ?, ?, ?, ?)",
                (window.start_ms, window.end_ms, now_ms, said.label, said.conflict),
            ).lastrowid
            self.db.execute(
                "INSERT INTO samples VALUES (?, ?)", (number, window.x.astype("<f4").tobytes())
            )
            stored.append(Window(window.start_ms, window.end_ms, window.x, number or 0))
        return tuple(stored)

    def _apply(self, origin: str, change: Change) -> None:
        """Set or withdraw one annotation, and label anew what that touches."""
        row = self.db.execute(
            "DELETE FROM annotations WHERE origin = ? AND key = ? "
            "RETURNING start_ms, end_ms, label",
            (origin, change.key),
        ).fetchone()
        old, new = Annotation(*row) if row else None, change.annotation
        if new is not None:
            self.db.execute(
                "INSERT INTO annotations (origin, key, start_ms, end_ms, label) "
                "VALUES (?, ?, ?, ?, ?)",
                (origin, change.key, new.start_ms, new.end_ms, new.label),
            )
        for start_ms, end_ms in _touched(old, new):
            self._relabel(start_ms, end_ms)

    def _relabel(self, start_ms: int, end_ms: int) -> None:
        """Judge anew every window that overlaps [start_ms, end_ms), a page at a time."""
        place = (start_ms - self._longest_ms, 0)
        while True:
            page = self.db.execute(
                "SELECT number, start_ms, end_ms, label, conflict FROM windows "
                "WHERE (start_ms, number) > (?, ?) AND start_ms < ? "
                "ORDER BY start_ms, number LIMIT ?",
                (*place, end_ms, _PAGE),
            ).fetchall()
            if not page:
                return
            place = (page[-1][1], page[-1][0])
            about = self._annotations(page[0][1], max(row[2] for row in page))
            changed = []
            for number, start, end, label, conflict in page:
                if end <= start_ms:
                    continue
                said = verdict(start, end, about, self._min_overlap)
                if said != Verdict(label, bool(conflict)):
                    changed.append((said.label, said.conflict, number))
            self.db.executemany(
                "UPDATE windows SET label = ?, conflict = ? WHERE number = ?", changed
            )

    def _annotations(self, start_ms: int, end_ms: int) -> list[Annotation]:
        rows = self.db.execute(
            "SELECT start_ms, end_ms, label FROM annotations "
            "WHERE start_ms < ? AND end_ms > ? ORDER BY start_ms, id",
            (end_ms, start_ms),
        )
        return [Annotation(*row) for row in rows]

    def _keep_place(self, intake: Intake, now_ms: int) -> None:
        place = intake.place
        self.db.execute(
            "INSERT OR REPLACE INTO streams VALUES (?, ?, ?, ?, ?)",
            (place.stream, place.source, place.position, place.last_us, now_ms),
        )
        carry = intake.carry
        if carry is not None:
            self.db.execute(
                "INSERT OR REPLACE INTO carry VALUES (1, ?, ?, ?, ?)",
                (
                    carry.times.astype("<i8").tobytes(),
                    carry.values.astype("<f4").tobytes(),
                    carry.skip,
                    carry.last_us,
                ),
            )
        for rule, hold in intake.holds.items():
            self.db.execute(
                "INSERT OR REPLACE INTO holds VALUES (?, ?, ?)", (rule, hold.since_us, hold.last_us)
            )

    def _count(self, counts: Mapping[str, int]) -> None:
        self.db.executemany(
            "INSERT INTO counters VALUES (?, ?) "
            "ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            [(name, count) for name, count in counts.items() if count],
        )

    def _counter(self, name: str) -> int:
        row = self.db.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else 0

    def _may_be_old(self, now_ms: int) -> bool:
        # Looking takes a pass over the table; a minute more or less is nothing to days.
        return self._looked_ms is None or abs(now_ms - self._looked_ms) >= 60_000

    def _drop(self, now_ms: int) -> None:
        """Keep the file within its bounds: of age, then of size.

        For size the oldest unlabelled window goes first, then the oldest labelled one, and none
        of the newest `rows`.
        """
        if self._may_be_old(now_ms):
            self._looked_ms = now_ms
            oldest = now_ms - int(self._config.buffer.days * 86_400_000)
            gone = self.db.execute("DELETE FROM windows WHERE stored_ms < ?", (oldest,)).rowcount
            self._count({"expired": gone})
            self._drop_annotations()
        kept = self.db.execute("SELECT COUNT(*) FROM windows").fetchone()[0]
        excess = kept - self._config.capacity
        protected = self.last_number() - self._config.buffer.rows
        for name, condition in (
            ("dropped_unlabelled", "label IS NULL"),
            ("dropped_labelled", "label IS NOT NULL"),
        ):
            if excess <= 0:
                return
            gone = self.db.execute(
                "DELETE FROM windows WHERE number IN (SELECT number FROM windows "  # noqa: S608
                f"WHERE {condition} AND number <= ? ORDER BY number LIMIT ?)",
                (protected, excess),
            ).rowcount
            self._count({name: gone})
            excess -= gone

    def _drop_annotations(self) -> None:
        crowded = self.db.execute(
            "SELECT origin, COUNT(*) - ? FROM annotations GROUP BY origin HAVING COUNT(*) > ?",
            (MAX_ANNOTATIONS, MAX_ANNOTATIONS),
        ).fetchall()
        for origin, excess in crowded:
            oldest = self.db.execute(
                "SELECT key FROM annotations WHERE origin = ? ORDER BY id LIMIT ?",
                (origin, excess),
            ).fetchall()
            for (key,) in oldest:
                self._apply(origin, Change(key, None))
            self._count({"dropped_annotations": excess})


def last_number(db: sqlite3.Connection) -> int:
    """Return the number of the newest window ever cut."""
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'windows'").fetchone()
    return int(row[0]) if row else 0


def _touched(old: Annotation | None, new: Annotation | None) -> list[tuple[int, int]]:
    """Return the times of which something else is said now."""
    if old is None or new is None or old.label != new.label:
        return [(each.start_ms, each.end_ms) for each in (old, new) if each is not None]
    starts, ends = sorted((old.start_ms, new.start_ms)), sorted((old.end_ms, new.end_ms))
    return [(low, high) for low, high in (starts, ends) if low < high]


def _signal(x: bytes, width: int) -> Signal:
    return np.frombuffer(x, "<f4").astype(np.float32).reshape(-1, width)
