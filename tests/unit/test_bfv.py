"""Parameters of the encrypted sum (SPEC 5.2, 5.3)."""

from dataclasses import replace
from math import gcd, prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenseal import sealapi

from vitalring.errors import ConfigError
from vitalring.protocol.bfv import (
    MAX_MODULUS_BITS,
    BfvParams,
    choose_params,
    largest_primes,
    noise_bound,
)
from vitalring.protocol.quantise import Codec, field_count

CODEC = Codec(n_max=1_000, clip=1.0, weight_cap=100)


@settings(max_examples=60, deadline=None)
@given(
    n_max=st.integers(1, 10_000),
    bits=st.integers(2, 16),
    noise_width=st.integers(0, 1 << 20),
    dimension=st.integers(1, 4_000_000),
    keep=st.floats(0.01, 1.0),
)
def test_parameters_hold_what_they_promise(n_max, bits, noise_width, dimension, keep):
    codec = Codec(
        n_max=n_max, clip=1.0, weight_cap=1, bits=bits, noise_width=noise_width, keep=keep
    )
    params = choose_params(codec, dimension)
    # A full sum of the largest fields stays below the radix.
    assert n_max * (2**bits - 1 + 2 * noise_width) < params.base
    assert params.fields == field_count(codec, dimension)
    assert params.ciphertexts * params.degree * params.digits >= params.fields
    # Security: bits of all primes, the special one included.
    total = prod(params.primes).bit_length()
    assert total <= MAX_MODULUS_BITS[params.degree]
    assert len(set(params.primes)) == len(params.primes)
    assert all(prime % (2 * params.degree) == 1 for prime in params.primes)
    # Correctness, with the bit to spare that SPEC 5.8 needs.
    q, t = prod(params.data_primes), params.plain_modulus
    assert t < 2**60
    assert gcd(t, prod(params.primes)) == 1
    assert 4 * t * noise_bound(params) < q


def test_target_of_bytes_a_parameter():
    assert choose_params(CODEC, 100_000).update_bytes / 100_000 <= 6.7
    assert choose_params(CODEC, 1_000_000).update_bytes / 1_000_000 <= 6.1


def test_frozen_choices():
    assert choose_params(CODEC, 100_000) == BfvParams(
        degree=4096,
        primes=(34359697409, 17179754497, 1032193),
        additions=1_000,
        field_max=255,
        digits=3,
        fields=100_001,
    )
    assert choose_params(CODEC, 2_000) == BfvParams(
        degree=2048,
        primes=(4294955009, 1032193),
        additions=1_000,
        field_max=255,
        digits=1,
        fields=2_001,
    )


@pytest.mark.parametrize(
    ("degree", "sizes"),
    [
        (2048, [54]),
        (2048, [32, 20]),
        (4096, [35, 34, 20]),
        (4096, [44, 44, 20]),
        (8192, [57, 57, 20]),
        (8192, [60, 60, 60, 20]),
    ],
)
def test_primes_are_those_that_seal_would_create(degree, sizes):
    expected = [m.value() for m in sealapi.CoeffModulus.Create(degree, sizes)]
    ours = [
        prime
        for size in dict.fromkeys(sizes)
        for prime in largest_primes(degree, size, sizes.count(size))
    ]
    # SEAL hands out primes of one size from the smallest to the largest.
    assert sorted(ours) == sorted(expected)


@pytest.mark.parametrize("degree", [2048, 4096, 8192])
def test_the_security_table_is_seals(degree):
    assert MAX_MODULUS_BITS[degree] == sealapi.CoeffModulus.MaxBitCount(
        degree, sealapi.SEC_LEVEL_TYPE.TC128
    )


def test_too_few_primes():
    with pytest.raises(ConfigError, match="fewer than 9 primes"):
        largest_primes(8192, 16, 9)


def test_a_sum_that_fits_nowhere_is_refused():
    with pytest.raises(ConfigError, match="lower one of them"):
        # A radix of 60 bits leaves no room; a real codec's limits stop short of it.
        choose_params(Oversized(n_max=10_000, clip=1.0, weight_cap=1), 100)


class Oversized(Codec):
    """A codec with fields of 2**50."""

    @property
    def field_max(self) -> int:
        return 1 << 50


@pytest.mark.parametrize("dimension", [0, -1, 4_000_001])
def test_a_dimension_out_of_limits_is_refused(dimension):
    with pytest.raises(ConfigError, match="choose from 1 to"):
        choose_params(CODEC, dimension)


def test_a_codec_out_of_limits_is_refused():
    with pytest.raises(ConfigError, match=r"codec\.bits"):
        choose_params(replace(CODEC, bits=33), 100)
