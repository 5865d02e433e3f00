"""Rosters that a hospital knows, and the one that its next plan names (SPEC 11.17).

A new one comes from the study's folder, from another hospital that drafts a plan with it, or
with a plan that the gateway logged. All hospitals have signed it, this one too, so where it
comes from does not matter. The newest counts; a hospital never goes back to an older one, but it
follows a round that was logged under one.
"""

import contextlib
import logging
import sqlite3
from dataclasses import replace
from pathlib import Path

from vitalring.database import transaction
from vitalring.errors import ConfigError, RecordError, SignatureError, VitalRingError
from vitalring.files import read_file
from vitalring.protocol import rosters as succession
from vitalring.protocol import trust
from vitalring.protocol.cbor import decode, digest
from vitalring.protocol.records import Bundle, RoundPlan

_log = logging.getLogger(__name__)

SCHEMA = """
CREATE TABLE rosters (digest BLOB PRIMARY KEY, serial INTEGER NOT NULL, record BLOB NOT NULL);
"""
_CHAIN = 15
"""A proposal has room for so many rosters beside its weights."""
BEFORE = "rosters"
"""Folder, beside `roster.cbor`, of rosters that a later one took the place of."""

_Version = tuple[tuple[str, int, int, int], ...]
"""Name, inode, time and size of files."""


class UnknownRosterError(RecordError):
    """A plan names a roster that this hospital does not have."""

    def __init__(self, name: bytes) -> None:
        super().__init__(f"roster {name.hex()} is not known here yet")
        self.name = name


def newest_record(db: sqlite3.Connection) -> bytes | None:
    """Return the newest signed roster of an aggregator's database, or None in a new one."""
    row = db.execute("SELECT record FROM rosters ORDER BY serial DESC, rowid LIMIT 1").fetchone()
    return row[0] if row else None


