"""How two gateways agree on the updates that both have, and on nothing twice (SPEC 10.6, 10.7).

Each gateway counts the halves that reached it. When it stops it signs what it has; the updates
that both have are the round's set. Both sign that set before either gives its sum, each for one
set of a round, so the two sums that leave them differ by the sum of that set alone.
"""

import contextlib
import hashlib
from dataclasses import dataclass
from typing import Annotated, ClassVar

from vitalring.errors import RecordError, SignatureError
from vitalring.protocol import limits
from vitalring.protocol.cbor import decode, digest, encode, type_of
from vitalring.protocol.records import (
    Bundle,
    Count,
    Digest,
    EncryptedSum,
    Federation,
    RoundPlan,
    RoundReport,
    SealedUpdate,
)
from vitalring.protocol.signing import verify
from vitalring.protocol.two_server import ROLES, SEED, VECTOR, Shares
from vitalring.schema import Range, Size

_SET_DOMAIN = b"vitalring/shared-set/1\x00"


@dataclass(frozen=True)
class UpdateShare:
    """One gateway's half of an update; it travels inside a padded sealed box.

    `update` is the same in both halves: its ciphertexts are the link of the two shares.
    """

    TYPE: ClassVar[str] = "vitalring/update-share/1"
    MAX_BYTES: ClassVar[int] = limits.MAX_UPDATE_BYTES

    update: SealedUpdate
    share: bytes


@dataclass(frozen=True)
class SplitUpdate:
    """Both halves of an update, as a device keeps them until their receipt; never sent so."""

    TYPE: ClassVar[str] = "vitalring/split-update/1"
    MAX_BYTES: ClassVar[int] = limits.MAX_UPDATE_BYTES

    update: SealedUpdate
    shares: Annotated[tuple[bytes, ...], Size(2)]


@dataclass(frozen=True)
class ShareSet:
    """The updates of which a gateway has its half, when it stopped to admit. Signed by its log."""

    TYPE: ClassVar[str] = "vitalring/share-set/1"
    MAX_BYTES: ClassVar[int] = limits.MAX_LARGE_RECORD_BYTES

    plan: Digest
    round: Annotated[int, Range(1, limits.MAX_ROUNDS)]
    digests: Annotated[tuple[Digest, ...], Size(0, limits.MAX_DEVICES)]


@dataclass(frozen=True)
class AgreedSet:
    """The one set of a round whose sum two gateways give. Signed by both logs.

    `held` names their signed `ShareSet`s, the vectors' gateway first.
    """

    TYPE: ClassVar[str] = "vitalring/agreed-set/1"
    MAX_BYTES: ClassVar[int] = 1024

    plan: Digest
    round: Annotated[int, Range(1, limits.MAX_ROUNDS)]
    held: Annotated[tuple[Digest, ...], Size(2)]
    set: Digest
    count: Count


@dataclass(frozen=True)
class Closing:
    """A round that both gateways close: its plan, and the digest of its signed bytes."""

    plan: RoundPlan
    digest: bytes


def both_halves(update: SealedUpdate, shares: Shares) -> SplitUpdate:
    """Return an update, whose ciphertexts are the shares' link, with both shares."""
    return SplitUpdate(update, tuple(shares.of(role) for role in ROLES))


def messages_of(kept: bytes) -> tuple[bytes, ...]:
    """Return what a device sends of an update that it keeps, to each gateway in turn.

    Raises RecordError.
    """
    if type_of(kept) != SplitUpdate.TYPE:
        return (kept,)
    both = decode(SplitUpdate, kept)
    return tuple(encode(UpdateShare(both.update, share)) for share in both.shares)


def open_share_set(data: bytes, federation: Federation, role: int, closing: Closing) -> ShareSet:
    """Open what the gateway of `role` says it has of a round (SPEC 9.13).

    Raises SignatureError or RecordError.
    """
    held = verify(ShareSet, data, {_log_key(federation, role)}, 1)
    if (held.plan, held.round) != (closing.digest, closing.plan.round):
        raise RecordError(f"a share set of round {held.round} or of another plan: not this round's")
    if list(held.digests) != sorted(set(held.digests)):
        raise RecordError("a share set is not sorted without repeats")
    return held


