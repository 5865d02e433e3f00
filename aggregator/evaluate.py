"""How good a model is, on records that no device trains on.

A data set may set rows aside twice. Rounds are evaluated, and a study is stopped, on the
validation rows; the test rows are then touched once, by the final model. Where no validation rows
are declared, rounds are evaluated on the test rows, and whoever chooses by them must say so.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitalring.aggregator.optimisers import Vector
from vitalring.errors import DataError
from vitalring.models import metrics
from vitalring.models.artefact import Artefact
from vitalring.models.dataset import (
    DatasetInfo,
    FeatureSchema,
    Parts,
    Records,
    devices,
    load_dataset,
    load_device,
    split,
)
from vitalring.models.runtime import TrainableModel
from vitalring.protocol.records import Evaluation


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Rows of one part, all devices together: x float32 (n, ...), y int64 (n,).

    `owner` (n,) is the place in `devices` of each row's device; a device without rows is left out.
    `group` (n,) has the number of each row's patient, or other group that the data set names;
    it is None where none is named.
    """

    x: npt.NDArray[np.float32] = field(repr=False)
    y: npt.NDArray[np.int64] = field(repr=False)
    owner: npt.NDArray[np.int64] = field(repr=False)
    group: npt.NDArray[np.uint64] | None = field(repr=False)
    devices: tuple[str, ...]


def has_validation(info: DatasetInfo) -> bool:
    """Tell whether a data set declares validation rows."""
    return bool(info.validation_devices) or info.validation_fraction > 0.0


def final_rows(folder: Path, features: FeatureSchema | None = None) -> HeldOut:
    """Return the rows that the final model is evaluated on. Raises DataError."""
    info = load_dataset(folder)
    _, names = devices(folder, info)
    return _rows(folder, info, names, features, lambda parts: parts.test)


def round_rows(folder: Path, features: FeatureSchema | None = None) -> HeldOut:
    """Return the rows that rounds are evaluated on: validation's, or else test's.

    Raises DataError.
    """
    info = load_dataset(folder)
    if not has_validation(info):
        return final_rows(folder, features)
    train, _ = devices(folder, info)
    names = info.validation_devices or train
    return _rows(folder, info, names, features, lambda parts: parts.validation)


def _rows(
    folder: Path,
    info: DatasetInfo,
    names: tuple[str, ...],
    features: FeatureSchema | None,
    part: Callable[[Parts[Records]], Records],
) -> HeldOut:
    loaded = [part(split(load_device(folder, name, info, features), info)) for name in names]
    found = [records for records in loaded if len(records)]
    if not found:
        raise DataError(
            f"{folder}: no row is held out to evaluate on; set test_fraction or test_devices in "
            "dataset.toml so that some are"
        )
    return HeldOut(
        np.concatenate([records.x for records in found]),
        np.concatenate([records.y for records in found]),
        np.repeat(np.arange(len(found)), [len(records) for records in found]),
        _group(found),
        tuple(records.device for records in found),
    )


def _group(found: list[Records]) -> npt.NDArray[np.uint64] | None:
    groups = [records.group for records in found if records.group is not None]
    return np.concatenate(groups) if len(groups) == len(found) else None


def evaluator(
    artefact: Artefact, folder: Path | None, features: FeatureSchema | None = None
) -> Callable[[Vector], Evaluation | None]:
    """Return a function from weights (d,) to their evaluation; None where nothing is held out."""
    if folder is None:
        return lambda _weights: None
    rows = round_rows(folder, features)
    model = TrainableModel(artefact)

    def evaluate(weights: Vector) -> Evaluation:
        return evaluate_weights(model, weights.astype(np.float32), rows.x, rows.y)

    return evaluate


def evaluate_weights(
    model: TrainableModel,
    weights: npt.NDArray[np.float32],
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.int64],
) -> Evaluation:
    """Evaluate weights (d,) on records x (n, ...) with labels y (n,)."""
    return evaluate_probabilities(y, model.probabilities(weights, x))


def evaluate_probabilities(
    y: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32]
) -> Evaluation:
    """Evaluate probabilities (n, classes) of records with labels y (n,)."""
    confusion = metrics.confusion_matrix(y, probabilities.argmax(axis=1), probabilities.shape[1])
    return Evaluation(
        accuracy=metrics.accuracy(confusion),
        macro_f1=metrics.macro_f1(confusion),
        loss=metrics.log_loss(y, probabilities),
        confusion=tuple(tuple(int(n) for n in row) for row in confusion),
    )
