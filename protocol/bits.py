"""Bit packing of fixed-width integers.

Rules: little-endian bit order; value i occupies the bits i*width to (i+1)*width - 1;
no padding, because values come in groups of eight and eight values of `width` bits
are exactly `width` bytes. So every byte string of the right length is the encoding of
exactly one array, and the reverse (SPEC 5.4).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitalring.errors import CiphertextError

_LANES = 8
_WORD_BITS = 64
_WORD_BYTES = 8
_MIN_WIDTH, _MAX_WIDTH = 8, 60


def packed_size(count: int, width: int) -> int:
    """Bytes of `count` values of `width` bits.

    Raises CiphertextError unless 8 <= width <= 60 and `count` is a multiple of eight.
    """
    if not _MIN_WIDTH <= width <= _MAX_WIDTH:
        raise CiphertextError(f"{width}-bit values: only {_MIN_WIDTH} to {_MAX_WIDTH} bits pack")
    if count < 0 or count % _LANES:
        raise CiphertextError(f"{count} values: only whole groups of {_LANES} pack")
    return count // _LANES * width


def pack_bits(values: NDArray[np.uint64], width: int) -> NDArray[np.uint8]:
    """Pack the last axis of `values` (..., n) into bytes (..., n * width / 8).

    The caller guarantees values < 2**width: a larger value would spill into its
    neighbour, so it is checked here and raises CiphertextError.
    """
    count = values.shape[-1]
    size = packed_size(count, width)
    if values.size and int(values.max()) >> width:
        raise CiphertextError(f"value {int(values.max())} does not fit in {width} bits")
    groups = values.size // _LANES
    lanes = values.reshape(groups, _LANES)
    # The last word may reach past the end, hence the spare bytes that are cut off below.
    buffer = np.zeros((groups + 1) * width + _WORD_BYTES, dtype=np.uint8)
    for lane in range(_LANES):
        start, shift = divmod(lane * width, 8)
        # Words of one lane never overlap, because width >= 8 bytes apart.
        _words(buffer, start, groups, width)[...] |= lanes[:, lane] << np.uint64(shift)
        if shift + width > _WORD_BITS:
            _spill(buffer, start, groups, width)[...] |= (
                lanes[:, lane] >> np.uint64(_WORD_BITS - shift)
            ).astype(np.uint8)
    return buffer[: groups * width].reshape(*values.shape[:-1], size)


def unpack_bits(packed: NDArray[np.uint8], width: int, count: int) -> NDArray[np.uint64]:
    """Invert `pack_bits`: bytes (..., count * width / 8) to values (..., count) < 2**width.

    Raises CiphertextError if the last axis has another length.
    """
    size = packed_size(count, width)
    if packed.shape[-1] != size:
        raise CiphertextError(f"{packed.shape[-1]} bytes where {size} are needed")
    groups = packed.size // width
    buffer = np.zeros((groups + 1) * width + _WORD_BYTES, dtype=np.uint8)
    buffer[: groups * width] = packed.reshape(-1)
    lanes = np.empty((groups, _LANES), dtype=np.uint64)
    mask = np.uint64((1 << width) - 1)
    for lane in range(_LANES):
        start, shift = divmod(lane * width, 8)
        value = _words(buffer, start, groups, width) >> np.uint64(shift)
        if shift + width > _WORD_BITS:
            high = _spill(buffer, start, groups, width).astype(np.uint64)
            value |= high << np.uint64(_WORD_BITS - shift)
        lanes[:, lane] = value & mask
    return lanes.reshape(*packed.shape[:-1], count)


def _words(
    buffer: NDArray[np.uint8], start: int, groups: int, width: int
) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """View the (unaligned) little-endian word at byte `start` of every group of `width` bytes."""
    return np.ndarray((groups,), "<u8", buffer=buffer.data, offset=start, strides=(width,))


def _spill(
    buffer: NDArray[np.uint8], start: int, groups: int, width: int
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """View the byte after the word at `start` of every group."""
    return np.ndarray(
        (groups,), "u1", buffer=buffer.data, offset=start + _WORD_BYTES, strides=(width,)
    )
