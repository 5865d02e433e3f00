"""Weights as bytes: float32, little-endian, none beyond the largest."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vitalring.errors import RecordError
from vitalring.protocol.weights import MAX_WEIGHT, pack_weights, unpack_weights

finite = st.floats(-MAX_WEIGHT, MAX_WEIGHT, width=32)


@given(arrays(np.float32, st.integers(0, 50), elements=finite))
def test_round_trip(weights):
    data = pack_weights(weights)
    assert len(data) == 4 * weights.size
    read = unpack_weights(data, weights.size)
    assert read.dtype == np.float32
    assert read.tobytes() == weights.tobytes()
    read[:] = 1  # a copy of one's own


def test_bytes_are_little_endian_in_order():
    assert pack_weights(np.array([1.0, -2.0])) == bytes.fromhex("0000803f000000c0")
    assert pack_weights(np.array([1.0, -2.0], ">f8")) == bytes.fromhex("0000803f000000c0")
    assert pack_weights(np.arange(6.0)[::2]) == pack_weights(np.array([0.0, 2.0, 4.0]))


@pytest.mark.parametrize(
    "bad", [np.nan, np.inf, -np.inf, np.nextafter(np.float32(MAX_WEIGHT), np.float32(np.inf)), -1e9]
)
def test_a_value_that_is_no_weight_is_refused_both_ways(bad):
    with pytest.raises(RecordError, match="no number between -16384 and 16384"):
        pack_weights(np.array([0.0, bad]))
    with pytest.raises(RecordError, match="no number between -16384 and 16384"):
        unpack_weights(np.array([0.0, bad], "<f4").tobytes(), 2)


@pytest.mark.filterwarnings("error")
def test_a_value_that_overflows_float32_is_refused_without_a_warning():
    with pytest.raises(RecordError, match="no number between"):
        pack_weights(np.array([1e39]))


@given(st.binary(max_size=64), st.integers(0, 20))
def test_random_bytes(data, dimension):
    try:
        read = unpack_weights(data, dimension)
    except RecordError:
        return
    assert pack_weights(read) == data


def test_another_number_of_parameters_is_named():
    with pytest.raises(RecordError, match="have 8 bytes, 3 parameters need four each"):
        unpack_weights(bytes(8), 3)
