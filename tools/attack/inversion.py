"""`vitalring attack inversion`: rebuild records from gradients, updates and sums.

In the first round of a study, where gradients tell most, on records of one device each: from the
gradient of the record alone; from a training step's noisy sum whose other records the attacker
knows; from the device's update in clear; from the mean of all devices' updates. What is rebuilt is
compared with the true record, and so are other people's records and the mean of its class.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vitalring.edge_agent.dpsgd import privatise
from vitalring.edge_agent.randomness import fresh_generator
from vitalring.errors import ConfigError
from vitalring.models.artefact import Artefact, initial_weights
from vitalring.models.catalogue import choose_artefact
from vitalring.models.dataset import Records
from vitalring.models.runtime import TrainableModel
from vitalring.protocol.records import StudyPlan
from vitalring.tools.attack.likeness import MEASURES, Array, closest, first_dense_inputs
from vitalring.tools.attack.membership import Defence
from vitalring.tools.attack.pool import deal, load_people
from vitalring.tools.measuring.child import require_modules, run_script
from vitalring.tools.measuring.machine import machine
from vitalring.tools.measuring.virtual import Weights, play
from vitalring.tools.plans import Sizes, plan_of

Say = Callable[[str], None]
Floats = npt.NDArray[np.float64]

_SEED: Final = 7_000_000
_SCRIPT: Final = Path(__file__).with_name("inversion_tensorflow.py")
_NO_CLIP: Final = 1e20
_STARTS: Final = 2
"""Descents for each case: from the mean of the class, and from another person's record."""

VIEWS: Final = {
    "gradient": "one record's gradient in clear",
    "step": "a step's sum, all other records known",
    "update": "one device's update in clear",
    "sum": "the opened sum of all devices",
}
METHODS: Final = {"descent": "gradient matching", "closed": "closed form"}
BASELINES: Final = {"others": "records of other people", "class": "the mean of its class"}


@dataclass(frozen=True)
class InversionSettings:
    """What is attacked."""

    defences: tuple[Defence, ...] = (Defence(), Defence("record", "local", 8.0))
    devices: int = 10
    rows: int = 50
    """Records of a device."""
    seeds: int = 3
    """Cohorts, each with its own devices, first weights and coins."""
    targets: int = 8
    """Records of each cohort that are asked about, each of another device."""
    dummies: int = 4
    """Records that are rebuilt at once from an update or a sum of many."""
    iterations: int = 200
    variation: float = 0.1
    """Weight of the prior for small total variation of windows, in units of their deviation."""


@dataclass(frozen=True)
class Case:
    """A gradient as an attacker has it, and the labels of what it looks for."""

    weights: Weights = field(repr=False)
    gradient: Floats = field(repr=False)
    labels: npt.NDArray[np.int64] = field(repr=False)


@dataclass(frozen=True)
class Asked:
    """A true record, and the cases from which it may be rebuilt, by view and defence."""

    x: Array = field(repr=False)
    y: int
    cases: Mapping[str, Case] = field(repr=False)


def measure_inversion(
    folder: Path,
    model: str | None,
    settings: InversionSettings,
    python: str,
    say: Say = lambda _line: None,
) -> dict[str, Any]:
    """Attack the first round of studies on a data set's folder, and return every figure.

    `python` is an interpreter with vitalring[models]. Raises VitalRingError.
    """
    _check(settings)
    require_modules(python, ["tensorflow", "vitalring.models.registry"])
    began, cpu = time.monotonic(), sum(os.times()[:4])
    info, people = load_people(folder, settings.rows, 0)
    # Half of the people are attacked; of the others the attacker has records, as anybody might.
    half = len(people) // 2
    public = people[half:]
    shape = people[0].x.shape[1:]
    artefact = choose_artefact(model, shape, info.kind, info.classes)
    known = Known.of(public, len(info.classes))
    asked = [
        each
        for seed in range(settings.seeds)
        for each in _cohort(people[:half], artefact, settings, seed, say)
    ]
    rebuilt, answer = _rebuild(asked, artefact, known, settings, python, say)
    generator = np.random.default_rng([_SEED, 1])
    views = []
    for key in asked[0].cases:
        view, _, defence = key.partition(" ")
        candidates = rebuilt[key]
        views.append(
            {
                "view": view,
                "defence": defence,
                "alike": answer["alike"][key],
                "figures": _figures(asked, candidates, known, generator),
            }
        )
    return {
        "dataset": info.name,
        "people": half,
        "public": len(public),
        "model": artefact.info.name,
        "parameters": artefact.info.dimension,
        "tensorflow": answer["version"],
        "settings": {**asdict(settings), "defences": [each.text for each in settings.defences]},
        "names": {each.text: each.name for each in settings.defences},
        "views": views,
        "seconds": time.monotonic() - began,
        "cpu_seconds": sum(os.times()[:4]) - cpu,
        "machine": machine(),
    }


