"""What device, gateway and hospitals compute alike of an update (SPEC 4.3, 6.6, 6.12, 10.2)."""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitalring.errors import CiphertextError, Reason, RefusedError, SignatureError
from vitalring.protocol import group, lsag
from vitalring.protocol.records import RoundPlan, SealedUpdate
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
    rings: list[lsag.Ring]
    context: bytes
    tag_base: bytes


def round_checks(
    plan: RoundPlan, plan_digest: bytes, scheme: SumScheme, rings: list[lsag.Ring]
) -> RoundChecks:
    """Prepare the checks of a round's updates."""
    context = round_context(plan)
    return RoundChecks(plan, plan_digest, scheme, rings, context, lsag.tag_base(context))


def check_ring(current: RoundChecks, update: SealedUpdate) -> lsag.Ring:
    """Return the ring that an update names (SPEC 10.2, 4).

    Raises RefusedError where the roster has none such, or the signature is not of its length.
    """
    if update.ring >= len(current.rings):
        raise RefusedError(Reason.UNKNOWN_RING, f"the roster has no ring {update.ring}")
    ring = current.rings[update.ring]
    if len(update.signature) != lsag.signature_bytes(len(ring.keys)):
        raise RefusedError(
            Reason.BAD_SIGNATURE, "the signature has another length than its ring asks"
        )
    return ring


def check_content(
    current: RoundChecks, ring: lsag.Ring, update: SealedUpdate, content: bytes | None = None
) -> Residues:
    """Return an update's residues (SPEC 10.2, 7 and 8). Raises RefusedError.

    `content` is what the scheme decodes where that is more than the signed ciphertexts.
    """
    # 7. The ciphertexts are in their one encoding, residues reduced, none transparent.
    try:
        residues = current.scheme.decode(update.ciphertexts if content is None else content)
    except CiphertextError as error:
        raise RefusedError(Reason.BAD_CIPHERTEXT, str(error)) from error
    # 8. A member of the ring signed exactly this.
    try:
        lsag.verify(
            ring, current.context, digest_of(update), update.signature, tag_base=current.tag_base
        )
    except SignatureError as error:
        raise RefusedError(Reason.BAD_SIGNATURE, str(error)) from error
    return residues
