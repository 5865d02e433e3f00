"""What device and gateway must compute alike of an update (SPEC 6.6, 6.12, 4.3)."""

import hashlib

from vitalring.protocol import lsag
from vitalring.protocol.records import RoundPlan


def update_digest(plan: bytes, ring: int, ciphertexts: bytes) -> bytes:
    """Return what the ring signature signs: 32 bytes over plan, ring and ciphertexts.

    The first three inputs have fixed lengths, so no two updates share a hash input.
    """
    header = b"vitalring/update/1\x00" + plan + ring.to_bytes(4, "big")
    return hashlib.sha256(header + hashlib.sha256(ciphertexts).digest()).digest()


def round_context(plan: RoundPlan) -> bytes:
    """Return the event in which a key may sign once: this round, whatever its plan says."""
    return lsag.context(plan.federation, plan.study, plan.epoch, plan.cohort, plan.round)


def rotation_seed(plan: bytes) -> bytes:
    """Return the seed of a round's rotation and mask, the same for all devices (SPEC 4.3)."""
    return hashlib.sha256(b"vitalring/rotation/1\x00" + plan).digest()
