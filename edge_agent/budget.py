"""What this device has spent of its records' privacy, over all studies (SPEC 7.9).

Rules kept here: neighbours are data sets with and without one record, whatever
unit a study protects (`guarantee.budget_spend`); a record belongs to one class
of data, and what may have been spent of a class is added up against its limit
(SPEC 7.19, `against`); a study is authorised once, with all its rounds, against the
device's own limit; a round is charged and committed before it trains; what was
charged stays charged; entries form a hash chain that is verified whole before
each use; every doubt raises PrivacyError, and no clock is asked. The chain has
no key: it shows damage and careless restoring, not an owner who forges the
file. For a restored older file there is `charge_unaccounted`.

`Budget` works inside transactions that its caller opens, so that an agent may
keep budget and outbox in one file and commit both at once.
"""

import hashlib
import math
import sqlite3
import struct
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from vitalring.edge_agent.accountant import Accountant, merge
from vitalring.errors import PrivacyError
from vitalring.protocol.guarantee import Allowance
from vitalring.protocol.privacy import Spend

SCHEMA: Final = """
CREATE TABLE privacy_budget (
    position INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    study_plan BLOB NOT NULL,
    round_plan BLOB NOT NULL,
    study TEXT NOT NULL,
    data_class TEXT NOT NULL,
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

AUTHORISED, CHARGED, UNACCOUNTED, CLOSED = "authorised", "charged", "unaccounted", "closed"
NO_ROUND: Final = bytes(32)
_KINDS: Final = (AUTHORISED, CHARGED, UNACCOUNTED, CLOSED)


@dataclass(frozen=True)
class Entry:
    """One line of the budget.

    `study_plan` and `round_plan` are digests; a round plan stands for one
    release. `round` is the round charged. An authorisation has the number of
    rounds allowed there and no round plan, a closing has 0. `spend` is that
    of one round. `data_class` is the kind of the records, "" where nobody said.
    A study whose noise has a schedule has an authorisation for each spend.
    """

    kind: str
    study_plan: bytes
    round_plan: bytes
    study: str
    round: int
    spend: Spend
    data_class: str = ""


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
        allowances: Sequence[Allowance],
        *,
        limit: float,
        delta: float,
        accountant: Accountant,
        data_class: str = "",
        classes: Collection[str] = (),
    ) -> float:
        """Allow all rounds of a study, if all that counts for its class keeps the limit.

        `allowances` are the rounds of each different spend, `classes` those of
        which the device has records now: without them everything counts.
        Returns the epsilon at `delta` of what records of `data_class` may have
        spent or been allowed to, this study included. A study authorised before with the same
        numbers is held against the limit again and not written twice. The
        caller's transaction holds all entries. Raises PrivacyError when over
        the limit.
        """
        entries = self.entries()
        wanted = tuple(
            Entry(AUTHORISED, study_plan, NO_ROUND, study, each.rounds, each.spend, data_class)
            for each in allowances
        )
        if not wanted or len({each.spend for each in allowances}) != len(wanted):
            raise PrivacyError(f"study {study} wants one allowance for each spend, not {wanted}")
        known = _authorisations(entries, study_plan)
        if known not in ((), wanted):
            raise PrivacyError(f"study {study} was authorised with other numbers: {known}")
        _refuse_closed(entries, study_plan, study)
        counted = against(entries if known else (*entries, *wanted), data_class, classes)
        total = accountant(committed_of(counted), delta)
        if not total <= limit:
            kind = f"its {data_class} records" if data_class else "this device"
            raise PrivacyError(
                f"study {study} would bring {kind} to epsilon {total:.4f} at delta {delta:g}, "
                f"its limit is {limit:g}: refuse the study, or close one that has ended"
            )
        if not known:
            for entry in wanted:
                self._append(entry)
        return total

    def is_authorised(self, study_plan: bytes) -> bool:
        """Say whether a study was held against the limit and is not closed."""
        entries = self.entries()
        return bool(_authorisations(entries, study_plan)) and not _closed(entries, study_plan)

    def reserve(
        self,
        study_plan: bytes,
        round_plan: bytes,
        study: str,
        round_number: int,
        spend: Spend,
        *,
        data_class: str = "",
    ) -> bool:
        """Charge a round of an authorised study; commit before training starts.

        It is charged under the authorisation with its own spend. True when the
        round was charged now, False when this round plan had been charged
        before: then training may run again only if nothing that was made under
        it can have left the device. Raises PrivacyError for a round that no
        authorisation covers.
        """
        entries = self.entries()
        known = _authorisations(entries, study_plan)
        # 1. The study was held against the limit, with these numbers.
        if not known:
            raise PrivacyError(f"study {study} is not authorised: its rounds cannot be charged")
        wanted = (study, data_class, spend)
        authorised = next((e for e in known if (e.study, e.data_class, e.spend) == wanted), None)
        if authorised is None:
            raise PrivacyError(
                f"round {round_number} of {study} spends {spend} of class {data_class!r}, "
                f"{known[0].study} was authorised for {[each.spend for each in known]} of class "
                f"{known[0].data_class!r}"
            )
        # 2. A round plan charged once stays charged, and is charged once.
        if any(round_plan == entry.round_plan for entry in _charged(entries, study_plan)):
            return False
        # 3. The study has not ended and has rounds of this spend left.
        _refuse_closed(entries, study_plan, study)
        if not _left(entries, authorised):
            raise PrivacyError(
                f"study {study} was authorised for {authorised.round} rounds like round "
                f"{round_number}, all are spent"
            )
        entry = Entry(CHARGED, study_plan, round_plan, study, round_number, spend, data_class)
        self._append(entry)
        return True

    def charge_unaccounted(
        self,
        study_plan: bytes,
        round_plan: bytes,
        study: str,
        round_number: int,
        spend: Spend,
        *,
        data_class: str = "",
    ) -> bool:
        """Charge a round that the public log shows this device took part in (SPEC 7.8).

        For a device restored from a backup: no authorisation is asked and no
        limit applies, since the loss has happened. False when the round was
        on record already. Raises PrivacyError.
        """
        if any(round_plan == each.round_plan for each in _charged(self.entries(), study_plan)):
            return False
        entry = Entry(UNACCOUNTED, study_plan, round_plan, study, round_number, spend, data_class)
        self._append(entry)
        return True

    def close(self, study_plan: bytes) -> None:
        """End a study on this device: rounds that it did not use are no longer reserved.

        Closing twice changes nothing. Raises PrivacyError for a study that was
        never authorised.
        """
        entries = self.entries()
        known = _authorisations(entries, study_plan)
        if not known:
            raise PrivacyError("a study that was never authorised cannot be closed")
        if not _closed(entries, study_plan):
            self._append(replace(known[0], kind=CLOSED, round=0))

    def _append(self, entry: Entry) -> None:
        if not self._connection.in_transaction:
            raise PrivacyError("the budget is written inside a transaction only")
        _check(entry)
        entries, head = self._load()
        chain = _link(head, len(entries) + 1, entry)
        spend = entry.spend
        with _fails_closed():
            self._connection.execute(
                "INSERT INTO privacy_budget VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    len(entries) + 1,
                    entry.kind,
                    entry.study_plan,
                    entry.round_plan,
                    entry.study,
                    entry.data_class,
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
                "SELECT position, chain, kind, study_plan, round_plan, study, data_class, round, "
                "sampling_rate, noise_multiplier, steps, epsilon, delta "
                "FROM privacy_budget ORDER BY position"
            ).fetchall()
            heads = self._connection.execute(
                "SELECT entries, chain FROM privacy_budget_head"
            ).fetchall()
        entries: list[Entry] = []
        head = bytes(32)
        for expected, row in enumerate(rows, start=1):
            position, chain, kind, study_plan, round_plan, study, data, number, *numbers = row
            entry = Entry(kind, study_plan, round_plan, study, number, Spend(*numbers), data)
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


def spent_of(entries: Sequence[Entry]) -> tuple[Spend, ...]:
    """Return the rounds that are charged in these entries."""
    return merge(entry.spend for entry in entries if entry.kind in (CHARGED, UNACCOUNTED))


def committed_of(entries: Sequence[Entry]) -> tuple[Spend, ...]:
    """Add the rounds that open studies have left to the rounds charged."""
    spends = [entry.spend for entry in entries if entry.kind in (CHARGED, UNACCOUNTED)]
    promised = (
        Allowance(entry.spend, _left(entries, entry)).whole
        for entry in entries
        if entry.kind == AUTHORISED and not _closed(entries, entry.study_plan)
    )
    return merge([*spends, *promised])


def against(
    entries: Sequence[Entry], data_class: str, classes: Collection[str]
) -> tuple[Entry, ...]:
    """Return the entries that count for a class of data, on a device with `classes` (SPEC 7.19).

    Spent on other records are only entries of another class that the device has too. One of no
    class, or of a class that is here no more, may be of these records under another name.
    """
    others = set(classes) - {data_class, ""} if data_class else set()
    return tuple(entry for entry in entries if entry.data_class not in others)


def _left(entries: Sequence[Entry], authorised: Entry) -> int:
    """Return how many rounds of its spend an authorisation has left."""
    charged = _charged(entries, authorised.study_plan)
    return max(0, authorised.round - sum(each.spend == authorised.spend for each in charged))


def _authorisations(entries: Sequence[Entry], study_plan: bytes) -> tuple[Entry, ...]:
    return tuple(e for e in entries if e.kind == AUTHORISED and e.study_plan == study_plan)


def _closed(entries: Sequence[Entry], study_plan: bytes) -> bool:
    return any(e.kind == CLOSED and e.study_plan == study_plan for e in entries)


def _refuse_closed(entries: Sequence[Entry], study_plan: bytes, study: str) -> None:
    if _closed(entries, study_plan):
        raise PrivacyError(f"study {study} is closed on this device")


def _charged(entries: Sequence[Entry], study_plan: bytes) -> tuple[Entry, ...]:
    return tuple(
        e for e in entries if e.study_plan == study_plan and e.kind in (CHARGED, UNACCOUNTED)
    )


def _check(entry: Entry) -> None:
    """Refuse what has more than one reading: SQLite keeps any kind of value in any column."""
    spend = entry.spend
    sound = (
        entry.kind in _KINDS
        and all(type(d) is bytes and len(d) == 32 for d in (entry.study_plan, entry.round_plan))
        and all(type(name) is str and name.isascii() for name in (entry.study, entry.data_class))
        and len(entry.data_class) < 256
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
    """Hash of an entry and of all before it; lengths first, so that one reading exists."""
    spend = entry.spend
    fixed = struct.pack(
        ">32sQB32s32sQddQddB",
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
        len(entry.data_class),
    )
    names = entry.data_class + entry.study
    return hashlib.sha256(fixed + names.encode("ascii")).digest()


@contextmanager
def _fails_closed() -> Iterator[None]:
    """SQLite's complaints become PrivacyError: an unreadable budget allows nothing."""
    try:
        yield
    except (sqlite3.Error, OverflowError, UnicodeError) as error:
        raise PrivacyError(f"the privacy budget cannot be read or written: {error}") from error
