"""What each device reaches by itself: trained without privacy on its own records alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitalring.aggregator.evaluate import evaluate_weights, final_rows
from vitalring.edge_agent.personal import KeepRule
from vitalring.models.dataset import FeatureSchema
from vitalring.models.runtime import TrainableModel
from vitalring.tools.simulate.apart import Progress, quietly, run_apart, spawning
from vitalring.tools.simulate.one_place import Recipe, train_rounds, training_rows


@dataclass(frozen=True)
class Task:
    """One device's training alone: as many rounds and steps, and the same server optimiser.

    `personal`: devices kept records back for heads of their own, and so it does here.
    """

    folder: Path
    device: str
    features: FeatureSchema | None
    recipe: Recipe
    seed: int
    personal: KeepRule | None = None


@dataclass(frozen=True)
class AloneResult:
    """How a device that trained alone does on the held-out rows."""

    device: str
    accuracy: float
    macro_f1: float


def train_alone(tasks: list[Task], workers: int, log_file: Path) -> Iterator[AloneResult]:
    """Train each device alone, in `workers` processes; results come as they are ready.

    What the runtime prints on its own goes to `log_file`. Raises ApartError where no process can
    be started.
    """
    # Once before the pool, which would start workers that end at once again and again.
    run_apart(_ready, (), log_file)
    with spawning().Pool(workers, quietly, (log_file,)) as pool:
        yield from pool.imap_unordered(_train, tasks)


def _ready(_progress: Progress) -> None:
    """Do nothing, in a process of its own."""


def _train(task: Task) -> AloneResult:
    records = training_rows(task.folder, (task.device,), task.features, task.personal)
    trained = train_rounds(task.recipe, records.x, records.y, task.seed)
    rows = final_rows(task.folder, task.features)
    model = TrainableModel(task.recipe.artefact)
    evaluation = evaluate_weights(model, trained.weights.astype(np.float32), rows.x, rows.y)
    return AloneResult(task.device, evaluation.accuracy, evaluation.macro_f1)
