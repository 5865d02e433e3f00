"""Encoding of one update as fields that can be summed, and decoding of a sum.

Rules (SPEC 4): a device clips its update, scales it by its weight, rotates it, keeps the
round's coordinates, brings it into the quantiser's range, rounds it at random, adds integer
noise and an offset. No field wraps, so a sum of n fields decodes exactly to the sum of the n
noisy vectors. Field 0 carries the weight. What of a guarantee rests on rounding is one of two
things. `bounded`: a vector out of range is shrunk as a whole and its norm is enforced after
rounding, so one device moves the sum by `norm_bound` grid steps at most. `plain`: clip, clamp
and rounding with coins of their own never move two vectors apart by more than `distance_bound`
says, so what one record moves stays what it was.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Final

import numpy as np
from numpy.typing import NDArray

from vitalring.errors import ConfigError, EncodingRangeError
from vitalring.protocol.limits import MAX_DEVICES
from vitalring.protocol.rotation import kept_coordinates, rotate, unrotate
from vitalring.schema import OneOf

ROUNDINGS: Final = ("bounded", "plain")

ROUNDING_RISK: Final = 2.0**-80
"""Chance that plain rounding moves two vectors further apart than `distance_bound` (SPEC 4.6)."""

_MAX_REDRAWS = 128


@dataclass(frozen=True, kw_only=True)
class Codec:
    """How the updates of a round are encoded; a part of the signed round plan (SPEC 4.1)."""

    n_max: int  # devices that one sum may hold
    clip: float  # L2 norm that an update is clipped to
    weight_cap: int  # samples above which a device weighs no more
    bits: int = 8  # bits of a field before summing
    reach: float = 6.0  # quantiser range in units of clip / sqrt(dimension)
    keep: float = 1.0  # fraction of the rotated coordinates that are sent
    noise_width: int = 0  # largest absolute value of a device's integer noise, in grid steps
    rounding: Annotated[str, OneOf(ROUNDINGS)] = "bounded"  # how a vector comes onto the grid

    @property
    def levels(self) -> int:
        """Return the largest weight, which is also the span of a field without noise."""
        return (1 << self.bits) - 1

    @property
    def half(self) -> int:
        """Return the grid steps on each side of zero."""
        return self.levels // 2

    @property
    def offset(self) -> int:
        """Return what is added to a grid value to make it non-negative."""
        return self.half + self.noise_width

    @property
    def field_max(self) -> int:
        """Return the largest value of one device's field."""
        return self.levels + 2 * self.noise_width


@dataclass(frozen=True)
class EncodedUpdate:
    """One device's fields for the sum."""

    fields: NDArray[np.uint64]  # (1 + kept coordinates,), field 0 is the weight
    weight: int  # 1 .. levels


@dataclass(frozen=True)
class DecodedSum:
    """The weighted mean of a sum of updates."""

    mean: NDArray[np.float64]  # (dimension,)
    weight: int  # sum of the devices' weights, each 1 .. levels


def check_codec(codec: Codec) -> None:
    """Raise ConfigError, naming the field, unless the codec can be used (SPEC 4.1)."""
    limits: tuple[tuple[str, float, float], ...] = (
        ("n_max", 1, MAX_DEVICES),
        ("clip", 1e-12, 1e12),
        ("weight_cap", 1, 1 << 40),
        ("bits", 2, 20),
        ("reach", 0.1, 100.0),
        ("keep", 1e-6, 1.0),
        ("noise_width", 0, 1 << 24),
    )
    for name, low, high in limits:
        value = getattr(codec, name)
        # Written so that NaN fails.
        if not low <= value <= high:
            raise ConfigError(f"codec.{name} is {value}: choose from {low:g} to {high:g}")
    if codec.rounding not in ROUNDINGS:
        raise ConfigError(f"codec.rounding is {codec.rounding!r}: choose {' or '.join(ROUNDINGS)}")


def kept_count(codec: Codec, dimension: int) -> int:
    """Return how many of `dimension` coordinates are sent."""
    return max(1, min(dimension, round(codec.keep * dimension)))


def field_count(codec: Codec, dimension: int) -> int:
    """Return the fields of one update of `dimension` parameters: the weight and the kept ones."""
    return 1 + kept_count(codec, dimension)


def grid_step(codec: Codec, dimension: int) -> float:
    """Return the width of one grid step, in units of the update (SPEC 4.5)."""
    return codec.reach * codec.clip / math.sqrt(dimension) / codec.half


