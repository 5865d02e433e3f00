"""Partial decryptions with smudging noise, and their combination.

Rules (SPEC 5.16 to 5.20): a hospital's part of a decryption is c1 times its share, hidden
under fresh noise from the operating system's generator; no part leaves without it. A
check of the sum is opened first, because a malformed update could show the key. Noise of
all parts together stays within a bound that the parameters guarantee, so noise beyond it
convicts somebody. Whether a sum may be released is decided by the caller, and each call
of `KeyShare.decrypt` uses up one of the key's releases.
"""

import hashlib
import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from operator import mul

import numpy as np
from numpy.typing import NDArray

from vitalring.errors import CiphertextError, ConfigError
from vitalring.protocol.ciphertext import Residues
from vitalring.protocol.seal import Multiplier, scale_and_round, to_ntt
from vitalring.protocol.threshold import modular
from vitalring.protocol.threshold.encoding import decode_polynomials, encode_polynomials
from vitalring.protocol.threshold.params import (
    MAX_WEIGHT,
    SMUDGING_TERMS,
    ThresholdParams,
    check_noise_bound,
)
from vitalring.protocol.threshold.pieces import SecretPiece

_LOW_BITS = 32


CHALLENGE_BYTES = 32
_WEIGHT_DOMAIN = b"vitalring/check-weights/1\x00"


@dataclass(frozen=True, eq=False)
class KeyShare:
    """What one hospital decrypts with when a given set of members does."""

    params: ThresholdParams
    hospital: int
    members: tuple[int, ...]
    _multiplier: Multiplier = field(repr=False)

    def decrypt(self, total: Residues, challenge: bytes) -> tuple[Residues, Residues]:
        """Return this hospital's check (primes, reserved) and part (ciphertexts, primes, degree).

        The part stays here until the checks of all members opened to noise. `challenge` is
        32 bytes that nobody could know when the sum was fixed (SPEC 5.20). Two calls on one
        sum give different results, and both count as releases. Raises CiphertextError for
        residues of another shape.
        """
        params, primes = self.params, self.params.bfv.data_primes
        _check_sum(total, params)
        product = self._multiplier.multiply(total[:, 1])
        check = _weighted(product, challenge, params)
        thin = _smudging((params.bfv.reserved,), params.smudging_bits - params.check_bits, primes)
        full = _smudging(product[:, 0].shape, params.smudging_bits, primes)
        return modular.add(check, thin, primes), modular.add(product, full, primes)


def key_share(
    hospital: int,
    pieces: Iterable[SecretPiece],
    members: Collection[int],
    params: ThresholdParams,
) -> KeyShare:
    """Add up the pieces that `hospital` uses when exactly `members` decrypt.

    Raises ConfigError if the members do not fit or a piece is missing.
    """
    held = {piece.index: piece for piece in pieces}
    total = np.zeros(params.bfv.degree, dtype=np.int64)
    for index in params.access.assigned(hospital, members):
        if index not in held:
            raise ConfigError(f"hospital {hospital} lacks key piece {index}: restore its backup")
        total += held[index].ternary
    primes = params.bfv.data_primes
    factor = to_ntt(modular.reduce(total, primes), primes)
    return KeyShare(params, hospital, tuple(sorted(members)), Multiplier(params.bfv, factor))


def combine(
    total: Residues, parts: Mapping[int, Residues], params: ThresholdParams
) -> NDArray[np.uint64]:
    """Return the plaintext coefficients (ciphertexts, degree) of a sum, from its parts.

    `parts` has one partial decryption of each of the members that decrypt, by hospital, all
    made for that very set. Raises ConfigError for another number of parts, CiphertextError
    if the noise convicts one of them, or the sum (SPEC 5.19).
    """
    _check_sum(total, params)
    if len(parts) != params.access.threshold:
        raise ConfigError(f"{len(parts)} partial decryptions, not {params.access.threshold}")
    primes = params.bfv.data_primes
    phase = total[:, 0]
    for hospital, part in parts.items():
        if part.shape != phase.shape:
            raise CiphertextError(f"hospital {hospital} sent a part of shape {part.shape}")
        phase = modular.add(phase, part, primes)
    try:
        return scale_and_round(params.bfv, phase)
    except CiphertextError as error:
        raise CiphertextError(
            f"the parts of hospitals {sorted(parts)} do not decrypt this sum: one of them is "
            "wrong or made for other members, or the sum holds what is not an encryption"
        ) from error


