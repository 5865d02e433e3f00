"""Dealing rows to devices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitalring.errors import ConfigError, DataError
from vitalring.tools.data.partition import at_random, by_value, dirichlet


def generator(seed=0):
    return np.random.default_rng(seed)


def deals(parts, rows):
    return np.array_equal(np.sort(np.concatenate(parts)), np.arange(rows))


labels_ = st.lists(st.integers(0, 4), min_size=1, max_size=300).map(np.array)


@given(n=st.integers(1, 500), devices=st.integers(1, 60), seed=st.integers(0, 99))
def test_random_devices_are_of_one_size_and_hold_every_row_once(n, devices, seed):
    if n < devices:
        with pytest.raises(DataError, match=f"cannot make {devices} devices"):
            at_random(n, devices, generator(seed))
        return
    parts = at_random(n, devices, generator(seed))
    assert len(parts) == devices
    assert deals(parts, n)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(
    labels=labels_,
    devices=st.integers(1, 40),
    alpha=st.floats(1e-6, 1e6),
    seed=st.integers(0, 99),
)
def test_skewed_devices_are_of_one_size_and_hold_every_row_once(labels, devices, alpha, seed):
    if len(labels) < devices:
        with pytest.raises(DataError):
            dirichlet(labels, devices, alpha, generator(seed))
        return
    parts = dirichlet(labels, devices, alpha, generator(seed))
    assert deals(parts, len(labels))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    again = dirichlet(labels, devices, alpha, generator(seed))
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def shares(labels, parts, classes):
    return np.array([np.bincount(labels[rows], minlength=classes) / len(rows) for rows in parts])


def test_a_small_alpha_gives_one_class_and_a_large_one_the_shares_of_all():
    labels = generator(1).choice(4, 20_000, p=[0.4, 0.3, 0.2, 0.1])
    skewed = shares(labels, dirichlet(labels, 50, 0.01, generator()), 4)
    # Only classes that run out make devices of two classes.
    assert np.median(skewed.max(axis=1)) > 0.95
    even = shares(labels, dirichlet(labels, 50, 1e5, generator()), 4)
    # The last devices get what is left.
    assert np.abs(even - [0.4, 0.3, 0.2, 0.1])[:45].max() < 0.1


def test_the_first_device_draws_from_the_dirichlet_distribution_of_the_paper():
    """Moments of q ~ Dir(alpha p): mean p, variance p (1 - p) / (alpha + 1)."""
    labels = np.repeat([0, 1, 2], [2_000, 1_200, 800])
    prior, alpha = np.array([0.5, 0.3, 0.2]), 3.0
    first = [dirichlet(labels, 20, alpha, generator(seed))[0] for seed in range(400)]
    found = shares(labels, first, 3)
    expected = prior * (1 - prior) / (alpha + 1)
    drawn = prior * (1 - prior) * alpha / (alpha + 1) / 200  # of 200 rows from q
    assert np.abs(found.mean(axis=0) - prior).max() < 0.05
    assert np.abs(found.var(axis=0) / (expected + drawn) - 1).max() < 0.25


@pytest.mark.parametrize("alpha", [0, -1, 2e6, float("nan"), float("inf")])
def test_an_impossible_alpha_is_refused(alpha):
    with pytest.raises(ConfigError, match="--alpha"):
        dirichlet(np.zeros(10, np.int64), 2, alpha, generator())


@given(values=labels_, min_rows=st.integers(1, 50))
def test_each_value_has_its_rows_or_goes_to_the_rest(values, min_rows):
    own, rest = by_value(values, min_rows)
    assert deals([*own.values(), rest], len(values))
    for value, rows in own.items():
        assert (values[rows] == value).all()
        assert len(rows) >= min_rows
    for value in set(values.tolist()) - set(own):
        assert (values == value).sum() < min_rows
