"""How good a model is, on records that no device trains on."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitalring.aggregator.rounds import Evaluate
from vitalring.models import metrics
from vitalring.models.artefact import Artefact
from vitalring.models.dataset import devices, load_dataset, load_device, split
from vitalring.models.runtime import TrainableModel
from vitalring.protocol.records import Evaluation


def held_out_records(
    folder: Path,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return the held-out records of a data set, all devices together. Raises DataError."""
    info = load_dataset(folder)
    _, test = devices(folder, info)
    parts = [split(load_device(folder, name, info), info)[1] for name in test]
    return np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts])


def evaluator(artefact: Artefact, folder: Path | None) -> Evaluate:
    """Return a function from weights (d,) to their evaluation; None where nothing is held out."""
    if folder is None:
        return lambda _weights: None
    x, y = held_out_records(folder)
    model = TrainableModel(artefact)

    def evaluate(weights: npt.NDArray[np.float64]) -> Evaluation:
        return evaluate_weights(model, weights.astype(np.float32), x, y)

    return evaluate


def evaluate_weights(
    model: TrainableModel,
    weights: npt.NDArray[np.float32],
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.int64],
) -> Evaluation:
    """Evaluate weights (d,) on records x (n, ...) with labels y (n,)."""
    probabilities = model.probabilities(weights, x)
    confusion = metrics.confusion_matrix(y, probabilities.argmax(axis=1), probabilities.shape[1])
    return Evaluation(
        accuracy=metrics.accuracy(confusion),
        macro_f1=metrics.macro_f1(confusion),
        loss=metrics.log_loss(y, probabilities),
        confusion=tuple(tuple(int(n) for n in row) for row in confusion),
    )
