"""What an aggregator keeps of releases: what it is bound to, what it said, what it heard.

Rules (SPEC 11.8, 11.10): a round has one row, made once and never changed, so the database
itself refuses a second set; a message is kept before it is offered, and what was kept is
never replaced. Callers hold a transaction where several writes belong together.
"""

import sqlite3
from dataclasses import dataclass

from vitalring.database import transaction

RELEASE_SCHEMA = """
CREATE TABLE releases (
    round INTEGER PRIMARY KEY,
    sum_key BLOB NOT NULL,
    plan BLOB NOT NULL,
    report BLOB NOT NULL,
    set_digest BLOB NOT NULL,
    nonce BLOB,
    begun_ms INTEGER,
    shown_ms INTEGER,
    counted BLOB
);
CREATE TRIGGER release_stands BEFORE UPDATE OF round, sum_key, plan, report, set_digest ON releases
BEGIN SELECT RAISE(ABORT, 'a round is released for one set only'); END;
CREATE TRIGGER release_stays BEFORE DELETE ON releases
BEGIN SELECT RAISE(ABORT, 'a round is released for one set only'); END;
CREATE TABLE release_messages (
    round INTEGER NOT NULL,
    hospital INTEGER NOT NULL,
    step TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    content BLOB NOT NULL,
    shown INTEGER NOT NULL,
    PRIMARY KEY (round, hospital, step, attempt)
);
CREATE TABLE release_sessions (
    round INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    sums INTEGER NOT NULL DEFAULT 0,
    exposed INTEGER NOT NULL DEFAULT 0,
    passed INTEGER,
    PRIMARY KEY (round, attempt)
);
CREATE TABLE release_refusals (
    round INTEGER NOT NULL,
    set_digest BLOB NOT NULL,
    content BLOB NOT NULL,
    reason TEXT NOT NULL,
    subject BLOB NOT NULL,
    detail TEXT NOT NULL,
    PRIMARY KEY (round, set_digest)
);
"""

Key = tuple[int, str, int]
"""Hospital, step and attempt: what names a message of a round."""


@dataclass(frozen=True)
class Refused:
    """Why a hospital decrypts nothing of a round: a word of REFUSALS, of what, and in words."""

    reason: str
    subject: bytes
    detail: str


@dataclass(frozen=True)
class Bound:
    """What a round is bound to for ever."""

    sum_key: bytes
    plan: bytes
    report: bytes
    set: bytes


@dataclass(frozen=True)
class Times:
    """When a release began and when its nonce was shown, and to whose commitments."""

    begun_ms: int | None
    shown_ms: int | None
    counted: tuple[int, ...]