@dataclass(frozen=True)
class Known:
    """What the attacker has of other people: records, means of classes, spread of columns."""

    records: Records = field(repr=False)
    classes: Array = field(repr=False)
    """The mean record of each class (classes, *input)."""
    mean: Array = field(repr=False)
    spread: Array = field(repr=False)
    peak: float

    @classmethod
    def of(cls, people: Sequence[Records], classes: int) -> "Known":
        """Take all records of these people. Raises ConfigError where a class is missing."""
        x = np.concatenate([each.x for each in people])
        y = np.concatenate([each.y for each in people])
        if len(np.unique(y)) < classes:
            raise ConfigError("the people who are not attacked lack a class: use more rows")
        axes = tuple(range(x.ndim - 1))
        return cls(
            Records("public", x, y),
            np.stack([x[y == label].mean(axis=0) for label in range(classes)]),
            x.mean(axis=axes),
            np.maximum(x.std(axis=axes), 1e-3),
            float(x.max() - x.min()),
        )

    def some(self, label: int, count: int, generator: np.random.Generator) -> Array:
        """Return records (count, *input) of a class at random."""
        places = generator.choice(np.flatnonzero(self.records.y == label), count)
        found: Array = self.records.x[places]
        return found


def _check(settings: InversionSettings) -> None:
    if settings.targets > settings.devices or settings.devices < 2:
        raise ConfigError(
            f"{settings.targets} targets of {settings.devices} devices: use 2 devices or more, "
            "and no more targets than devices, as each is of another one"
        )
    if min(settings.seeds, settings.targets, settings.dummies, settings.iterations) < 1:
        raise ConfigError("seeds, targets, dummies and iterations must be 1 or more")
    if settings.rows < settings.dummies or not settings.defences:
        raise ConfigError("use more rows than dummies, and name a defence")


def _cohort(
    people: Sequence[Records], artefact: Artefact, settings: InversionSettings, seed: int, say: Say
) -> list[Asked]:
    """Play the first round of a cohort under every defence; return what is asked about."""
    generator = np.random.default_rng([_SEED, 0, seed])
    made = deal(people, None, settings.devices, settings.rows, generator)
    name = hashlib.sha256(f"inversion {seed}".encode()).digest()
    start, model = initial_weights(artefact, name), TrainableModel(artefact)
    rows = [int(generator.integers(len(records))) for records in made[: settings.targets]]
    some = [made[t].take(np.array([row])) for t, row in enumerate(rows)]
    cases: list[dict[str, Case]] = [
        {"gradient": Case(start, _gradient(model, start, each, _NO_CLIP), each.y)} for each in some
    ]
    for defence in settings.defences:
        say(f"cohort {seed + 1}, {defence.name}: the first round")
        plan = _plan(artefact, defence, made)
        seen = next(play(model, plan, made, start, seed))
        mean = seen.updates.mean(axis=0)
        everyone = np.concatenate([records.y for records in made])
        lots = np.random.default_rng([_SEED, 2, seed])
        for target, each in enumerate(some):
            noisy = _step(model, start, each, plan)
            if noisy is not None:
                cases[target][f"step {defence.text}"] = Case(start, noisy, each.y)
            for view, update, pool in (
                ("update", seen.updates[target], made[target].y),
                ("sum", mean, everyone),
            ):
                # The attacker is told the label of what it is asked about.
                guesses = lots.choice(pool, settings.dummies - 1)
                labels = np.concatenate([each.y, guesses]).astype(np.int64)
                cases[target][f"{view} {defence.text}"] = Case(start, -update, labels)
    return [
        Asked(each.x[0], int(each.y[0]), made_of) for each, made_of in zip(some, cases, strict=True)
    ]