class Rosters:
    """What is known; the next plan names the newest."""

    def __init__(
        self,
        db: sqlite3.Connection,
        study: trust.Study,
        record: bytes,
        folder: Path | None = None,
    ) -> None:
        """Begin with a study under the newest roster that is known, whose signed bytes these are.

        `folder` is the study's, where an operator puts a new `roster.cbor`.
        """
        self._db, self._folder = db, folder
        self._newest = study
        self._studies = {study.roster_digest: study}
        self._records = {study.roster_digest: record}
        self._unsaved = {study.roster_digest}
        # The files as they were last looked at, and what was then said to be wrong with them.
        self._seen: _Version = ()
        self._said = ""
        for (saved,) in db.execute("SELECT record FROM rosters ORDER BY serial, rowid").fetchall():
            self.learn(saved)
            self._unsaved.discard(digest(saved))

    @property
    def newest(self) -> trust.Study:
        """Return the study under the newest roster."""
        return self._newest

    def of_plan(self, signed_plan: bytes) -> trust.Study:
        """Return the study under the roster that a signed round plan names.

        Raises UnknownRosterError, SignatureError or RecordError; the plan is yet to be verified.
        """
        name = trust.peek_round_plan(signed_plan, self._newest.federation).roster
        if name not in self._studies:
            raise UnknownRosterError(name)
        return self._studies[name]

    def open_plan(self, signed_plan: bytes) -> RoundPlan:
        """Open a round plan under its own roster. Raises as `of_plan` and `open_round_plan` do."""
        return trust.open_round_plan(signed_plan, self.of_plan(signed_plan))

    def serial_of(self, proposal: bytes) -> int | None:
        """Return the number of the roster under which a round was proposed.

        None for no bytes: this hospital missed the round. Raises as `of_plan` does.
        """
        return self.of_plan(decode(Bundle, proposal).record).roster.serial if proposal else None

    def next(self, last: int | None) -> tuple[trust.Study, tuple[bytes, ...]]:
        """Return the study of the next plan, and the rosters after number `last` up to its own.

        A log may lack these; before the first round `last` is -1. The plan's is the newest,
        unless a proposal has no room for all that may be between: then the round after goes on
        from there. By numbers, not by how many are known: hospitals that know not the same of
        those between name the same.

        None for `last` where the newest round was missed. Its roster is then one of the last
        ones, not of the first, which nobody goes back to.
        """
        after = -1 if last is None else last
        later = {s.roster.serial: s for s in self._studies.values() if s.roster.serial > after}
        if not later:
            return self._newest, ()
        later[self._newest.roster.serial] = self._newest
        ordered = [later[serial] for serial in sorted(later)]
        if last is None:
            chain = ordered[-_CHAIN:]
        else:
            within = [study for study in ordered if study.roster.serial <= last + _CHAIN]
            chain = within or ordered[:_CHAIN]
        return chain[-1], tuple(self._records[study.roster_digest] for study in chain)

    def learn(self, record: bytes) -> None:
        """Know a signed roster; where it is later than all others, go by it from the next plan on.

        Raises SignatureError or RecordError for one that a hospital has not signed, or that
        comes after nothing known here.
        """
        name = digest(record)
        if name in self._studies:
            return
        newest = self._newest
        roster = trust.open_roster(record, newest.federation)
        if roster.serial > newest.roster.serial:
            study = succession.later_study(newest, record)
            self._newest = study
        else:
            if roster.cohort != newest.roster.cohort:
                raise RecordError(f"a roster of cohort {roster.cohort} is none of this study")
            study = replace(newest, roster=roster, roster_digest=name)
        self._studies[name], self._records[name] = study, record
        self._unsaved.add(name)

    def look(self) -> None:
        """Take up the roster that an operator put into the study's folder, if it follows.

        Raises StorageError.
        """
        if self._folder is not None and (seen := _version(self._folder)) != self._seen:
            self._seen = seen
            self._take_up(self._folder)
        self.save()

    def _take_up(self, folder: Path) -> None:
        path = folder / trust.ROSTER_FILE
        try:
            record = read_file(path)
            between = [read_file(each) for each in sorted((folder / BEFORE).glob("*.cbor"))]
            if digest(record) in self._studies:
                # A log may lack what another hospital's draft came without.
                federation, newest = self._newest.federation, self._newest.roster
                for each in between:
                    if trust.open_roster(each, federation).serial < newest.serial:
                        self.learn(each)
                return
            _, new = succession.follow(self._newest, digest(record), (record, *between))
        except (ConfigError, RecordError, SignatureError) as error:
            self._complain(path, error)
            return
        for each in new:
            self.learn(each)
        roster = self._newest.roster
        _log.info(
            "roster %d of %s, epoch %d, with %d devices: the next plan names it",
            roster.serial,
            roster.cohort,
            roster.epoch,
            len(roster.keys),
        )

    def _complain(self, path: Path, error: VitalRingError) -> None:
        """Say what is wrong with the file or those beside it; the same only once."""
        fault = f"roster {self._newest.roster.serial} goes on: {error}"
        if fault == self._said:
            return
        self._said = fault
        _log.error(
            "%s is not used, %s. Make the next roster with `vitalring federation roster`, have "
            "every hospital sign it, then install it, with the earlier ones in %s/ beside it",
            path,
            fault,
            BEFORE,
        )

    def save(self) -> None:
        """Keep on disk what was learned since. Raises StorageError."""
        if not self._unsaved:
            return
        with transaction(self._db):
            for name in self._unsaved:
                serial = self._studies[name].roster.serial
                self._db.execute(
                    "INSERT OR IGNORE INTO rosters VALUES (?, ?, ?)",
                    (name, serial, self._records[name]),
                )
        self._unsaved.clear()


def _version(folder: Path) -> _Version:
    """Return what changes when a roster of a study's folder, or one beside it, is replaced."""
    found = []
    for path in (folder / trust.ROSTER_FILE, *sorted((folder / BEFORE).glob("*.cbor"))):
        # One that is gone meanwhile counts as such at the next look.
        with contextlib.suppress(OSError):
            stat = path.stat()
            found.append((path.name, stat.st_ino, stat.st_mtime_ns, stat.st_size))
    return tuple(found)
