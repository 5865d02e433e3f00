"""The bound of Steinke, Nasr and Jagielski (2023) on known numbers and known mechanisms."""

import math

import numpy as np
import pytest
from scipy import stats

from vitalring.errors import ConfigError
from vitalring.tools.attack.one_run import Bound, best_bound, lower_bound, p_value


def by_the_paper(m, r, v, eps, delta):
    """Theorem 5.2 in its own words, with exact sums: beta + alpha * delta * m."""
    q = math.exp(eps) / (math.exp(eps) + 1)
    chances = [math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(r + 1)]
    beta = sum(chances[v:])
    alpha = max((2 / i * sum(chances[max(0, v - i) : v]) for i in range(1, m + 1)), default=0.0)
    return min(1.0, beta + alpha * delta * m)


@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-2])
@pytest.mark.parametrize(("m", "r", "v"), [(40, 20, 20), (40, 20, 14), (25, 25, 13), (30, 7, 0)])
@pytest.mark.parametrize("eps", [0.0, 0.7, 3.0])
def test_p_values_are_the_papers(m, r, v, eps, delta):
    assert p_value(m, r, v, eps, delta) == pytest.approx(by_the_paper(m, r, v, eps, delta))


def test_all_right_has_a_closed_form():
    """Without delta r right of r contradict every epsilon whose q^r is below the risk."""
    chance = 0.05 ** (1 / 100)
    exact = math.log(chance / (1 - chance))
    assert exact - 1e-4 <= lower_bound(1000, 100, 100, 0.0, 0.05) <= exact
    assert lower_bound(1000, 100, 100, 1e-5, 0.05) < exact


def test_better_guesses_and_less_delta_prove_more():
    by_right = [lower_bound(1000, 200, right, 1e-5, 0.05) for right in range(100, 201, 10)]
    assert by_right == sorted(by_right)
    assert by_right[0] == 0.0 < by_right[-1]
    by_delta = [lower_bound(1000, 200, 190, delta, 0.05) for delta in (1e-3, 1e-4, 1e-5, 0.0)]
    assert by_delta == sorted(by_delta)


@pytest.mark.parametrize("eps", [0.5, 2.0, 4.0])
def test_bounds_of_randomised_response_hold_and_are_near(eps):
    """It is the worst mechanism there is: bounds exceed epsilon as often as the risk allows."""
    generator, runs, canaries = np.random.default_rng(3), 400, 500
    chance = 1 / (1 + math.exp(-eps))
    right = generator.binomial(canaries, chance, runs)
    bounds = {v: lower_bound(canaries, canaries, int(v), 0.0, 0.05) for v in set(right.tolist())}
    found = np.array([bounds[v] for v in right.tolist()])
    above = int(np.sum(found > eps))
    assert above <= stats.binom.ppf(1 - 1e-6, runs, 0.05)
    assert above > 0
    assert np.median(found) > 0.7 * eps


def test_a_mechanism_that_tells_all_with_probability_delta_is_not_wrongly_convicted():
    for delta in (1e-3, 1e-2):
        assert p_value(100, 100, 100, 0.0, delta) >= delta


def test_guesses_are_the_ends_of_the_ranking():
    included = np.arange(1000) % 2 == 0
    perfect = included * 2.0 - 1.0
    found = best_bound(perfect, included, 1e-5)
    # The risk is divided among the numbers of guesses.
    assert found == Bound(lower_bound(1000, 500, 500, 1e-5, 0.05 / 5), 500, 500)
    assert found.epsilon > 4.0
    assert best_bound(-perfect, included, 1e-5).epsilon == 0.0
    # Of scores that tell nothing, no number of guesses proves anything, but by luck.
    generator = np.random.default_rng(5)
    lucky = [best_bound(generator.random(1000), included, 0.0).epsilon > 0 for _ in range(200)]
    assert sum(lucky) <= stats.binom.ppf(1 - 1e-6, 200, 0.05)


@pytest.mark.parametrize(
    "counts",
    [(10, 11, 5, 1.0, 0.0), (10, 5, 6, 1.0, 0.0), (10, 5, 5, -1.0, 0.0), (9, 5, 5, 1.0, 2)],
)
def test_what_cannot_be_is_refused(counts):
    with pytest.raises(ConfigError, match="cannot be"):
        p_value(*counts)
    with pytest.raises(ConfigError, match="a risk of 0"):
        lower_bound(10, 5, 5, 0.0, 0.0)
