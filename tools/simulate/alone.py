"""What each device reaches by itself: trained without privacy on its own records alone."""

import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitalring.aggregator import optimisers
from vitalring.aggregator.evaluate import evaluate_weights, held_out_records
from vitalring.edge_agent.dpsgd import train
from vitalring.models.artefact import initial_weights, load_artefact
from vitalring.models.dataset import load_dataset, load_device, split
from vitalring.models.runtime import TrainableModel
from vitalring.protocol.privacy import Privacy, Training
from vitalring.protocol.records import ServerOptimiser


@dataclass(frozen=True)
class Task:
    """One device's training alone: as many rounds and steps, and the same server optimiser."""

    folder: Path
    device: str
    model: str
    training: Training
    clip: float
    server: ServerOptimiser
    initial_seed: bytes
    seed: int


@dataclass(frozen=True)
class AloneResult:
    """How a device that trained alone does on the held-out devices."""

    device: str
    accuracy: float
    macro_f1: float


def train_alone(tasks: list[Task], workers: int, log_file: Path) -> Iterator[AloneResult]:
    """Train each device alone, in `workers` processes; results come as they are ready.

    What the runtime prints on its own goes to `log_file`.
    """
    # Spawned, not forked: TFLite keeps threads that a fork would lose.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with multiprocessing.get_context("spawn").Pool(workers, _quietly, (log_file,)) as pool:
        yield from pool.imap_unordered(_train, tasks)


def _quietly(log_file: Path) -> None:
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _train(task: Task) -> AloneResult:
    info = load_dataset(task.folder)
    records = split(load_device(task.folder, task.device, info), info).train
    artefact = load_artefact(task.model)
    model = TrainableModel(artefact)
    optimiser = optimisers.build(task.server)
    generator = np.random.default_rng(task.seed)
    state = optimiser.init(initial_weights(artefact, task.initial_seed).astype(np.float64))
    for _ in range(task.training.rounds):
        start = state.weights.astype(np.float32)
        result = train(
            model, start, records.x, records.y, task.training, Privacy(clip=task.clip), generator
        )
        state = optimiser.apply(state, result.weights.astype(np.float64) - start)
    x, y = held_out_records(task.folder)
    evaluation = evaluate_weights(model, state.weights.astype(np.float32), x, y)
    return AloneResult(task.device, evaluation.accuracy, evaluation.macro_f1)
