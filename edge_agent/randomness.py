"""Random numbers that privacy rests on (SPEC 7.6).

Rules kept here: every generator is a ChaCha20 stream keyed afresh by the
operating system, never by a plan's seed, because noise that somebody else can
recompute is no noise; a generator lives for one use and is never kept across a
fork, because parent and child would then add the same noise.
"""

import math
import os
import secrets
from typing import Final

import numpy as np
from numpy.typing import NDArray
from randomgen import ChaCha

from vitalring.errors import PrivacyError
from vitalring.protocol.integer_noise import MIN_DEVIATION, SharedNoise

MIN_SCALE: Final = 2.0**12
"""Below it the discrete Gaussian is too far from the rounded one (SPEC 7.6)."""

MAX_SCALE: Final = 2.0**36
"""Above it a 64-bit word holds too few bits for the blocks of the tail (SPEC 7.6)."""


class SecureGenerator(np.random.Generator):
    """A numpy Generator on ChaCha20 that refuses to serve another process than its own.

    It cannot be pickled or copied: two copies would produce the same noise.
    """

    def __init__(self) -> None:
        super().__init__(ChaCha(key=secrets.randbits(256), rounds=20))
        self._process = os.getpid()

    def check_process(self) -> None:
        """Raise PrivacyError after a fork (SPEC 7.6)."""
        if os.getpid() != self._process:
            raise PrivacyError(
                "this random generator belongs to the process that forked this one: "
                "make a new one with fresh_generator()"
            )

    # Narrower than numpy declares it, because it never returns.
    def __reduce__(self) -> tuple[object, ...]:  # type: ignore[override]
        raise PrivacyError("a random generator is used once, in one process; it cannot be copied")


def fresh_generator() -> SecureGenerator:
    """Return a generator with a key of 256 bits from the operating system. One use each."""
    return SecureGenerator()


def integer_gaussian(generator: np.random.Generator, scale: float, size: int) -> NDArray[np.int64]:
    """Draw `size` integers distributed as rint(N(0, scale^2)) (SPEC 7.6).

    The target is the discrete Gaussian of variance scale^2 + 1/12, which is the
    rounded Gaussian up to a relative error of (z/scale)^4 / (2880 scale^4).

    Raises PrivacyError for a scale outside MIN_SCALE .. MAX_SCALE.
    """
    if not MIN_SCALE <= scale <= MAX_SCALE:
        raise PrivacyError(
            f"noise of scale {scale:g} lattice steps cannot be sampled, "
            f"{MIN_SCALE:g} to {MAX_SCALE:g} can"
        )
    return _discrete_gaussian(generator, scale * scale + 1.0 / 12.0, size)


def noise_share(generator: np.random.Generator, noise: SharedNoise) -> NDArray[np.int64]:
    """Draw one device's share of a sum's noise (coordinates,) (SPEC 7.14).

    Discrete Gaussian integers, cut off at the width that a field has room for. The chance that
    one is cut off is charged: `SharedNoise.delta`. Raises PrivacyError.
    """
    if not MIN_DEVIATION <= noise.deviation <= MAX_SCALE:
        raise PrivacyError(f"noise of deviation {noise.deviation:g} grid steps cannot be sampled")
    drawn = _discrete_gaussian(generator, noise.deviation**2, noise.coordinates)
    return np.clip(drawn, -noise.width, noise.width)


def _discrete_gaussian(
    generator: np.random.Generator, variance: float, size: int
) -> NDArray[np.int64]:
    """Draw `size` integers, z with a probability proportional to exp(-z^2 / (2 variance)).

    Rejection from a proposal made of integers alone, so no bit of an output
    depends on how a floating-point sampler spaces its values (Mironov 2012).
    The proposal is |z| = b * B + r with P(b) = 2^-(b+1) from a word's trailing
    zeros and r uniform below B, a power of two near the deviation.
    """
    low_bits = math.floor(math.log2(1.25 * math.sqrt(variance)))
    width = float(1 << low_bits)
    # The acceptance exponent is never positive: over block starts it peaks at one of the
    # first four, since it would be greatest at ln(2) * variance / width^2 < 1.78.
    peak = max(b * math.log(2.0) - (b * width) ** 2 / (2.0 * variance) for b in range(4))
    result = np.empty(size, np.int64)
    filled = 0
    while filled < size:
        count = 2 * (size - filled) + 16
        magnitude, negative, block = _propose(generator, count, low_bits)
        exponent = block * math.log(2.0) - magnitude * magnitude / (2.0 * variance) - peak
        accepted = _fine_uniform(generator, count) < np.exp(exponent)
        accepted &= ~(negative & (magnitude == 0.0))  # zero has one sign only
        values = np.where(negative, -magnitude, magnitude)[accepted].astype(np.int64)
        taken = min(values.size, size - filled)
        result[filled : filled + taken] = values[:taken]
        filled += taken
    return result


def _propose(
    generator: np.random.Generator, count: int, low_bits: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Magnitude, sign and block of `count` proposals, each from one 64-bit word.

    The word holds the sign, then the block as trailing zeros, then the offset.
    """
    words = generator.integers(0, 1 << 64, count, dtype=np.uint64)
    offset = words & np.uint64((1 << low_bits) - 1)
    rest = (words & np.uint64((1 << 63) - 1)) >> np.uint64(low_bits)
    # Stops an all-zero rest at the last block, at least 16 scales out at MAX_SCALE.
    rest |= np.uint64(1 << (63 - low_bits))
    lowest = rest & (~rest + np.uint64(1))
    block = np.frexp(lowest.astype(np.float64))[1].astype(np.float64) - 1.0
    magnitude = block * float(1 << low_bits) + offset.astype(np.float64)
    return magnitude, (words >> np.uint64(63)).astype(np.bool_), block


def _fine_uniform(generator: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) whose relative spacing stays below 2^-48 down to 2^-110.

    A plain 53-bit uniform is too coarse where the acceptance probability is
    small, which is where tails decide a privacy loss.
    """
    uniform = generator.random(count)
    small = np.flatnonzero(uniform < 2.0**-5)
    finer = generator.random(small.size) + generator.random(small.size) * 2.0**-53
    uniform[small] += finer * 2.0**-53
    return uniform
