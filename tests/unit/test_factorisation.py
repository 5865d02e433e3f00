"""Error of prefix sums under correlated noise, against the definitions by brute force."""

import math

import numpy as np
import pytest

from vitalring.tools.bench.factorisation import prefix_errors


def by_name(rounds):
    return {(each["every"], each["bands"]): each["error"] for each in prefix_errors(rounds)}


def test_one_band_is_independent_noise():
    assert by_name(50)[1, 1] == pytest.approx(1.0)


def test_the_root_is_the_root_and_its_error_is_the_one_of_its_definition():
    rounds = 30
    root = np.zeros((rounds, rounds))
    for t in range(rounds):
        for s in range(t + 1):
            root[t, s] = math.comb(2 * (t - s), t - s) / 4 ** (t - s)
    sums = np.tril(np.ones((rounds, rounds)))
    assert np.allclose(root @ root, sums)
    # A record that is in every round moves C·g by the sum of all its columns.
    moved = np.linalg.norm(root @ np.ones(rounds))
    noise = math.sqrt(np.square(root).sum() / rounds)
    plain = math.sqrt(rounds) * math.sqrt((rounds + 1) / 2)
    assert by_name(rounds)[1, 0] == pytest.approx(moved * noise / plain)


def test_what_seldom_comes_pays_more_and_correlation_takes_some_of_it_back():
    errors = by_name(100)
    assert 1.0 < errors[2, 2] < errors[4, 4] < errors[10, 10] < errors[25, 25]
    for every in (2, 4, 10, 25):
        # Independent noise for a record every b rounds weighs sqrt(b) times as much.
        assert errors[every, every] < math.sqrt(every)
    assert errors[1, 0] == pytest.approx(1.68, abs=0.01)


def test_few_rounds_leave_out_what_never_comes():
    assert [(each["every"], each["bands"]) for each in prefix_errors(3)] == [(1, 0), (1, 1), (2, 2)]
