"""Ciphertexts and public keys as bytes, and the homomorphic sum, without any HE library.

Rules (SPEC 5.4 to 5.6, 5.18): an update's ciphertexts have one fixed-length encoding, residues
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
    if not params.short:
        return _pack(residues, primes).tobytes()
    if residues[:, 0, 0].any():
        raise CiphertextError("c0 is not a multiple of the first prime: shorten it first")
    pair = [_pack(residues[:, 0, 1:], params.sent_primes), _pack(residues[:, 1], primes)]
    return np.concatenate(pair, axis=-1).tobytes()


def decode_ciphertexts(data: bytes, params: BfvParams) -> Residues:
    """Decode an update's or a sum's ciphertexts (SPEC 5.5).

    Raises CiphertextError, naming the check that failed.
    """
    # 1. The exact length, before anything is allocated; 2. residues below their primes.
    residues = _unpack_short(data, params) if params.short else _unpack_pairs(data, params)
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


def shorten(residues: Residues, params: BfvParams) -> Residues:
    """Round c0 to a multiple of the first prime, where `params` ask for it (SPEC 5.18).

    Changes each coefficient of c0 by less than half that prime, and so the noise by as much.
    """
    if not params.short:
        return residues
    first = params.data_primes[0]
    rest = residues[:, 0, :1].astype(np.int64)
    rest = np.where(rest > first // 2, rest - first, rest)
    moduli = np.array(params.data_primes, dtype=np.int64)[:, None]
    result = residues.copy()
    result[:, 0] = np.mod(residues[:, 0].astype(np.int64) - rest, moduli).astype(np.uint64)
    return result


def encode_public_key(residues: Residues, params: BfvParams) -> bytes:
    """Encode a public key (2, primes, degree), in NTT form over all primes (SPEC 5.4)."""
    _check_residues(residues, (POLYNOMIALS,), params.primes, params)
    _check_key(residues)
    return _pack(residues, params.primes).tobytes()


def decode_public_key(data: bytes, params: BfvParams) -> Residues:
    """Decode a public key (SPEC 5.5). Raises CiphertextError, naming the check that failed."""
    packed = _rows(data, POLYNOMIALS, _packed_bytes(params.primes, params))
    residues = _unpack(packed, (POLYNOMIALS,), params.primes, params)
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


def _pack(residues: Residues, primes: tuple[int, ...]) -> NDArray[np.uint8]:
    """Join the packed residues of each polynomial, prime after prime."""
    parts = [pack_bits(residues[..., j, :], prime.bit_length()) for j, prime in enumerate(primes)]
    return np.concatenate(parts, axis=-1)


def _unpack_pairs(data: bytes, params: BfvParams) -> Residues:
    """Read ciphertexts whose polynomials are both sent modulo all primes."""
    leading = (params.ciphertexts, POLYNOMIALS)
    packed = _rows(
        data, params.ciphertexts * POLYNOMIALS, _packed_bytes(params.data_primes, params)
    )
    return _unpack(packed, leading, params.data_primes, params)


def _unpack_short(data: bytes, params: BfvParams) -> Residues:
    """Read ciphertexts whose c0 is zero modulo the first prime."""
    leading, primes, sent = (params.ciphertexts,), params.data_primes, params.sent_primes
    size = _packed_bytes(sent, params)
    packed = _rows(data, params.ciphertexts, size + _packed_bytes(primes, params))
    shape = (params.ciphertexts, POLYNOMIALS, len(primes), params.degree)
    residues = np.zeros(shape, dtype=np.uint64)
    residues[:, 0, 1:] = _unpack(packed[:, :size], leading, sent, params)
    residues[:, 1] = _unpack(packed[:, size:], leading, primes, params)
    return residues


def _packed_bytes(primes: tuple[int, ...], params: BfvParams) -> int:
    return sum(packed_size(params.degree, prime.bit_length()) for prime in primes)


def _rows(data: bytes, rows: int, size: int) -> NDArray[np.uint8]:
    """View bytes as (rows, size). Raises CiphertextError for another length."""
    if len(data) != rows * size:
        raise CiphertextError(f"{len(data)} bytes, not the {rows * size} of these parameters")
    return np.frombuffer(data, dtype=np.uint8).reshape(rows, size)


def _unpack(
    packed: NDArray[np.uint8],
    leading: tuple[int, ...],
    primes: tuple[int, ...],
    params: BfvParams,
) -> Residues:
    packed = packed.reshape(*leading, -1)
    residues = np.empty((*leading, len(primes), params.degree), dtype=np.uint64)
    start = 0
    for j, prime in enumerate(primes):
        size = packed_size(params.degree, prime.bit_length())
        part = packed[..., start : start + size]
        residues[..., j, :] = unpack_bits(part, prime.bit_length(), params.degree)
        start += size
    _check_residues(residues, leading, primes, params)
    return residues
