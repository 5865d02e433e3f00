"""Which roster a device goes by, and whether it stands in it (SPEC 9.11).

A gateway that hands one device a roster of its own making, or an older one that everybody else
has left, would tell its update from the others'. So a device remembers the newest roster that it
saw, and never goes back.
"""

import sqlite3
from dataclasses import dataclass

from vitalring.database import transaction
from vitalring.errors import RecordError
from vitalring.protocol import trust
from vitalring.protocol.ring_suite import Ring

SCHEMA = """
CREATE TABLE rosters (
    cohort TEXT PRIMARY KEY, serial INTEGER NOT NULL, epoch INTEGER NOT NULL,
    digest BLOB NOT NULL, keys INTEGER NOT NULL, enrolled_in INTEGER
);
"""


@dataclass(frozen=True)
class KnownRoster:
    """The newest roster of a cohort that a device saw.

    `enrolled_in` is the newest epoch in whose roster it found its own key, None before that.
    """

    serial: int
    epoch: int
    digest: bytes
    keys: int
    enrolled_in: int | None


def known(db: sqlite3.Connection, cohort: str) -> KnownRoster | None:
    """Return the newest roster of a cohort that this device saw, or None before the first."""
    row = db.execute(
        "SELECT serial, epoch, digest, keys, enrolled_in FROM rosters WHERE cohort = ?", (cohort,)
    ).fetchone()
    return KnownRoster(*row) if row else None


def accept(db: sqlite3.Connection, study: trust.Study) -> None:
    """Remember the roster of a verified round, unless it is older than the one that is known.

    Raises RecordError for an older one, and for another one of the same number.
    """
    roster, name = study.roster, study.roster_digest
    last = known(db, roster.cohort)
    if last is not None:
        if roster.serial < last.serial:
            raise RecordError(
                f"stale ring: the plan names roster {roster.serial} of {roster.cohort}, and this "
                f"device knows roster {last.serial}"
            )
        if roster.serial == last.serial:
            if name != last.digest:
                raise RecordError(
                    f"false ring: the plan names {name.hex()} as roster {roster.serial} of "
                    f"{roster.cohort}, which this device knows as {last.digest.hex()}"
                )
            return
    with transaction(db):
        db.execute(
            "INSERT INTO rosters VALUES (?, ?, ?, ?, ?, NULL) ON CONFLICT (cohort) DO UPDATE SET "
            "serial = excluded.serial, epoch = excluded.epoch, digest = excluded.digest, "
            "keys = excluded.keys",
            (roster.cohort, roster.serial, roster.epoch, name, len(roster.keys)),
        )


def own_ring(db: sqlite3.Connection, study: trust.Study, public: bytes) -> tuple[int, Ring] | None:
    """Return the ring that has a key, and its index; None where the roster does not have it.

    That it was found is remembered, to tell a revoked device from one that is not enrolled yet.
    """
    roster = study.roster
    for index, ring in enumerate(study.rings):
        if public in ring.keys:
            last = known(db, roster.cohort)
            if last is not None and last.enrolled_in != roster.epoch:
                with transaction(db):
                    db.execute(
                        "UPDATE rosters SET enrolled_in = ? WHERE cohort = ?",
                        (roster.epoch, roster.cohort),
                    )
            return index, ring
    return None


def absence(db: sqlite3.Connection, study: trust.Study) -> str:
    """Say why a device that is not in the roster of a round stays out of it."""
    roster = study.roster
    last = known(db, roster.cohort)
    if last is not None and last.enrolled_in == roster.epoch:
        return (
            f"this device's key is revoked: roster {roster.serial} of {roster.cohort} does not "
            f"have it any more; its hospital can enrol it for the epoch after {roster.epoch}"
        )
    return (
        f"this device's key is not enrolled yet: it is not in roster {roster.serial} of "
        f"{roster.cohort}, epoch {roster.epoch}; ask its hospital"
    )
