"""What this device has spent of its records' privacy, over all studies (SPEC 7.9).

Rules kept here: neighbours are data sets with and without one record, whatever
unit a study protects (`guarantee.budget_spend`); a study is authorised once,
with all its rounds, against the device's own limit; a round is charged and
committed before it trains; what was charged stays charged; entries form a hash
chain that is verified whole before each use; every doubt raises PrivacyError,
and no clock is asked. The chain has no key: it shows damage and careless
restoring, not an owner who forges the file. For a restored older file there is
`charge_unaccounted`.

`Budget` works inside transactions that its caller opens, so that an agent may
keep budget and outbox in one file and commit both at once. `BudgetFile` is a
file of its own that opens and commits them.
"""

import hashlib
import math
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from vitalring.database import open_database, transaction
from vitalring.edge_agent.accountant import Accountant, merge
from vitalring.errors import PrivacyError, StorageError
from vitalring.protocol.privacy import Spend

SCHEMA: Final = """
CREATE TABLE privacy_budget (
    position INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    study_plan BLOB NOT NULL,
    round_plan BLOB NOT NULL,
    study TEXT NOT NULL,
    round INTEGER NOT NULL,
    sampling_rate REAL NOT NULL,
    noise_multiplier REAL NOT NULL,
    steps INTEGER NOT NULL,
    epsilon REAL NOT NULL,
    delta REAL NOT NULL,
    chain BLOB NOT NULL
);
CREATE TABLE privacy_budget_head (entries INTEGER NOT NULL, chain BLOB NOT NULL);
INSERT INTO privacy_budget_head VALUES (0, zeroblob(32))
"""
"""Tables for a database that the budget shares; it runs once, on a new file."""

LAYOUT_VERSION: Final = 2

AUTHORISED, CHARGED, UNACCOUNTED, CLOSED = "authorised", "charged", "unaccounted", "closed"
NO_ROUND: Final = bytes(32)
_KINDS: Final = (AUTHORISED, CHARGED, UNACCOUNTED, CLOSED)


@dataclass(frozen=True)
class Entry:
    """One line of the budget.

    `study_plan` and `round_plan` are digests; a round plan stands for one
    release. `round` is the round charged. An authorisation has the number of
    rounds allowed there and no round plan, a closing has 0. `spend` is that
    of one round.
    """

    kind: str
    study_plan: bytes
    round_plan: bytes
    study: str
    round: int
    spend: Spend


