"""Which runs the tables are made of. A label says where in the tables a cell belongs.

a/SET/ROW/study, a/SET/ROW/time                   Table 1 of paper A
    a/SET/source, a/SET/membership/GUARANTEE          what attackers get, for all its rows
b/SIDE/study/SEED, b/SIDE/time                    Table I of paper B
f/SET/UNIT-NOISE/EPSILON/SEED                     its Figure 2; none and central are units too
ledger                                            its Table II
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from vitalring.schema import to_plain
from vitalring.tools.bench.papers.data import Prepared
from vitalring.tools.bench.papers.measuring import TIMED
from vitalring.tools.bench.papers.settings import (
    DataSet,
    Form,
    Papers,
    load_study,
    offered,
    with_unit,
)
from vitalring.tools.bench.papers.store import Cell
from vitalring.tools.settings import SimulationSettings, numbers_of
from vitalring.tools.simulate.api import apply_changes

TABLES: Final = ("a", "b", "f", "ledger")

MECHANISMS: Final = {
    "plain": ("plain", "none"),
    "all": ("threshold-he", "private"),
    "dp": ("plain", "local"),
    "he": ("threshold-he", "none"),
    "smpc": ("two-server", "none"),
}
"""The sum and the guarantee of each federated row of paper A's table: none, the first private
study's, or that of the same unit with local noise, which alone protects an update in clear."""

SIDES: Final = ("centralised", "federated", "private")
"""Columns of paper B's table; the paper's federated one has noise, as ours called private."""

LEDGER_ROUNDS: Final = 10
LEDGER_UPDATES: Final = 150
"""Paper B logs 1,500 transactions over 10 epochs."""

_TIMEOUT_S: Final = 3600.0


@dataclass(frozen=True)
class Setup:
    """What there is to measure with: the sets that were given, by name, and paper B's sites."""

    papers: Papers
    form: Form
    data: Mapping[str, Prepared]
    sites: Prepared | None
    room: Path
    tensorflow: str | None = None
    tables: tuple[str, ...] = TABLES
    left_out: Mapping[str, str] = field(default_factory=dict)


def cells_of(setup: Setup) -> dict[str, Cell]:
    """Return every cell by its label, in the order to measure. Raises ConfigError."""
    made: dict[str, Cell] = {}
    given = [each for each in setup.papers.sets if each.name in setup.data]
    if "ledger" in setup.tables:
        made["ledger"] = _ledger(setup)
    if "a" in setup.tables:
        for each in given:
            made |= _table_a(setup, each)
    if "b" in setup.tables and setup.sites is not None:
        made |= _table_b(setup, setup.sites)
    if "f" in setup.tables:
        for each in given:
            if setup.form.every_set or each.name == setup.papers.sites.data:
                made |= _figure(setup, each)
    return made


def _table_a(setup: Setup, each: DataSet) -> dict[str, Cell]:
    studies, prepared = _guarantees(each), setup.data[each.name]
    plain = studies["none"]
    made = {}
    for name, kind in (("pooled", "pooled"), ("time", "pace")):
        label = f"a/{each.name}/centralised/{name}"
        made[label] = _training(setup.form, kind, each.name, prepared, plain)
    for row, (secure_sum, guarantee) in MECHANISMS.items():
        study = apply_changes(studies[guarantee], _sum(secure_sum))
        for kind in ("study", "time"):
            label = f"a/{each.name}/{row}/{kind}"
            made[label] = _training(setup.form, kind, each.name, prepared, study)
    attacked = {"digest": prepared.digest, "model": plain.study.model}
    source = {
        "epsilon": studies["local"].study.epsilon,
        "rounds": setup.form.attack_rounds,
        "seeds": setup.form.attack_seeds,
    }
    made[f"a/{each.name}/source"] = Cell(
        "source", f"{each.name}: source inference", {**attacked, **source}, prepared.place
    )
    for guarantee, settings in studies.items():
        said = settings.study
        member = {
            "unit": said.unit,
            "noise": numbers_of(said, 1).noise,
            "epsilon": 0.0 if said.unit == "none" else said.epsilon,
            "rows": setup.form.member_rows,
            "rounds": setup.form.attack_rounds,
            "studies": setup.form.member_studies,
        }
        made[f"a/{each.name}/membership/{guarantee}"] = Cell(
            "membership",
            f"{each.name}: membership, unit {member['unit']}, noise {member['noise']}",
            {**attacked, **member},
            prepared.place,
        )
    return made


