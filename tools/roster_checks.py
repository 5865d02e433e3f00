"""Whether a study's parties could use a roster: asked before any hospital signs it (SPEC 9.3, 9.4).

A hospital signs one roster of each number, ever, so one that nobody can use would be in the way.
"""

from vitalring.errors import ConfigError, RecordError, SignatureError
from vitalring.protocol import limits, ring_suite, trust
from vitalring.protocol.records import Roster, StudyPlan


def check_sizes(plan: StudyPlan, cohort: str, devices: int, ring_size: int) -> None:
    """Refuse so many devices, before they have keys. Raises ConfigError."""
    if devices < plan.min_cohort:
        raise ConfigError(
            f"{devices} devices, and sums of study {plan.study} are of {plan.min_cohort} updates "
            f"or more: no round would have a sum; the cohort takes {plan.min_cohort} devices at "
            "least"
        )
    if devices > limits.MAX_DEVICES:
        raise ConfigError(f"{devices} devices: a cohort has {limits.MAX_DEVICES} at most")
    try:
        trust.check_ring_sizes(plan, cohort, devices, ring_size)
    except RecordError as error:
        raise _no_roster(devices, error) from error


def check_roster(plan: StudyPlan, roster: Roster) -> None:
    """Refuse a roster whose keys or rings no party could use. Raises ConfigError."""
    check_sizes(plan, roster.cohort, len(roster.keys), roster.ring_size)
    try:
        trust.check_order(roster)
        ring_suite.cut(plan.ring_suite, roster.keys, roster.ring_size)
    except (RecordError, SignatureError) as error:
        raise _no_roster(len(roster.keys), error) from error


def _no_roster(devices: int, error: Exception) -> ConfigError:
    return ConfigError(
        f"no roster of {devices} keys can be made: {error}; take other devices, or another "
        "ring_size"
    )
