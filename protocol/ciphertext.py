"""Ciphertexts and public keys as bytes, and the homomorphic sum, without any HE library.

Rules (SPEC 5.4 to 5.6): an update's ciphertexts have one fixed-length encoding, residues
bit-packed in coefficient form, two polynomials each; what fails a numbered check is
refused. A gateway needs this module alone: hostile bytes meet length and range checks in
numpy and never reach SEAL. Adding two BFV ciphertexts is adding their polynomials (Fan,
Vercauteren 2012, section 4), so the sum is made here too.
"""

import numpy as np
from numpy.typing import NDArray

from vitalring.errors import CiphertextError
from vitalring.protocol.bfv import BfvParams
from vitalring.protocol.bits import pack_bits, packed_size, unpack_bits

Residues = NDArray[np.uint64]
"""(ciphertexts, 2, primes, degree); for a public key (2, primes, degree)."""

POLYNOMIALS = 2


def encode_ciphertexts(residues: Residues, params: BfvParams) -> bytes:
    """Encode an update's or a sum's ciphertexts (SPEC 5.4).

    Raises CiphertextError for residues that `decode_ciphertexts` would refuse.
    """
    primes = params.data_primes
    _check_residues(residues, (params.ciphertexts, POLYNOMIALS), primes, params)
    _check_opaque(residues)
    return _pack(residues, primes)


def decode_ciphertexts(data: bytes, params: BfvParams) -> Residues:
    """Decode an update's or a sum's ciphertexts (SPEC 5.5).

    Raises CiphertextError, naming the check that failed.
    """
    primes = params.data_primes
    # 1. The exact length, before anything is allocated; 2. residues below their primes.
    residues = _unpack(data, (params.ciphertexts, POLYNOMIALS), primes, params)
    # 3. No transparent ciphertext.
    _check_opaque(residues)
    return residues


def add(total: Residues, residues: Residues, params: BfvParams) -> Residues:
    """Return the encrypted sum of two sets of ciphertexts (SPEC 5.6).

    Both are as `decode_ciphertexts` returns them. Raises CiphertextError for other shapes.
    """
    shape = (params.ciphertexts, POLYNOMIALS, len(params.data_primes), params.degree)
    if total.shape != shape or residues.shape != shape:
        raise CiphertextError(f"shapes {total.shape} and {residues.shape}, both must be {shape}")
    moduli = np.array(params.data_primes, dtype=np.uint64)[:, None]
    result = total + residues
    # Where the sum is below the prime the difference wraps to something huge.
    return np.minimum(result, result - moduli)


def encode_public_key(residues: Residues, params: BfvParams) -> bytes:
    """Encode a public key (2, primes, degree), in NTT form over all primes (SPEC 5.4)."""
    _check_residues(residues, (POLYNOMIALS,), params.primes, params)
    _check_key(residues)
    return _pack(residues, params.primes)


def decode_public_key(data: bytes, params: BfvParams) -> Residues:
    """Decode a public key (SPEC 5.5). Raises CiphertextError, naming the check that failed."""
    residues = _unpack(data, (POLYNOMIALS,), params.primes, params)
    _check_key(residues)
    return residues


def _check_opaque(residues: Residues) -> None:
    """Refuse c1 = 0 modulo a prime: such a ciphertext shows its content and hides nothing."""
    empty = ~residues[:, 1].any(axis=-1)
    if empty.any():
        at = int(np.flatnonzero(empty.any(axis=-1))[0])
        raise CiphertextError(f"ciphertext {at} is transparent: its second polynomial is zero")


def _check_key(residues: Residues) -> None:
    """Refuse a key with a polynomial that is zero modulo a prime: it would encrypt nothing."""
    if not residues.any(axis=-1).all():
        raise CiphertextError("a polynomial of the public key is zero")


def _check_residues(
    residues: Residues, leading: tuple[int, ...], primes: tuple[int, ...], params: BfvParams
) -> None:
    shape = (*leading, len(primes), params.degree)
    if residues.shape != shape or residues.dtype != np.uint64:
        raise CiphertextError(f"residues {residues.shape} of {residues.dtype}, not {shape}")
    for j, prime in enumerate(primes):
        largest = int(residues[..., j, :].max())
        if largest >= prime:
            raise CiphertextError(f"residue {largest} is not below its prime {prime}")


def _pack(residues: Residues, primes: tuple[int, ...]) -> bytes:
    """Join the packed residues of each polynomial, prime after prime."""
    parts = [pack_bits(residues[..., j, :], prime.bit_length()) for j, prime in enumerate(primes)]
    return np.concatenate(parts, axis=-1).tobytes()


def _unpack(
    data: bytes, leading: tuple[int, ...], primes: tuple[int, ...], params: BfvParams
) -> Residues:
    sizes = [packed_size(params.degree, prime.bit_length()) for prime in primes]
    rows = int(np.prod(leading))
    if len(data) != rows * sum(sizes):
        raise CiphertextError(f"{len(data)} bytes, not the {rows * sum(sizes)} of these parameters")
    packed = np.frombuffer(data, dtype=np.uint8).reshape(*leading, sum(sizes))
    residues = np.empty((*leading, len(primes), params.degree), dtype=np.uint64)
    start = 0
    for j, (prime, size) in enumerate(zip(primes, sizes, strict=True)):
        part = packed[..., start : start + size]
        residues[..., j, :] = unpack_bits(part, prime.bit_length(), params.degree)
        start += size
    _check_residues(residues, leading, primes, params)
    return residues
