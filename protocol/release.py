"""What hospitals say to one another before and while they decrypt a sum (SPEC 11.6 to 11.11).

A hospital's part of a decryption leaves it once a round, for one set of updates, after enough
hospitals signed that they recomputed the very same sum. Records here are signed with the
aggregator's key; checks and parts travel as bytes whose digests were signed before.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, ClassVar

from vitalring.protocol import limits
from vitalring.protocol.records import Digest
from vitalring.protocol.threshold.pieces import Access
from vitalring.schema import OneOf, Range, Size

_SET_DOMAIN = b"vitalring/contribution-set/1\x00"
_NONCE_DOMAIN = b"vitalring/release-nonce/1\x00"
_COMMITMENTS_DOMAIN = b"vitalring/release-commitments/1\x00"
_GROUP_DOMAIN = b"vitalring/group-seed/1\x00"
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
    "spent_key",
)
"""Why a hospital gives no part of a decryption (SPEC 11.11)."""

STEPS = ("commitment", "nonce", "promise", "check", "part", "refusal")
"""What a hospital says of a release, in this order; checks and parts are not records."""


@dataclass(frozen=True)
class SetCommitment:
    """A hospital's word that it recomputed the sum of this set itself; signed, and logged.

    `sum_key` and `round` say what may be released once only; `nonce` is a commitment to 32
    random bytes that the hospital shows later.
    """

    TYPE: ClassVar[str] = "vitalring/set-commitment/1"
    MAX_BYTES: ClassVar[int] = 1024

    sum_key: Digest
    round: Annotated[int, Range(1, limits.MAX_ROUNDS)]
    plan: Digest
    report: Digest
    set: Digest
    nonce: Digest


@dataclass(frozen=True)
class ReleaseNonce:
    """The random bytes that a set commitment promised; signed.

    `commitments` is the digest of the commitments that its hospital had when it showed this.
    """

    TYPE: ClassVar[str] = "vitalring/release-nonce/1"
    MAX_BYTES: ClassVar[int] = 1024

    plan: Digest
    set: Digest
    value: Digest
    commitments: Digest


@dataclass(frozen=True)
class PartPromise:
    """Digests of a member's check and part for one set of members; signed before either shows."""

    TYPE: ClassVar[str] = "vitalring/part-promise/1"
    MAX_BYTES: ClassVar[int] = 1024

    plan: Digest
    set: Digest
    members: Annotated[tuple[Annotated[int, Range(0, 63)], ...], Size(2, 64)]
    challenge: Digest
    check: Digest
    part: Digest


@dataclass(frozen=True)
class ReleaseRefusal:
    """Why a hospital decrypts nothing of a round; signed, and logged.

    `subject` is the digest of what it refuses: an update, another hospital's commitment, the
    set that it released instead; or no bytes.
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


def commitments_needed(access: Access, groups: int = 1) -> int:
    """Return how many hospitals must commit to one set (SPEC 11.8).

    (K + f + 1) / 2, rounded up: with f = t - 1 corrupt hospitals two different sets cannot both
    reach it. All K where the plan has several groups, whose members follow from all nonces.
    """
    if groups > 1:
        return access.hospitals
    return (access.hospitals + access.threshold + 1) // 2


def member_sets(access: Access) -> tuple[tuple[int, ...], ...]:
    """Return the sets of hospitals that may decrypt, in the order in which they are tried."""
    return tuple(combinations(range(access.hospitals), access.threshold))


def set_digest(plan: bytes, report: bytes, contributions: tuple[bytes, ...], total: bytes) -> bytes:
    """Return what hospitals agree on: the sorted digests of updates, and of their sum's bytes."""
    body = plan + report + len(contributions).to_bytes(4, "big") + b"".join(contributions)
    return hashlib.sha256(_SET_DOMAIN + body + hashlib.sha256(total).digest()).digest()


def nonce_commitment(set_: bytes, hospital: int, nonce: bytes) -> bytes:
    """Return the commitment to a nonce of 32 bytes: nobody can pass on another hospital's."""
    return _hash_numbered(_NONCE_DOMAIN + set_, {hospital: nonce})


def commitments_digest(set_: bytes, nonces: Mapping[int, bytes]) -> bytes:
    """Return the digest of the nonce commitments that a hospital holds, by hospital."""
    return _hash_numbered(_COMMITMENTS_DOMAIN + set_, nonces)


def challenge(set_: bytes, nonces: Mapping[int, bytes]) -> bytes:
    """Return what nobody could foresee: of the set and its members' nonces (SPEC 5.20)."""
    return _hash_numbered(_CHALLENGE_DOMAIN + set_, nonces)


def group_seed(set_: bytes, nonces: Mapping[int, bytes]) -> bytes:
    """Return what the groups of a round follow from: the set and the nonces of all hospitals."""
    return _hash_numbered(_GROUP_DOMAIN + set_, nonces)


def _hash_numbered(head: bytes, values: Mapping[int, bytes]) -> bytes:
    """Hash values of 32 bytes, each after its hospital's number."""
    body = b"".join(h.to_bytes(2, "big") + values[h] for h in sorted(values))
    return hashlib.sha256(head + body).digest()