def _plan(artefact: Artefact, defence: Defence, made: Sequence[Records]) -> StudyPlan:
    sizes = Sizes.counted([len(records) for records in made])
    return plan_of(defence.settings(artefact.info.name, 20, len(made)), artefact, len(made), sizes)


def _gradient(model: TrainableModel, start: Weights, one: Records, clip: float) -> Floats:
    total, _, _ = model.gradient_sum(start, one.x, one.y, clip)
    return total.astype(np.float64)


def _step(model: TrainableModel, start: Weights, one: Records, plan: StudyPlan) -> Floats | None:
    """Return a step's noisy sum less the gradients of all other records; None without such noise.

    With noise distributed it is that of the smallest sum, in real numbers.
    """
    if plan.privacy.unit != "record":
        return None
    clipped = _gradient(model, start, one, plan.privacy.clip)
    return privatise(clipped, plan.privacy, fresh_generator())


def _rebuild(
    asked: Sequence[Asked],
    artefact: Artefact,
    known: Known,
    settings: InversionSettings,
    python: str,
    say: Say,
) -> tuple[dict[str, dict[str, list[Array]]], Mapping[str, Any]]:
    """Return by case and method what was rebuilt for each record, and what TensorFlow said."""
    info, arrays = artefact.info, {"mean": known.mean, "spread": known.spread}
    generator = np.random.default_rng([_SEED, 3])
    for key in asked[0].cases:
        cases = [each.cases[key] for each in asked]
        means = [known.classes[case.labels] for case in cases]
        others = [
            np.concatenate([known.some(label, 1, generator) for label in case.labels])
            for case in cases
        ]
        twice = cases * _STARTS
        arrays[f"{key} weights"] = np.stack([case.weights for case in twice])
        arrays[f"{key} gradients"] = np.stack([case.gradient for case in twice])
        arrays[f"{key} labels"] = np.stack([case.labels for case in twice])
        arrays[f"{key} starts"] = np.stack([*means, *others])
    say(f"rebuilding {len(asked)} records in {len(asked[0].cases)} ways, in TensorFlow")
    with tempfile.TemporaryDirectory(prefix="vitalring-attack-") as folder:
        given, found = Path(folder) / "arrays.npz", Path(folder) / "found.npz"
        np.savez(given, **arrays)
        request = {
            "arrays": str(given),
            "found": str(found),
            "model": info.name,
            "input_shape": list(info.input_shape),
            "classes": len(info.classes),
            "groups": list(asked[0].cases),
            "iterations": settings.iterations,
            "variation": settings.variation,
            "bound": 6.0,
        }
        answer = run_script(_SCRIPT, request, python=python)
        with np.load(found) as rows:
            tried = {key: rows[key] for key in asked[0].cases}
    rebuilt: dict[str, dict[str, list[Array]]] = {}
    alike = {}
    for key, rows_of in tried.items():
        cosines = np.array(answer["alike"][key]).reshape(_STARTS, len(asked))
        best = cosines.argmax(axis=0)
        alike[key] = cosines.max(axis=0).tolist()
        both = rows_of.reshape(_STARTS, len(asked), *rows_of.shape[1:])
        rebuilt[key] = {"descent": [both[start, n] for n, start in enumerate(best)]}
        if answer["first_dense"]:
            rebuilt[key]["closed"] = [
                first_dense_inputs(each.cases[key].gradient, *answer["first_dense"])
                for each in asked
            ]
    return rebuilt, {**answer, "alike": alike}


def _figures(
    asked: Sequence[Asked],
    rebuilt: Mapping[str, Sequence[Array]],
    known: Known,
    generator: np.random.Generator,
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Return by method, by whom, by measure one number for each record asked about.

    Whoever rebuilt k records is compared with k of other people, of the same class.
    """
    figures: dict[str, dict[str, dict[str, list[float]]]] = {}
    for method, candidates in rebuilt.items():
        found: dict[str, dict[str, list[float]]] = {
            who: {measure: [] for measure in MEASURES} for who in ("attack", *BASELINES)
        }
        for each, records in zip(asked, candidates, strict=True):
            compared = {
                "attack": records,
                "others": known.some(each.y, max(1, len(records)), generator),
                "class": known.classes[[each.y]],
            }
            for who, some in compared.items():
                for measure, value in closest(each.x, some, known.mean, known.peak).items():
                    found[who][measure].append(value)
        figures[method] = found
    return figures
