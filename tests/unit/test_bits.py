"""Bit packing: one byte string for each array, and back (SPEC 5.4)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitalring.errors import CiphertextError
from vitalring.protocol.bits import pack_bits, packed_size, unpack_bits

WIDTHS = st.integers(8, 60)


def values_of(width: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << width, shape, dtype=np.uint64)


def reference(values: np.ndarray, width: int) -> bytes:
    """Pack through Python's own integers."""
    total = sum(int(value) << (width * i) for i, value in enumerate(values))
    return total.to_bytes(len(values) * width // 8, "little")


@given(WIDTHS, st.integers(0, 20), st.integers(0, 2**32))
def test_packs_like_one_long_integer(width, groups, seed):
    values = values_of(width, (8 * groups,), seed)
    assert pack_bits(values, width).tobytes() == reference(values, width)


@given(WIDTHS, st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32))
def test_unpacking_inverts_packing_on_any_leading_shape(width, rows, groups, seed):
    values = values_of(width, (rows, 2, 8 * groups), seed)
    packed = pack_bits(values, width)
    assert packed.shape == (rows, 2, groups * width)
    assert (unpack_bits(packed, width, 8 * groups) == values).all()


@given(WIDTHS, st.binary(min_size=60, max_size=60))
def test_every_byte_string_is_the_encoding_of_what_it_decodes_to(width, data):
    packed = np.frombuffer(data[:width], dtype=np.uint8)
    assert pack_bits(unpack_bits(packed, width, 8), width).tobytes() == data[:width]


@pytest.mark.parametrize("width", [8, 57, 58, 60])
def test_extremes(width):
    values = np.array([0, (1 << width) - 1] * 4, dtype=np.uint64)
    assert pack_bits(values, width).tobytes() == reference(values, width)
    assert (unpack_bits(pack_bits(values, width), width, 8) == values).all()


def test_a_value_that_would_spill_into_its_neighbour_is_refused():
    with pytest.raises(CiphertextError, match="256 does not fit in 8 bits"):
        pack_bits(np.array([256] + [0] * 7, dtype=np.uint64), 8)


@pytest.mark.parametrize(("count", "width"), [(8, 7), (8, 61), (7, 8), (-8, 8)])
def test_sizes_that_do_not_pack(count, width):
    with pytest.raises(CiphertextError):
        packed_size(count, width)


def test_another_length_is_refused():
    with pytest.raises(CiphertextError, match="9 bytes where 10 are needed"):
        unpack_bits(np.zeros(9, dtype=np.uint8), 10, 8)