def open_checks(
    total: Residues, checks: Mapping[int, Residues], challenge: bytes, params: ThresholdParams
) -> None:
    """Open the check of a sum, before anything else of it (SPEC 5.20).

    `checks` has one of each member. Raises ConfigError for another number of them,
    CiphertextError if the sum holds an update that is no encryption, which could show the
    key, or if a check is wrong.
    """
    _check_sum(total, params)
    if len(checks) != params.access.threshold:
        raise ConfigError(f"{len(checks)} checks, not {params.access.threshold}")
    primes = params.bfv.data_primes
    phase = _weighted(total[:, 0], challenge, params)
    for hospital, check in checks.items():
        if check.shape != phase.shape:
            raise CiphertextError(f"hospital {hospital} sent a check of shape {check.shape}")
        phase = modular.add(phase, check, primes)
    # Nothing is packed there, so noise is all that may be left.
    q, bound = prod(primes), check_noise_bound(params)
    rests = [q // prime for prime in primes]
    weights = [rest * pow(rest, -1, prime) for rest, prime in zip(rests, primes, strict=True)]
    values = [sum(map(mul, column, weights)) % q for column in phase.T.tolist()]
    largest = max(min(value, q - value) for value in values)
    if largest > bound:
        raise CiphertextError(
            f"the check of this sum opens to {largest:.3g}, where {bound:.3g} is noise: an update "
            f"is not an encryption, or one of hospitals {sorted(checks)} is wrong; release "
            "nothing else of this sum, and count the failure"
        )


def check_weights(challenge: bytes, params: ThresholdParams) -> NDArray[np.int64]:
    """Expand the weights (ciphertexts, reserved) of a check: 1 to 4, of either sign (SPEC 5.20).

    A byte of SHAKE-256 each: the two low bits are one less than the weight, the highest is
    its sign.
    """
    if len(challenge) != CHALLENGE_BYTES:
        raise ConfigError(f"a challenge of {len(challenge)} bytes, not {CHALLENGE_BYTES}")
    shape = (params.bfv.ciphertexts, params.bfv.reserved)
    stream = hashlib.shake_256(_WEIGHT_DOMAIN + challenge).digest(prod(shape))
    numbers = np.frombuffer(stream, dtype=np.uint8).astype(np.int64)
    signs = 1 - 2 * (numbers >> 7)
    weights: NDArray[np.int64] = ((numbers % MAX_WEIGHT + 1) * signs).reshape(shape)
    return weights


def encode_part(part: Residues, params: ThresholdParams) -> bytes:
    """Encode a partial decryption (SPEC 5.15)."""
    return encode_polynomials(part, params.bfv.data_primes)


def decode_part(data: bytes, params: ThresholdParams) -> Residues:
    """Read a partial decryption. Raises CiphertextError, naming the check that failed."""
    bfv = params.bfv
    return decode_polynomials(data, bfv.ciphertexts, bfv.data_primes, bfv.degree)


def encode_check(check: Residues, params: ThresholdParams) -> bytes:
    """Encode a check (SPEC 5.15)."""
    return encode_polynomials(check[None], params.bfv.data_primes)


def decode_check(data: bytes, params: ThresholdParams) -> Residues:
    """Read a check. Raises CiphertextError, naming the check that failed."""
    rows = decode_polynomials(data, 1, params.bfv.data_primes, params.bfv.reserved)
    check: Residues = rows[0]
    return check


def _weighted(polynomials: Residues, challenge: bytes, params: ThresholdParams) -> Residues:
    """Add up the reserved coefficients of (ciphertexts, primes, degree), to (primes, reserved)."""
    primes = params.bfv.data_primes
    weights = modular.reduce(check_weights(challenge, params), primes)
    terms = modular.multiply(polynomials[..., params.bfv.used :], weights, primes)
    # Up to 2**14 ciphertexts of 50-bit terms fit a word.
    result: Residues = terms.sum(axis=0) % np.array(primes, dtype=np.uint64)[:, None]
    return result


def _smudging(shape: tuple[int, ...], bits: int, primes: tuple[int, ...]) -> Residues:
    """Draw the sum of three uniform numbers of `bits` bits, centred, modulo each prime.

    Numbers of shape (..., degree) come as residues (..., primes, degree).
    """
    # A number is wider than a word: high * 2**32 + low.
    shape = (SMUDGING_TERMS, *shape)
    low = np.frombuffer(secrets.token_bytes(4 * prod(shape)), dtype="<u4").reshape(shape)
    high = np.frombuffer(secrets.token_bytes(8 * prod(shape)), dtype="<u8").reshape(shape)
    high = high >> np.uint64(64 - (bits - _LOW_BITS))
    low_sum = modular.reduce(low.sum(axis=0, dtype=np.int64), primes)
    high_sum = modular.reduce(high.sum(axis=0, dtype=np.uint64).astype(np.int64), primes)
    moduli = np.array(primes, dtype=np.uint64)[:, None]
    noise = modular.multiply(high_sum, np.uint64(1 << _LOW_BITS) % moduli, primes)
    centre = [(SMUDGING_TERMS << bits - 1) % prime for prime in primes]
    noise = modular.add(noise, low_sum, primes)
    return modular.subtract(noise, np.array(centre, dtype=np.uint64)[:, None], primes)


def _check_sum(total: Residues, params: ThresholdParams) -> None:
    bfv = params.bfv
    shape = (bfv.ciphertexts, 2, len(bfv.data_primes), bfv.degree)
    if total.shape != shape:
        raise CiphertextError(f"residues of shape {total.shape}, not {shape}")
