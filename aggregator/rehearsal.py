"""The rehearsal of a joint key: a sum that everybody knows is decrypted by all hospitals.

Rules (SPEC 5.14): the sum follows from the context and the key alone, plaintext and
randomness, so nobody can slip in what is no encryption; nobody shows a part before all
have promised theirs, so nobody can choose its own by the others'; each set of members
uses up one of the key's releases.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from vitalring.errors import VitalRingError
from vitalring.protocol.cbor import digest
from vitalring.protocol.ciphertext import Residues, add, encode_ciphertexts
from vitalring.protocol.key_records import Rehearsed, rehearsal_seed, rehearsal_sets
from vitalring.protocol.packing import pack_fields, unpack_fields
from vitalring.protocol.seal import encrypt_openly
from vitalring.protocol.threshold.decryption import (
    combine,
    decode_check,
    decode_part,
    encode_check,
    encode_part,
    key_share,
    open_checks,
)
from vitalring.protocol.threshold.params import ThresholdParams
from vitalring.protocol.threshold.pieces import SecretPiece

UPDATES = 2
"""Encryptions in the sum: as few as a study may release."""

_FIELDS_DOMAIN = b"vitalring/rehearsal-fields/1\x00"
_RANDOMNESS_DOMAIN = b"vitalring/rehearsal-randomness/1\x00"
_CHALLENGE_DOMAIN = b"vitalring/rehearsal-challenge/1\x00"
_SEED_BYTES = 64

Objects = tuple[bytes, bytes]
"""A member's encoded check and part, for one set of members."""


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """What is decrypted, and what must come out."""

    params: ThresholdParams  # of one ciphertext
    challenge: bytes
    fields: NDArray[np.uint64] = field(repr=False)
    total: Residues = field(repr=False)  # (1, 2, primes, degree)

    @property
    def digest(self) -> bytes:
        """Return the digest of the sum's encoding."""
        return digest(encode_ciphertexts(self.total, self.params.bfv))


def prepare(context: bytes, public_key: bytes, params: ThresholdParams) -> Rehearsal:
    """Encrypt known fields under the joint key and add them up; everybody gets the same."""
    bfv = replace(params.bfv, fields=params.bfv.digits * params.bfv.used)
    seed = rehearsal_seed(context, public_key)
    fields = np.zeros(bfv.fields, dtype=np.uint64)
    total = np.zeros((1, 2, len(bfv.data_primes), bfv.degree), dtype=np.uint64)
    for number in range(UPDATES):
        tail = seed + bytes([number])
        stream = hashlib.shake_256(_FIELDS_DOMAIN + tail).digest(4 * bfv.fields)
        one = np.frombuffer(stream, dtype="<u4").astype(np.uint64) % np.uint64(bfv.field_max + 1)
        coefficients = pack_fields(one, bfv)[0]
        randomness = hashlib.shake_256(_RANDOMNESS_DOMAIN + tail).digest(_SEED_BYTES)
        fields = fields + one
        total = add(total, encrypt_openly(bfv, public_key, coefficients, randomness), bfv)
    challenge = hashlib.sha256(_CHALLENGE_DOMAIN + seed).digest()
    return Rehearsal(replace(params, bfv=bfv), challenge, fields, total)


def rehearse(
    hospital: int, pieces: Sequence[SecretPiece], rehearsal: Rehearsal
) -> tuple[Objects, ...]:
    """Return a hospital's check and part for each set of members that it belongs to, in order."""
    params, made = rehearsal.params, []
    for members in rehearsal_sets(params.access):
        if hospital in members:
            share = key_share(hospital, pieces, members, params)
            check, part = share.decrypt(rehearsal.total, rehearsal.challenge)
            made.append((encode_check(check, params), encode_part(part, params)))
    return tuple(made)


def promised(objects: Sequence[Objects]) -> tuple[Rehearsed, ...]:
    """Return the digests of checks and parts."""
    return tuple(Rehearsed(digest(check), digest(part)) for check, part in objects)


def check_rehearsal(
    objects: Mapping[int, Sequence[Objects]], rehearsal: Rehearsal
) -> tuple[tuple[int, ...], ...]:
    """Open the checks and combine the parts of every set, as in a round.

    Returns the sets that do not decrypt what was encrypted: at least one member of each is
    wrong.
    """
    sets = rehearsal_sets(rehearsal.params.access)
    failed = (s for at, s in enumerate(sets) if not _decrypts(at, objects, rehearsal))
    return tuple(failed)


def _decrypts(at: int, objects: Mapping[int, Sequence[Objects]], rehearsal: Rehearsal) -> bool:
    params = rehearsal.params
    sets = rehearsal_sets(params.access)
    checks, parts = {}, {}
    try:
        for member in sets[at]:
            turn = sum(member in earlier for earlier in sets[:at])
            check, part = objects[member][turn]
            checks[member] = decode_check(check, params)
            parts[member] = decode_part(part, params)
        open_checks(rehearsal.total, checks, rehearsal.challenge, params)
        fields = unpack_fields(combine(rehearsal.total, parts, params), params.bfv, UPDATES)
    except VitalRingError:
        return False
    return bool((fields == rehearsal.fields).all())
