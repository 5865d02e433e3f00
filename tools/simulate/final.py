"""The final model on the rows that nobody trained on, touched once, with intervals.

Intervals are over the groups (patients) that the data set names, or else over held-out devices
where whole devices are held out: what the figure would be on other patients. Where rows are held
out on every device, the devices are the same for all, and the intervals are over rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from vitalring.aggregator.evaluate import HeldOut, evaluate_probabilities, final_rows
from vitalring.models import metrics
from vitalring.models.artefact import Artefact
from vitalring.models.bootstrap import DRAWS, Bootstrap, Estimate, bootstrap, numbered
from vitalring.models.dataset import DatasetInfo, FeatureSchema, load_device, split
from vitalring.models.runtime import TrainableModel
from vitalring.protocol.records import Evaluation

OVERALL: Final = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")


@dataclass(frozen=True)
class DeviceEvaluation:
    """One held-out device's, or site's, rows and what the model makes of them.

    `balanced_accuracy` is over the classes that the device has.
    """

    device: str
    rows: int
    accuracy: float
    balanced_accuracy: float


@dataclass(frozen=True)
class FinalEvaluation:
    """A model on all held-out rows, device by device, with figures that can be resampled.

    `resampled` is what the intervals are over: devices, groups or rows.
    """

    classes: tuple[str, ...]
    rows: tuple[int, ...]
    """Held-out rows of each class."""
    holders: tuple[int, ...]
    """Held-out devices that have rows of each class."""
    evaluation: Evaluation
    devices: tuple[DeviceEvaluation, ...]
    resampled: str
    figures: Bootstrap = field(repr=False)

    def estimate(self, name: str) -> Estimate:
        """Return a figure of `OVERALL` with its interval."""
        return self.figures.estimate(name)

    def by_class(self, name: str) -> tuple[Estimate, ...]:
        """Return `recall` or `precision` of each class with its interval."""
        return tuple(self.figures.estimate(f"{name}:{k}") for k in range(len(self.classes)))


def evaluate_final(
    folder: Path,
    info: DatasetInfo,
    features: FeatureSchema | None,
    artefact: Artefact,
    weights: npt.NDArray[np.float64],
    seed: int,
    draws: int = DRAWS,
) -> FinalEvaluation:
    """Evaluate weights (d,) on the test rows of a data set, in the artefact's own model.

    The same seed gives the same draws for any model, so that two can be compared.
    Raises DataError or ModelError.
    """
    rows = final_rows(folder, features)
    probabilities = TrainableModel(artefact).probabilities(weights.astype(np.float32), rows.x)
    return evaluation_of(info, rows, probabilities, seed, draws)


def evaluation_of(
    info: DatasetInfo,
    rows: HeldOut,
    probabilities: npt.NDArray[np.float32],
    seed: int,
    draws: int = DRAWS,
) -> FinalEvaluation:
    """Return the evaluation of probabilities (n, classes) for held-out rows."""
    resampled, cluster = _clusters(info, rows)
    size = len(info.classes)
    owners = np.zeros((size, len(rows.devices)), np.int64)
    np.add.at(owners, (rows.y, rows.owner), 1)
    predicted = probabilities.argmax(axis=1)
    return FinalEvaluation(
        classes=info.classes,
        rows=tuple(int(n) for n in owners.sum(axis=1)),
        holders=tuple(int(n) for n in (owners > 0).sum(axis=1)),
        evaluation=evaluate_probabilities(rows.y, probabilities),
        devices=tuple(
            _of_device(name, rows.y[rows.owner == place], predicted[rows.owner == place], size)
            for place, name in enumerate(rows.devices)
        ),
        resampled=resampled,
        figures=bootstrap(rows.y, probabilities, cluster, seed, draws),
    )


def label_counts(
    folder: Path, info: DatasetInfo, features: FeatureSchema | None, devices: Sequence[str]
) -> dict[str, list[int]]:
    """Return the rows of each class that train, over `devices`, and that are held out."""
    counts = np.zeros(len(info.classes), np.int64)
    for name in devices:
        records = split(load_device(folder, name, info, features), info).train
        counts += np.bincount(records.y, minlength=len(info.classes))
    held_out = np.bincount(final_rows(folder, features).y, minlength=len(info.classes))
    return {"train": counts.tolist(), "test": held_out.tolist()}


def _clusters(info: DatasetInfo, rows: HeldOut) -> tuple[str, npt.NDArray[np.int64]]:
    if rows.group is not None:
        return "groups", numbered(rows.group)
    if info.test_devices is not None:
        return "devices", rows.owner
    return "rows", np.arange(len(rows.y))


def _of_device(
    name: str, y: metrics.Labels, predicted: metrics.Labels, classes: int
) -> DeviceEvaluation:
    confusion = metrics.confusion_matrix(y, predicted, classes)
    return DeviceEvaluation(
        name, len(y), metrics.accuracy(confusion), metrics.balanced_accuracy(confusion)
    )
