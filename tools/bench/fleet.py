"""`vitalring bench fleet`: what privacy costs a fleet, beside a server that everybody trusts.

Each side has the same devices, first weights, local training and held-out people. The fleet's
own goes through the functions of devices and server: clip, rotation, rounding, a share of integer
noise on each device, the integer sum, its decoding. Encryption, which changes no field of a sum
(SPEC 5), is left out. The trusted server clips the same updates and adds one Gaussian, whose size
the same accountant finds; nothing is rounded, nobody colludes, nobody may be missing.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from vitalring.edge_agent.accountant import calibrate
from vitalring.errors import ConfigError, ModelError, RecordError
from vitalring.models.catalogue import choose_artefact
from vitalring.models.dataset import Records
from vitalring.protocol.guarantee import noise_of, sensitivity
from vitalring.protocol.privacy import Spend
from vitalring.protocol.records import StudyPlan
from vitalring.schema import to_plain
from vitalring.tools.bench.skew_devices import load_people, validation_split
from vitalring.tools.bench.trial import Stage, Weights, central, federated, score, stage_of
from vitalring.tools.data.partition import within_people
from vitalring.tools.measuring.machine import machine
from vitalring.tools.settings import SimulationSettings, StudySettings, numbers_of

Say = Callable[[str], None]

NO_CLIP: Final = 1e9
"""Stands for no clip of an update."""

_RATES: Final = (1.0, 0.5, 0.25, 0.125)
"""Parts of the study's learning rate that updates without a clip try."""


@dataclass(frozen=True)
class FleetSettings:
    """What is compared: `devices` virtual devices, 0 takes those of the folder as they are."""

    devices: int = 1000
    epsilons: tuple[float, ...] = (1.0, 2.0)
    seeds: int = 5


def measure_fleet(
    folder: Path,
    simulation: SimulationSettings,
    settings: FleetSettings,
    say: Say = lambda _line: None,
) -> dict[str, Any]:
    """Run every side at every epsilon, and return every figure. Raises VitalRingError."""
    study = simulation.study
    guarantee = study.unit, numbers_of(study, 1).noise
    if guarantee != ("device", "distributed"):
        raise ConfigError(
            f"the study's unit is {guarantee[0]} and its noise {guarantee[1]}: a fleet is compared "
            "with unit device, noise distributed"
        )
    if settings.seeds < 1 or not settings.epsilons:
        raise ConfigError("give --seeds 1 or more and an --epsilon: nothing would be measured")
    began = time.monotonic()
    people = load_people(folder)
    classes = people.info.classes
    artefact = choose_artefact(study.model, people.input_shape, people.info.kind, classes)
    whole = stage_of(artefact, people.train, [people.held_out])
    stage = replace(whole, devices=deal(whole.devices, settings.devices))
    # What cannot be planned is refused before anything trains.
    plans = {each: _plans(stage, replace(study, epsilon=each)) for each in settings.epsilons}
    say("no privacy")
    rate, tried = _own_rate(whole, study, settings)
    found = [*_without(stage, study, rate, settings)]
    for epsilon, (trusting, own) in plans.items():
        say(f"epsilon {epsilon:g}")
        found += _with(stage, trusting, own, settings, say)
    sizes = stage.sizes
    return {
        "dataset": people.info.name,
        "people": len(people.train),
        "devices": len(sizes),
        "records": [min(sizes), max(sizes), sum(sizes)],
        "held_out_rows": len(people.held_out),
        "held_out_people": len(people.info.test_devices or ()),
        "model": artefact.info.name,
        "parameters": artefact.info.dimension,
        "study": _numbers(stage.plan(study)),
        "settings": asdict(settings),
        "own_rate": rate,
        "rates_tried": tried,
        "sides": found,
        "seconds": time.monotonic() - began,
        "machine": machine(),
    }


def deal(people: Sequence[Records], devices: int) -> tuple[Records, ...]:
    """Return virtual devices as `vitalring data deal` makes them, or the people where it is 0.

    Raises ConfigError or DataError where there are too many or too few.
    """
    if not devices:
        return tuple(people)
    parts = within_people([len(each) for each in people], devices, np.random.default_rng(0))
    return tuple(
        replace(each.take(rows), device=f"virtual-{person + 1}-{number}")
        for person, (each, mine) in enumerate(zip(people, parts, strict=True))
        for number, rows in enumerate(mine, 1)
    )


