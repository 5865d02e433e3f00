"""The joint public key: common polynomial, contributions, commitments, and their sum.

Rules (SPEC 5.13, 5.14): nobody chooses the common polynomial; a dealer fixes its
contribution before it can see another's; each contribution comes with a proof that its
secret is known; who receives a piece checks it against the contribution that everybody
has. Secrets and errors are drawn by SEAL.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vitalring.errors import CiphertextError
from vitalring.protocol.ciphertext import Residues, encode_public_key
from vitalring.protocol.seal import from_ntt, make_key_pair, to_ntt
from vitalring.protocol.threshold import modular
from vitalring.protocol.threshold.encoding import (
    decode_polynomials,
    encode_polynomials,
    polynomial_bytes,
)
from vitalring.protocol.threshold.params import ThresholdParams
from vitalring.protocol.threshold.pieces import SecretPiece
from vitalring.protocol.threshold.possession import (
    Proof,
    Statement,
    decode_proof,
    encode_proof,
    proof_bytes,
    prove,
    verify,
)

MAX_ERROR = 21
"""Largest coefficient of SEAL's centred binomial error."""

CONTEXT_BYTES = SALT_BYTES = 32
_COMMON_DOMAIN = b"vitalring/common-polynomial/1\x00"
_COMMITMENT_DOMAIN = b"vitalring/key-commitment/1\x00"


@dataclass(frozen=True, eq=False)
class Contribution:
    """What one hospital adds to the public key: b and a proof for each piece it deals."""

    hospital: int
    publics: Residues = field(
        repr=False
    )  # (pieces dealt, primes, degree), NTT form over all primes
    proofs: tuple[Proof, ...]


def common_polynomial(context: bytes, params: ThresholdParams) -> Residues:
    """Expand the common polynomial (primes, degree), NTT form, from 32 public bytes (SPEC 5.13).

    Each row is SHAKE-256 output cut into 8-byte little-endian words, masked to the bits of
    the prime; words that are not below it are skipped.
    """
    _check_context(context)
    bfv = params.bfv
    rows = np.empty((len(bfv.primes), bfv.degree), dtype=np.uint64)
    for j, prime in enumerate(bfv.primes):
        seed = _COMMON_DOMAIN + context + bytes([j])
        mask = np.uint64((1 << prime.bit_length()) - 1)
        words, kept = bfv.degree, np.empty(0, dtype=np.uint64)
        # A longer output of SHAKE begins with the shorter one.
        while kept.size < bfv.degree:
            words *= 2
            stream = np.frombuffer(hashlib.shake_256(seed).digest(8 * words), dtype="<u8") & mask
            kept = stream[stream < prime]
        rows[j] = kept[: bfv.degree]
    return rows


def contribute(
    hospital: int, context: bytes, params: ThresholdParams
) -> tuple[tuple[SecretPiece, ...], Contribution]:
    """Draw the pieces that `hospital` deals, and its contribution to the public key.

    `context` is the digest of all that the hospitals agreed on beforehand; a new key needs
    a new one.
    """
    common = common_polynomial(context, params)
    primes = params.bfv.primes
    pieces, publics, proofs = [], [], []
    for index in params.access.dealt_by(hospital):
        # SEAL's public key (b', a') has a fresh error e = -(b' + a' s), which
        # b = -(a s + e) = b' + (a' - a) s takes over.
        secret, (other_public, other_common) = make_key_pair(params.bfv)
        shift = modular.subtract(other_common, common, primes)
        public = modular.add(other_public, modular.multiply(shift, secret, primes), primes)
        ternary = modular.centre(from_ntt(secret, primes), primes)[0].astype(np.int8)
        piece = SecretPiece(index, ternary)
        error = _error_of(piece, public, common, params)
        statement = Statement(context, hospital, index, common, public)
        pieces.append(piece)
        publics.append(public)
        proofs.append(prove(statement, ternary, error, primes))
    shape = (len(publics), len(primes), params.bfv.degree)
    rows = np.array(publics, dtype=np.uint64).reshape(shape)
    return tuple(pieces), Contribution(hospital, rows, tuple(proofs))


def encode_contribution(contribution: Contribution, params: ThresholdParams) -> bytes:
    """Encode a contribution: its polynomials, then its proofs (SPEC 5.15)."""
    proofs = b"".join(encode_proof(proof) for proof in contribution.proofs)
    return encode_polynomials(contribution.publics, params.bfv.primes) + proofs


