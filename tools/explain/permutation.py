"""Permutation importance: shuffle one column over the rows and see how much worse the model is.

Breiman 2001, section 10, for any model (Fisher, Rudin and Dominici 2019, "model reliance", as a
difference). All inputs that come from one column move together: a one-hot code stays one. A
shuffle breaks the column's ties to the label and to all other columns, so columns that say the
same share their importance, and rows arise that no patient could be (Hooker, Mentch and Zhou
2021).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from vitalring.errors import DataError
from vitalring.models import metrics
from vitalring.models.dataset import FeatureSchema
from vitalring.tools.explain.occlusion import Array, Classes, Predict, Progress, Real

REPEATS: Final = 10


@dataclass(frozen=True)
class Column:
    """A column's name and the inputs that come from it."""

    name: str
    inputs: slice


@dataclass(frozen=True)
class Drop:
    """How much lower a figure is on the average over the shuffles, and in the least and most."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Reliance:
    """What a column's shuffles cost. A column whose shuffles changed no row costs exactly 0."""

    column: str
    auroc: Drop
    macro_f1: Drop


@dataclass(frozen=True)
class Permuted:
    """The figures of the rows as they are, and each column's reliance, greatest AUROC drop first.

    `auroc` is NaN where every row is of one class; so are its drops.
    """

    rows: int
    repeats: int
    auroc: float
    macro_f1: float
    columns: tuple[Reliance, ...]


def columns_of(
    features: FeatureSchema | None, inputs: int, names: Sequence[str] = ()
) -> tuple[Column, ...]:
    """Return the columns behind a network's inputs; each input itself where there is no schema.

    `names`, where there are any, are those of such inputs.
    Raises DataError where the schema is of another number of inputs.
    """
    if features is None:
        called = names or [f"input {place}" for place in range(inputs)]
        return tuple(Column(name, slice(k, k + 1)) for k, name in enumerate(called))
    if features.inputs != inputs:
        raise DataError(
            f"the features are {features.inputs} inputs, the rows have {inputs}; take the schema "
            "of the same study"
        )
    found, start = [], 0
    for feature in features.features:
        end = start + len(feature.names)
        found.append(Column(feature.column, slice(start, end)))
        start = end
    return tuple(found)


def permute(
    predict: Predict,
    x: Array,
    y: Classes,
    columns: Sequence[Column],
    seed: int,
    repeats: int = REPEATS,
    progress: Progress = lambda _: None,
) -> Permuted:
    """Return what each column's shuffles cost on rows x (n, inputs) with labels y (n,).

    The same shuffles serve every column. Raises what `predict` raises.
    """
    plain = predict(x)
    start = _figures(y, plain)
    orders = [np.random.default_rng([seed, k]).permutation(len(x)) for k in range(repeats)]
    found = []
    for place, column in enumerate(columns):
        drops = np.array([start - _shuffled(predict, x, y, plain, column, o) for o in orders])
        auroc, macro_f1 = (
            Drop(float(values.mean()), float(values.min()), float(values.max()))
            for values in drops.T
        )
        found.append(Reliance(column.name, auroc, macro_f1))
        progress((place + 1) / len(columns))
    found.sort(key=lambda one: (-np.nan_to_num(one.auroc.mean), -one.macro_f1.mean, one.column))
    return Permuted(len(x), repeats, float(start[0]), float(start[1]), tuple(found))


def _shuffled(
    predict: Predict, x: Array, y: Classes, plain: Array, column: Column, order: Classes
) -> Real:
    """Return the figures after one shuffle; only rows that it changes are predicted again."""
    moved = x[order, column.inputs]
    changed = np.flatnonzero((moved != x[:, column.inputs]).any(axis=1))
    if not len(changed):
        return _figures(y, plain)
    rows = x[changed]
    rows[:, column.inputs] = moved[changed]
    probabilities = plain.copy()
    probabilities[changed] = predict(rows)
    return _figures(y, probabilities)


def _figures(y: Classes, probabilities: Array) -> Real:
    classes = probabilities.shape[1]
    confusion = metrics.confusion_matrix(y, probabilities.argmax(axis=1), classes)
    return np.array([metrics.auroc(y, probabilities), metrics.macro_f1(confusion)])