def norm_bound(codec: Codec, dimension: int) -> float:
    """Return the bound on the L2 norm of a rounded update, in grid steps (SPEC 4.6).

    The L2 sensitivity in Theorem 1 of Kairouz, Liu and Steinke, "The Distributed Discrete
    Gaussian Mechanism for Federated Learning with Secure Aggregation" (arXiv 2102.06387),
    with beta = exp(-1/2): a vector within the clip is rounded within this bound with
    probability 1 - beta at least. Plain rounding enforces the worst case alone.
    """
    norm = codec.clip / grid_step(codec, dimension)
    kept = kept_count(codec, dimension)
    if codec.rounding == "plain":
        return norm + math.sqrt(kept)
    return _rounded_length(norm, kept, math.exp(-0.5))


def distance_bound(distance: float, kept: int) -> float:
    """Bound the L2 distance of two vectors after plain rounding, in grid steps (SPEC 4.6).

    Before it they are `distance` steps apart at most, and every coin is the same for both and
    drawn without regard to either. Coordinate j of their difference, k + f with k whole, becomes
    k or k + 1, the latter with probability f: on average the square grows by f - f^2 <= 1/4,
    and Hoeffding's inequality bounds the rest, except with probability ROUNDING_RISK.
    """
    return _rounded_length(distance, kept, ROUNDING_RISK)


def _rounded_length(length: float, kept: int, risk: float) -> float:
    """Bound the norm of a vector after rounding, except with probability `risk`."""
    worst = (length + math.sqrt(kept)) ** 2
    spread = math.sqrt(2.0 * math.log(1.0 / risk))
    likely = length**2 + kept / 4 + spread * (length + math.sqrt(kept) / 2)
    return math.sqrt(min(worst, likely))


