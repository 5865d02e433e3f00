"""Centralised training on the same records in the same run, for comparison.

It is a device's own algorithm on everybody's records: the same network and initial weights, the
same learning rate, and batches as large as a device's on the average. There are as many passes
over the records, so there are as many times more steps in a row as there are devices: pooled data
may be used more often in a row, which is what not being federated is good for. There is no server,
so its optimiser is left out. Its momentum is meant for averages over devices; on the steps of one
learner, which no average steadies, the same momentum can diverge. There is no noise, no quantised
update, no encryption and no device that misses a round.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from vitalring.edge_agent.personal import KeepRule
from vitalring.models.dataset import FeatureSchema, load_dataset
from vitalring.protocol.records import ServerOptimiser
from vitalring.tools.simulate.apart import Progress
from vitalring.tools.simulate.final import FinalEvaluation, evaluate_final
from vitalring.tools.simulate.one_place import Recipe, train_rounds, training_rows

_NO_SERVER: Final = ServerOptimiser(name="fedavg", learning_rate=1.0, momentum=0.0)
"""Takes what one learner reached as it is."""


@dataclass(frozen=True)
class PooledTask:
    """The training rows of `devices` in one place; `recipe` is the plan's.

    `recipe.training.rounds` are the rounds that the federation ran. `seed` is for the batches,
    `draws_seed` for the intervals: the one of the federated model's, to compare the two.
    `personal`: devices kept records back for heads of their own, which are left out here too.
    """

    folder: Path
    devices: tuple[str, ...]
    features: FeatureSchema | None
    recipe: Recipe
    seed: int
    draws_seed: int
    personal: KeepRule | None = None


@dataclass(frozen=True)
class PooledTraining:
    """How the pooled model was trained.

    `passes` over the records and `batch` are counted, not planned; `steps` are gradient steps.
    """

    rows: int
    devices: int
    passes: float
    batch: float
    steps: int
    learning_rate: float
    clip: float
    seconds: float


@dataclass(frozen=True)
class Centralised:
    """How the pooled model does on the test rows, and how it was trained."""

    evaluation: FinalEvaluation
    training: PooledTraining


def train_pooled(task: PooledTask, progress: Progress = lambda _: None) -> Centralised:
    """Train on all devices' rows and evaluate on the test rows. Raises DataError or ModelError."""
    began = time.monotonic()
    records = training_rows(task.folder, task.devices, task.features, task.personal)
    recipe = pooled_recipe(task.recipe, len(task.devices))
    rounds = recipe.training.rounds
    trained = train_rounds(
        recipe, records.x, records.y, task.seed, lambda number: progress(number / rounds)
    )
    evaluation = evaluate_final(
        task.folder,
        load_dataset(task.folder),
        task.features,
        recipe.artefact,
        trained.weights,
        task.draws_seed,
    )
    steps = rounds * recipe.training.steps
    training = PooledTraining(
        rows=len(records),
        devices=len(task.devices),
        passes=trained.examples / len(records),
        batch=trained.examples / steps,
        steps=steps,
        learning_rate=recipe.training.learning_rate,
        clip=recipe.clip,
        seconds=time.monotonic() - began,
    )
    return Centralised(evaluation, training)


def pooled_recipe(recipe: Recipe, devices: int) -> Recipe:
    """Return the recipe for the records of so many devices in one place.

    A record enters a step `devices` times less often, and there are `devices` times more rounds,
    each of which goes on where the last one ended. A recipe that takes all records in each step
    stays as it is.
    """
    if recipe.training.sampling_rate == 1.0:
        return recipe
    training = replace(
        recipe.training,
        sampling_rate=recipe.training.sampling_rate / devices,
        rounds=recipe.training.rounds * devices,
    )
    return replace(recipe, training=training, server=_NO_SERVER)
