"""`vitalring attack audit`: how much of a claim can be seen in one whole training.

A study trains by the toolkit's own planning, training, noise, encoding and server, with canaries
among its records, each there by a coin. An auditor who knows everything but the coins guesses
them from what the training released; `one_run` turns right guesses into a lower bound on epsilon,
which must lie below the claim. A bound above it would show a broken mechanism, wherever the fault
is; one far below it says that this auditor found no more, not that there is no more.
"""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vitalring.edge_agent import accountant
from vitalring.edge_agent.dpsgd import TrainableModel as Trainable
from vitalring.errors import ConfigError
from vitalring.models.artefact import Artefact, initial_weights
from vitalring.models.catalogue import choose_artefact
from vitalring.models.dataset import Records
from vitalring.models.runtime import TrainableModel
from vitalring.protocol.records import StudyPlan
from vitalring.tools.attack.canaries import (
    GradientCanaries,
    gradient_canaries,
    mislabelled,
    planted,
)
from vitalring.tools.attack.likelihood import confidence
from vitalring.tools.attack.membership import Defence
from vitalring.tools.attack.one_run import Floats, best_bound
from vitalring.tools.attack.pool import Pool, load_pool
from vitalring.tools.measuring.machine import machine
from vitalring.tools.measuring.virtual import Seen, Weights, play
from vitalring.tools.plans import Sizes, plan_of

Say = Callable[[str], None]

RISK: Final = 0.05
"""Chance that a bound is above what is true."""

_OPEN_LENGTH: Final = 1_000.0
"""How long a planted gradient is where nothing bounds one: far beyond those of records, and short
enough that the weights stay weights."""

VIEWS: Final = {
    "final": "the final model",
    "models": "all models, as from the opened sums",
    "updates": "all updates of each device in clear",
}
"""What an auditor sees."""

KINDS: Final = {
    "gradient": "a gradient of one's own",
    "label": "a record with a false label",
}
"""What the canaries are."""

_SEED: Final = 6_500_000
_NO_DELTA: Final = 1e-5
"""At which a training that claims nothing is judged."""


@dataclass(frozen=True)
class AuditSettings:
    """What is audited."""

    defences: tuple[Defence, ...] = (
        Defence(),
        Defence("record", "local", 8.0),
        Defence("record", "distributed", 8.0),
    )
    rows: int = 300
    """Most records of a person, besides canaries."""
    rounds: int = 20
    canaries: int = 1000
    """In each training; half of them are in it, by lot."""


def measure_audit(
    folder: Path,
    model: str | None,
    settings: AuditSettings,
    say: Say = lambda _line: None,
) -> dict[str, Any]:
    """Audit trainings on a data set's folder, and return every figure. Raises VitalRingError."""
    _check(settings)
    began, cpu = time.monotonic(), sum(os.times()[:4])
    pool = load_pool(folder, settings.rows)
    info, shape = pool.info, pool.input_shape
    artefact = choose_artefact(model, shape, info.kind, info.classes)
    network = TrainableModel(artefact)
    cases = [
        _audit(pool, artefact, network, defence, settings, say) for defence in settings.defences
    ]
    return {
        "dataset": info.name,
        "people": len(pool.people),
        "records": sum(map(len, pool.people)),
        "model": artefact.info.name,
        "parameters": artefact.info.dimension,
        "risk": RISK,
        "settings": {
            **asdict(settings),
            "defences": [defence.text for defence in settings.defences],
        },
        "cases": cases,
        "seconds": time.monotonic() - began,
        "cpu_seconds": sum(os.times()[:4]) - cpu,
        "machine": machine(),
    }


def protects(defence: Defence, view: str) -> bool:
    """Tell whether a claim is about an auditor with this view (SPEC 7.2)."""
    if defence.unit == "none":
        return False
    return view != "updates" or defence.noise == "local"


def _check(settings: AuditSettings) -> None:
    if settings.canaries < 20 or settings.rows < 4 or settings.rounds < 1:
        raise ConfigError("use 20 canaries, 4 rows and 1 round, or more")
    if any(defence.unit == "device" for defence in settings.defences):
        raise ConfigError(
            "an audit of one training takes hundreds of canaries, and with unit device each is a "
            "whole device: leave it out here; single releases of it are audited in the tests"
        )
    if not settings.defences:
        raise ConfigError("no defence is named, so nothing is audited")


