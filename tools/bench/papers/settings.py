"""What `vitalring bench papers` runs: data sets, studies and forms, as one TOML file says them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

from vitalring.config import load_config
from vitalring.errors import ConfigError
from vitalring.protocol.privacy import Privacy, Training, check_privacy
from vitalring.protocol.records import Name
from vitalring.schema import OneOf, Range
from vitalring.tools.settings import SimulationSettings, numbers_of
from vitalring.tools.simulate.api import apply_changes

UNITS: Final = ("record", "device")
PLACES: Final = ("local", "distributed")

_OF_THE_UNIT: Final = ("local_epochs", "batch", "lr", "clip", "update_clip", "server")


@dataclass(frozen=True)
class Central:
    """How DP-SGD trains on pooled rows; `batch` is expected, `passes` are over all rows."""

    optimiser: Annotated[str, OneOf(("sgd", "adam"))] = "sgd"
    learning_rate: Annotated[float, Range(1e-6, 100.0)] = 0.5
    clip: Annotated[float, Range(1e-6, 1e6)] = 1.0
    batch: Annotated[int, Range(1, 100_000)] = 256
    passes: Annotated[float, Range(0.001, 1000.0)] = 10.0


@dataclass(frozen=True)
class DataSet:
    """A data set's studies: `study` without privacy, `private` with it, the default one first.

    `judged_by` is the figure that tells good models of this data from bad ones.
    """

    name: Name
    title: str
    study: Path
    private: tuple[Path, ...]
    central: Central = Central()
    judged_by: Annotated[str, OneOf(("accuracy", "macro_f1", "auroc"))] = "accuracy"


@dataclass(frozen=True)
class Form:
    """How much is measured. `rows` of a device and `rounds` are limits, 0 is none."""

    name: str
    seeds: int
    """Runs of paper B's Table I."""
    epsilon_seeds: int
    """Runs of each point of its Figure 2."""
    rows: int
    rounds: int
    timed_rounds: int
    """Rounds whose time is taken, besides the first, in which parties still start."""
    central_passes: float
    central_batch: int
    """Most passes and rows of a step of DP-SGD on pooled rows; 0 is no limit."""
    attack_rounds: int
    attack_seeds: int
    member_rows: int
    member_studies: int
    """Most rows of a device, and studies of each kind, that membership is told of."""
    every_set: bool
    """Whether Figure 2 is made on every data set, or on the sites alone."""
    repeats: int


@dataclass(frozen=True)
class Sites:
    """Paper B's three hospitals: one of the data sets, with a study after the paper."""

    data: Name
    study: Path
    private: Path
    rows: Annotated[int, Range(0, 10_000_000)] = 0
    """Most rows of a site, for time's sake; 0 is no limit."""

    def rows_in(self, form: Form) -> int:
        """Return the most rows of a site in this form."""
        return min((most for most in (self.rows, form.rows) if most), default=0)


@dataclass(frozen=True)
class Papers:
    """All that is measured; paths are relative to the file that names them."""

    sets: tuple[DataSet, ...]
    sites: Sites
    epsilons: tuple[float, ...] = (0.1, 0.5, 1.0, 2.0, 5.0)


QUICK: Final = Form(
    name="quick",
    seeds=2,
    epsilon_seeds=1,
    rows=400,
    rounds=3,
    timed_rounds=3,
    central_passes=2.0,
    central_batch=128,
    attack_rounds=3,
    attack_seeds=2,
    member_rows=100,
    member_studies=5,
    every_set=False,
    repeats=2,
)
FULL: Final = Form(
    name="full",
    seeds=10,
    epsilon_seeds=3,
    rows=0,
    rounds=0,
    timed_rounds=6,
    central_passes=0.0,
    central_batch=0,
    attack_rounds=10,
    attack_seeds=5,
    member_rows=1000,
    member_studies=16,
    every_set=True,
    repeats=5,
)


def load_papers(path: Path) -> Papers:
    """Read the file. Raises ConfigError."""
    papers = load_config(Papers, path)
    home = path.parent.absolute()
    names = [each.name for each in papers.sets]
    if len(set(names)) < len(names) or papers.sites.data not in names:
        raise ConfigError(
            f"{path}: sites.data is {papers.sites.data!r} and the sets are {', '.join(names)}: "
            "each set has a name of its own, and the sites are one of them"
        )
    sets = tuple(
        replace(each, study=home / each.study, private=tuple(home / p for p in each.private))
        for each in papers.sets
    )
    empty = [each.name for each in sets if not each.private]
    if empty:
        raise ConfigError(f"{path}: set {empty[0]} names no private study; name one or more")
    return replace(papers, sets=sets)


def load_study(path: Path) -> SimulationSettings:
    """Read a study's file as a run of it alone: nothing is trained beside it to compare."""
    return apply_changes(
        load_config(SimulationSettings, path), {"alone": False, "centralised": False}
    )


def offered() -> tuple[tuple[tuple[str, str], ...], dict[str, str]]:
    """Return each (unit, noise) that this version offers, and what it says of the others.

    It is asked, so that a new one joins by itself.
    """
    # One step a round and no pull: what the strictest of them asks for.
    training = Training(
        sampling_rate=1.0, steps=1, rounds=1, learning_rate=1.0, batch=1, records=100
    )
    found, refused = [], {}
    for unit in UNITS:
        for noise in PLACES:
            try:
                check_privacy(Privacy(unit, noise, 1.0, 1e-5, 1.0, 1.0), training)
            except ConfigError as error:
                refused[f"{unit}/{noise}"] = str(error)
            else:
                found.append((unit, noise))
    return tuple(found), refused


def with_unit(named: tuple[SimulationSettings, ...], unit: str, noise: str) -> SimulationSettings:
    """Return the study of a unit and noise: the one of `named` that has them, or else the first.

    The first then trains its network with the numbers of the unit, for one unit's do not serve
    another.
    """
    for each in named:
        if (each.study.unit, numbers_of(each.study, 1).noise) == (unit, noise):
            return each
    return apply_changes(named[0], {**dict.fromkeys(_OF_THE_UNIT), "unit": unit, "noise": noise})
