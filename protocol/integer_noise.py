"""Integer noise of several devices on one sum: what it is worth, and what is charged (SPEC 7.14).

Rules kept here: each device adds discrete Gaussian integers to its rounded update; of the
devices in a sum only `shares` are counted on; their noise together is as good as one rounded
Gaussian, so that a release is a Gaussian mechanism on integers; everything in which it is not
that is bounded and charged, to delta or to epsilon.

The discrete Gaussian, not Skellam (Agarwal, Kairouz, Liu, arXiv 2110.04995): both meet their
published bounds here, but only the former comes down to a Gaussian mechanism, for which
accounting is tight under Poisson sampling too, and has a sampler of integers alone.
"""

import math
from dataclasses import dataclass
from typing import Final

from vitalring.errors import ConfigError

TAIL: Final = 13.0
"""Width of a device's noise in standard deviations: the chance to exceed it is below 2^-120."""

MIN_DEVIATION: Final = 4.0
"""Least deviation of one device: sums of discrete Gaussians are then discrete Gaussian."""

MIN_TOTAL: Final = 16.0
"""Least deviation of the shares together, for which `_SHAPE` was measured."""

_SHAPE: Final = 2.0**-10
"""Total variation of rounded and discrete Gaussian: at most this times sqrt(m) / deviation^4."""

_SAMPLER: Final = 2.0**-42
"""What the sampler can add to the privacy loss for each integer drawn (SPEC 7.6)."""


@dataclass(frozen=True)
class SharedNoise:
    """Noise that `shares` devices add to each of `coordinates` integers of a sum.

    `deviation` is the parameter sigma of one device's discrete Gaussian, in grid steps;
    `width` the largest absolute value that fits a field, at which a device cuts its noise off.
    """

    deviation: float
    shares: int
    coordinates: int
    width: int

    @property
    def total(self) -> float:
        """Return the standard deviation of the Gaussian whose rounding the shares add up to.

        The sum of `shares` discrete Gaussians is one of sigma^2 = shares * deviation^2 (next
        to nothing apart), and that is a rounded Gaussian of the variance sigma^2 - 1/12.
        """
        return math.sqrt(self.shares * self.deviation**2 - 1.0 / 12.0)

    @property
    def delta(self) -> float:
        """Return the distance in total variation from that rounded Gaussian, at most.

        Cut off: P(|Z| > w) <= 2 exp(-w^2 / 2 sigma^2) for each number, since a discrete Gaussian
        is sub-Gaussian (Canonne, Kamath, Steinke 2020, arXiv 2004.00010). Sum: the theorem
        on sums of discrete Gaussians of arXiv 2102.06387. Shape: the logarithm of the ratio to a
        rounded Gaussian at u = z / s is (u^4 - 6 u^2 + 3) / 2880 s^4 to leading order; Pinsker's
        inequality over all coordinates makes of its mean square what a test measures.
        """
        drawn = self.shares * self.coordinates
        cut = 2.0 * drawn * math.exp(-((self.width / self.deviation) ** 2) / 2.0)
        summed = 10.0 * drawn * math.exp(-((math.pi * self.deviation) ** 2))
        shape = _SHAPE * math.sqrt(self.coordinates) / self.total**4
        return cut + summed + shape

    @property
    def epsilon(self) -> float:
        """Return what the last bits of the sampler can add to a privacy loss."""
        return _SAMPLER * self.shares * self.coordinates


def width_for(deviation: float) -> int:
    """Return the width that noise of this deviation needs."""
    return math.ceil(TAIL * deviation)


def check_noise(noise: SharedNoise) -> None:
    """Raise ConfigError, with the cure, for noise that nothing was argued for."""
    if noise.shares < 1:
        raise ConfigError(
            f"the noise of {noise.shares} devices protects nothing: privacy.colluders must lie "
            "below min_cohort"
        )
    if not (noise.deviation >= MIN_DEVIATION and noise.total >= MIN_TOTAL):
        raise ConfigError(
            f"a device's noise of deviation {noise.deviation:g} grid steps is too coarse, it takes "
            f"{MIN_DEVIATION:g}, and {MIN_TOTAL:g} together: use more codec.bits"
        )
    if noise.width < width_for(noise.deviation):
        raise ConfigError(
            f"codec.noise_width is {noise.width}, noise of deviation {noise.deviation:g} steps "
            f"takes {width_for(noise.deviation)}"
        )
