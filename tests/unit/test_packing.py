"""Fields in coefficients (SPEC 5.1)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.errors import EncodingRangeError
from vitalring.protocol.bfv import BfvParams, choose_params
from vitalring.protocol.packing import pack_fields, unpack_fields
from vitalring.protocol.quantise import Codec

PARAMS = choose_params(Codec(n_max=10, clip=1.0, weight_cap=1), 10_000)
SMALL = BfvParams(degree=8, primes=(1,), additions=3, field_max=4, digits=3, fields=29)


def test_layout_of_the_specification():
    fields = np.arange(29, dtype=np.uint64) % 5
    coefficients = pack_fields(fields, SMALL)
    assert coefficients.shape == (2, 8)
    digits = [*fields.tolist(), *[0] * 19]
    expected = [digits[3 * i] + 13 * digits[3 * i + 1] + 169 * digits[3 * i + 2] for i in range(16)]
    assert coefficients.reshape(-1).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(
    n_max=st.integers(1, 10_000),
    bits=st.integers(2, 16),
    dimension=st.integers(1, 20_000),
    seed=st.integers(0, 2**32),
)
def test_a_full_sum_unpacks_exactly(n_max, bits, dimension, seed):
    params = choose_params(Codec(n_max=n_max, clip=1.0, weight_cap=1, bits=bits), dimension)
    rng = np.random.default_rng(seed)
    total = np.zeros((params.ciphertexts, params.degree), dtype=np.uint64)
    plain = np.zeros(params.fields, dtype=np.uint64)
    copies = np.array([n_max - 1, 1] if n_max > 1 else [1], dtype=np.uint64)
    for count in copies:
        fields = rng.integers(0, params.field_max + 1, params.fields, dtype=np.uint64)
        fields[rng.integers(params.fields)] = params.field_max
        total += count * pack_fields(fields, params)
        plain += count * fields
    assert int(total.max()) < params.plain_modulus
    assert (unpack_fields(total, params, n_max) == plain).all()


def test_the_largest_sum_of_all_fields_fits():
    fields = np.full(PARAMS.fields, PARAMS.field_max, dtype=np.uint64)
    total = np.uint64(10) * pack_fields(fields, PARAMS)
    assert (unpack_fields(total, PARAMS, 10) == 10 * fields).all()


def test_a_digit_above_what_so_many_updates_reach_is_refused():
    fields = np.zeros(PARAMS.fields, dtype=np.uint64)
    fields[7] = PARAMS.field_max
    total = np.uint64(3) * pack_fields(fields, PARAMS)
    assert unpack_fields(total, PARAMS, 3)[7] == 3 * PARAMS.field_max
    with pytest.raises(EncodingRangeError, match="too large for 2 updates"):
        unpack_fields(total, PARAMS, 2)


def test_an_unused_place_must_be_zero():
    coefficients = pack_fields(np.zeros(29, dtype=np.uint64), SMALL)
    coefficients[1, 7] = 1
    with pytest.raises(EncodingRangeError, match="unused place"):
        unpack_fields(coefficients, SMALL, 3)


def test_a_coefficient_beyond_the_plain_modulus_is_refused():
    coefficients = np.full((2, 8), SMALL.plain_modulus, dtype=np.uint64)
    with pytest.raises(EncodingRangeError, match="plain modulus"):
        unpack_fields(coefficients, SMALL, 3)


@pytest.mark.parametrize("count", [0, 4])
def test_a_count_out_of_range_is_refused(count):
    with pytest.raises(EncodingRangeError, match="room is for 3"):
        unpack_fields(np.zeros((2, 8), dtype=np.uint64), SMALL, count)


def test_wrong_shapes_are_refused():
    with pytest.raises(EncodingRangeError, match="29 fields"):
        pack_fields(np.zeros(28, dtype=np.uint64), SMALL)
    with pytest.raises(EncodingRangeError, match="29 fields"):
        pack_fields(np.zeros(29, dtype=np.int64), SMALL)
    with pytest.raises(EncodingRangeError, match="shape"):
        unpack_fields(np.zeros((1, 8), dtype=np.uint64), SMALL, 3)


def test_a_field_above_its_maximum_is_refused():
    with pytest.raises(EncodingRangeError, match="exceeds 4"):
        pack_fields(np.full(29, 5, dtype=np.uint64), SMALL)