def _audit(
    pool: Pool,
    artefact: Artefact,
    network: TrainableModel,
    defence: Defence,
    settings: AuditSettings,
    say: Say,
) -> dict[str, Any]:
    plan = _plan(pool, artefact, defence, settings)
    start = initial_weights(artefact, hashlib.sha256(b"audit").digest())
    generator = np.random.default_rng(_SEED)
    count = settings.canaries
    length = _OPEN_LENGTH if plan.privacy.unit == "none" else plan.privacy.clip
    altered, marked = gradient_canaries(
        network, start, pool.held_out, count, pool.input_shape, length
    )
    labels = mislabelled(
        pool.held_out, len(pool.info.classes), min(count, len(pool.held_out)), generator
    )
    delta = plan.privacy.delta or _NO_DELTA
    found: dict[str, dict[str, Any]] = {}
    for kind, trained, canaries in (("gradient", altered, marked), ("label", network, labels)):
        say(f"{defence.name}: {len(canaries)} canaries, each {KINDS[kind]}")
        # The operating system's coins: an auditor's guesses must not follow from a seed.
        included = np.random.default_rng().random(len(canaries)) < 0.5
        scores = _scores(
            trained, network, plan, planted(pool.people, canaries, included), canaries, start
        )
        found[kind] = {
            "canaries": len(canaries),
            **{view: asdict(best_bound(scores[view], included, delta, RISK)) for view in VIEWS},
        }
    return {
        "defence": defence.text,
        "name": defence.name,
        "training": asdict(plan.training),
        "privacy": asdict(plan.privacy),
        "recomputed": accountant.check_claim(plan.terms, accountant.epsilon),
        "protects": [view for view in VIEWS if protects(defence, view)],
        "found": found,
    }


def _plan(pool: Pool, artefact: Artefact, defence: Defence, settings: AuditSettings) -> StudyPlan:
    """Return the plan of such a study; canaries, which come on top, are not counted in it."""
    count = len(pool.people)
    wanted = defence.settings(artefact.info.name, settings.rounds, count)
    return plan_of(wanted, artefact, count, Sizes.counted([len(each) for each in pool.people]))


def _scores(
    trained: Trainable,
    network: TrainableModel,
    plan: StudyPlan,
    devices: list[Records],
    canaries: Records,
    start: Weights,
) -> dict[str, Floats]:
    """Train once, and return for each view how much each canary (m,) seems to have been there."""
    owners = np.arange(len(canaries)) % len(devices)
    models, updates = np.zeros(len(canaries)), np.zeros(len(canaries))
    last = start
    for seen in play(trained, plan, devices, start, 0):
        directions = _directions(trained, seen.start, canaries, plan.privacy.clip or 1.0)
        models -= directions @ _opened(seen)
        updates -= np.einsum("kd,kd->k", directions, seen.updates[owners])
        last = seen.after
    return {
        "final": _last(trained, network, canaries, start, last),
        "models": models,
        "updates": updates,
    }


def _opened(seen: Seen) -> Floats:
    """Return the mean update (d,) that a round's sum decodes to."""
    weights = [int(fields[0]) for fields in seen.fields]
    mean: Floats = np.average(seen.updates, axis=0, weights=weights)
    return mean


def _directions(
    trained: Trainable, weights: Weights, canaries: Records, clip: float
) -> npt.NDArray[np.float32]:
    """Return the clipped gradient (m, d) of each canary at a round's first weights."""
    return np.stack(
        [
            trained.gradient_sum(weights, canaries.x[[k]], canaries.y[[k]], clip)[0]
            for k in range(len(canaries))
        ]
    )


def _last(
    trained: Trainable, network: TrainableModel, canaries: Records, start: Weights, last: Weights
) -> Floats:
    """Return what the final model says of each canary (m,), beside the first one."""
    if isinstance(trained, GradientCanaries):
        moved: Floats = (start.astype(np.float64) - last)[trained.places]
        return moved
    before, after = (
        confidence(network.probabilities(weights, canaries.x), canaries.y)
        for weights in (start, last)
    )
    return after - before
