"""What hospitals send one another while they make the joint key of a study (SPEC 5.14).

Each message is a file: a `Bundle` (2.5) of a record that the hospital signed with its
identity key and the objects that the record names by digest. Nobody needs to keep them
secret: what is secret in them is sealed to one hospital.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated, ClassVar

from vitalring.protocol import limits
from vitalring.protocol.cbor import encode
from vitalring.protocol.records import Digest, Hospital, Key
from vitalring.protocol.threshold.params import ThresholdParams
from vitalring.protocol.threshold.pieces import Access
from vitalring.schema import OneOf, Range, Size

HospitalIndex = Annotated[int, Range(0, 63)]
PieceIndex = Annotated[int, Range(0, 63)]
Attempt = Annotated[int, Range(1, 1000)]

_FINGERPRINT_DOMAIN = b"vitalring/key-fingerprint/1\x00"
_REHEARSAL_DOMAIN = b"vitalring/key-rehearsal/1\x00"
_FINGERPRINT_DIGITS = 32

FAULTS = (
    "two_messages",
    "broken_commitment",
    "bad_contribution",
    "bad_box",
    "bad_piece",
    "other_key",
    "broken_promise",
    "bad_rehearsal",
    "complaint",
)
"""Why an attempt at a joint key ended."""


@dataclass(frozen=True)
class HospitalCard:
    """What a hospital sends to the authority: its public keys, signed with its identity key."""

    TYPE: ClassVar[str] = "vitalring/hospital-card/1"
    MAX_BYTES: ClassVar[int] = 1024

    hospital: Hospital


@dataclass(frozen=True)
class KeyContext:
    """All that the hospitals agreed on before they began; its digest is the context (5.13).

    `federation` and `study_plan` are digests of the signed records. The numbers follow from
    them; they stand here so that releases that compute them differently find out at once.
    """

    TYPE: ClassVar[str] = "vitalring/key-context/1"
    MAX_BYTES: ClassVar[int] = limits.MAX_RECORD_BYTES

    federation: Digest
    study_plan: Digest
    hospitals: Annotated[int, Range(2, 64)]
    threshold: Annotated[int, Range(2, 64)]
    degree: Annotated[int, Range(4096, 8192)]
    primes: Annotated[tuple[Annotated[int, Range(2, 2**50)], ...], Size(2, 16)]
    releases: Annotated[int, Range(1, 2 * limits.MAX_ROUNDS)]
    attempt: Attempt


@dataclass(frozen=True)
class KeyCommit:
    """Step 1: a hospital's word on its contribution, and the key that boxes are sealed to."""

    TYPE: ClassVar[str] = "vitalring/key-commit/1"
    MAX_BYTES: ClassVar[int] = 1024

    context: Digest
    hospital: HospitalIndex
    commitment: Digest
    box_key: Key


@dataclass(frozen=True)
class KeyReveal:
    """Step 2: what opens the commitment; the contribution itself is the bundle's object."""

    TYPE: ClassVar[str] = "vitalring/key-reveal/1"
    MAX_BYTES: ClassVar[int] = 1024

    context: Digest
    hospital: HospitalIndex
    salt: Digest
    contribution: Digest


@dataclass(frozen=True)
class PieceBox:
    """A piece in a box that one of its holders opens."""

    piece: PieceIndex
    holder: HospitalIndex
    box: Annotated[bytes, Size(1, 4096)]


@dataclass(frozen=True)
class KeyDeal:
    """Step 3: the dealer's pieces for their other holders, by piece and then by holder."""

    TYPE: ClassVar[str] = "vitalring/key-deal/1"
    MAX_BYTES: ClassVar[int] = limits.MAX_LARGE_RECORD_BYTES - 512  # fits its envelope (2.4)

    context: Digest
    hospital: HospitalIndex
    boxes: Annotated[tuple[PieceBox, ...], Size(0, 4096)]


@dataclass(frozen=True)
class Rehearsed:
    """Digests of a member's check and part in the rehearsal of one set of members."""

    check: Digest
    part: Digest


