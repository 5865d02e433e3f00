"""`vitalring bench utility`: what each technique brings to a study under differential privacy.

Every step of a ladder is a whole study, trained by the functions of devices and server, and
measured on people whose records did not train it: the people who train take turns at being held
back. Those whom the data set holds out play no part. Where a data set has validation rows, as
tables by site have, those measure instead, and all devices train.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from vitalring.aggregator.evaluate import has_validation, round_rows
from vitalring.edge_agent.accountant import calibrate
from vitalring.errors import ConfigError
from vitalring.models.artefact import Artefact
from vitalring.models.catalogue import choose_artefact
from vitalring.models.dataset import (
    DatasetInfo,
    FeatureSchema,
    Records,
    devices,
    holds_tables,
    load_dataset,
    load_part,
    load_table,
    refuse_by_place,
    split,
)
from vitalring.models.dataset.statistics import agreed
from vitalring.protocol.guarantee import adds_integer_noise, noise_of, sensitivity
from vitalring.protocol.privacy import Spend
from vitalring.protocol.records import StudyPlan
from vitalring.schema import to_plain
from vitalring.tools.bench.factorisation import prefix_errors
from vitalring.tools.bench.ladder_settings import Ladder, Step
from vitalring.tools.bench.trial import Stage, central, federated, score, stage_of
from vitalring.tools.measuring.machine import machine
from vitalring.tools.settings import StudySettings, numbers_of

Say = Callable[[str], None]

ROUNDS = (25, 50, 100, 200, 400)
"""Numbers of rounds whose noise is worked out."""


@dataclass(frozen=True)
class Subject:
    """A data set in memory: who trains, and rows of theirs that do not, where it has such."""

    info: DatasetInfo
    people: tuple[Records, ...] = field(repr=False)
    validation: Records | None = field(repr=False)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one row: (time, channels) or (inputs,)."""
        return self.people[0].x.shape[1:]


def load_subject(folder: Path) -> Subject:
    """Read what may train and validate of a data set. Raises DataError."""
    info = load_dataset(folder)
    refuse_by_place(folder, info)  # a ladder is for records
    names, _ = devices(folder, info)
    schema = _features(folder, info, names)
    people = tuple(load_part(folder, name, info, "train", schema) for name in names)
    if not has_validation(info):
        return Subject(info, people, None)
    rows = round_rows(folder, schema)
    return Subject(info, people, Records("validation", rows.x, rows.y))


def measure_ladder(
    subject: Subject, ladder: Ladder, seeds: int, say: Say = lambda _line: None
) -> dict[str, Any]:
    """Run every step and return every figure. Raises VitalRingError."""
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds} measures nothing: use 1 or more")
    folds = 1 if subject.validation is not None else ladder.folds
    if folds > 1 and len(subject.people) < 2 * folds:
        raise ConfigError(
            f"{len(subject.people)} people who train are too few for {folds} folds: use fewer"
        )
    began = time.monotonic()

    @cache
    def stage(name: str) -> Stage:
        return _stage(subject, _artefact(subject, name))

    # What cannot be planned is refused before hours of training.
    for step in ladder.steps:
        for part in _parts(stage(step.study.model), subject, folds):
            part.plan(step.study)
    found = []
    for number, step in enumerate(ladder.steps, 1):
        say(f"{number} of {len(ladder.steps)}: {step.name}")
        begin = time.monotonic()
        wanted = min(seeds, step.seeds or seeds)
        parts = list(_parts(stage(step.study.model), subject, folds))
        found.append(_run(parts, step, wanted) | {"seconds": time.monotonic() - begin})
    last = next(step for step in reversed(ladder.steps) if not step.beside)
    return {
        "dataset": subject.info.name,
        "people": len(subject.people),
        "rows": sum(map(len, subject.people)),
        "validation_rows": None if subject.validation is None else len(subject.validation),
        "folds": folds,
        "metric": ladder.metric,
        "epsilon": last.study.epsilon,
        "delta": last.study.delta,
        "seeds": seeds,
        "steps": found,
        "rounds": _by_rounds(last.study),
        "grid": _by_bits(next(_parts(stage(last.study.model), subject, folds)), last.study),
        "factorisation": prefix_errors(last.study.rounds),
        "seconds": time.monotonic() - began,
        "machine": machine(),
    }


def _features(folder: Path, info: DatasetInfo, names: tuple[str, ...]) -> FeatureSchema | None:
    if info.features is not None or not holds_tables(folder, info):
        return info.features
    return agreed(info, [split(load_table(folder, name, info), info).train for name in names])