def weight_of(samples: int, codec: Codec) -> int:
    """Return the weight 1 .. levels of a device with `samples` >= 1 samples (SPEC 4.2).

    Raises ConfigError if there are none: such a device has nothing to send.
    """
    if samples < 1:
        raise ConfigError(f"a device with {samples} samples cannot take part in a round")
    capped = min(samples, codec.weight_cap)
    # Integer arithmetic rounds halves up on every machine.
    return max(1, (2 * codec.levels * capped + codec.weight_cap) // (2 * codec.weight_cap))


def encode_update(
    update: NDArray[np.floating[Any]],
    samples: int,
    codec: Codec,
    seed: bytes,
    *,
    rng: np.random.Generator,
    noise: NDArray[np.int64] | None = None,
) -> EncodedUpdate:
    """Encode an update (d,) of a device with `samples` samples for the sum (SPEC 4.2 to 4.8).

    `rng` must be cryptographic (ChaCha seeded by the system) on a device. `noise`
    (kept coordinates,) is added in grid steps after rounding; none is needed if
    `codec.noise_width` is 0. Raises EncodingRangeError on NaN, infinity or noise that is
    missing, of another shape or wider than the plan allows, ConfigError on a bad codec.
    """
    check_codec(codec)
    # 1. Only finite vectors (SPEC 4.2).
    vector = np.asarray(update, dtype=np.float64)
    if vector.ndim != 1 or not vector.size:
        raise EncodingRangeError(f"an update is a vector, not an array of shape {vector.shape}")
    if not np.isfinite(vector).all():
        at = int(np.flatnonzero(~np.isfinite(vector))[0])
        raise EncodingRangeError(f"coordinate {at} of the update is {vector[at]}: not encoded")
    dimension = vector.size
    # 2. Clip, then scale by the weight: the norm is at most clip from here on.
    weight = weight_of(samples, codec)
    vector = vector * _clip_factor(vector, codec.clip) * (weight / codec.levels)
    # 3. Rotate, then keep the round's coordinates.
    kept = kept_coordinates(dimension, kept_count(codec, dimension), seed)
    vector = rotate(vector, seed)[kept]
    # 4. Bring it into range, and 5. round it at random.
    vector /= grid_step(codec, dimension)
    if codec.rounding == "plain":
        grid = _round_plain(vector, codec.half, rng)
    else:
        fit = min(1.0, codec.half / max(float(np.abs(vector).max()), codec.half))
        grid = _round_within(vector * fit, codec.half, norm_bound(codec, dimension), rng)
    # 6. Noise, within the width that the fields have room for.
    grid += _checked_noise(noise, codec.noise_width, grid.size)
    # 7. Offset.
    fields = np.empty(1 + grid.size, dtype=np.uint64)
    fields[0] = weight
    fields[1:] = (grid + codec.offset).astype(np.uint64)
    return EncodedUpdate(fields, weight)


def decode_sum(
    fields: NDArray[np.uint64], count: int, codec: Codec, dimension: int, seed: bytes
) -> DecodedSum:
    """Decode the sum of the fields of `count` updates to their weighted mean (SPEC 4.9).

    Raises EncodingRangeError if the sum cannot come from `count` updates.
    """
    check_codec(codec)
    kept = kept_count(codec, dimension)
    # 1. As many fields as the plan says, from as many devices as it allows.
    if fields.shape != (1 + kept,):
        raise EncodingRangeError(f"a sum of shape {fields.shape} where ({1 + kept},) is due")
    if not 1 <= count <= codec.n_max:
        raise EncodingRangeError(f"a sum of {count} updates, the plan allows 1 to {codec.n_max}")
    # 2. The weight is one that `count` devices can have.
    weight = int(fields[0])
    if not count <= weight <= count * codec.levels:
        raise EncodingRangeError(f"{count} updates cannot weigh {weight} together")
    # 3. No field above what `count` devices can reach.
    largest = int(fields[1:].max())
    if largest > count * 2 * codec.offset:
        raise EncodingRangeError(f"a field of {largest} is too large for {count} updates")
    grid = fields[1:].astype(np.int64) - count * codec.offset
    vector = np.zeros(dimension)
    # Dividing by the fraction kept makes the mean unbiased over the choice of coordinates.
    scale = grid_step(codec, dimension) * dimension / kept
    vector[kept_coordinates(dimension, kept, seed)] = grid * scale
    return DecodedSum(unrotate(vector, seed) / (weight / codec.levels), weight)


def _clip_factor(vector: NDArray[np.float64], clip: float) -> float:
    """Return the factor <= 1 that brings the norm within `clip`, without overflow."""
    peak = float(np.abs(vector).max())
    if peak == 0.0:
        return 1.0
    relative = float(np.linalg.norm(vector / peak))
    return min(1.0, clip / peak / relative)


def _round_plain(
    vector: NDArray[np.float64], half: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Clamp and round each coordinate with one coin of its own, whatever the others are.

    A coin that is drawn again, or a factor on the whole vector, would depend on the vector, and
    two neighbouring ones could end further apart than `distance_bound` says.
    """
    coins = rng.random(vector.size)
    grid = np.floor(np.clip(vector, -half, half) + coins).astype(np.int64)
    return np.clip(grid, -half, half)


def _round_within(
    vector: NDArray[np.float64], half: int, bound: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Round each coordinate up or down at random, unbiased, until the norm is within `bound`.

    A vector out of range was shrunk as a whole before: its direction and the norm bound
    survive, which clamping single coordinates would not give. This is the conditional
    randomised rounding of arXiv 2102.06387. One draw passes with probability 0.39 at least, so
    giving up after 128 draws means a fault, not bad luck.
    """
    # The last bit of a float may stand out of the range that step 4 scaled to.
    vector = np.clip(vector, -half, half)
    for _ in range(_MAX_REDRAWS):
        grid = np.floor(vector + rng.random(vector.size)).astype(np.int64)
        # A sum such as 127 + 0.9999999999999999 may round up to the next integer.
        np.clip(grid, -half, half, out=grid)
        if int(np.dot(grid, grid)) <= bound * bound:
            return grid
    raise EncodingRangeError(
        f"no rounding within a norm of {bound:g} steps in {_MAX_REDRAWS} draws: "
        "the random generator is at fault"
    )


def _checked_noise(noise: NDArray[np.int64] | None, width: int, size: int) -> NDArray[np.int64]:
    if noise is None:
        # A plan with noise must never go out without it.
        if width:
            raise EncodingRangeError("the plan asks for integer noise and none was given")
        return np.zeros(size, dtype=np.int64)
    if noise.shape != (size,) or noise.dtype != np.int64:
        raise EncodingRangeError(f"noise of shape {noise.shape} and {noise.dtype}, not ({size},)")
    if noise.size and max(int(noise.max()), -int(noise.min())) > width:
        raise EncodingRangeError(f"noise beyond the plan's width of {width} steps")
    return noise