def _own_rate(
    whole: Stage, study: StudySettings, settings: FleetSettings
) -> tuple[float, list[dict[str, float]]]:
    """Return the learning rate at which updates that nobody clips do best, and what was tried.

    A rate that suits clipped updates may throw others far off. It is chosen on people set aside
    from those who train.
    """
    rest, aside = validation_split(whole.devices, np.random.default_rng(0))
    count = round(settings.devices * sum(map(len, rest)) / sum(whole.sizes))
    stage = replace(whole, devices=deal(rest, count), aside=aside)
    lr = stage.plan(study).training.learning_rate
    tried = []
    for part in _RATES:
        plan = stage.plan(replace(study, lr=lr * part))
        try:
            accuracy = score(stage, central(stage, plan, NO_CLIP, 0.0, 0))["accuracy"]
        except (ModelError, RecordError):
            accuracy = -1.0  # diverged
        tried.append({"lr": lr * part, "accuracy": accuracy})
    return max(tried, key=lambda each: each["accuracy"])["lr"], tried


def _without(
    stage: Stage, study: StudySettings, rate: float, settings: FleetSettings
) -> list[dict[str, Any]]:
    """Return what the same training reaches without noise, without and with its clip."""
    plain, plan = stage.plan(replace(study, lr=rate)), stage.plan(study)
    # No seed moves anything where nothing is drawn.
    limits = any(limit for _, limit in stage.artefact.info.blocks)
    fixed = plan.training.sampling_rate == 1.0 and not limits
    found: list[dict[str, Any]] = []
    for name, terms, clip in (
        ("no privacy", plain, NO_CLIP),
        ("clipped, no noise", plan, plan.codec.clip),
    ):
        runs = [
            score(stage, central(stage, terms, clip, 0.0, seed))
            for seed in range(1 if fixed else settings.seeds)
        ]
        found.append({"side": name, "epsilon": None, "terms": {}, "runs": runs})
    return found


def _plans(stage: Stage, study: StudySettings) -> tuple[StudyPlan, StudyPlan]:
    """Return the plan of a fleet in which nobody colludes or is missing, and the study's own."""
    return stage.plan(replace(study, colluders=0.0, spare=0.0)), stage.plan(study)


def _with(
    stage: Stage, trusting: StudyPlan, own: StudyPlan, settings: FleetSettings, say: Say
) -> list[dict[str, Any]]:
    """Return the sides at one epsilon."""
    rounds, clip, claim = trusting.training.rounds, trusting.codec.clip, trusting.privacy
    multiplier = calibrate(
        claim.epsilon, claim.delta, lambda each: [Spend(1.0, each, rounds, epsilon=0.0)]
    )

    def alone(seed: int) -> Weights:
        return central(stage, trusting, clip, multiplier, seed)

    sides: list[tuple[str, Mapping[str, Any], Callable[[int], Weights]]] = [
        ("trusted server", {"noise_multiplier": multiplier}, alone)
    ]
    sides += [
        ("fleet", _terms(plan, len(stage.devices)), partial(federated, stage, plan))
        for plan in dict.fromkeys((trusting, own))
    ]
    found = []
    for name, terms, train in sides:
        runs = []
        for seed in range(settings.seeds):
            say(f"  {name}, seed {seed + 1} of {settings.seeds}")
            runs.append(score(stage, train(seed)))
        found.append({"side": name, "epsilon": claim.epsilon, "terms": dict(terms), "runs": runs})
    return found


def _terms(plan: StudyPlan, devices: int) -> dict[str, Any]:
    """Return what the fleet's noise rests on; lengths are in clips."""
    noise, codec = noise_of(plan.terms), plan.codec
    step = noise.total / plan.privacy.noise_multiplier
    return {
        "min_cohort": plan.min_cohort,
        "colluders": plan.privacy.colluders,
        "noise_multiplier": plan.privacy.noise_multiplier,
        # Of all devices together, more than the guarantee counts on.
        "noise_there": noise.deviation * devices**0.5 / step,
        "sensitivity": sensitivity(plan.terms) / step,
        "bits": codec.bits,
        "summed_bits": (devices * codec.field_max).bit_length(),
    }


def _numbers(plan: StudyPlan) -> dict[str, Any]:
    return {
        "rounds": plan.training.rounds,
        "steps": plan.training.steps,
        "sampling_rate": plan.training.sampling_rate,
        "lr": plan.training.learning_rate,
        "update_clip": plan.codec.clip,
        "delta": plan.privacy.delta,
        "server": to_plain(plan.server),
    }