class Budget:
    """The budget in a database that holds `SCHEMA`; never commits on its own."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Verify the whole chain. Raises PrivacyError."""
        with _fails_closed():
            level = connection.execute("PRAGMA synchronous").fetchone()[0]
        if level < 2:
            raise PrivacyError("the budget's database does not wait for the disk: synchronous=FULL")
        self._connection = connection
        self.entries()

    def entries(self) -> tuple[Entry, ...]:
        """Read and verify the chain, oldest entry first. Raises PrivacyError."""
        return self._load()[0]

    def authorise(
        self,
        study_plan: bytes,
        study: str,
        spend: Spend,
        rounds: int,
        *,
        limit: float,
        delta: float,
        accountant: Accountant,
    ) -> float:
        """Allow `rounds` rounds of `spend` each, if all commitments together keep the limit.

        Returns the epsilon at `delta` of everything spent or allowed, this
        study included. A study authorised before with the same numbers is held
        against the limit again and not written twice. Raises PrivacyError
        when over the limit.
        """
        entries = self.entries()
        wanted = Entry(AUTHORISED, study_plan, NO_ROUND, study, rounds, spend)
        known = _authorisation(entries, study_plan)
        if known not in (None, wanted):
            raise PrivacyError(f"study {study} was authorised with other numbers: {known}")
        _refuse_closed(entries, study_plan, study)
        total = accountant(committed_of(entries if known else (*entries, wanted)), delta)
        if not total <= limit:
            raise PrivacyError(
                f"study {study} would bring this device to epsilon {total:.4f} at delta {delta:g}, "
                f"its limit is {limit:g}: refuse the study, or close one that has ended"
            )
        if known is None:
            self._append(wanted)
        return total

    def is_authorised(self, study_plan: bytes) -> bool:
        """Say whether a study was held against the limit and is not closed."""
        entries = self.entries()
        return _authorisation(entries, study_plan) is not None and not _closed(entries, study_plan)

    def reserve(
        self, study_plan: bytes, round_plan: bytes, study: str, round_number: int, spend: Spend
    ) -> bool:
        """Charge a round of an authorised study; commit before training starts.

        True when the round was charged now, False when this round plan had
        been charged before: then training may run again only if nothing that
        was made under it can have left the device. Raises PrivacyError for a
        round that the authorisation does not cover.
        """
        entries = self.entries()
        authorised = _authorisation(entries, study_plan)
        # 1. The study was held against the limit, with these numbers.
        if authorised is None:
            raise PrivacyError(f"study {study} is not authorised: its rounds cannot be charged")
        if (authorised.study, authorised.spend) != (study, spend):
            raise PrivacyError(
                f"round {round_number} of {study} spends {spend}, "
                f"{authorised.study} was authorised for {authorised.spend}"
            )
        # 2. A round plan charged once stays charged, and is charged once.
        charged = _charged(entries, study_plan)
        if round_plan in charged:
            return False
        # 3. The study has not ended and has rounds left.
        _refuse_closed(entries, study_plan, study)
        if len(charged) >= authorised.round:
            raise PrivacyError(
                f"study {study} was authorised for {authorised.round} rounds, all are spent"
            )
        self._append(Entry(CHARGED, study_plan, round_plan, study, round_number, spend))
        return True

    def charge_unaccounted(
        self, study_plan: bytes, round_plan: bytes, study: str, round_number: int, spend: Spend
    ) -> bool:
        """Charge a round that the public log shows this device took part in (SPEC 7.8).

        For a device restored from a backup: no authorisation is asked and no
        limit applies, since the loss has happened. False when the round was
        on record already. Raises PrivacyError.
        """
        if round_plan in _charged(self.entries(), study_plan):
            return False
        self._append(Entry(UNACCOUNTED, study_plan, round_plan, study, round_number, spend))
        return True

    def close(self, study_plan: bytes) -> None:
        """End a study on this device: rounds that it did not use are no longer reserved.

        Closing twice changes nothing. Raises PrivacyError for a study that was
        never authorised.
        """
        entries = self.entries()
        known = _authorisation(entries, study_plan)
        if known is None:
            raise PrivacyError("a study that was never authorised cannot be closed")
        if not _closed(entries, study_plan):
            self._append(Entry(CLOSED, study_plan, NO_ROUND, known.study, 0, known.spend))

    def spent(self) -> tuple[Spend, ...]:
        """Return all rounds charged, of all studies, for the accountant."""
        return spent_of(self.entries())

    def committed(self) -> tuple[Spend, ...]:
        """Return what is spent and what open studies may still spend."""
        return committed_of(self.entries())

    def _append(self, entry: Entry) -> None:
        if not self._connection.in_transaction:
            raise PrivacyError("the budget is written inside a transaction only")
        _check(entry)
        entries, head = self._load()
        chain = _link(head, len(entries) + 1, entry)
        spend = entry.spend
        with _fails_closed():
            self._connection.execute(
                "INSERT INTO privacy_budget VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    len(entries) + 1,
                    entry.kind,
                    entry.study_plan,
                    entry.round_plan,
                    entry.study,
                    entry.round,
                    spend.sampling_rate,
                    spend.noise_multiplier,
                    spend.steps,
                    spend.epsilon,
                    spend.delta,
                    chain,
                ),
            )
            self._connection.execute(
                "UPDATE privacy_budget_head SET entries = ?, chain = ?", (len(entries) + 1, chain)
            )

    def _load(self) -> tuple[tuple[Entry, ...], bytes]:
        """Return the entries and the head of the chain, verified (SPEC 7.9)."""
        with _fails_closed():
            rows = self._connection.execute(
                "SELECT position, chain, kind, study_plan, round_plan, study, round, "
                "sampling_rate, noise_multiplier, steps, epsilon, delta "
                "FROM privacy_budget ORDER BY position"
            ).fetchall()
            heads = self._connection.execute(
                "SELECT entries, chain FROM privacy_budget_head"
            ).fetchall()
        entries: list[Entry] = []
        head = bytes(32)
        for expected, row in enumerate(rows, start=1):
            position, chain, kind, study_plan, round_plan, study, number, *numbers = row
            entry = Entry(kind, study_plan, round_plan, study, number, Spend(*numbers))
            # 1. Fields are of their kind, so that hashing them means something.
            _check(entry)
            # 2. Each entry follows the one before.
            head = _link(head, expected, entry)
            if position != expected or chain != head:
                raise PrivacyError(
                    f"entry {expected} of the privacy budget is damaged: nothing is trained "
                    "until the device is enrolled anew or its backup is restored"
                )
            entries.append(entry)
        # 3. None is missing at the end.
        if heads != [(len(entries), head)]:
            raise PrivacyError(
                f"the privacy budget ends after {len(entries)} entries and its head says otherwise"
            )
        return tuple(entries), head


