"""Networks of fixed formulas and one dense layer, with the formulas worked out once.

`har_bank` and `ecg_bank` compute the same features of a record in every step, and most of a
step's time goes there. Here the features are read out of the network itself, record by record,
and the layer behind them is trained by the same arithmetic in numpy: a study that takes minutes
on a device takes seconds in a measurement of many. What is read is checked against the network.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vitalring.errors import ModelError
from vitalring.models.artefact import Artefact, ArtefactInfo
from vitalring.models.dataset import Records
from vitalring.models.runtime import TrainableModel
from vitalring.protocol.privacy import MAX_CHUNK

Array = npt.NDArray[np.float32]

_LEVELS = 127
"""Levels of a dense kernel on each side of zero, as `models.layers.quantisation.rounded` has."""

_ALIKE = 1e-4


class OneLayer:
    """A dense layer and a softmax on features (n, f), with the kernel rounded as in training."""

    def __init__(self, info: ArtefactInfo) -> None:
        self.info = info
        self.classes = len(info.classes)

    @property
    def physical_batch(self) -> int:
        """Most rows that `gradient_sum` takes at once."""
        return MAX_CHUNK

    def gradient_sum(
        self, weights: Array, x: Array, y: npt.NDArray[np.int64], clip: float
    ) -> tuple[Array, float, Array]:
        """Return what `models.runtime.TrainableModel.gradient_sum` does, of features x (n, f)."""
        probabilities = self.probabilities(weights, x)
        rows = np.arange(len(y))
        loss = -np.log(np.maximum(probabilities[rows, y], 1e-30)).sum()
        delta = probabilities
        delta[rows, y] -= 1.0
        norms = np.sqrt(((x * x).sum(1) + 1.0) * (delta * delta).sum(1))
        delta *= np.minimum(1.0, clip / np.maximum(norms, 1e-12))[:, None].astype(np.float32)
        gradient = np.concatenate([(x.T @ delta).ravel(), delta.sum(0)])
        return gradient, float(loss), norms

    def probabilities(self, weights: Array, x: Array) -> Array:
        """Return class probabilities (n, classes) of features x (n, f)."""
        kernel = weights[: -self.classes].reshape(-1, self.classes)
        scale = np.float32(max(float(np.abs(kernel).max()), 1e-8) / _LEVELS)
        logits = x @ (np.rint(kernel / scale) * scale) + weights[-self.classes :]
        powers = np.exp(logits - logits.max(1, keepdims=True))
        probabilities: Array = (powers / powers.sum(1, keepdims=True)).astype(np.float32)
        return probabilities


def has_one_layer(info: ArtefactInfo) -> bool:
    """Tell whether a network trains one dense layer from zero and nothing else."""
    return info.head == info.dimension and not any(limit for _, limit in info.blocks)


def with_features(
    artefact: Artefact, parts: Sequence[Records]
) -> tuple[OneLayer, tuple[Records, ...]]:
    """Return the layer of a network that `has_one_layer`, and records of features to train it on.

    Raises ModelError if the network is none.
    """
    model, layer = TrainableModel(artefact), OneLayer(artefact.info)
    if not has_one_layer(artefact.info):
        raise ModelError(f"{artefact.info.name} trains more than one layer: it has no features")
    x = np.concatenate([each.x for each in parts])
    features = _quantised(model, x) if x.ndim == 2 else _read(model, x)
    _check(model, layer, x, features)
    ends = np.cumsum([len(each) for each in parts])
    made = np.split(features, ends[:-1])
    return layer, tuple(
        Records(each.device, mine, each.y, each.group)
        for each, mine in zip(parts, made, strict=True)
    )


def _read(model: TrainableModel, x: Array) -> Array:
    """Return the features (n, f): a unit weight makes one of them a difference of two logits."""
    classes = len(model.info.classes)
    count = model.info.dimension // classes - 1
    features = np.empty((len(x), count), np.float32)
    for first in range(0, count, classes - 1):
        columns = range(first, min(first + classes - 1, count))
        kernel = np.zeros((count, classes), np.float32)
        kernel[columns, range(len(columns))] = 1.0
        weights = np.concatenate([kernel.ravel(), np.zeros(classes, np.float32)])
        logits = np.log(model.probabilities(weights, x))
        features[:, columns] = logits[:, : len(columns)] - logits[:, -1:]
    return features


def _quantised(model: TrainableModel, x: Array) -> Array:
    """Return rows x (n, f) as an int8 input holds them, the features of a layer on nothing else.

    Two numbers far outside tell the ends of its range, which are -limit and limit less a step.
    """
    classes, count = len(model.info.classes), x.shape[1]
    ends = np.zeros((2, count), np.float32)
    ends[:, 0] = -1e9, 1e9
    kernel = np.zeros((count, classes), np.float32)
    kernel[0, 0] = 1.0
    weights = np.concatenate([kernel.ravel(), np.zeros(classes, np.float32)])
    logits = np.log(model.probabilities(weights, ends).astype(np.float64))
    low, high = logits[:, 0] - logits[:, -1]
    # Whole steps: what is read of the ends is not exact.
    levels = 2.0 ** np.rint(np.log2((high - low) / -(high + low)))
    step = np.float32(round(float(-low) * 1024.0) / 1024.0 * 2.0 / levels)
    half = np.float32(levels / 2.0)
    features: Array = np.clip(np.rint(x / step), -half, half - 1) * step
    return features


def _check(model: TrainableModel, layer: OneLayer, x: Array, features: Array) -> None:
    """Compare network and layer at weights of their own on some rows. Raises ModelError."""
    generator = np.random.default_rng(0)
    rows = generator.choice(len(x), min(len(x), 4 * model.physical_batch), replace=False)
    weights = generator.normal(0.0, 0.3, model.info.dimension).astype(np.float32)
    wanted = model.probabilities(weights, x[rows])
    found = layer.probabilities(weights, features[rows])
    apart = float(np.abs(wanted - found).max())
    # `not <` also refuses NaN.
    if not apart < _ALIKE:
        raise ModelError(
            f"{model.info.name} is no dense layer on fixed features: probabilities differ by "
            f"{apart:.2g}"
        )
