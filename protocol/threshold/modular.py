"""Arithmetic modulo primes of at most 50 bits, on whole arrays.

Rule: the quotient of a product is estimated in float64 and the remainder taken in 64-bit
integers that wrap. With factors below a prime p < 2**50 the estimate is off by less than
one, so the remainder lies in [-p, 2p), fits a signed word, and is corrected exactly. No
floating-point value enters a result.
"""

import numpy as np
from numpy.typing import NDArray

from vitalring.protocol.ciphertext import Residues

MAX_PRIME_BITS = 50


def multiply(left: Residues, right: Residues, primes: tuple[int, ...]) -> Residues:
    """Return left * right modulo the primes; (..., primes, degree), all below their primes."""
    moduli = _column(primes)
    inverses = 1.0 / moduli.astype(np.float64)
    # Three roundings of 2**-53 each, of a quotient below 2**50: wrong by less than one.
    estimate = left.astype(np.float64) * right.astype(np.float64) * inverses
    remainder = (left * right - estimate.astype(np.uint64) * moduli).view(np.int64)
    signed = moduli.astype(np.int64)
    remainder = np.where(remainder < 0, remainder + signed, remainder)
    return np.where(remainder >= signed, remainder - signed, remainder).astype(np.uint64)


def add(left: Residues, right: Residues, primes: tuple[int, ...]) -> Residues:
    """Return left + right modulo the primes."""
    total = left + right
    # Where the sum is below the prime the difference wraps to something huge.
    return np.minimum(total, total - _column(primes))


def subtract(left: Residues, right: Residues, primes: tuple[int, ...]) -> Residues:
    """Return left - right modulo the primes."""
    difference = left - right
    # Where right exceeds left the difference wrapped, and adding the prime wraps it back.
    return np.minimum(difference, difference + _column(primes))


def reduce(values: NDArray[np.int64], primes: tuple[int, ...]) -> Residues:
    """Return integers (..., degree) modulo each prime, as (..., primes, degree)."""
    return np.mod(values[..., None, :], _column(primes).astype(np.int64)).astype(np.uint64)


def centre(residues: Residues, primes: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the representatives of least absolute value, in (..., primes, degree)."""
    signed = residues.astype(np.int64)
    moduli = _column(primes).astype(np.int64)
    return np.where(signed > moduli // 2, signed - moduli, signed)


def _column(primes: tuple[int, ...]) -> Residues:
    return np.array(primes, dtype=np.uint64)[:, None]
