"""Shares of integer noise against direct sums over the integers and the published bounds."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import special, stats

from vitalring.edge_agent.accountant import epsilon
from vitalring.edge_agent.randomness import fresh_generator, noise_share
from vitalring.errors import ConfigError
from vitalring.protocol.integer_noise import (
    MIN_DEVIATION,
    MIN_TOTAL,
    TAIL,
    SharedNoise,
    check_noise,
    width_for,
)
from vitalring.protocol.privacy import Spend

NOISE = SharedNoise(deviation=6.0, shares=9, coordinates=1, width=width_for(6.0))


def discrete_gaussian(deviation: float, reach: int) -> np.ndarray:
    """Probabilities of -reach .. reach."""
    values = np.arange(-reach, reach + 1)
    mass = np.exp(-((values / deviation) ** 2) / 2)
    return mass / mass.sum()


def rounded_gaussian(deviation: float, reach: int) -> np.ndarray:
    """Probabilities of -reach .. reach of rint(N(0, deviation^2)), from the nearer tail."""
    values = np.abs(np.arange(-reach, reach + 1))
    return special.ndtr(-(values - 0.5) / deviation) - special.ndtr(-(values + 0.5) / deviation)


def sum_of(deviation: float, shares: int, reach: int) -> np.ndarray:
    """Probabilities of the sum of independent discrete Gaussians, by convolution."""
    total = np.array([1.0])
    for _ in range(shares):
        total = np.convolve(total, discrete_gaussian(deviation, reach))
    return total


@pytest.mark.parametrize("deviation", [MIN_TOTAL, 24.0])
@pytest.mark.parametrize("coordinates", [1, 4096])
def test_the_charge_covers_the_shape_and_little_more(deviation, coordinates):
    reach = round(8 * deviation)
    discrete = discrete_gaussian(deviation, reach)
    rounded = rounded_gaussian(math.sqrt(deviation**2 - 1 / 12), reach)
    ratio = np.log(discrete / rounded)
    # Pinsker's inequality for as many independent coordinates.
    divergence = coordinates * float(discrete @ ratio**2) / 2
    noise = SharedNoise(deviation, 1, coordinates, width_for(deviation))
    assert 0.7 * noise.delta < math.sqrt(divergence / 2) < noise.delta


@pytest.mark.parametrize("shares", [2, 5, 16])
def test_a_sum_of_discrete_gaussians_is_one(shares):
    # Where the distance can be seen at all, it is within what is charged.
    deviation, reach = 0.6, 12
    total = sum_of(deviation, shares, reach)
    one = discrete_gaussian(math.sqrt(shares) * deviation, len(total) // 2)
    middle = slice(len(total) // 2 - 4, len(total) // 2 + 5)
    seen = float(np.abs(np.log(total[middle] / one[middle])).max())
    assert 1e-4 < seen < 10 * shares * math.exp(-((math.pi * deviation) ** 2))
    # From the least deviation on it is gone.
    total = sum_of(MIN_DEVIATION, shares, 60)
    one = discrete_gaussian(math.sqrt(shares) * MIN_DEVIATION, len(total) // 2)
    likely = one > 1e-12
    assert np.abs(np.log(total[likely] / one[likely])).max() < 1e-9


@pytest.mark.parametrize("width", [8, 16, 24])
def test_the_charge_covers_what_is_cut_off(width):
    mass = discrete_gaussian(4.0, 100)
    beyond = 2 * float(mass[: 100 - width].sum())
    noise = SharedNoise(4.0, 30, 50, width)
    assert 30 * 50 * beyond < noise.delta
    assert 30 * 50 * beyond > noise.delta / 100


def test_widths_leave_next_to_nothing_out():
    for shares, coordinates in ((1, 1), (10_000, 4_000_000)):
        noise = SharedNoise(500.0, shares, coordinates, width_for(500.0))
        drawn = shares * coordinates
        assert drawn * 2 * stats.norm.sf(TAIL) < 2**-84
        assert noise.delta < 1e-10


def spent_delta(noise: np.ndarray, shift: tuple[int, ...], rate: float, eps: float) -> float:
    """Delta at `eps` of a Poisson-sampled shift of noise on integers, by summing over them.

    The larger of the two directions, adding and removing.
    """
    joint = noise
    moved = np.roll(noise, shift[0])
    for each in shift[1:]:
        joint, moved = (
            np.multiply.outer(joint, noise),
            np.multiply.outer(moved, np.roll(noise, each)),
        )
    mixed = (1 - rate) * joint + rate * moved
    return max(
        float(np.maximum(a - math.exp(eps) * b, 0).sum())
        for a, b in ((mixed, joint), (joint, mixed))
    )


@pytest.mark.parametrize("rate", [1.0, 0.3])
@pytest.mark.parametrize("shift", [(18,), (12, 13), (0, 17)])
def test_the_accounted_loss_is_that_on_the_integers(shift, rate):
    """One round, one or two coordinates: no integer says more than the accountant does."""
    total = sum_of(NOISE.deviation, NOISE.shares, NOISE.width)
    middle, reach = len(total) // 2, 170
    total = total[middle - reach : middle + reach + 1]
    spend = Spend(
        rate, NOISE.total / math.hypot(*shift), 1, epsilon=NOISE.epsilon, delta=NOISE.delta
    )
    # The shape of noise this coarse is charged, so the delta is one that bears it.
    for delta in (0.05, 0.01):
        claimed = epsilon([replace(spend, delta=0.0)], delta)
        exact = spent_delta(total, shift, rate, claimed)
        assert exact <= delta + (1 + math.exp(claimed)) * NOISE.delta
        assert exact > 0.9 * delta


def test_half_the_noise_would_be_seen():
    """The comparison above fails for a mechanism that has less noise than it claims."""
    total = sum_of(NOISE.deviation / 2, NOISE.shares, NOISE.width)
    claimed = epsilon([Spend(1.0, NOISE.total / 18, 1)], 0.01)
    assert spent_delta(total, (18,), 1.0, claimed) > 0.05


@pytest.mark.parametrize("order", [2, 8, 16])
def test_within_the_published_bounds(order):
    """Renyi divergence of the shares' sum by summation, KLS 2021 and Skellam (AKL 2021)."""
    shift, variance = 12, NOISE.shares * NOISE.deviation**2
    total = sum_of(NOISE.deviation, NOISE.shares, NOISE.width)
    logs = np.log(np.maximum(total, 1e-290))
    inside = slice(len(total) // 2 - 320, len(total) // 2 + 321)
    moved = np.roll(logs, shift)
    seen = special.logsumexp((order * moved - (order - 1) * logs)[inside]) / (order - 1)
    ours = order / 2 * (shift / NOISE.total) ** 2
    # Theorem on distributed discrete Gaussians of arXiv 2102.06387: tau is nothing here.
    concentrated = order / 2 * shift**2 / variance
    # Theorem 3.5 of arXiv 2110.04995, a Skellam of the same variance, sensitivity l1 = l2 = shift.
    skellam = order * shift**2 / (2 * variance) + min(
        ((2 * order - 1) * shift**2 + 6 * shift) / (4 * variance**2), 3 * shift / (2 * variance)
    )
    assert seen == pytest.approx(concentrated, rel=1e-6)
    assert concentrated <= ours <= 1.0005 * concentrated
    assert skellam > concentrated


def test_a_device_draws_its_share():
    noise = SharedNoise(5.0, 7, 200_000, width_for(5.0))
    draws = noise_share(fresh_generator(), noise)
    assert draws.shape == (200_000,)
    expected = 200_000 * discrete_gaussian(5.0, 20)
    counts = np.bincount(draws[np.abs(draws) <= 20] + 20, minlength=41)
    keep = expected > 20
    expected = expected[keep] * counts[keep].sum() / expected[keep].sum()
    assert stats.chisquare(counts[keep], expected).pvalue > 1e-6


def test_what_a_field_has_no_room_for_is_cut_off():
    draws = noise_share(fresh_generator(), SharedNoise(5.0, 1, 10_000, 6))
    assert np.abs(draws).max() == 6


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"shares": 0}, "privacy.colluders must lie below min_cohort"),
        ({"deviation": 3.9}, "more codec.bits"),
        ({"deviation": float("nan")}, "more codec.bits"),
        ({"deviation": 5.0, "shares": 4}, "and 16 together"),
        ({"width": 70}, "codec.noise_width is 70"),
    ],
)
def test_noise_that_nothing_was_argued_for_is_refused(change, names):
    check_noise(NOISE)
    with pytest.raises(ConfigError, match=names):
        check_noise(replace(NOISE, **change))
