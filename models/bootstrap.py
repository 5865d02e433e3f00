"""How far figures could be off: percentile intervals by resampling whole devices or patients.

The rows of one patient resemble each other, so that resampling rows would promise too much. Whole
clusters are drawn with replacement, none of their rows within (Davison and Hinkley 1997, section
3.8; Field and Welsh 2007, the randomised cluster bootstrap). Rules kept here:

- a draw without any row of a class that the whole has says nothing about figures that need the
  class: they are left out of it, and no interval is given where that leaves too few draws;
- the same seed and clusters give the same draws, whatever the model, so that the figures of two
  models on the same rows are compared draw by draw.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vitalring.errors import DataError
from vitalring.models import metrics

DRAWS: Final = 2_000
LEVEL: Final = 0.95
ENOUGH: Final = 0.05
"""Share of the draws in which a figure must be defined for an interval."""

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure and the bounds of its interval; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Bootstrap:
    """Figures by name, of the whole (f,) and of each draw (draws, f); NaN where not defined."""

    names: tuple[str, ...]
    clusters: int
    whole: Vector = field(repr=False)
    draws: npt.NDArray[np.float64] = field(repr=False)

    def estimate(self, name: str) -> Estimate:
        """Return a figure with its interval. Raises DataError for a name that is not there."""
        place = self._place(name)
        return self._estimate(self.whole[place], self.draws[:, place])

    def difference(self, other: "Bootstrap", name: str) -> Estimate:
        """Return this figure less the other's, with the interval of the paired difference.

        Raises DataError where the two are not of the same draws.
        """
        if self.clusters != other.clusters or len(self.draws) != len(other.draws):
            raise DataError(
                f"{len(self.draws)} draws of {self.clusters} clusters and {len(other.draws)} of "
                f"{other.clusters} cannot be compared: evaluate both on the same rows"
            )
        mine, theirs = self._place(name), other._place(name)
        return self._estimate(
            self.whole[mine] - other.whole[theirs], self.draws[:, mine] - other.draws[:, theirs]
        )

    def _estimate(self, whole: float, draws: Vector) -> Estimate:
        value = float(whole) if np.isfinite(whole) else None
        known = draws[np.isfinite(draws)]
        # One cluster gives the same draw again and again, which is no certainty.
        if value is None or self.clusters < 2 or known.size < max(ENOUGH * draws.size, 2):
            return Estimate(value, None, None)
        tail = (1.0 - LEVEL) / 2.0
        low, high = np.quantile(known, [tail, 1.0 - tail])
        return Estimate(value, float(low), float(high))

    def _place(self, name: str) -> int:
        if name not in self.names:
            raise DataError(f"no figure is called {name!r}; there are {', '.join(self.names)}")
        return self.names.index(name)


def bootstrap(
    y: metrics.Labels,
    probabilities: npt.NDArray[np.float32],
    cluster: npt.NDArray[np.int64],
    seed: int,
    draws: int = DRAWS,
) -> Bootstrap:
    """Resample the clusters of labels y (n,) and probabilities (n, classes).

    `cluster` (n,) numbers each row's cluster from 0 on, without gaps. The figures are `accuracy`,
    `balanced_accuracy`, `macro_f1`, `auroc`, and `recall:k`, `precision:k` for class number k.
    Raises DataError for no rows or for clusters that do not fit.
    """
    _check(y, probabilities, cluster)
    figures = _Figures(y, probabilities)
    clusters = int(cluster.max()) + 1
    whole = figures.of(np.ones(len(y)))
    generator = np.random.default_rng(seed)
    rows = np.empty((draws, len(whole)))
    for draw in range(draws):
        chosen = generator.integers(0, clusters, clusters)
        counts = np.bincount(chosen, minlength=clusters).astype(np.float64)
        rows[draw] = figures.of(counts[cluster])
    return Bootstrap(figures.names, clusters, whole, rows)


class _Figures:
    """All figures of weighted rows, with what does not depend on the weights done once."""

    def __init__(self, y: metrics.Labels, probabilities: npt.NDArray[np.float32]) -> None:
        self._classes = probabilities.shape[1]
        self._cells = y * self._classes + probabilities.argmax(axis=1)
        self._ranked = metrics.RankedScores(y, probabilities)
        self._present = np.bincount(y, minlength=self._classes) > 0
        numbers = range(self._classes)
        self.names = (
            "accuracy",
            "balanced_accuracy",
            "macro_f1",
            "auroc",
            *(f"recall:{k}" for k in numbers),
            *(f"precision:{k}" for k in numbers),
        )

    def of(self, weights: Vector) -> Vector:
        k = self._classes
        flat = np.bincount(self._cells, weights=weights, minlength=k * k)
        confusion = np.rint(flat).astype(np.int64).reshape(k, k)
        has = confusion.sum(axis=1) > 0
        said = confusion.sum(axis=0) > 0
        complete = bool((has == self._present).all())
        of_all = (
            metrics.balanced_accuracy(confusion),
            metrics.macro_f1(confusion),
            self._ranked.auroc(weights),
        )
        return np.array(
            [
                metrics.accuracy(confusion),
                *(of_all if complete else [metrics.UNDEFINED] * len(of_all)),
                *np.where(has, metrics.recall(confusion), metrics.UNDEFINED),
                *np.where(said, metrics.precision(confusion), metrics.UNDEFINED),
            ]
        )


def numbered(names: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return a number from 0 on for each row's cluster name (n,), the same for the same name."""
    places: npt.NDArray[np.int64] = np.unique(names, return_inverse=True)[1].reshape(-1)
    return places


def _check(
    y: metrics.Labels,
    probabilities: npt.NDArray[np.float32],
    cluster: npt.NDArray[np.int64],
) -> None:
    if not len(y) or not len(y) == len(probabilities) == len(cluster):
        raise DataError(
            f"{len(y)} labels, {len(probabilities)} predictions and {len(cluster)} clusters: "
            "figures need as many of each, at least one"
        )
    if cluster.min() < 0 or not np.bincount(cluster).all():
        raise DataError("clusters must be numbered from 0 on without gaps: use `numbered`")
