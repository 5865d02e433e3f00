"""Partial decryptions with smudging noise, and their combination.

Rules (SPEC 5.16 to 5.19): a hospital's part of a decryption is c1 times its share, hidden
under fresh noise from the operating system's generator; no part leaves without it. Noise
of all parts together stays within a bound that the parameters guarantee, so noise beyond
it convicts somebody. Whether a sum may be released is decided by the caller, and each
call of `KeyShare.decrypt` uses up one of the key's releases.
"""

import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vitalring.errors import CiphertextError, ConfigError
from vitalring.protocol.ciphertext import Residues
from vitalring.protocol.seal import Multiplier, scale_and_round, to_ntt
from vitalring.protocol.threshold import modular
from vitalring.protocol.threshold.encoding import decode_polynomials, encode_polynomials
from vitalring.protocol.threshold.params import SMUDGING_TERMS, ThresholdParams
from vitalring.protocol.threshold.pieces import SecretPiece

_LOW_BITS = 32


@dataclass(frozen=True, eq=False)
class KeyShare:
    """What one hospital decrypts with when a given set of members does."""

    params: ThresholdParams
    hospital: int
    members: tuple[int, ...]
    _multiplier: Multiplier = field(repr=False)

    def decrypt(self, total: Residues) -> Residues:
        """Return this hospital's part (ciphertexts, primes, degree) for a sum's residues.

        Two calls on one sum give two different results, and both count as releases. Raises
        CiphertextError for residues of another shape.
        """
        _check_sum(total, self.params)
        product = self._multiplier.multiply(total[:, 1])
        return modular.add(product, _smudging(self.params), self.params.bfv.data_primes)


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


def encode_part(part: Residues, params: ThresholdParams) -> bytes:
    """Encode a partial decryption (SPEC 5.15)."""
    return encode_polynomials(part, params.bfv.data_primes)


def decode_part(data: bytes, params: ThresholdParams) -> Residues:
    """Read a partial decryption. Raises CiphertextError, naming the check that failed."""
    bfv = params.bfv
    return decode_polynomials(data, bfv.ciphertexts, bfv.data_primes, bfv.degree)


def _smudging(params: ThresholdParams) -> Residues:
    """Draw noise (ciphertexts, primes, degree): the sum of three uniform numbers, centred."""
    bfv = params.bfv
    count = bfv.ciphertexts * bfv.degree
    shape = (SMUDGING_TERMS, count)
    # One number is high * 2**32 + low, because it is wider than a word.
    low_words = np.frombuffer(secrets.token_bytes(4 * SMUDGING_TERMS * count), dtype="<u4")
    high_words = np.frombuffer(secrets.token_bytes(8 * SMUDGING_TERMS * count), dtype="<u8")
    low = low_words.reshape(shape).sum(axis=0, dtype=np.int64)
    unused = np.uint64(64 - (params.smudging_bits - _LOW_BITS))
    high = (high_words >> unused).reshape(shape).sum(axis=0, dtype=np.uint64).astype(np.int64)
    rows = (bfv.ciphertexts, bfv.degree)
    primes = bfv.data_primes
    high_part = modular.reduce(high.reshape(rows), primes)
    weight = np.array([(1 << _LOW_BITS) % prime for prime in primes], dtype=np.uint64)[:, None]
    centre = np.array([params.smudging_bound % prime for prime in primes], dtype=np.uint64)[:, None]
    noise = modular.multiply(high_part, np.broadcast_to(weight, high_part.shape), primes)
    noise = modular.add(noise, modular.reduce(low.reshape(rows), primes), primes)
    return modular.subtract(noise, centre, primes)


def _check_sum(total: Residues, params: ThresholdParams) -> None:
    bfv = params.bfv
    shape = (bfv.ciphertexts, 2, len(bfv.data_primes), bfv.degree)
    if total.shape != shape:
        raise CiphertextError(f"residues of shape {total.shape}, not {shape}")
