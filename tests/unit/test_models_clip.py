"""Each record counts as much as the clip at most, whatever weights a plan names (SPEC 7.4)."""

from functools import cache

import numpy as np
import pytest
from hostile_weights_fixture import LARGEST, SLACK, hostile_inputs, hostile_weights

from vitalring.models.artefact import load_artefact, shipped_names
from vitalring.models.runtime import TrainableModel

NO_CLIP = 3e38
LONGEST = 1e18
"""Norm beyond which a record counts nothing."""
TRIALS = 60


@cache
def model(name: str) -> TrainableModel:
    return TrainableModel(load_artefact(name))


def length(gradient: np.ndarray) -> float:
    return float(np.linalg.norm(gradient.astype(np.float64)))


def cancelling(seed: int) -> np.ndarray:
    """Weights of har_cnn for which ⟨SSᵀ, ΔΔᵀ⟩ of its last convolution cancels.

    Whatever the input, the first two layers give the same at each step, and each filter of the
    third has taps that add up to nearly 0: so do the slices times what the layer below hands up.
    """
    rng = np.random.default_rng(seed)
    taps = np.zeros((5, 32, 28))
    taps[:4] = rng.integers(-31, 32, (4, 32, 28))
    taps[4] = -taps.sum(0)
    taps[:, 0] = 0
    taps[0, 0], taps[1, 0], taps[2, 1, 0] = 127, -127, taps[2, 1, 0] + 1
    by_class = rng.normal(0, 1e-3, 28)
    by_class[0] = 1e-3 * 10 ** np.random.default_rng(seed + 10**6).uniform(-0.5, 1.5)
    head = np.zeros((28, 6))
    head[:, 0], head[:, 1] = by_class, -by_class
    parts = (
        *(np.zeros((48, 16)), np.full(16, 7.0)),
        *(np.zeros((80, 32)), np.full(32, 1e-6)),
        *(taps * 2.0**7, np.full(28, 1e-6)),
        *(head * 2.0**13, [60, 0, -200, -200, -200, -200]),
    )
    return np.concatenate([np.ravel(part) for part in parts]).astype(np.float32)


@pytest.mark.parametrize("seed", range(220, 240))  # 232 gave NaN, and 33 clips for a record
def test_a_norm_whose_terms_could_cancel_is_that_of_the_gradient(seed: int) -> None:
    weights, x = cancelling(seed), np.zeros((1, 128, 6), np.float32)
    assert np.abs(weights).max() <= LARGEST
    for label in range(3):
        y = np.array([label])
        free, _, norms = model("har_cnn").gradient_sum(weights, x, y, NO_CLIP)
        assert norms[0] == pytest.approx(length(free), rel=SLACK)
        clipped, _, _ = model("har_cnn").gradient_sum(weights, x, y, 1.0)
        assert length(clipped) <= 1 + SLACK


@pytest.mark.parametrize("name", shipped_names())
def test_no_weights_make_a_record_count_more_than_the_clip(name: str) -> None:
    """A record's norm is that of its gradient, and what it adds to a sum is clipped by it."""
    info = model(name).info
    clipped_ones = 0
    for seed in range(TRIALS):
        rng = np.random.default_rng(seed)
        weights = hostile_weights(info.blocks, rng)
        x = hostile_inputs((3, *info.input_shape), rng)
        y = rng.integers(0, len(info.classes), 3)
        clip = float(10.0 ** rng.choice([-6, -2, 0, 2, 6]))
        with np.errstate(all="raise"):
            alone, _, norms = model(name).gradient_sum(weights, x[:1], y[:1], clip)
            free, _, _ = model(name).gradient_sum(weights, x[:1], y[:1], NO_CLIP)
        assert length(alone) <= clip * (1 + SLACK), seed
        if norms[0] <= LONGEST:
            # Below the smallest norm that squares to a number of float32, nothing is clipped.
            assert norms[0] == pytest.approx(length(free), rel=SLACK, abs=1e-15), seed
            wanted = free * min(1.0, clip / max(length(free), 1e-12))
            np.testing.assert_allclose(alone, wanted, rtol=2 * SLACK, atol=clip * 1e-6)
            clipped_ones += length(free) > clip
        else:
            assert not alone.any(), seed
        # Beside others it moves their sum by no more.
        with_it, _, all_norms = model(name).gradient_sum(weights, x, y, clip)
        without, _, other_norms = model(name).gradient_sum(weights, x[1:], y[1:], clip)
        moved = length(with_it.astype(np.float64) - without)
        assert moved <= clip * (1 + SLACK + 3 * 2.0**-20), seed
        np.testing.assert_array_equal(all_norms[1:], other_norms)
    assert clipped_ones > TRIALS / 10, "the weights are not hostile enough to say anything"


def test_a_norm_beyond_float32_counts_nothing() -> None:
    info = model("har_mlp").info
    weights = np.zeros(info.dimension, np.float32)
    hidden = 265 * 30
    weights[hidden : hidden + 30] = 1.0  # biases
    weights[hidden + 30 :: 6] = 1e20  # the first class is sure
    weights[-6:] = 0
    x = np.full((2, 265), 0.5, np.float32)
    wrong, _, norms = model("har_mlp").gradient_sum(weights, x[:1], np.array([1]), 1.0)
    assert norms[0] > LONGEST
    assert not wrong.any()
    # And takes nothing from others, here one of which nothing is to be learnt.
    both, _, norms = model("har_mlp").gradient_sum(weights, x, np.array([1, 0]), 1.0)
    assert norms[0] > LONGEST
    assert norms[1] == 0
    assert not both.any()
