"""Centralised training on the same records in the same run, for comparison.

It is the federation's own algorithm with one device that holds everything: the same network and
initial weights, the same learning rate, and batches as large as a device's on the average. The
server's optimiser moves after as many local steps as in a round of the federation. There are as
many passes over the records, so there are as many times more moves as there are devices: pooled
data may be used more often in a row, which is what not being federated is good for. There is no
noise, no quantised update, no encryption and no device that misses a round.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

from vitalring.edge_agent.personal import KeepRule
from vitalring.models.dataset import FeatureSchema, load_dataset
from vitalring.tools.simulate.apart import Progress
from vitalring.tools.simulate.final import FinalEvaluation, evaluate_final
from vitalring.tools.simulate.one_place import Recipe, train_rounds, training_rows


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

    `passes` over the records and `batch` are counted, not planned; `steps` are gradient steps,
    `moves` the server optimiser's.
    """

    rows: int
    devices: int
    passes: float
    batch: float
    steps: int
    moves: int
    learning_rate: float
    clip: float
    optimiser: str
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
    moves = recipe.training.rounds
    trained = train_rounds(
        recipe, records.x, records.y, task.seed, lambda number: progress(number / moves)
    )
    evaluation = evaluate_final(
        task.folder,
        load_dataset(task.folder),
        task.features,
        recipe.artefact,
        trained.weights,
        task.draws_seed,
    )
    steps = moves * recipe.training.steps
    training = PooledTraining(
        rows=len(records),
        devices=len(task.devices),
        passes=trained.examples / len(records),
        batch=trained.examples / steps,
        steps=steps,
        moves=moves,
        learning_rate=recipe.training.learning_rate,
        clip=recipe.clip,
        optimiser=recipe.server.name,
        seconds=time.monotonic() - began,
    )
    return Centralised(evaluation, training)


def pooled_recipe(recipe: Recipe, devices: int) -> Recipe:
    """Return the recipe for the records of so many devices in one place.

    A record enters a step `devices` times less often, and there are `devices` times more rounds.
    """
    training = replace(
        recipe.training,
        sampling_rate=recipe.training.sampling_rate / devices,
        rounds=recipe.training.rounds * devices,
    )
    return replace(recipe, training=training)
