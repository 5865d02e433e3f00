"""The prime-order group of Ed25519 on libsodium, with strict decoding (SPEC 6.1 to 6.3).

Points and scalars are their 32-byte encodings. Every function but `add` and `sub` refuses points
that are not canonical, of prime order and different from the identity; sums of valid
points stay in the prime-order group. Scalar arithmetic and multiplication run in
libsodium, in constant time, so that they may be given secrets.
"""

import hashlib
import hmac
import re
import secrets
from typing import Final

import nacl
from nacl import bindings
from nacl.exceptions import CryptoError

from vitalring.errors import ConfigError, SignatureError

POINT_BYTES: Final = 32
SCALAR_BYTES: Final = 32
ORDER: Final = 2**252 + 27742317777372353535851937790883648493
"""Number of elements of the group (RFC 8032 §5.1: L)."""

IDENTITY: Final = bytes([1]) + bytes(31)
"""Encoding of the identity, which `add` and `sub` may return and nothing else accepts."""

_SOUND_RELEASE: Final = (1, 6, 2)
_TORSION_PROBE: Final = bytes([0x95] + [0x99] * 31)
"""The base point plus the point of order two. Older libraries take it for a group element."""


def require_sound_library(version: str) -> None:
    """Refuse a PyNaCl that takes points outside the group for valid (CVE-2025-69277).

    The version says what the bundled libsodium should do; the probe, what the one that
    is loaded does. Raises ConfigError.
    """
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    release = tuple(int(number or 0) for number in numbers.groups()) if numbers else (0,)
    if release < _SOUND_RELEASE:
        raise ConfigError(
            f"PyNaCl {version} may accept bad curve points (CVE-2025-69277); install 1.6.2 or later"
        )
    if not (bindings.has_crypto_core_ed25519 and bindings.has_crypto_scalarmult_ed25519):
        raise ConfigError("this libsodium is a minimal build; install PyNaCl's own wheel")
    if bindings.crypto_core_ed25519_is_valid_point(_TORSION_PROBE):
        raise ConfigError(
            f"the libsodium under PyNaCl {version} accepts a point outside the group "
            "(CVE-2025-69277); install PyNaCl's own wheel"
        )


def frame(*parts: bytes) -> bytes:
    """Concatenate parts, each after its length in 8 little-endian bytes: injective (SPEC 6.3)."""
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def hash_parts(domain: bytes, *parts: bytes) -> bytes:
    """SHA-512 over the framed domain and parts: 64 bytes (SPEC 6.3)."""
    return hashlib.sha512(frame(domain, *parts)).digest()


def hash_to_scalar(domain: bytes, *parts: bytes) -> bytes:
    """Scalar from a hash, uniform up to 2^-250 (SPEC 6.3). Zero is possible in theory."""
    return bindings.crypto_core_ed25519_scalar_reduce(hash_parts(domain, *parts))


def hash_to_point(domain: bytes, *parts: bytes) -> bytes:
    """Point whose discrete logarithm nobody knows (SPEC 6.3).

    Each half of the hash goes through the Elligator 2 map and has its cofactor cleared;
    the sum of both is indifferentiable from a random oracle (Brier et al. 2010; one map
    alone reaches only part of the group). The identity has probability 2^-252.
    """
    digest = hash_parts(domain, *parts)
    return bindings.crypto_core_ed25519_add(
        bindings.crypto_core_ed25519_from_uniform(digest[:32]),
        bindings.crypto_core_ed25519_from_uniform(digest[32:]),
    )


def decode_point(data: bytes) -> bytes:
    """Return ``data`` if it encodes a point (SPEC 6.1).

    Raises SignatureError: wrong length, not on the curve, not canonical, the identity,
    of small order, or with a component of small order.
    """
    if not isinstance(data, bytes) or len(data) != POINT_BYTES:
        raise SignatureError(f"a point has {POINT_BYTES} bytes, not {_size(data)}")
    if not bindings.crypto_core_ed25519_is_valid_point(data):
        raise SignatureError(f"{data.hex()} is not a canonical point of prime order")
    return data


def decode_scalar(data: bytes) -> bytes:
    """Return ``data`` if it encodes a scalar in 1..ORDER-1, little-endian (SPEC 6.2).

    The value, which may be secret, is not in the message. Raises SignatureError.
    """
    if not isinstance(data, bytes) or len(data) != SCALAR_BYTES:
        raise SignatureError(f"a scalar has {SCALAR_BYTES} bytes, not {_size(data)}")
    reduced = bindings.crypto_core_ed25519_scalar_reduce(data + bytes(SCALAR_BYTES))
    if not hmac.compare_digest(reduced, data):
        raise SignatureError("scalar is not below the group order")
    if is_zero(data):
        raise SignatureError("scalar is zero")
    return data


def is_zero(scalar: bytes) -> bool:
    """Whether a scalar is zero, in constant time."""
    return hmac.compare_digest(scalar, bytes(SCALAR_BYTES))


def random_scalar() -> bytes:
    """Uniform scalar in 1..ORDER-1 from the operating system's generator."""
    while True:
        scalar = bindings.crypto_core_ed25519_scalar_reduce(secrets.token_bytes(64))
        if not is_zero(scalar):
            return scalar


def scalar_add(a: bytes, b: bytes) -> bytes:
    """Sum modulo the group order."""
    return bindings.crypto_core_ed25519_scalar_add(a, b)


def scalar_sub(a: bytes, b: bytes) -> bytes:
    """Difference modulo the group order."""
    return bindings.crypto_core_ed25519_scalar_sub(a, b)


def scalar_mul(a: bytes, b: bytes) -> bytes:
    """Product modulo the group order."""
    return bindings.crypto_core_ed25519_scalar_mul(a, b)


def base_mul(scalar: bytes) -> bytes:
    """Multiple of the base point. Raises SignatureError for the scalar zero."""
    try:
        return bindings.crypto_scalarmult_ed25519_base_noclamp(scalar)
    except CryptoError as error:
        raise SignatureError("the base point times zero is no group element") from error


def mul(scalar: bytes, point: bytes) -> bytes:
    """Multiple of a point. Raises SignatureError for zero or a point outside the group."""
    try:
        return bindings.crypto_scalarmult_ed25519_noclamp(scalar, point)
    except CryptoError as error:
        raise SignatureError(f"{point.hex()} times a scalar is no group element") from error


def add(p: bytes, q: bytes) -> bytes:
    """Sum of two valid points; may be the identity, which no other function here accepts."""
    try:
        return bindings.crypto_core_ed25519_add(p, q)
    except CryptoError as error:
        raise SignatureError(f"{p.hex()} or {q.hex()} is not on the curve") from error


def sub(p: bytes, q: bytes) -> bytes:
    """Difference of two valid points; may be the identity, as a sum may."""
    try:
        return bindings.crypto_core_ed25519_sub(p, q)
    except CryptoError as error:
        raise SignatureError(f"{p.hex()} or {q.hex()} is not on the curve") from error


def _size(data: object) -> str:
    return f"{len(data)}" if isinstance(data, bytes) else f"a {type(data).__name__}"


require_sound_library(nacl.__version__)
