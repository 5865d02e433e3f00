"""What the studies of some logs claim and spend, recomputed from the logs alone (SPEC 7.7).

Rules kept here: a log is checked as `vitalring verify` does before a number of it counts; a claim
that does not hold is named beside what holds, so that one fault does not hide another.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vitalring.edge_agent import accountant
from vitalring.errors import PrivacyError
from vitalring.protocol.guarantee import (
    Terms,
    adds_integer_noise,
    budget_spend,
    noise_of,
    round_spend,
)
from vitalring.protocol.privacy import Privacy, Spend
from vitalring.tools.verify import SoundLog, read_log


@dataclass(frozen=True)
class Audit:
    """A study's claim beside what its own numbers spend; epsilon at the claim's delta.

    `a_round` is what one round spends of the unit; None, like every figure, for unit none.
    `planned` counts all rounds of the plan, `so_far` those that the log has. `of_a_record` is
    what the rounds so far spend of a record's budget on a device (SPEC 7.16). `shares` are the
    devices whose noise counts, `fewest` the updates in the smallest sum that was opened.
    """

    study: str
    privacy: Privacy
    rounds_planned: int
    rounds_logged: int
    min_cohort: int
    fewest: int | None
    shares: int | None
    a_round: Spend | None
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
    one = round_spend(terms)
    opened = [each.admitted for each in log.rounds if each.status == "summed"]
    differences: list[str] = []

    def spent(spend: Spend | None, rounds: int) -> float | None:
        if spend is None:
            return None
        if not rounds:
            return 0.0
        try:
            return accountant.epsilon([_of_rounds(spend, rounds)], claim.delta)
        except PrivacyError as error:
            differences.append(f"{rounds} rounds cannot be accounted for: {error}")
            return None

    audit = Audit(
        study=plan.study,
        privacy=claim,
        rounds_planned=plan.training.rounds,
        rounds_logged=logged,
        min_cohort=plan.min_cohort,
        fewest=min(opened, default=None),
        shares=noise_of(terms).shares if adds_integer_noise(claim) else None,
        a_round=one,
        planned=spent(one, plan.training.rounds),
        so_far=spent(one, logged),
        of_a_record=spent(budget_spend(terms), logged),
    )
    differences += _differences(log, audit)
    return replace(audit, differences=tuple(differences)), terms


def together(audited: Sequence[tuple[Audit, Terms]], delta: float) -> float | None:
    """Return what all rounds of all logs spend of a record that was in each of them.

    None where a study has no guarantee: then nothing bounds it. Raises PrivacyError.
    """
    spends = []
    for audit, terms in audited:
        spend = budget_spend(terms)
        if spend is None:
            return None
        if audit.rounds_logged:
            spends.append(_of_rounds(spend, audit.rounds_logged))
    return accountant.epsilon(spends, delta)


def _differences(log: SoundLog, audit: Audit) -> Iterator[str]:
    claim = audit.privacy
    if audit.planned is not None and not audit.planned <= claim.epsilon:
        yield (
            f"the plan claims epsilon {claim.epsilon:g} at delta {claim.delta:g}, its own numbers "
            f"spend {audit.planned:.4f} over its {audit.rounds_planned} rounds"
        )
    if audit.rounds_logged > audit.rounds_planned:
        yield f"the log has {audit.rounds_logged} rounds, the plan {audit.rounds_planned}"
    if audit.fewest is not None and audit.fewest < audit.min_cohort:
        yield f"a sum of {audit.fewest} updates was opened, the plan asks for {audit.min_cohort}"
    keys = len(log.study.roster.keys)
    if audit.shares is not None and keys < audit.min_cohort:
        yield f"the roster has {keys} keys, no sum of {audit.min_cohort} updates can come of it"


def _of_rounds(spend: Spend, rounds: int) -> Spend:
    return replace(spend, steps=spend.steps * rounds)
