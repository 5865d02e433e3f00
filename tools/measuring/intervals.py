"""Means of several runs, and how sure they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitalring.errors import ConfigError


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval; the bounds are None where one value has none."""

    mean: float
    low: float | None
    high: float | None


def interval(values: Sequence[float]) -> Interval:
    """Return mean and 95 % interval by Student's t over independent runs. Raises ConfigError."""
    from scipy.stats import t  # noqa: PLC0415 - takes seconds to load

    if not values:
        raise ConfigError("nothing was measured: use 1 or more seeds")
    mean, count = math.fsum(values) / len(values), len(values)
    if count == 1:
        return Interval(mean, None, None)
    error = float(np.std(values, ddof=1)) / math.sqrt(count)
    half = float(t.ppf(0.975, count - 1)) * error
    return Interval(mean, mean - half, mean + half)
