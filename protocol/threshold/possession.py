"""Proof that the secret of a contribution b = -(a s + e) is known.

Rules (SPEC 5.14): Schnorr's protocol over a lattice, made non-interactive by Fiat and
Shamir's hash and zero-knowledge by rejection (Lyubashevsky, "Fiat-Shamir with Aborts",
ASIACRYPT 2009). The prover shows w = a y + y', and answers a challenge polynomial c with
z = y + c s and z' = y' + c e, so that a z + z' + c b = w. Answers are uniform in their
range whatever the secret is; others are thrown away and never seen. The hash covers
context, hospital and piece: a proof is no use to anybody else.
"""

import hashlib
import secrets
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vitalring.errors import CiphertextError
from vitalring.protocol.bits import pack_bits, packed_size, unpack_bits
from vitalring.protocol.ciphertext import Residues
from vitalring.protocol.seal import to_ntt
from vitalring.protocol.threshold import modular
from vitalring.protocol.threshold.encoding import encode_polynomials

WEIGHT = 16
"""Coefficients of a challenge that are 1 or -1, the others 0: 2**164 challenges and more."""

MASK_BITS = 24
"""Masks are uniform in [-2**23, 2**23)."""

_HALF = 1 << MASK_BITS - 1
_MAX_CHANGE = WEIGHT * 21
"""Bounds the coefficients of c s and c e, with the errors of SEAL."""

_SEED_BYTES = 32
_DOMAIN = b"vitalring/key-possession/1\x00"
_EXPAND_DOMAIN = b"vitalring/key-possession-challenge/1\x00"

_Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Statement:
    """Who claims to know the secret of which public polynomial."""

    context: bytes
    hospital: int
    piece: int
    common: Residues = field(repr=False)  # a, (primes, degree), NTT form
    public: Residues = field(repr=False)  # b, likewise


@dataclass(frozen=True, eq=False)
class Proof:
    """A challenge and its answers."""

    challenge: bytes  # the seed it is expanded from
    answers: _Integers = field(repr=False)  # z and z', (2, degree)


def prove(
    statement: Statement, secret: NDArray[np.int8], error: _Integers, primes: tuple[int, ...]
) -> Proof:
    """Prove knowledge of a ternary `secret` and an `error`, both (degree,)."""
    witness = np.stack([secret.astype(np.int64), error])
    while True:
        masks = _draw_masks(statement.common.shape[-1])
        challenge = _hash(statement, _evaluate(statement, masks, None, primes), primes)
        answers = masks + _times_sparse(witness, _expand(challenge, masks.shape[-1]))
        # About one attempt in four (degree 8192) shows something and is thrown away.
        if int(np.abs(answers).max()) < _HALF - _MAX_CHANGE:
            return Proof(challenge, answers)


def verify(statement: Statement, proof: Proof, primes: tuple[int, ...]) -> None:
    """Raise CiphertextError unless the proof holds for the statement.

    What it shows: small z, z' and c, not all zero, with c b = -(a z + z') are known. What
    it does not show: that c is 1 and z ternary (SPEC 5.14).
    """
    degree = statement.common.shape[-1]
    # 1. Answers short, as in every proof that a prover lets out.
    if int(np.abs(proof.answers).max()) >= _HALF - _MAX_CHANGE:
        raise CiphertextError(f"{_name(statement)} has answers that are too long")
    # 2. The challenge is the hash of what the answers lead back to.
    mask = _evaluate(statement, proof.answers, _expand(proof.challenge, degree), primes)
    if _hash(statement, mask, primes) != proof.challenge:
        raise CiphertextError(f"{_name(statement)} does not verify")


def proof_bytes(degree: int) -> int:
    """Return the bytes of one proof."""
    return _SEED_BYTES + 2 * packed_size(degree, MASK_BITS)


def encode_proof(proof: Proof) -> bytes:
    """Encode a proof: the challenge's seed, then z and z' with 2**23 added, 24 bits each."""
    lifted = (proof.answers + _HALF).astype(np.uint64)
    return proof.challenge + pack_bits(lifted, MASK_BITS).tobytes()


def decode_proof(data: bytes, degree: int) -> Proof:
    """Read a proof. Raises CiphertextError for another length."""
    if len(data) != proof_bytes(degree):
        raise CiphertextError(f"a proof of {len(data)} bytes, not {proof_bytes(degree)}")
    packed = np.frombuffer(data, dtype=np.uint8, offset=_SEED_BYTES).reshape(2, -1)
    lifted = unpack_bits(packed, MASK_BITS, degree)
    return Proof(data[:_SEED_BYTES], lifted.astype(np.int64) - _HALF)


def _draw_masks(degree: int) -> _Integers:
    words = np.frombuffer(secrets.token_bytes(4 * 2 * degree), dtype="<u4")
    return (words >> np.uint32(32 - MASK_BITS)).astype(np.int64).reshape(2, degree) - _HALF


def _evaluate(
    statement: Statement, pair: _Integers, challenge: _Integers | None, primes: tuple[int, ...]
) -> Residues:
    """Return a z + z' + c b for the pair (z, z'); without a challenge the last term is left out."""
    first, second = (to_ntt(modular.reduce(row, primes), primes) for row in pair)
    result = modular.add(modular.multiply(statement.common, first, primes), second, primes)
    if challenge is None:
        return result
    factor = to_ntt(modular.reduce(challenge, primes), primes)
    return modular.add(result, modular.multiply(factor, statement.public, primes), primes)


def _hash(statement: Statement, mask: Residues, primes: tuple[int, ...]) -> bytes:
    """Return the challenge's seed. Every part but the first has a fixed length."""
    numbers = statement.hospital.to_bytes(2, "big") + statement.piece.to_bytes(2, "big")
    head = _DOMAIN + statement.context + numbers
    rows = np.stack([statement.common, statement.public, mask])
    return hashlib.sha256(head + encode_polynomials(rows, primes)).digest()


def _expand(seed: bytes, degree: int) -> _Integers:
    """Expand a challenge: WEIGHT different places, each with a sign, from SHAKE-256.

    Words of 8 bytes, little-endian: the low bits are a place, bit 63 is its sign; a place
    that came before is skipped.
    """
    words = np.frombuffer(hashlib.shake_256(_EXPAND_DOMAIN + seed).digest(8 * 64), dtype="<u8")
    challenge = np.zeros(degree, dtype=np.int64)
    left = WEIGHT
    for word in words.tolist():
        place = word % degree
        if left and not challenge[place]:
            challenge[place] = -1 if word >> 63 else 1
            left -= 1
    return challenge


def _times_sparse(rows: _Integers, challenge: _Integers) -> _Integers:
    """Return each row times the challenge, modulo X^degree + 1, by shifting."""
    product = np.zeros_like(rows)
    for place in np.flatnonzero(challenge):
        # What passes X^degree comes back with its sign changed.
        shifted = np.roll(rows, place, axis=-1)
        shifted[:, :place] *= -1
        product += challenge[place] * shifted
    return product


def _name(statement: Statement) -> str:
    return f"the proof of hospital {statement.hospital} for key piece {statement.piece}"
