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
from math import prod

import numpy as np
from numpy.typing import NDArray

from vitalring.errors import CiphertextError, ConfigError
from vitalring.protocol.ciphertext import Residues
from vitalring.protocol.seal import Multiplier, scale_and_round, to_ntt
from vitalring.protocol.threshold import modular
from vitalring.protocol.threshold.encoding import decode_polynomials, encode_polynomials
from vitalring.protocol.threshold.params import (
    SMUDGING_TERMS,
    ThresholdParams,
    check_noise_bound,
)
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


def open_checks(total: Residues, checks: Mapping[int, Residues], params: ThresholdParams) -> None:
    """Open the reserved coefficients of a sum, before anything else of it (SPEC 5.20).

    `checks` has what `check_part` returns for each member. Raises ConfigError for another
    number of them, CiphertextError if the sum holds an update that is no encryption, which
    could show the key, or if a part is wrong.
    """
    _check_sum(total, params)
    if len(checks) != params.access.threshold:
        raise ConfigError(f"{len(checks)} check parts, not {params.access.threshold}")
    primes = params.bfv.data_primes
    phase = check_part(total[:, 0], params)
    for hospital, check in checks.items():
        if check.shape != phase.shape:
            raise CiphertextError(f"hospital {hospital} sent a check of shape {check.shape}")
        phase = modular.add(phase, check, primes)
    q = prod(primes)
    values = np.zeros((len(phase), params.bfv.reserved), dtype=object)
    for j, prime in enumerate(primes):
        rest = q // prime
        values = (values + phase[:, j].astype(object) * (rest * pow(rest, -1, prime))) % q
    # Nothing is packed there, so noise is all that may be left.
    largest = int(np.minimum(values, q - values).max())
    if largest > check_noise_bound(params):
        raise CiphertextError(
            f"reserved coefficients of the sum hold up to {largest:.3g}, at most "
            f"{check_noise_bound(params):.3g} is noise: an update is not an encryption, or the "
            f"part of one of hospitals {sorted(checks)} is wrong; release no more of this sum"
        )


def check_part(part: Residues, params: ThresholdParams) -> Residues:
    """Return the reserved coefficients of a part (ciphertexts, primes, reserved)."""
    return part[..., params.bfv.used :]


def encode_part(part: Residues, params: ThresholdParams) -> bytes:
    """Encode a partial decryption (SPEC 5.15)."""
    return encode_polynomials(part, params.bfv.data_primes)


def decode_part(data: bytes, params: ThresholdParams) -> Residues:
    """Read a partial decryption. Raises CiphertextError, naming the check that failed."""
    bfv = params.bfv
    return decode_polynomials(data, bfv.ciphertexts, bfv.data_primes, bfv.degree)


def encode_checks(checks: Residues, params: ThresholdParams) -> bytes:
    """Encode what `check_part` returns (SPEC 5.15)."""
    return encode_polynomials(checks, params.bfv.data_primes)


def decode_checks(data: bytes, params: ThresholdParams) -> Residues:
    """Read a part's reserved coefficients. Raises CiphertextError."""
    bfv = params.bfv
    return decode_polynomials(data, bfv.ciphertexts, bfv.data_primes, bfv.reserved)


def _smudging(params: ThresholdParams) -> Residues:
    """Draw noise (ciphertexts, primes, degree): the sum of three uniform numbers, centred.

    Reserved coefficients have numbers that are `check_bits` shorter.
    """
    bfv, primes = params.bfv, params.bfv.data_primes
    shape = (SMUDGING_TERMS, bfv.ciphertexts, bfv.degree)
    count = prod(shape)
    # A number is wider than a word: high * 2**32 + low.
    low = np.frombuffer(secrets.token_bytes(4 * count), dtype="<u4").reshape(shape)
    high = np.frombuffer(secrets.token_bytes(8 * count), dtype="<u8").reshape(shape)
    thinner = np.where(np.arange(bfv.degree) < bfv.used, 0, params.check_bits).astype(np.uint64)
    high = high >> np.uint64(64 - (params.smudging_bits - _LOW_BITS)) >> thinner
    low_sum = modular.reduce(low.sum(axis=0, dtype=np.int64), primes)
    high_sum = modular.reduce(high.sum(axis=0, dtype=np.uint64).astype(np.int64), primes)
    moduli = np.array(primes, dtype=np.uint64)[:, None]
    noise = modular.multiply(high_sum, np.uint64(1 << _LOW_BITS) % moduli, primes)
    noise = modular.add(noise, low_sum, primes)
    centres = [params.smudging_bound % p for p in primes]
    check_centres = [params.check_smudging_bound % p for p in primes]
    centre, check_centre = np.array([centres, check_centres], dtype=np.uint64)[:, :, None]
    return modular.subtract(noise, np.where(thinner == 0, centre, check_centre), primes)


def _check_sum(total: Residues, params: ThresholdParams) -> None:
    bfv = params.bfv
    shape = (bfv.ciphertexts, 2, len(bfv.data_primes), bfv.degree)
    if total.shape != shape:
        raise CiphertextError(f"residues of shape {total.shape}, not {shape}")
