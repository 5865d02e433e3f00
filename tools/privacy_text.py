"""What a device spent, and what studies claim, in plain words."""

import math
from collections.abc import Iterator, Sequence
from typing import Final

from vitalring.edge_agent.spending import ClassSpending, Spending, StudySpending
from vitalring.protocol.privacy import Privacy, Spend
from vitalring.tools.privacy_audit import Audit, StretchSpend

NOTHING: Final = "no privacy was spent: this device has not taken part in a study with a guarantee"

_UNITS: Final = {
    "record": "one record of this device",
    "device": "all records of this device together",
}
_NOISES: Final = {
    "local": "this device adds all of the noise itself, whatever the others do",
    "distributed": "the devices of a sum add the noise together, and single updates stay encrypted",
}


def spending_lines(found: Spending) -> Iterator[str]:
    """Yield what the owner of a device wants to know of its budget."""
    for place, each in enumerate(found.classes):
        if place:
            yield ""
        yield from _class_lines(each, found.delta)
    if not found.studies:
        yield NOTHING
    for study in found.studies:
        yield ""
        yield from _study_lines(study)


def _class_lines(found: ClassSpending, delta: float) -> Iterator[str]:
    about = f" of {found.data_class}" if found.data_class else ""
    counted = f" that count for {found.data_class}" if found.data_class else ""
    yield (
        f"spent     epsilon {found.epsilon_spent:.4f} of {found.epsilon_limit:g} "
        f"at delta {delta:g}, over all studies{counted}"
    )
    yield f"          {in_words(found.epsilon_spent, delta)}"
    yield (
        f"promised  epsilon {found.epsilon_promised:.4f}, with the rounds that open studies "
        "may still take"
    )
    yield (
        f"left      epsilon {found.epsilon_left:.4f} for other studies{about}; one that would go "
        "beyond the limit is refused"
    )


def in_words(epsilon: float, delta: float) -> str:
    """Return what an epsilon of a record means."""
    if epsilon == 0.0:
        return "whatever was sent says nothing of any record"
    return (
        "whether or not one record was there, whatever is concluded from what was sent is at most "
        f"{_factor(epsilon)} times as likely, but for a chance of {delta:g}"
    )


def audit_lines(audit: Audit) -> Iterator[str]:
    """Yield what a hospital wants to know of a study's claim."""
    claim = audit.privacy
    about = f" about {audit.data_class}" if audit.data_class else ""
    yield (
        f"study {audit.study}{about}: {audit.rounds_logged} of {audit.rounds_planned} rounds in "
        "the log"
    )
    if not audit.stretches:
        yield "  claims      no differential privacy; nothing bounds what its models tell"
    else:
        yield (
            f"  claims      epsilon {claim.epsilon:g} at delta {claim.delta:g}, unit {claim.unit}, "
            f"noise {claim.noise}"
        )
        yield f"  all rounds  {_spent(audit.planned)} recomputed from the plan's own numbers"
        yield f"  so far      {_spent(audit.so_far)}"
        yield f"  a record    {_spent(audit.of_a_record)} of a device's own budget, so far"
        for each in audit.stretches:
            yield f"  {_rounds(audit, each):10}  {_release(each.spend)}"
    if audit.shares is not None and claim.noise == "distributed":
        yield (
            f"  noise       of {audit.shares} devices counts: {audit.min_cohort} in the smallest "
            f"sum, of whom {claim.colluders} may give theirs away"
        )
    if audit.fewest is not None:
        cut = f", of up to {audit.groups} groups a round" if audit.groups > 1 else ""
        yield f"  sums        of {audit.fewest} updates or more were opened{cut}"
    for difference in audit.differences:
        yield f"  DIFFERS     {difference}"


def together_line(audits: Sequence[Audit], epsilon: float | None, delta: float) -> str:
    """Say what several studies spend of a record that was in all of them."""
    if epsilon is None:
        names = ", ".join(audit.study for audit in audits if not audit.stretches)
        return f"together   no bound: {names} has no guarantee"
    return f"together   epsilon {epsilon:.4f} at delta {delta:g} of a record that is in all of them"


def _rounds(audit: Audit, stretch: StretchSpend) -> str:
    """Name the rounds of a stretch."""
    if len(audit.stretches) == 1:
        return "a round"
    return f"{stretch.first} to {stretch.last}"


def _release(spend: Spend) -> str:
    """Say what a round releases."""
    rate = f", each record with a chance of {spend.sampling_rate:.3g}"
    return (
        f"{spend.steps} release{'s' if spend.steps > 1 else ''} with noise of "
        f"{spend.noise_multiplier:.4g} times the sensitivity"
        + (rate if spend.sampling_rate < 1.0 else "")
    )


def _study_lines(study: StudySpending) -> Iterator[str]:
    done = study.rounds_charged + study.rounds_from_log
    if study.rounds_allowed is None:
        yield f"study {study.study}: {done} rounds, known from the public log alone"
    elif study.closed:
        yield f"study {study.study}: over after {done} of {study.rounds_allowed} rounds"
    else:
        yield (
            f"study {study.study}: {done} of {study.rounds_allowed} rounds, "
            f"{study.rounds_left} may still come"
        )
    if study.data_class:
        yield f"  data      {study.data_class}"
    yield from _claim_lines(study.claim)
    if study.newest_round:
        yield f"  until     round {study.newest_round}"
    if study.rounds_from_log and study.rounds_allowed is not None:
        yield f"  restored  {study.rounds_from_log} rounds were found in the public log alone"
    yield f"  spent     epsilon {study.epsilon_spent:.4f} of each record"
    if study.epsilon_promised != study.epsilon_spent:
        yield f"  promised  epsilon {study.epsilon_promised:.4f}, if all its rounds come"


def _claim_lines(claim: Privacy | None) -> Iterator[str]:
    if claim is None:
        yield "  protects  unknown here: its plan is no longer kept; ask the study for its log"
        return
    yield (
        f"  protects  {_UNITS[claim.unit]}, with epsilon {claim.epsilon:g} at delta "
        f"{claim.delta:g} for the whole study (unit {claim.unit})"
    )
    yield f"  noise     {_NOISES[claim.noise]} ({claim.noise})"


def _spent(epsilon: float | None) -> str:
    return "cannot be accounted for" if epsilon is None else f"epsilon {epsilon:.4f}"


def _factor(epsilon: float) -> str:
    factor = math.exp(epsilon)
    return f"{factor:,.0f}" if factor >= 10 else f"{factor:.2f}"