def agree(
    signed: tuple[bytes, bytes], federation: Federation, closing: Closing
) -> tuple[AgreedSet, tuple[bytes, ...]]:
    """Return what both gateways sign, and the set itself: what both have, sorted (SPEC 10.7).

    `signed` are the two signed `ShareSet`s by role. Raises SignatureError or RecordError.
    """
    vectors, seeds = (open_share_set(signed[r], federation, r, closing) for r in ROLES)
    common = tuple(sorted(set(vectors.digests) & set(seeds.digests)))
    record = AgreedSet(
        plan=closing.digest,
        round=closing.plan.round,
        held=(digest(signed[VECTOR]), digest(signed[SEED])),
        set=set_digest(closing.digest, common),
        count=len(common),
    )
    return record, common


def set_digest(plan: bytes, common: tuple[bytes, ...]) -> bytes:
    """Return the digest of a set of updates: 32 bytes."""
    body = plan + len(common).to_bytes(4, "big") + b"".join(common)
    return hashlib.sha256(_SET_DOMAIN + body).digest()


def open_agreed(data: bytes, federation: Federation) -> AgreedSet:
    """Open a set that both gateways signed (SPEC 9.13). Raises SignatureError or RecordError."""
    return verify(AgreedSet, data, {_log_key(federation, role) for role in ROLES}, len(ROLES))


def open_half_agreed(data: bytes, federation: Federation, role: int) -> AgreedSet:
    """Open a set that the gateway of `role` signed. Raises SignatureError or RecordError."""
    return verify(AgreedSet, data, {_log_key(federation, role)}, 1)


def open_share_report(data: bytes, federation: Federation, role: int) -> RoundReport:
    """Open the report of the gateway of `role`, and of no other. Raises SignatureError."""
    return verify(RoundReport, data, {_log_key(federation, role)}, 1)


def peer_report(bundle: Bundle, federation: Federation, role: int) -> bytes:
    """Return the report that the gateway of `role` signed, which came along with a model.

    Raises RecordError where there is none.
    """
    for content in bundle.objects:
        with contextlib.suppress(SignatureError, RecordError):
            open_share_report(content, federation, role)
            return content
    raise RecordError(f"a model came without the report of {federation.hospitals[role].name}")


def check_sums(
    agreed: AgreedSet,
    closing: Closing,
    reports: tuple[RoundReport, RoundReport],
    sums: tuple[EncryptedSum, EncryptedSum],
    names: tuple[bytes, bytes],
) -> None:
    """Check that two gateways' sums, with digests `names`, are of one agreed set (SPEC 11.16).

    Both in order of their roles. Raises RecordError with the first difference.
    """
    # 1. The set is this round's, and large enough.
    if (agreed.plan, agreed.round) != (closing.digest, closing.plan.round):
        raise RecordError(f"the agreed set of round {agreed.round} is not of this round's plan")
    if agreed.count < closing.plan.min_cohort:
        raise RecordError(
            f"the agreed set has {agreed.count} updates, the plan asks for "
            f"{closing.plan.min_cohort} at least"
        )
    for role in ROLES:
        report, total = reports[role], sums[role]
        # 2. Each gateway's report is of this round and names its sum.
        if (report.plan, report.round) != (closing.digest, closing.plan.round):
            raise RecordError(f"the report of gateway {role} is of another round")
        if report.status != "summed" or report.sum != names[role]:
            raise RecordError(f"the report of gateway {role} names another sum than it gave")
        # 3. Each sum is of the agreed set.
        if total.plan != closing.digest or report.admitted != agreed.count:
            raise RecordError(f"the sum of gateway {role} is not of the agreed set's updates")
        if (
            list(total.contributions) != sorted(set(total.contributions))
            or len(total.contributions) != agreed.count
            or set_digest(closing.digest, total.contributions) != agreed.set
        ):
            raise RecordError(f"the sum of gateway {role} is not of the agreed set's updates")


def _log_key(federation: Federation, role: int) -> bytes:
    if len(federation.hospitals) != len(ROLES):
        raise RecordError(
            f"federation {federation.name} has {len(federation.hospitals)} hospitals: "
            "shares go to the gateways of two"
        )
    return federation.hospitals[role].log_key