@dataclass(frozen=True)
class KeyJoin:
    """Step 4: the key a hospital computed and of which contributions, and its promises.

    `contributions` has the digest of each hospital's contribution, `total` that of the sum
    that is decrypted in the rehearsal, `promises` one entry for each set of members that the
    hospital belongs to, in order.
    """

    TYPE: ClassVar[str] = "vitalring/key-join/1"
    MAX_BYTES: ClassVar[int] = limits.MAX_RECORD_BYTES

    context: Digest
    hospital: HospitalIndex
    contributions: Annotated[tuple[Digest, ...], Size(2, 64)]
    key: Digest
    total: Digest
    promises: Annotated[tuple[Rehearsed, ...], Size(1, 2)]


@dataclass(frozen=True)
class KeyRehearsal:
    """Step 5: the promised checks and parts; they are the bundle's objects, in order."""

    TYPE: ClassVar[str] = "vitalring/key-rehearsal/1"
    MAX_BYTES: ClassVar[int] = limits.MAX_RECORD_BYTES

    context: Digest
    hospital: HospitalIndex
    parts: Annotated[tuple[Rehearsed, ...], Size(1, 2)]


@dataclass(frozen=True)
class KeyConsent:
    """Step 6: the study's `SumKey`, signed by this hospital, after people compared fingerprints."""

    TYPE: ClassVar[str] = "vitalring/key-consent/1"
    MAX_BYTES: ClassVar[int] = limits.MAX_RECORD_BYTES

    context: Digest
    hospital: HospitalIndex
    sum_key: Annotated[bytes, Size(1, 4096)]


@dataclass(frozen=True)
class KeyComplaint:
    """Ends an attempt; the bundle's objects are the messages that show why.

    After a bad box or piece `box_secret` is the key that the accuser's boxes were sealed to:
    everybody can look into them, and the pieces in them are of a key that nobody will use.
    """

    TYPE: ClassVar[str] = "vitalring/key-complaint/1"
    MAX_BYTES: ClassVar[int] = limits.MAX_RECORD_BYTES

    context: Digest
    hospital: HospitalIndex
    accused: Annotated[tuple[HospitalIndex, ...], Size(0, 64)]
    fault: Annotated[str, OneOf(FAULTS)]
    detail: Annotated[str, Size(0, 1000)]
    box_secret: Annotated[bytes, Size(0, 32)]


KeyRecord = KeyCommit | KeyReveal | KeyDeal | KeyJoin | KeyRehearsal | KeyConsent | KeyComplaint

STEPS: tuple[type[KeyRecord], ...] = (
    KeyCommit,
    KeyReveal,
    KeyDeal,
    KeyJoin,
    KeyRehearsal,
    KeyConsent,
)
"""The messages of a ceremony, in order; nobody makes one before it has all of the one before."""


def context_of(
    federation: bytes, study_plan: bytes, params: ThresholdParams, attempt: int
) -> bytes:
    """Return the context of an attempt, given the digests of the two signed records."""
    record = KeyContext(
        federation=federation,
        study_plan=study_plan,
        hospitals=params.access.hospitals,
        threshold=params.access.threshold,
        degree=params.bfv.degree,
        primes=params.bfv.primes,
        releases=params.releases,
        attempt=attempt,
    )
    return hashlib.sha256(encode(record)).digest()


def fingerprint(context: bytes, public_key: bytes) -> str:
    """Return 128 bits of context and key, in groups that can be read out over a telephone."""
    body = context + hashlib.sha256(public_key).digest()
    text = hashlib.sha256(_FINGERPRINT_DOMAIN + body).hexdigest()[:_FINGERPRINT_DIGITS]
    return " ".join(text[at : at + 4] for at in range(0, len(text), 4))


def rehearsal_seed(context: bytes, public_key: bytes) -> bytes:
    """Return what everything in a rehearsal is expanded from (SPEC 5.14): known to all."""
    body = context + hashlib.sha256(public_key).digest()
    return hashlib.sha256(_REHEARSAL_DOMAIN + body).digest()


def rehearsal_sets(access: Access) -> tuple[tuple[int, ...], ...]:
    """Return the sets of members that rehearse: runs of `threshold`, the last one moved back.

    Together they are all hospitals, and none is in more than two of them.
    """
    last = access.hospitals - access.threshold
    starts = range(0, access.hospitals, access.threshold)
    return tuple(
        tuple(range(min(start, last), min(start, last) + access.threshold)) for start in starts
    )
