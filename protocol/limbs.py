"""Whole numbers as fields of the sum, and back from a sum, exactly (SPEC 4.10)."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from vitalring.errors import EncodingRangeError

LIMB_BITS: Final = 8
_LIMB_MAX: Final = (1 << LIMB_BITS) - 1


def to_limbs(values: Sequence[int], widths: Sequence[int]) -> npt.NDArray[np.uint64]:
    """Return each value cut into its `widths` limbs, lowest first: (Σ widths,).

    Raises EncodingRangeError for a value that is negative or has more limbs.
    """
    for place, (value, width) in enumerate(zip(values, widths, strict=True)):
        if not 0 <= value < 1 << (LIMB_BITS * width):
            raise EncodingRangeError(f"number {place} is {value}: it must fit {width} bytes")
    joined = b"".join(
        value.to_bytes(width, "little") for value, width in zip(values, widths, strict=True)
    )
    return np.frombuffer(joined, np.uint8).astype(np.uint64)


def from_limbs(sums: npt.NDArray[np.uint64], widths: Sequence[int], count: int) -> list[int]:
    """Return the totals of `count` devices' values from the sums of their limbs (Σ widths,).

    Raises EncodingRangeError if the sums cannot come from `count` devices.
    """
    if sums.shape != (sum(widths),):
        raise EncodingRangeError(f"limbs of shape {sums.shape} where ({sum(widths)},) is due")
    if sums.size and int(sums.max()) > count * _LIMB_MAX:
        raise EncodingRangeError(f"a limb of {int(sums.max())} is too large for {count} devices")
    totals, start = [], 0
    for width in widths:
        limbs = sums[start : start + width].tolist()
        totals.append(sum(limb << (LIMB_BITS * place) for place, limb in enumerate(limbs)))
        start += width
    return totals


def answer_fields(limbs: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the fields (1 + d,) of one device's update: a 1 that counts it, then its limbs."""
    return np.concatenate([np.ones(1, np.uint64), limbs])


def answer_limbs(fields: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.uint64]:
    """Return the sums of limbs (d,) of a sum of `count` updates. Raises EncodingRangeError."""
    if not fields.size or int(fields[0]) != count:
        raise EncodingRangeError(f"a sum of {count} answers counts {fields[:1].tolist()} of them")
    return fields[1:]
