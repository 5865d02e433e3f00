"""Vectorised arithmetic against integers of any length (SPEC 5.15)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.protocol.bfv import largest_primes
from vitalring.protocol.threshold import modular

PRIMES = largest_primes(4096, 50, 2) + largest_primes(4096, 41, 1) + largest_primes(4096, 20, 1)


def edges(prime):
    small = st.integers(0, 3)
    return st.one_of(small, small.map(lambda x: prime - 1 - x), st.integers(0, prime - 1))


@st.composite
def operands(draw):
    pair = [[draw(st.lists(edges(p), min_size=5, max_size=5)) for p in PRIMES] for _ in range(2)]
    return np.array(pair, dtype=np.uint64)


@settings(max_examples=100, deadline=None)
@given(operands())
def test_products_sums_and_differences_are_exact(pair):
    left, right = pair
    big, other = left.astype(object), right.astype(object)
    moduli = np.array(PRIMES, dtype=object)[:, None]
    assert (modular.multiply(left, right, PRIMES) == big * other % moduli).all()
    assert (modular.add(left, right, PRIMES) == (big + other) % moduli).all()
    assert (modular.subtract(left, right, PRIMES) == (big - other) % moduli).all()


def test_many_random_products_of_the_longest_prime():
    rng = np.random.default_rng(1)
    prime = PRIMES[0]
    left, right = rng.integers(0, prime, (2, 1, 200_000), dtype=np.uint64)
    expected = left.astype(object) * right.astype(object) % prime
    assert (modular.multiply(left, right, (prime,)) == expected).all()
    # Factors whose product is just below, at and above a multiple of the prime.
    near = np.array([[prime - 1, 1, prime // 2, prime // 2 + 1]], dtype=np.uint64)
    for row in near.T:
        factor = np.broadcast_to(row[:, None], left.shape)
        expected = left.astype(object) * int(row[0]) % prime
        assert (modular.multiply(left, factor, (prime,)) == expected).all()


@pytest.mark.parametrize("value", [0, 1, -1, 21, -21, 2**40, -(2**40)])
def test_reducing_and_centring_are_inverse_for_what_fits(value):
    values = np.full((2, 8), value)
    residues = modular.reduce(values, PRIMES[:2])
    assert residues.shape == (2, 2, 8)
    assert (residues == value % np.array(PRIMES[:2], dtype=object)[:, None]).all()
    assert (modular.centre(residues, PRIMES[:2]) == value).all()
