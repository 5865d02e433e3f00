"""Polynomials as bytes: contributions and partial decryptions (SPEC 5.15).

Rule: a polynomial is written as in 5.4, prime after prime, residues bit-packed without
gaps, so bytes that are accepted have one encoding. The length is checked before anything
is allocated, then every residue against its prime.
"""

import numpy as np

from vitalring.errors import CiphertextError
from vitalring.protocol.bits import pack_bits, packed_size, unpack_bits
from vitalring.protocol.ciphertext import Residues


def encode_polynomials(polynomials: Residues, primes: tuple[int, ...]) -> bytes:
    """Encode (count, primes, degree). Raises CiphertextError for a residue out of range."""
    _check_residues(polynomials, primes)
    parts = [pack_bits(polynomials[:, j], prime.bit_length()) for j, prime in enumerate(primes)]
    return np.concatenate(parts, axis=-1).tobytes()


def decode_polynomials(data: bytes, count: int, primes: tuple[int, ...], degree: int) -> Residues:
    """Decode (count, primes, degree). Raises CiphertextError, naming the check that failed."""
    sizes = [packed_size(degree, prime.bit_length()) for prime in primes]
    # 1. The exact length.
    if len(data) != count * sum(sizes):
        raise CiphertextError(
            f"{len(data)} bytes, not the {count * sum(sizes)} of {count} "
            "polynomials of these parameters"
        )
    packed = np.frombuffer(data, dtype=np.uint8).reshape(count, sum(sizes))
    polynomials = np.empty((count, len(primes), degree), dtype=np.uint64)
    start = 0
    for j, (prime, size) in enumerate(zip(primes, sizes, strict=True)):
        part = packed[:, start : start + size]
        polynomials[:, j] = unpack_bits(part, prime.bit_length(), degree)
        start += size
    # 2. Residues below their primes.
    _check_residues(polynomials, primes)
    return polynomials


def polynomial_bytes(primes: tuple[int, ...], degree: int) -> int:
    """Return the bytes of one polynomial."""
    return sum(packed_size(degree, prime.bit_length()) for prime in primes)


def _check_residues(polynomials: Residues, primes: tuple[int, ...]) -> None:
    if polynomials.ndim != 3 or polynomials.shape[1] != len(primes):
        raise CiphertextError(f"polynomials of shape {polynomials.shape} for {len(primes)} primes")
    for j, prime in enumerate(primes):
        largest = int(polynomials[:, j].max(initial=0))
        if largest >= prime:
            raise CiphertextError(f"residue {largest} is not below its prime {prime}")
