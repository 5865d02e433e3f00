"""Seeded randomised Hadamard rotation of a vector of any length, and the round's mask.

Rules (SPEC 4.3, 4.4): the rotation is orthonormal, needs no padding, and depends on the
round's 32-byte seed alone, so that all devices of a round rotate alike and the sum of
rotated vectors is the rotated sum. It spreads the energy of an update over all
coordinates, which lets one quantiser range fit them all (Suresh et al., "Distributed
Mean Estimation with Limited Communication", ICML 2017, section 4).

A Hadamard transform exists for powers of two. Padding d coordinates to the next one
would send up to twice as many. Here a transform of p = 2**floor(log2 d) coordinates, each
after its own random sign flips, acts on the first p and then on the last p coordinates.
The windows cover everything and overlap, and a product of orthonormal maps is
orthonormal. Cutting d into its binary blocks instead would leave the last few
coordinates, often the biases of the output layer, almost unmixed.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from vitalring.errors import ConfigError

SEED_BYTES = 32
_SIGNS = b"vitalring/rotation/v1"
_MASK = b"vitalring/mask/v1"


def rotate(vector: NDArray[np.float64], seed: bytes) -> NDArray[np.float64]:
    """Rotate a vector (d,), d >= 1; the norm is kept. Raises ConfigError on a bad seed."""
    result = vector.astype(np.float64, copy=True)
    for window, signs in _windows(result, seed):
        np.multiply(window, signs, out=window)
        _transform(window)
    return result


def unrotate(vector: NDArray[np.float64], seed: bytes) -> NDArray[np.float64]:
    """Invert `rotate`. The transform is its own inverse, so the steps run backwards."""
    result = vector.astype(np.float64, copy=True)
    for window, signs in reversed(_windows(result, seed)):
        _transform(window)
        np.multiply(window, signs, out=window)
    return result


def kept_coordinates(dimension: int, count: int, seed: bytes) -> NDArray[np.int64]:
    """Choose `count` of `dimension` coordinates, ascending, by the round's seed.

    Each coordinate draws a 64-bit key from SHAKE-256 and the smallest keys win.
    Raises ConfigError on a bad seed or unless 1 <= count <= dimension.
    """
    _check_seed(seed)
    if not 1 <= count <= dimension:
        raise ConfigError(f"cannot keep {count} of {dimension} coordinates")
    if count == dimension:
        return np.arange(dimension)
    keys = np.frombuffer(hashlib.shake_256(_MASK + seed).digest(8 * dimension), dtype="<u8")
    # A stable sort leaves one answer even if two keys were equal.
    return np.sort(np.argsort(keys, kind="stable")[:count])


def _windows(
    vector: NDArray[np.float64], seed: bytes
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return views of the first and the last p coordinates (one if p = d), and their signs."""
    _check_seed(seed)
    dimension = vector.size
    if vector.ndim != 1 or dimension < 1:
        raise ConfigError(f"only vectors can be rotated, not an array of shape {vector.shape}")
    size = 1 << (dimension.bit_length() - 1)
    views = [vector[:size]] if size == dimension else [vector[:size], vector[dimension - size :]]
    digest = hashlib.shake_256(_SIGNS + seed).digest(len(views) * ((size + 7) // 8))
    bits = np.frombuffer(digest, dtype=np.uint8).reshape(len(views), -1)
    signs = 1.0 - 2.0 * np.unpackbits(bits, axis=1, count=size, bitorder="little")
    return list(zip(views, signs, strict=True))


def _transform(vector: NDArray[np.float64]) -> None:
    """Fast Walsh-Hadamard transform in place, scaled to be orthonormal; size a power of two."""
    size = vector.size
    half = 1
    while half < size:
        pairs = vector.reshape(-1, 2, half)
        difference = pairs[:, 0] - pairs[:, 1]
        pairs[:, 0] += pairs[:, 1]
        pairs[:, 1] = difference
        half *= 2
    vector /= np.sqrt(size)


def _check_seed(seed: bytes) -> None:
    if len(seed) != SEED_BYTES:
        raise ConfigError(f"a round's seed has {SEED_BYTES} bytes, this one {len(seed)}")
