"""What device, gateway and hospitals compute alike of an update (SPEC 4.3, 6.6, 6.12, 10.2)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitalring.errors import CiphertextError, Reason, RefusedError
from vitalring.protocol import group, lsag
from vitalring.protocol.cbor import encode
from vitalring.protocol.records import RoundPlan, SealedUpdate
from vitalring.protocol.ring_suite import Ring, Verdict
from vitalring.protocol.secure_sum import SumScheme

Residues = npt.NDArray[np.uint64]


def update_digest(plan: bytes, ring: int, ciphertexts: bytes) -> bytes:
    """Return what the ring signature signs: 32 bytes over plan, ring and ciphertexts.

    The first three inputs have fixed lengths, so no two updates share a hash input.
    """
    header = b"vitalring/update/1\x00" + plan + ring.to_bytes(4, "big")
    return hashlib.sha256(header + hashlib.sha256(ciphertexts).digest()).digest()


def digest_of(update: SealedUpdate) -> bytes:
    """Return the digest that receipts, sums and the log know an update by (SPEC 6.12)."""
    return update_digest(update.plan, update.ring, update.ciphertexts)


def tag_of(update: SealedUpdate) -> bytes:
    """Return the tag by which an update's signer is counted (SPEC 6.8); not yet verified."""
    return update.signature[: group.POINT_BYTES]


def spare_bytes(rings: Sequence[Ring], own: int) -> int:
    """Return by how much an update of another ring can be longer than of ring `own` (SPEC 3.14).

    Signatures differ where rings do, and so do the rings' numbers in CBOR.
    """
    sizes = [
        len(encode(SealedUpdate(bytes(32), number, b"", bytes(ring.signature_bytes))))
        for number, ring in enumerate(rings)
    ]
    return max(sizes) - sizes[own]


def round_context(plan: RoundPlan) -> bytes:
    """Return the event in which a key may sign once: this round, whatever its plan says."""
    return lsag.context(plan.federation, plan.study, plan.epoch, plan.cohort, plan.round)


def rotation_seed(plan: bytes) -> bytes:
    """Return the seed of a round's rotation and mask, the same for all devices (SPEC 4.3)."""
    return hashlib.sha256(b"vitalring/rotation/1\x00" + plan).digest()


@dataclass(frozen=True)
class RoundChecks:
    """A round's plan with what the checks of its updates need computed once."""

    plan: RoundPlan
    plan_digest: bytes
    scheme: SumScheme
    rings: tuple[Ring, ...]
    context: bytes


def round_checks(
    plan: RoundPlan, plan_digest: bytes, scheme: SumScheme, rings: tuple[Ring, ...]
) -> RoundChecks:
    """Prepare the checks of a round's updates."""
    return RoundChecks(plan, plan_digest, scheme, rings, round_context(plan))


def check_ring(current: RoundChecks, update: SealedUpdate) -> Ring:
    """Return the ring that an update names (SPEC 10.2, 4).

    Raises RefusedError where the roster has none such, or the signature is not of its length.
    """
    if update.ring >= len(current.rings):
        raise RefusedError(Reason.UNKNOWN_RING, f"the roster has no ring {update.ring}")
    ring = current.rings[update.ring]
    if len(update.signature) != ring.signature_bytes:
        raise RefusedError(
            Reason.BAD_SIGNATURE, "the signature has another length than its ring asks"
        )
    return ring


def check_content(
    current: RoundChecks, update: SealedUpdate, content: bytes | None = None
) -> Residues:
    """Return an update's residues (SPEC 10.2, 7). Raises RefusedError.

    The ciphertexts must be in their one encoding, residues reduced, none transparent.
    `content` is what the scheme decodes where that is more than the signed ciphertexts.
    """
    try:
        return current.scheme.decode(update.ciphertexts if content is None else content)
    except CiphertextError as error:
        raise RefusedError(Reason.BAD_CIPHERTEXT, str(error)) from error


def check_signatures(
    current: RoundChecks, updates: Sequence[tuple[int, bytes, bytes]], max_passes: int
) -> list[Verdict]:
    """Return whether a member of its ring signed each update (SPEC 10.2, 8), in their order.

    An update is here its ring's number, its digest and its signature. Those of one ring are
    checked together, in at most `max_passes` passes over each ring; what these leave open has
    neither tag nor error. Equal tags are not looked for.
    """
    verdicts = [Verdict()] * len(updates)
    for number in {number for number, _, _ in updates}:
        places = [place for place, update in enumerate(updates) if update[0] == number]
        items = [updates[place][1:] for place in places]
        found = current.rings[number].verify_batch(current.context, items, max_passes)
        for place, verdict in zip(places, found, strict=True):
            verdicts[place] = verdict
    return verdicts
