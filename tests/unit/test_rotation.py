"""The rotation is orthonormal, invertible and the same on all devices (SPEC 4.3, 4.4)."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitalring.errors import ConfigError
from vitalring.protocol.rotation import kept_coordinates, rotate, unrotate

SEED = bytes(range(32))
SEEDS = st.binary(min_size=32, max_size=32)
DIMENSIONS = st.integers(1, 600)


def hadamard(size: int) -> np.ndarray:
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(size)


def reference(dimension: int, seed: bytes) -> np.ndarray:
    """The rotation as a matrix, from the words of SPEC 4.3."""
    size = 2 ** int(np.log2(dimension))
    starts = [0] if size == dimension else [0, dimension - size]
    stream = hashlib.shake_256(b"vitalring/rotation/v1" + seed).digest(
        len(starts) * ((size + 7) // 8)
    )
    result = np.eye(dimension)
    for i, start in enumerate(starts):
        part = stream[i * ((size + 7) // 8) :]
        signs = [-1.0 if part[j // 8] >> (j % 8) & 1 else 1.0 for j in range(size)]
        step = np.eye(dimension)
        step[start : start + size, start : start + size] = hadamard(size) @ np.diag(signs)
        result = step @ result
    return result


@given(DIMENSIONS, SEEDS)
def test_inverse_and_norm(dimension, seed):
    vector = np.random.default_rng(dimension).normal(size=dimension)
    rotated = rotate(vector, seed)
    assert np.linalg.norm(rotated) == pytest.approx(np.linalg.norm(vector))
    np.testing.assert_allclose(unrotate(rotated, seed), vector, atol=1e-12)


@pytest.mark.parametrize("dimension", [1, 2, 3, 5, 8, 21, 100, 128])
def test_is_the_orthonormal_matrix_of_the_specification(dimension):
    matrix = reference(dimension, SEED)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(dimension), atol=1e-12)
    vector = np.arange(1.0, dimension + 1)
    np.testing.assert_allclose(rotate(vector, SEED), matrix @ vector, atol=1e-9)


def test_frozen_vectors():
    assert rotate(np.arange(1.0, 7.0), SEED).tolist() == [-2.0, 4.0, -0.5, -3.5, -1.5, 7.5]
    assert kept_coordinates(20, 6, SEED).tolist() == [1, 2, 11, 13, 14, 15]


def test_the_input_is_left_alone():
    vector = np.ones(100)
    rotate(vector, SEED)
    unrotate(vector, SEED)
    assert (vector == 1.0).all()


@pytest.mark.parametrize("dimension", [2_000, 6_000, 100_003])
def test_a_spike_anywhere_is_spread_over_all_coordinates(dimension):
    # A cut into binary blocks would leave the last coordinates of the third length unmixed.
    for at in (0, dimension // 2, dimension - 1):
        vector = np.zeros(dimension)
        vector[at] = 1.0
        assert np.abs(rotate(vector, SEED)).max() < 6 / np.sqrt(dimension)


def test_other_seed_other_rotation():
    vector = np.ones(64)
    assert not np.allclose(rotate(vector, SEED), rotate(vector, bytes(32)))


@given(DIMENSIONS, st.floats(0, 1), SEEDS)
def test_the_mask_is_a_set_of_coordinates(dimension, fraction, seed):
    count = max(1, int(fraction * dimension))
    kept = kept_coordinates(dimension, count, seed)
    assert len(kept) == count
    assert kept.min() >= 0
    assert kept.max() < dimension
    assert (np.diff(kept) > 0).all()


def test_the_mask_takes_every_coordinate_alike():
    hits = np.zeros(40)
    for i in range(2_000):
        hits[kept_coordinates(40, 10, i.to_bytes(32, "big"))] += 1
    # Binomial(2000, 1/4): mean 500, deviation 19.4.
    assert np.abs(hits - 500).max() < 6 * 19.4


@pytest.mark.parametrize("seed", [b"", bytes(31), bytes(33)])
def test_a_seed_of_another_length_is_refused(seed):
    with pytest.raises(ConfigError, match="32 bytes"):
        rotate(np.ones(4), seed)
    with pytest.raises(ConfigError, match="32 bytes"):
        kept_coordinates(4, 2, seed)


@pytest.mark.parametrize("count", [0, 5])
def test_a_count_out_of_range_is_refused(count):
    with pytest.raises(ConfigError):
        kept_coordinates(4, count, SEED)


@pytest.mark.parametrize("shape", [(0,), (2, 2), ()])
def test_only_vectors_rotate(shape):
    with pytest.raises(ConfigError, match="only vectors"):
        rotate(np.zeros(shape), SEED)
