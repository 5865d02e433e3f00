"""How well a score tells members from non-members: ROC area, rates, and bootstrap intervals.

True-positive rates at small false-positive rates beside the area: an attack that is sure of a few
records is worse than its area shows (Carlini et al. 2022, section 3).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from vitalring.errors import ConfigError

Floats = npt.NDArray[np.float64]
Truth = npt.NDArray[np.bool_]

FALSE_POSITIVES: Final = (0.001, 0.01)
"""False-positive rates at which true positives are counted."""


@dataclass(frozen=True)
class Estimate:
    """A figure and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Roc:
    """What a score is worth."""

    auc: Estimate
    tpr: tuple[Estimate, ...]
    """At each of FALSE_POSITIVES."""


def rates(
    scores: Floats, members: Truth, at: Sequence[float] = FALSE_POSITIVES
) -> Callable[[Floats], Floats]:
    """Return a function of weights (n,) that gives the area and the true-positive rates at `at`.

    scores (n,) are higher for members; each record counts its weight. Of equal scores all or none
    are taken for members: a score that tells nothing has area 1/2 and rate 0. The function raises
    ConfigError where no member, or nobody else, has weight.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0.0, True)  # the last of each run of equal scores
    member = members[order]

    def weighed(weights: Floats) -> Floats:
        weight = weights[order]
        hits = np.cumsum(np.where(member, weight, 0.0))[last]
        alarms = np.cumsum(np.where(member, 0.0, weight))[last]
        if not hits[-1] or not alarms[-1]:
            raise ConfigError("an attack needs members and non-members to be measured on")
        x, y = np.append(0.0, alarms / alarms[-1]), np.append(0.0, hits / hits[-1])
        area = float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2.0)
        found = [y[np.searchsorted(x, rate * (1 + 1e-12), side="right") - 1] for rate in at]
        return np.array([area, *found])

    return weighed


def measure_roc(
    scores: Floats, members: Truth, resamples: int, generator: np.random.Generator
) -> Roc:
    """Return the mean over studies of area and rates, for scores and members (studies, records).

    The interval is the percentile bootstrap over records (Efron 1979): a record is drawn with
    what all studies say of it, for the studies attack the same records.
    """
    records = scores.shape[1]
    studies = [rates(*each) for each in zip(scores, members, strict=True)]

    def mean_rates(weights: Floats) -> Floats:
        mean: Floats = np.mean([study(weights) for study in studies], axis=0)
        return mean

    value = mean_rates(np.ones(records))
    drawn = [
        mean_rates(np.bincount(generator.integers(0, records, records), minlength=records) * 1.0)
        for _ in range(resamples)
    ]
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    estimates = [Estimate(*map(float, each)) for each in zip(value, low, high, strict=True)]
    return Roc(estimates[0], tuple(estimates[1:]))
