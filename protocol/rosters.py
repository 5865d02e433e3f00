"""How rosters of a cohort follow one another within a study (SPEC 9.14).

A roster takes effect with the first round whose plan names it. It is never changed: who leaves
is left out of the next one, which every hospital signs. So whoever knows a roster can tell
whether another one comes after it, and nobody goes back to an older one.

Pure functions: a new roster makes a new `Study`; the old one stays as it was.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from vitalring.errors import RecordError
from vitalring.protocol import trust
from vitalring.protocol.cbor import decode, digest
from vitalring.protocol.records import Roster
from vitalring.protocol.signing import Signed


def check_later(roster: Roster, last: Roster) -> None:
    """Raise RecordError unless a roster is of the same cohort and comes after another one."""
    for field in ("federation", "cohort"):
        if getattr(roster, field) != getattr(last, field):
            raise RecordError(
                f"a roster of {field} {getattr(roster, field)} does not follow on one of "
                f"{getattr(last, field)}"
            )
    if roster.serial <= last.serial:
        raise RecordError(
            f"roster {roster.serial} of {roster.cohort} does not come after roster {last.serial}: "
            "nobody goes back to an older one"
        )
    if not last.epoch <= roster.epoch <= last.epoch + roster.serial - last.serial:
        raise RecordError(
            f"roster {roster.serial} of {roster.cohort} is of epoch {roster.epoch}, "
            f"roster {last.serial} of epoch {last.epoch}"
        )
    # Whoever learned a key of the old epoch would know its tags in the new one.
    if roster.epoch != last.epoch and (kept := set(roster.keys) & set(last.keys)):
        raise RecordError(
            f"epoch {roster.epoch} of {roster.cohort} has {len(kept)} keys of epoch {last.epoch}: "
            "each device draws a new one"
        )


def check_follows(roster: Roster, last: Roster) -> None:
    """Raise RecordError unless a roster is the next one after another (SPEC 9.14)."""
    check_later(roster, last)
    if roster.serial != last.serial + 1:
        raise RecordError(
            f"roster {roster.serial} of {roster.cohort} does not follow on roster {last.serial}: "
            f"roster {last.serial + 1} is missing"
        )


def next_study(study: trust.Study, data: bytes) -> trust.Study:
    """Return a study under the signed roster that follows on its own.

    Raises SignatureError or RecordError. The rings of the new roster are made here.
    """
    return _under(study, data, check_follows)


def later_study(study: trust.Study, data: bytes) -> trust.Study:
    """Return a study under a later signed roster, for who missed those between.

    Every hospital has signed it, and none signs a roster that follows on nothing. Raises as
    `next_study` does.
    """
    return _under(study, data, check_later)


def follow(
    study: trust.Study, name: bytes, objects: Sequence[bytes]
) -> tuple[trust.Study, tuple[bytes, ...]]:
    """Return the study under the roster with digest `name`, and the signed rosters up to it.

    They are found among `objects`, each following on the one before. Raises SignatureError or
    RecordError.
    """
    if name == study.roster_digest:
        return study, ()
    target = next((each for each in objects if digest(each) == name), None)
    if target is None:
        raise RecordError(f"roster {name.hex()} is named and did not come along")
    end = trust.open_roster(target, study.federation).serial
    between = {
        serial: each
        for each in objects
        if (serial := _serial(each)) is not None and study.roster.serial < serial < end
    }
    steps = (*(between[serial] for serial in sorted(between)), target)
    for step in steps:
        study = next_study(study, step)
    return study, steps


def _under(study: trust.Study, data: bytes, check: Callable[[Roster, Roster], None]) -> trust.Study:
    roster = trust.open_roster(data, study.federation)
    check(roster, study.roster)
    changed = replace(study, roster=roster, roster_digest=digest(data))
    trust.check_rings(changed)
    return changed


def _serial(data: bytes) -> int | None:
    """Return the number that a roster gives itself, yet to be verified; None for anything else."""
    try:
        return decode(Roster, decode(Signed, data).payload).serial
    except RecordError:
        return None