def _guarantees(each: DataSet) -> dict[str, SimulationSettings]:
    plain, named = load_study(each.study), tuple(load_study(path) for path in each.private)
    first = named[0]
    local = with_unit(named, first.study.unit, "local")
    if local not in named:
        local = apply_changes(local, {"epsilon": first.study.epsilon})
    return {"none": plain, "local": local, "private": first}


def _table_b(setup: Setup, prepared: Prepared) -> dict[str, Cell]:
    sites, made = setup.papers.sites, {}
    plain, private = load_study(sites.study), load_study(sites.private)
    for side in SIDES:
        study = private if side == "private" else plain
        kind = "pooled" if side == "centralised" else "study"
        for seed in range(setup.form.seeds):
            seeded = apply_changes(study, {"seed": seed})
            label = f"b/{side}/{kind}/{seed}"
            made[label] = _training(setup.form, kind, sites.data, prepared, seeded)
        kind = "pace" if side == "centralised" else "time"
        made[f"b/{side}/time"] = _training(setup.form, kind, sites.data, prepared, study)
    return made


def _figure(setup: Setup, each: DataSet) -> dict[str, Cell]:
    plain = load_study(each.study)
    named = tuple(load_study(path) for path in each.private)
    made, prepared = {}, setup.data[each.name]
    for seed in range(setup.form.epsilon_seeds):
        study = apply_changes(plain, {"seed": seed})
        label = f"f/{each.name}/none/0/{seed}"
        made[label] = _training(setup.form, "played", each.name, prepared, study)
        for unit, noise in offered()[0]:
            for epsilon in setup.papers.epsilons:
                study = apply_changes(
                    with_unit(named, unit, noise), {"epsilon": epsilon, "seed": seed}
                )
                label = f"f/{each.name}/{unit}-{noise}/{epsilon:g}/{seed}"
                made[label] = _training(setup.form, "played", each.name, prepared, study)
        if setup.tensorflow is not None:
            for epsilon in setup.papers.epsilons:
                label = f"f/{each.name}/central/{epsilon:g}/{seed}"
                study = apply_changes(plain, {"seed": seed, "delta": named[0].study.delta})
                made[label] = _central(setup, each, study, epsilon)
    return made


def _training(
    form: Form, kind: str, name: str, prepared: Prepared, study: SimulationSettings
) -> Cell:
    """Return a cell that trains a study in the form's size."""
    # Timed rounds lie between the opening of the second and that of the last.
    rounds = form.timed_rounds + 2
    if kind not in TIMED:
        rounds = min(study.study.rounds, form.rounds or study.study.rounds)
    shaped = apply_changes(study, {"rounds": rounds, "timeout_s": _TIMEOUT_S})
    unit = shaped.study.unit
    what = f"unit {unit}" if kind == "played" else f"{shaped.study.secure_sum}, unit {unit}"
    what += "" if unit == "none" else f", epsilon {shaped.study.epsilon:g}"
    if kind in ("pooled", "pace"):
        what = "all rows in one place"
    request = {"digest": prepared.digest, "settings": _settings(shaped)}
    title = f"{name}: {what}, seed {shaped.study.seed}, {kind}"
    return Cell(kind, title, request, prepared.place)


def _central(setup: Setup, each: DataSet, study: SimulationSettings, epsilon: float) -> Cell:
    central = asdict(each.central)
    central["passes"] = min(each.central.passes, setup.form.central_passes or math.inf)
    central["batch"] = min(each.central.batch, setup.form.central_batch or each.central.batch)
    request = {
        "digest": setup.data[each.name].digest,
        "settings": _settings(study),
        "epsilon": epsilon,
        "central": central,
    }
    place = {**setup.data[each.name].place, "tensorflow": str(setup.tensorflow)}
    title = f"{each.name}: central DP-SGD, epsilon {epsilon:g}, seed {study.study.seed}"
    return Cell("central", title, request, place)


def _ledger(setup: Setup) -> Cell:
    request = {
        "rounds": LEDGER_ROUNDS,
        "updates": LEDGER_UPDATES,
        "repeats": setup.form.repeats,
    }
    return Cell("ledger", "the log", request)


def _sum(secure_sum: str) -> dict[str, Any]:
    return {"secure_sum": secure_sum, "hospitals": 0, "threshold": 0}


def _settings(study: SimulationSettings) -> dict[str, Any]:
    """Return settings as JSON takes them; data and features are named by their digests."""
    plain: dict[str, Any] = to_plain(study)
    return {**plain, "data": None, "out": None}