def decode_contribution(data: bytes, hospital: int, params: ThresholdParams) -> Contribution:
    """Read a hospital's contribution, without verifying its proofs.

    Raises CiphertextError, naming the check that failed.
    """
    bfv = params.bfv
    count = len(params.access.dealt_by(hospital))
    each = proof_bytes(bfv.degree)
    split = count * polynomial_bytes(bfv.primes, bfv.degree)
    if len(data) != split + count * each:
        raise CiphertextError(f"a contribution of {len(data)} bytes, not {split + count * each}")
    publics = decode_polynomials(data[:split], count, bfv.primes, bfv.degree)
    proofs = (
        decode_proof(data[start : start + each], bfv.degree)
        for start in range(split, len(data), each)
    )
    return Contribution(hospital, publics, tuple(proofs))


def check_contribution(contribution: Contribution, context: bytes, params: ThresholdParams) -> None:
    """Verify the proof of every piece. Raises CiphertextError, naming hospital and piece."""
    common = common_polynomial(context, params)
    dealt = params.access.dealt_by(contribution.hospital)
    for index, public, proof in zip(dealt, contribution.publics, contribution.proofs, strict=True):
        statement = Statement(context, contribution.hospital, index, common, public)
        verify(statement, proof, params.bfv.primes)


def commit(hospital: int, contribution: bytes, salt: bytes, context: bytes) -> bytes:
    """Return the commitment to an encoded contribution (SPEC 5.14).

    `salt` is 32 random bytes, secret until the contribution is revealed.
    """
    _check_context(context)
    if len(salt) != SALT_BYTES:
        raise CiphertextError(f"a salt of {len(salt)} bytes, not {SALT_BYTES}")
    body = context + hospital.to_bytes(2, "big") + salt + contribution
    return hashlib.sha256(_COMMITMENT_DOMAIN + body).digest()


def check_commitment(
    commitment: bytes, hospital: int, contribution: bytes, salt: bytes, context: bytes
) -> None:
    """Raise CiphertextError unless this contribution is the one that was committed to."""
    if commit(hospital, contribution, salt, context) != commitment:
        raise CiphertextError(f"hospital {hospital} revealed another contribution than it promised")


def join(contributions: Iterable[Contribution], context: bytes, params: ThresholdParams) -> bytes:
    """Return the joint public key as devices load it (5.4): the sum of all b, and a.

    The caller has checked commitments and proofs. Raises CiphertextError unless there is
    one contribution of every dealer.
    """
    access, primes = params.access, params.bfv.primes
    given = sorted(contributions, key=lambda c: c.hospital)
    wanted = [h for h in range(access.hospitals) if access.dealt_by(h)]
    present = [c.hospital for c in given if len(c.publics)]
    if present != wanted:
        raise CiphertextError(f"contributions of hospitals {present}, needed are {wanted}")
    total = np.zeros((len(primes), params.bfv.degree), dtype=np.uint64)
    for contribution in given:
        for public in contribution.publics:
            total = modular.add(total, public, primes)
    return encode_public_key(np.stack([total, common_polynomial(context, params)]), params.bfv)


def check_piece(
    piece: SecretPiece, contribution: Contribution, context: bytes, params: ThresholdParams
) -> None:
    """Check a piece that its dealer sent against the dealer's public contribution (SPEC 5.14).

    Raises CiphertextError unless b = -(a s + e) with an error as SEAL draws it: then this
    is the very secret behind the public key, and it is short.
    """
    dealt = params.access.dealt_by(contribution.hospital)
    if piece.index not in dealt:
        raise CiphertextError(f"hospital {contribution.hospital} does not deal piece {piece.index}")
    public = contribution.publics[dealt.index(piece.index)]
    _error_of(piece, public, common_polynomial(context, params), params)


def _error_of(
    piece: SecretPiece, public: Residues, common: Residues, params: ThresholdParams
) -> NDArray[np.int64]:
    """Return e = -(b + a s), (degree,). Raises CiphertextError if it is not an error of SEAL's."""
    primes = params.bfv.primes
    secret = to_ntt(modular.reduce(piece.ternary.astype(np.int64), primes), primes)
    negative = modular.add(public, modular.multiply(common, secret, primes), primes)
    errors = -modular.centre(from_ntt(negative, primes), primes)
    # The same small integers modulo every prime.
    if int(np.abs(errors).max()) > MAX_ERROR or (errors != errors[0]).any():
        raise CiphertextError(
            f"piece {piece.index} is not the secret of its public contribution: its dealer "
            "must send it again, or the hospitals begin anew"
        )
    error: NDArray[np.int64] = errors[0]
    return error


def _check_context(context: bytes) -> None:
    if len(context) != CONTEXT_BYTES:
        raise CiphertextError(f"a context of {len(context)} bytes, not {CONTEXT_BYTES}")
