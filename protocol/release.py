"""What hospitals say to one another before and while they decrypt a sum (SPEC 11.6 to 11.11).

A hospital's part of a decryption leaves it once a round, for one set of updates, after enough
hospitals signed that they recomputed the very same sum. Records here are signed with the
aggregator's key; checks and parts travel as bytes whose digests were signed before.
"""

import hashlib
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, ClassVar

from vitalring.protocol import limits
from vitalring.protocol.records import Digest
from vitalring.protocol.threshold.pieces import Access
from vitalring.schema import OneOf, Range, Size

_SET_DOMAIN = b"vitalring/contribution-set/1\x00"
_NONCE_DOMAIN = b"vitalring/release-nonce/1\x00"
_CHALLENGE_DOMAIN = b"vitalring/check-challenge/1\x00"

REFUSALS = (
    "missing_update",
    "bad_update",
    "double_update",
    "too_few",
    "sum_mismatch",
    "set_mismatch",
    "second_request",
    "bad_check",
    "bad_part",
    "silent_hospital",
)
"""Why a hospital gives no part of a decryption."""


@dataclass(frozen=True)
class SetCommitment:
    """A hospital's word that it recomputed the sum of this set itself; signed, and logged.

    `nonce` is a commitment to 32 random bytes that it shows later.
    """

    TYPE: ClassVar[str] = "vitalring/set-commitment/1"
    MAX_BYTES: ClassVar[int] = limits.MAX_RECORD_BYTES

    plan: Digest
    report: Digest
    set: Digest
    nonce: Digest


@dataclass(frozen=True)
class ReleaseNonce:
    """The random bytes that a set commitment promised; signed."""

    TYPE: ClassVar[str] = "vitalring/release-nonce/1"
    MAX_BYTES: ClassVar[int] = 1024

    plan: Digest
    set: Digest
    value: Digest


@dataclass(frozen=True)
class PartPromise:
    """Digests of a member's check and part for one set of members; signed before either shows."""

    TYPE: ClassVar[str] = "vitalring/part-promise/1"
    MAX_BYTES: ClassVar[int] = limits.MAX_RECORD_BYTES

    plan: Digest
    set: Digest
    members: Annotated[tuple[Annotated[int, Range(0, 63)], ...], Size(2, 64)]
    check: Digest
    part: Digest


@dataclass(frozen=True)
class ReleaseRefusal:
    """Why a hospital decrypts nothing of a round; signed, and logged.

    `subject` is the digest of what it refuses: an update, another hospital's commitment, or
    no bytes.
    """

    TYPE: ClassVar[str] = "vitalring/release-refusal/1"
    MAX_BYTES: ClassVar[int] = 1024

    plan: Digest
    report: Digest
    reason: Annotated[str, OneOf(REFUSALS)]
    subject: Annotated[bytes, Size(0, 32)]


@dataclass(frozen=True)
class SetRequest:
    """A hospital asks the gateway for some of a closed round's updates, by their order."""

    TYPE: ClassVar[str] = "vitalring/set-request/1"
    MAX_BYTES: ClassVar[int] = 1024

    plan: Digest
    first: Annotated[int, Range(0, limits.MAX_DEVICES)]
    count: Annotated[int, Range(1, limits.MAX_DEVICES)]


@dataclass(frozen=True)
class SetPart:
    """The gateway's answer: encoded `SealedUpdate`s from `first` on, sorted by digest (6.12)."""

    TYPE: ClassVar[str] = "vitalring/set-part/1"
    MAX_BYTES: ClassVar[int] = limits.MAX_OBJECT_BYTES

    plan: Digest
    first: Annotated[int, Range(0, limits.MAX_DEVICES)]
    updates: Annotated[tuple[bytes, ...], Size(0, limits.MAX_DEVICES)]


def commitments_needed(access: Access) -> int:
    """Return how many hospitals must commit to one set: (K + f + 1) / 2, rounded up.

    With f = t - 1 corrupt hospitals two different sets cannot both reach it (SPEC 11.8).
    """
    return (access.hospitals + access.threshold + 1) // 2


def member_sets(access: Access) -> tuple[tuple[int, ...], ...]:
    """Return the sets of hospitals that may decrypt, in the order in which they are tried."""
    return tuple(combinations(range(access.hospitals), access.threshold))


def set_digest(plan: bytes, report: bytes, contributions: tuple[bytes, ...], total: bytes) -> bytes:
    """Return what hospitals agree on: the sorted digests of updates, and of their sum's bytes."""
    body = plan + report + len(contributions).to_bytes(4, "big") + b"".join(contributions)
    return hashlib.sha256(_SET_DOMAIN + body + hashlib.sha256(total).digest()).digest()


def nonce_commitment(plan: bytes, hospital: int, nonce: bytes) -> bytes:
    """Return the commitment to a nonce of 32 bytes."""
    return hashlib.sha256(_NONCE_DOMAIN + plan + hospital.to_bytes(2, "big") + nonce).digest()


def challenge(set_: bytes, nonces: dict[int, bytes]) -> bytes:
    """Return what nobody could foresee: of the set and its members' nonces (SPEC 5.20)."""
    shown = b"".join(h.to_bytes(2, "big") + nonces[h] for h in sorted(nonces))
    return hashlib.sha256(_CHALLENGE_DOMAIN + set_ + shown).digest()