class RoundStore:
    """One round's rows."""

    def __init__(self, db: sqlite3.Connection, number: int, sum_key: bytes) -> None:
        self.db = db
        self._number = number
        self._sum_key = sum_key

    def bound(self) -> tuple[Bound, bytes | None] | None:
        """Return what the round is bound to, and its nonce unless that is forgotten."""
        row = self.db.execute(
            "SELECT sum_key, plan, report, set_digest, nonce FROM releases WHERE round = ?",
            (self._number,),
        ).fetchone()
        return (Bound(*row[:4]), row[4]) if row else None

    def bind(self, bound: Bound, nonce: bytes) -> None:
        """Bind the round. Raises sqlite3.IntegrityError if it is bound."""
        self.db.execute(
            "INSERT INTO releases (round, sum_key, plan, report, set_digest, nonce) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (self._number, bound.sum_key, bound.plan, bound.report, bound.set, nonce),
        )

    def times(self) -> Times:
        """Return when the round began and its nonce was shown."""
        begun, shown, counted = self.db.execute(
            "SELECT begun_ms, shown_ms, counted FROM releases WHERE round = ?", (self._number,)
        ).fetchone()
        return Times(begun, shown, tuple(counted or b""))

    def begin(self, now_ms: int) -> None:
        """Keep when the round began."""
        self.db.execute(
            "UPDATE releases SET begun_ms = ? WHERE round = ? AND begun_ms IS NULL",
            (now_ms, self._number),
        )

    def count(self, now_ms: int, hospitals: tuple[int, ...]) -> None:
        """Keep when the nonce was shown, and whose commitments were there."""
        self.db.execute(
            "UPDATE releases SET shown_ms = ?, counted = ? WHERE round = ? AND shown_ms IS NULL",
            (now_ms, bytes(hospitals), self._number),
        )

    def put(self, key: Key, content: bytes, *, shown: bool = True) -> None:
        """Keep a message. Raises sqlite3.IntegrityError if there is one under this key."""
        self.db.execute(
            "INSERT INTO release_messages VALUES (?, ?, ?, ?, ?, ?)",
            (self._number, *key, content, shown),
        )

    def show(self, key: Key) -> None:
        """Let out a message that was kept back."""
        self.db.execute(
            "UPDATE release_messages SET shown = 1 "
            "WHERE round = ? AND hospital = ? AND step = ? AND attempt = ?",
            (self._number, *key),
        )

    def keys(self) -> dict[Key, bool]:
        """Return the names of all messages of the round, and whether each is shown."""
        rows = self.db.execute(
            "SELECT hospital, step, attempt, shown FROM release_messages WHERE round = ?",
            (self._number,),
        )
        return {(hospital, step, attempt): bool(shown) for hospital, step, attempt, shown in rows}

    def get(self, key: Key) -> bytes:
        """Return a message that is there."""
        row = self.db.execute(
            "SELECT content FROM release_messages "
            "WHERE round = ? AND hospital = ? AND step = ? AND attempt = ?",
            (self._number, *key),
        ).fetchone()
        return bytes(row[0])

    def open_session(self, attempt: int, sums: int) -> None:
        """Keep that so many sums are decrypted with a set of members."""
        self._session(attempt)
        self.db.execute(
            "UPDATE release_sessions SET sums = ? WHERE round = ? AND attempt = ?",
            (sums, self._number, attempt),
        )

    def expose(self, attempt: int) -> None:
        """Keep that a check of these members leaves, before it does."""
        self._session(attempt)
        self.db.execute(
            "UPDATE release_sessions SET exposed = 1 WHERE round = ? AND attempt = ?",
            (self._number, attempt),
        )

    def judge(self, attempt: int, *, passed: bool) -> None:
        """Keep whether a check passed."""
        self.expose(attempt)
        self.db.execute(
            "UPDATE release_sessions SET passed = ? WHERE round = ? AND attempt = ?",
            (passed, self._number, attempt),
        )

    def verdicts(self) -> dict[int, bool]:
        """Return which checks were opened, and whether they passed."""
        rows = self.db.execute(
            "SELECT attempt, passed FROM release_sessions WHERE round = ? AND passed IS NOT NULL",
            (self._number,),
        )
        return {attempt: bool(passed) for attempt, passed in rows}

    def failures_before(self) -> int:
        """Return the failed checks of other rounds with this key."""
        return failed_checks(self.db, self._sum_key, self._number)

    def sums_decrypted(self) -> int:
        """Return how often this key was used here, in all rounds."""
        row = self.db.execute(
            "SELECT COALESCE(SUM(sums), 0) FROM release_sessions JOIN releases USING (round) "
            "WHERE sum_key = ?",
            (self._sum_key,),
        ).fetchone()
        return int(row[0])

    def refusal(self, set_: bytes) -> tuple[bytes, Refused] | None:
        """Return the signed refusal of a set, and what it says."""
        row = self.db.execute(
            "SELECT content, reason, subject, detail FROM release_refusals "
            "WHERE round = ? AND set_digest = ?",
            (self._number, set_),
        ).fetchone()
        return (bytes(row[0]), Refused(*row[1:])) if row else None

    def refuse(self, set_: bytes, content: bytes, refused: Refused) -> None:
        """Keep a refusal; the first of a set stands."""
        self.db.execute(
            "INSERT OR IGNORE INTO release_refusals VALUES (?, ?, ?, ?, ?, ?)",
            (self._number, set_, content, refused.reason, refused.subject, refused.detail),
        )

    def _session(self, attempt: int) -> None:
        self.db.execute(
            "INSERT OR IGNORE INTO release_sessions (round, attempt) VALUES (?, ?)",
            (self._number, attempt),
        )


def failed_checks(db: sqlite3.Connection, sum_key: bytes, except_round: int = 0) -> int:
    """Return how many checks failed with a key, or were never answered (SPEC 11.10).

    A check that passes shows that its round's sum holds encryptions only, so others of that
    round showed nothing.
    """
    row = db.execute(
        "SELECT COUNT(*) FROM release_sessions s JOIN releases r USING (round) "
        "WHERE r.sum_key = ? AND s.exposed AND s.round != ? AND NOT EXISTS "
        "(SELECT 1 FROM release_sessions p WHERE p.round = s.round AND p.passed)",
        (sum_key, except_round),
    ).fetchone()
    return int(row[0])


def trust_opened(db: sqlite3.Connection, number: int) -> None:
    """Take the checks of a round for passed whose sum hospitals applied (SPEC 11.10).

    As many signed the model as decrypt, so one honest one at least saw a check of it pass: those
    that stayed unanswered, because this hospital was gone, showed nothing.
    """
    with transaction(db):
        db.execute(
            "UPDATE release_sessions SET passed = 1 WHERE round = ? AND exposed AND passed IS NULL",
            (number,),
        )


def forget_releases_before(db: sqlite3.Connection, number: int) -> None:
    """Drop messages and nonces of rounds that are over; what binds a round stays for ever.

    Another hospital's commitment to another set stays too, as evidence.
    """
    with transaction(db):
        db.execute("DELETE FROM release_messages WHERE round < ? AND step != 'evidence'", (number,))
        db.execute("UPDATE releases SET nonce = NULL WHERE round < ?", (number,))
