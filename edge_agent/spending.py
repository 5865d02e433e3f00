"""What a device has spent of its records' privacy, study by study, for its owner to read.

Rules kept here: figures come from the verified chain of the budget, and from nowhere else; what
a study's plan says is believed only under the digest that the chain holds.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from vitalring.database import is_made, open_read_only
from vitalring.edge_agent.accountant import Accountant
from vitalring.edge_agent.budget import (
    AUTHORISED,
    CHARGED,
    CLOSED,
    UNACCOUNTED,
    Budget,
    Entry,
    against,
    committed_of,
    spent_of,
)
from vitalring.edge_agent.config import AgentConfig, Floors
from vitalring.errors import ConfigError, VitalRingError
from vitalring.protocol.cbor import decode, digest
from vitalring.protocol.privacy import Privacy
from vitalring.protocol.records import StudyPlan
from vitalring.protocol.signing import Signed


@dataclass(frozen=True)
class StudySpending:
    """A study as the budget knows it; epsilon is of a record, at the device's own delta.

    `data_class` is the kind of its records, "" where nobody said. `claim` is what the plan says of
    its unit; None where the device no longer keeps the plan. `rounds_allowed` is None for a study
    that only the log told of.
    """

    study: str
    plan: bytes
    data_class: str
    claim: Privacy | None
    rounds_allowed: int | None
    rounds_charged: int
    rounds_from_log: int
    newest_round: int
    closed: bool
    epsilon_spent: float
    epsilon_promised: float

    @property
    def rounds_left(self) -> int:
        """Return how many more rounds the study may charge."""
        if self.closed or self.rounds_allowed is None:
            return 0
        return max(0, self.rounds_allowed - self.rounds_charged - self.rounds_from_log)


@dataclass(frozen=True)
class ClassSpending:
    """All studies that count for a class of data, against the limit of that class (SPEC 7.19).

    `data_class` is "" where nobody said one. `epsilon_promised` counts what open studies may
    still charge.
    """

    data_class: str
    epsilon_spent: float
    epsilon_promised: float
    epsilon_limit: float

    @property
    def epsilon_left(self) -> float:
        """Return what of the limit nobody was promised, 0 where it is used up."""
        return max(0.0, self.epsilon_limit - self.epsilon_promised)


@dataclass(frozen=True)
class Spending:
    """What a device spent: by class of data, and by study. Epsilon is at `delta`."""

    classes: tuple[ClassSpending, ...]
    studies: tuple[StudySpending, ...]
    delta: float


def spending(config: AgentConfig, accountant: Accountant) -> Spending:
    """Read the budget in the state of a device, beside a running agent.

    Raises ConfigError where there is no state, PrivacyError where the chain is damaged.
    """
    path = config.state_dir / "agent.sqlite"
    if not is_made(path):
        raise ConfigError(f"{path} does not exist: the agent has not run yet")
    with closing(open_read_only(path)) as db:
        entries = Budget(db).entries()
    plans, delta = config.cache_dir or config.state_dir / "cache", config.floors.delta
    names = dict.fromkeys(entry.study_plan for entry in entries)
    return Spending(
        by_class(entries, config, accountant),
        tuple(
            _study([e for e in entries if e.study_plan == name], plans, delta, accountant)
            for name in names
        ),
        delta,
    )


def by_class(
    entries: Sequence[Entry], config: AgentConfig, accountant: Accountant
) -> tuple[ClassSpending, ...]:
    """Return what each class of data spent, of those in the budget and in the configuration."""
    floors = config.floors
    known = {entry.data_class for entry in entries} | set(floors.classes) | set(config.data_classes)
    # No class is one of them only where something was spent on it, or nothing else is known.
    known -= {""} - {entry.data_class for entry in entries}
    return tuple(
        _class(against(entries, name, config.data_classes), name, floors, accountant)
        for name in sorted(known or {""})
    )


def _class(
    entries: Sequence[Entry], name: str, floors: Floors, accountant: Accountant
) -> ClassSpending:
    spent, promised = spent_of(entries), committed_of(entries)
    epsilon = accountant(spent, floors.delta)
    return ClassSpending(
        name,
        epsilon,
        # Accounting takes seconds on a device.
        epsilon if promised == spent else accountant(promised, floors.delta),
        floors.limit(name),
    )


def _study(
    entries: Sequence[Entry], plans: Path, delta: float, accountant: Accountant
) -> StudySpending:
    """Return what the entries of one study say."""
    spent, promised = spent_of(entries), committed_of(entries)
    epsilon = accountant(spent, delta)
    rounds = [entry for entry in entries if entry.kind in (CHARGED, UNACCOUNTED)]
    return StudySpending(
        study=entries[0].study,
        plan=entries[0].study_plan,
        data_class=entries[0].data_class,
        claim=_claim(plans, entries[0].study_plan),
        # One for each spend of a schedule.
        rounds_allowed=sum(e.round for e in entries if e.kind == AUTHORISED) or None,
        rounds_charged=sum(entry.kind == CHARGED for entry in rounds),
        rounds_from_log=sum(entry.kind == UNACCOUNTED for entry in rounds),
        newest_round=max((entry.round for entry in rounds), default=0),
        closed=any(entry.kind == CLOSED for entry in entries),
        epsilon_spent=epsilon,
        epsilon_promised=epsilon if promised == spent else accountant(promised, delta),
    )


def _claim(plans: Path, name: bytes) -> Privacy | None:
    """Return what the kept study plan of this digest claims, None where it is not kept whole."""
    try:
        data = (plans / name.hex()).read_bytes()
        if digest(data) != name:
            return None
        return decode(StudyPlan, decode(Signed, data).payload).privacy
    except (OSError, VitalRingError):
        return None
