"""A figure measured several times: its median and how far it spread."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vitalring.errors import ConfigError


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of `count` measurements, in the unit measured."""

    median: float
    low: float
    high: float
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Sum up measurements. Raises ConfigError where none was made: no figure is made up."""
    if not values:
        raise ConfigError("nothing was measured: use --repeats 1 or more")
    return Spread(statistics.median(values), min(values), max(values), len(values))


def by_name(samples: Iterable[dict[str, float]]) -> dict[str, Spread]:
    """Sum up samples that measured the same things, thing by thing and in their order."""
    found: dict[str, list[float]] = {}
    for sample in samples:
        for name, value in sample.items():
            found.setdefault(name, []).append(value)
    return {name: spread(values) for name, values in found.items()}


def shown(figure: Spread, form: Callable[[float], str]) -> str:
    """Return a figure as text: `1.2 (1.1-1.4)`; exact ones without a range."""
    middle, low, high = form(figure.median), form(figure.low), form(figure.high)
    return middle if low == high else f"{middle} ({low}–{high})"


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds with three digits."""
    value = seconds * 1000
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def megabytes(size: float) -> str:
    """Return bytes as megabytes of a million bytes."""
    return f"{size / 1e6:.1f}"
