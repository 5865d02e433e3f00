"""What the studies of some logs claim and spend, recomputed from the logs alone (SPEC 7.7).

Rules kept here: a log is checked as `vitalring verify` does before a number of it counts; a claim
that does not hold is named beside what holds, so that one fault does not hide another.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vitalring.aggregator.groups import count_of
from vitalring.edge_agent import accountant
from vitalring.errors import PrivacyError
from vitalring.protocol.guarantee import (
    Terms,
    adds_integer_noise,
    budget_allowances,
    noise_of,
    round_spend,
    stretches,
    study_spend,
)
from vitalring.protocol.privacy import Privacy, Spend
from vitalring.tools.verify import SoundLog, read_log


@dataclass(frozen=True)
class StretchSpend:
    """What each of rounds `first` to `last` spends of the unit (SPEC 7.18)."""

    first: int
    last: int
    spend: Spend


@dataclass(frozen=True)
class Audit:
    """A study's claim beside what its own numbers spend; epsilon at the claim's delta.

    `stretches` say what one round spends of the unit, all rounds alike or by the schedule of the
    noise; unit none has none, and no figure. `data_class` is the kind of data that the plan names.
    `planned` counts all rounds of the plan, `so_far` those that the log has. `of_a_record` is
    what the rounds so far spend of a record's budget on a device (SPEC 7.16). `shares` are the
    devices whose noise counts, `fewest` the updates in the smallest sum that was opened, which is
    one group's where a round is cut into several, and `groups` the most that a round was cut into
    (SPEC 11.12).
    """

    study: str
    privacy: Privacy
    rounds_planned: int
    rounds_logged: int
    min_cohort: int
    fewest: int | None
    groups: int
    shares: int | None
    data_class: str
    stretches: tuple[StretchSpend, ...]
    planned: float | None
    so_far: float | None
    of_a_record: float | None
    differences: tuple[str, ...] = ()


def audit_log(folder: Path, authority_key: bytes | None) -> tuple[Audit, Terms]:
    """Audit the study of a log's folder, or of a run's output folder.

    Returns the terms of its guarantee too. Raises LogError for a log that is not sound.
    """
    log = read_log(folder / "log" if (folder / "log").is_dir() else folder, authority_key)
    plan = log.study.plan
    terms, claim, logged = plan.terms, plan.privacy, len(log.rounds)
    opened = [each.admitted for each in log.rounds if each.status == "summed"]
    groups = [count_of(updates, plan.groups, plan.min_cohort) for updates in opened]
    differences: list[str] = []

    def spent(spends: Sequence[Spend], rounds: int) -> float | None:
        if claim.unit == "none":
            return None
        try:
            return accountant.epsilon(spends, claim.delta)
        except PrivacyError as error:
            differences.append(f"{rounds} rounds cannot be accounted for: {error}")
            return None

    audit = Audit(
        study=plan.study,
        privacy=claim,
        rounds_planned=plan.training.rounds,
        rounds_logged=logged,
        min_cohort=plan.min_cohort,
        # The smallest group of n updates in G has the whole part of n / G.
        fewest=min((n // each for n, each in zip(opened, groups, strict=True)), default=None),
        groups=max(groups, default=1),
        shares=noise_of(terms).shares if adds_integer_noise(claim) else None,
        data_class=plan.data_class,
        stretches=tuple(_stretch_spends(terms)),
        planned=spent(study_spend(terms), plan.training.rounds),
        so_far=spent(study_spend(terms, logged), logged),
        of_a_record=spent(_of_a_record(terms, logged), logged),
    )
    differences += _differences(log, audit)
    return replace(audit, differences=tuple(differences)), terms


def together(audited: Sequence[tuple[Audit, Terms]], delta: float) -> float | None:
    """Return what all rounds of all logs spend of a record that was in each of them.

    None where a study has no guarantee: then nothing bounds it. Raises PrivacyError.
    """
    if any(audit.privacy.unit == "none" for audit, _ in audited):
        return None
    spends = [
        spend for audit, terms in audited for spend in _of_a_record(terms, audit.rounds_logged)
    ]
    return accountant.epsilon(spends, delta)


def _differences(log: SoundLog, audit: Audit) -> Iterator[str]:
    claim = audit.privacy
    if audit.planned is not None and not audit.planned <= claim.epsilon:
        yield (
            f"the plan claims epsilon {claim.epsilon:g} at delta {claim.delta:g}, its own numbers "
            f"spend {audit.planned:.4f} over its {audit.rounds_planned} rounds"
        )
    keys = len(log.study.roster.keys)
    if audit.shares is not None and keys < audit.min_cohort:
        yield f"the roster has {keys} keys, no sum of {audit.min_cohort} updates can come of it"


def _of_a_record(terms: Terms, rounds: int) -> list[Spend]:
    """Return what the first rounds spend of a record's budget on a device."""
    return [allowance.whole for allowance in budget_allowances(terms, rounds)]


def _stretch_spends(terms: Terms) -> Iterator[StretchSpend]:
    for stretch in stretches(terms):
        spend = round_spend(terms, stretch.first)
        if spend is not None:
            yield StretchSpend(stretch.first, stretch.last, spend)