class BudgetFile:
    """A budget in a file of its own."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Open the file, or make a new one where `create` says so.

        Raises PrivacyError when the file is missing or not whole: a lost
        budget must not count as an unspent one.
        """
        if create == path.exists():
            state = "exists already" if create else "is missing"
            raise PrivacyError(f"the privacy budget {path} {state}")
        try:
            self._connection = open_database(path, SCHEMA, LAYOUT_VERSION)
        except (StorageError, UnicodeError) as error:  # damaged table names do not decode
            raise PrivacyError(f"the privacy budget {path} cannot be read: {error}") from error
        try:
            self.budget = Budget(self._connection)
        except PrivacyError:
            self._connection.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[Budget]:
        """Durable on the disk when the block has ended without an error, undone otherwise."""
        with transaction(self._connection):
            yield self.budget

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def spent_of(entries: Sequence[Entry]) -> tuple[Spend, ...]:
    """Return the rounds that are charged in these entries."""
    return merge(entry.spend for entry in entries if entry.kind in (CHARGED, UNACCOUNTED))


def committed_of(entries: Sequence[Entry]) -> tuple[Spend, ...]:
    """Add the rounds that open studies have left to the rounds charged."""
    spends = [entry.spend for entry in entries if entry.kind in (CHARGED, UNACCOUNTED)]
    for entry in entries:
        if entry.kind == AUTHORISED and not _closed(entries, entry.study_plan):
            left = max(0, entry.round - len(_charged(entries, entry.study_plan)))
            spends.append(replace(entry.spend, steps=entry.spend.steps * left))
    return merge(spends)


def _authorisation(entries: Sequence[Entry], study_plan: bytes) -> Entry | None:
    return next((e for e in entries if e.kind == AUTHORISED and e.study_plan == study_plan), None)


def _closed(entries: Sequence[Entry], study_plan: bytes) -> bool:
    return any(e.kind == CLOSED and e.study_plan == study_plan for e in entries)


def _refuse_closed(entries: Sequence[Entry], study_plan: bytes, study: str) -> None:
    if _closed(entries, study_plan):
        raise PrivacyError(f"study {study} is closed on this device")


def _charged(entries: Sequence[Entry], study_plan: bytes) -> set[bytes]:
    return {
        e.round_plan
        for e in entries
        if e.study_plan == study_plan and e.kind in (CHARGED, UNACCOUNTED)
    }


def _check(entry: Entry) -> None:
    """Refuse what has more than one reading: SQLite keeps any kind of value in any column."""
    spend = entry.spend
    sound = (
        entry.kind in _KINDS
        and all(type(d) is bytes and len(d) == 32 for d in (entry.study_plan, entry.round_plan))
        and type(entry.study) is str
        and entry.study.isascii()
        and all(type(n) is int and 0 <= n < 2**63 for n in (entry.round, spend.steps))
        and all(type(v) is float and v > 0.0 for v in (spend.sampling_rate, spend.noise_multiplier))
        and spend.sampling_rate <= 1.0
        and math.isfinite(spend.noise_multiplier)
        and spend.steps > 0
        and all(type(v) is float and 0.0 <= v < math.inf for v in (spend.epsilon, spend.delta))
    )
    if not sound:
        raise PrivacyError(f"{entry} cannot stand in a privacy budget")


def _link(previous: bytes, position: int, entry: Entry) -> bytes:
    """Hash of an entry and of all before it; fixed lengths first, so that one reading exists."""
    spend = entry.spend
    fixed = struct.pack(
        ">32sQB32s32sQddQdd",
        previous,
        position,
        _KINDS.index(entry.kind),
        entry.study_plan,
        entry.round_plan,
        entry.round,
        spend.sampling_rate,
        spend.noise_multiplier,
        spend.steps,
        spend.epsilon,
        spend.delta,
    )
    return hashlib.sha256(fixed + entry.study.encode("ascii")).digest()


@contextmanager
def _fails_closed() -> Iterator[None]:
    """SQLite's complaints become PrivacyError: an unreadable budget allows nothing."""
    try:
        yield
    except (sqlite3.Error, OverflowError, UnicodeError) as error:
        raise PrivacyError(f"the privacy budget cannot be read or written: {error}") from error
