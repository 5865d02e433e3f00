"""One mean update out of the groups' sums, of which hostile devices may have spoilt some.

Nobody sees what is in a ciphertext, so an update's norm cannot be checked before it is added
(SPEC 5.10). What can be checked is a decoded sum: one that honest devices cannot have made is
left out (`norm_limit`). What hostile devices can still do to a sum that passes, a coordinate-wise
median or trimmed mean over the groups bounds, as long as they are in few of the groups (Yin,
Chen, Ramchandran and Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal
Statistical Rates", ICML 2018, arXiv 1803.01498). That updates are averaged within random groups
first is the bucketing of Karimireddy, He and Jaggi, "Byzantine-Robust Learning on Heterogeneous
Datasets via Bucketing", ICLR 2022, arXiv 2006.09365: it makes groups more alike than unlike
devices are, and lets one device spoil as many honest ones as it shares a group with.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from vitalring.errors import CiphertextError, ConfigError, EncodingRangeError
from vitalring.protocol.quantise import (
    Codec,
    DecodedSum,
    decode_sum,
    grid_step,
    kept_count,
    norm_bound,
)

Vector = npt.NDArray[np.float64]
Fields = npt.NDArray[np.uint64]
Open = Callable[[], DecodedSum]
"""Decrypts and decodes a group's sum. Raises CiphertextError or EncodingRangeError."""

TRIM: Final = 4
"""A trimmed mean leaves out one group in four on each side: it is the mean of the middle half."""

_SLACK: Final = 1.0 + 1e-9
"""For the rounding of float64; norms of sums are whole numbers of grid steps before it."""

_BLOCK: Final = 1 << 16
"""Coordinates combined at a time, so that memory holds the means once."""


@dataclass(frozen=True)
class Combined:
    """What became of a round's groups. `left_out` has the number and the fault of each bad one."""

    mean: Vector = field(repr=False)  # (d,)
    used: tuple[int, ...]
    left_out: tuple[tuple[int, str], ...]


def norm_limit(count: int, weight: int, codec: Codec, dimension: int) -> float:
    """Return what the L2 norm of a mean of `count` honest updates cannot exceed (SPEC 11.13).

    In grid steps, with c = clip / g: a device of weight k rounds a vector of norm k·c / levels
    at most, moves each of the m coordinates by less than 1, and stays within `norm_bound`; its
    noise adds w·sqrt(m) at most. The norm of a sum is at most the sum of the norms.
    """
    step, kept = grid_step(codec, dimension), kept_count(codec, dimension)
    share = weight / codec.levels
    rounded = share * codec.clip / step + count * math.sqrt(kept)
    noise = count * codec.noise_width * math.sqrt(kept)
    longest = min(rounded, count * norm_bound(codec, dimension)) + noise
    return longest * step * dimension / kept / share


def decode_group(
    fields: Fields, count: int, codec: Codec, dimension: int, seed: bytes
) -> DecodedSum:
    """Decode the sum of a group of `count` updates (SPEC 4.9, 11.13).

    Raises EncodingRangeError if honest devices cannot have made it.
    """
    decoded = decode_sum(fields, count, codec, dimension, seed)
    norm = float(np.linalg.norm(decoded.mean))
    limit = norm_limit(count, decoded.weight, codec, dimension)
    # Written so that NaN fails.
    if not norm <= limit * _SLACK:
        raise EncodingRangeError(
            f"the mean of {count} updates has norm {norm:g}: honest ones reach {limit:g} at most"
        )
    return decoded


def combine_groups(how: str, groups: Sequence[Open]) -> Combined:
    """Return the round's mean update from its groups' sums; one that cannot be used is left out.

    Raises EncodingRangeError unless more than half of the groups are left: the round is then not
    applied. Raises ConfigError for a way to combine that is not known.
    """
    if how not in COMBINE:
        raise ConfigError(f"combine is {how!r}: choose one of {', '.join(COMBINE)}")
    found: dict[int, DecodedSum] = {}
    left_out = []
    for number, open_group in enumerate(groups):
        try:
            found[number] = open_group()
        except (CiphertextError, EncodingRangeError) as error:
            left_out.append((number, str(error)))
    if 2 * len(found) <= len(groups):
        first = f": group {left_out[0][0]}: {left_out[0][1]}" if left_out else ""
        raise EncodingRangeError(
            f"{len(left_out)} of {len(groups)} groups cannot be used, too many to go on{first}"
        )
    return Combined(COMBINE[how](list(found.values())), tuple(found), tuple(left_out))


def weighted_mean(groups: Sequence[DecodedSum]) -> Vector:
    """Return the mean of all updates (d,), each group counting by its weight."""
    total = sum(group.weight for group in groups)
    mean = np.zeros_like(groups[0].mean)
    for group in groups:
        mean += group.mean * (group.weight / total)
    return mean


def median(groups: Sequence[DecodedSum]) -> Vector:
    """Return the coordinate-wise median of the groups' means (d,).

    Groups count alike: hostile devices say what they weigh, and they must not gain by it.
    """
    return _by_coordinate(groups, lambda block: np.median(block, axis=0))


def trimmed_mean(groups: Sequence[DecodedSum]) -> Vector:
    """Return the coordinate-wise mean (d,) of the groups but the least and the greatest ones.

    One in `TRIM` is left out on each side, one at least where there are three. Groups count
    alike, as for the median.
    """
    trimmed = trimmed_each_side(len(groups))

    def middle(block: Vector) -> Vector:
        kept: Vector = np.sort(block, axis=0)[trimmed : len(block) - trimmed]
        return np.asarray(kept.mean(axis=0))

    return _by_coordinate(groups, middle)


def trimmed_each_side(groups: int) -> int:
    """Return how many of `groups` a trimmed mean leaves out on each side."""
    return min(max(1, groups // TRIM), (groups - 1) // 2)


COMBINE: Final[Mapping[str, Callable[[Sequence[DecodedSum]], Vector]]] = {
    "mean": weighted_mean,
    "median": median,
    "trimmed-mean": trimmed_mean,
}


def _by_coordinate(
    groups: Sequence[DecodedSum], combine: Callable[[Vector], npt.NDArray[np.float64]]
) -> Vector:
    """Apply `combine`, from (groups, any) to (any,), to the groups' means."""
    result = np.empty_like(groups[0].mean)
    for start in range(0, result.size, _BLOCK):
        part = slice(start, start + _BLOCK)
        result[part] = combine(np.stack([group.mean[part] for group in groups]))
    return result