def _artefact(subject: Subject, name: str) -> Artefact:
    info = subject.info
    return choose_artefact(name, subject.input_shape, info.kind, info.classes)


def _stage(subject: Subject, artefact: Artefact) -> Stage:
    aside = [] if subject.validation is None else [subject.validation]
    return stage_of(artefact, subject.people, aside)


def _parts(stage: Stage, subject: Subject, folds: int) -> Iterator[Stage]:
    """Yield the study's devices with each fold of them held back in turn."""
    if subject.validation is not None:
        yield stage
        return
    order = np.random.default_rng(0).permutation(len(stage.devices))
    for fold in np.array_split(order, folds):
        held = set(fold.tolist())
        yield replace(
            stage,
            devices=tuple(each for i, each in enumerate(stage.devices) if i not in held),
            aside=tuple(each for i, each in enumerate(stage.devices) if i in held),
        )


def _run(parts: list[Stage], step: Step, seeds: int) -> dict[str, Any]:
    """Return a step's figures, means over folds: of each seed with noise, of one without."""
    runs = [
        _mean([_score(part, replace(step.study, seed=seed), seed) for part in parts])
        for seed in range(seeds)
    ]
    plan = parts[0].plan(step.study)
    # Where clip or noise changes from round to round no run without noise has the same clips.
    alike = not (plan.privacy.clip_quantile or plan.privacy.schedule)
    free = _mean([_free(part, step.study) for part in parts]) if alike else None
    return {
        "name": step.name,
        "on": step.on,
        "beside": step.beside,
        "changes": {name: to_plain(value) for name, value in step.changes.items()},
        "model": plan.model.name,
        "parameters": plan.model.dimension,
        "rounds": plan.training.rounds,
        "steps": plan.training.steps,
        "sampling_rate": plan.training.sampling_rate,
        "noise_multiplier": plan.privacy.noise_multiplier,
        "bits": plan.codec.bits,
        "runs": runs,
        "without_noise": free,
    }


def _score(stage: Stage, study: StudySettings, seed: int) -> Mapping[str, float]:
    return score(stage, federated(stage, stage.plan(study), seed))


def _free(stage: Stage, study: StudySettings) -> Mapping[str, float]:
    """Return what the same study reaches without noise: clips, rates and rounds as they are."""
    plan = stage.plan(study)
    if adds_integer_noise(plan.privacy):
        return score(stage, central(stage, plan, plan.codec.clip, 0.0, 0))
    numbers = numbers_of(study, plan.training.records)
    plain = replace(
        study,
        unit="none",
        noise=None,
        local_epochs=numbers.local_epochs,
        batch=numbers.batch,
        lr=numbers.lr,
        clip=numbers.clip,
        update_clip=numbers.update_clip,
        server=numbers.server,
        weight_cap=1,  # all weigh alike, as with a guarantee for records
    )
    return _score(stage, plain, 0)


def _mean(scores: list[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([each[name] for each in scores])) for name in scores[0]}


def _by_rounds(study: StudySettings) -> list[dict[str, float]]:
    """Return the noise multiplier by the number of rounds, and its share of what they add up to."""
    found = []
    for rounds in ROUNDS:
        spend = Spend(1.0, 1.0, rounds, epsilon=0.0)
        multiplier = calibrate(study.epsilon, study.delta, partial(_with_multiplier, spend))
        share = multiplier / rounds**0.5
        found.append({"rounds": rounds, "noise_multiplier": multiplier, "share": share})
    return found


def _with_multiplier(spend: Spend, multiplier: float) -> tuple[Spend]:
    return (replace(spend, noise_multiplier=multiplier),)


def _by_bits(stage: Stage, study: StudySettings) -> list[dict[str, float]]:
    """Return what rounding makes of the sensitivity, in clips, by the bits of a field."""
    plan = stage.plan(study)
    if not adds_integer_noise(plan.privacy):
        return []
    return [
        {"bits": bits, "sensitivity": _rounded(plan, bits), "taken": bits == plan.codec.bits}
        for bits in sorted({*range(8, 21, 2), plan.codec.bits})
    ]


def _rounded(plan: StudyPlan, bits: int) -> float:
    terms = replace(plan.terms, codec=replace(plan.codec, bits=bits))
    return sensitivity(terms) * plan.privacy.noise_multiplier / noise_of(terms).total
