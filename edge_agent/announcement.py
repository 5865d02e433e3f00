"""What a device asks of an announcement before it looks at the plan (SPEC 8.13).

The plan must be in the log, and the log must have grown from what the device
knew: a gateway that shows one device another history than the rest is caught
by the first of them that compares.
"""

from dataclasses import dataclass, field

from vitalring.errors import LogError
from vitalring.protocol import trust
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.checkpoint import Checkpoint, VerifierKey, parse_and_verify
from vitalring.protocol.merkle import leaf_hash, verify_consistency, verify_inclusion
from vitalring.protocol.records import Federation, LoggedObject, PlanAnnouncement


class UnknownHistoryError(LogError):
    """The announcement proves nothing about the checkpoint we hold: read the entries instead."""


@dataclass(frozen=True)
class Announced:
    """A signed plan that the log holds, and the checkpoint that says so."""

    signed_plan: bytes
    plan_digest: bytes
    checkpoint: Checkpoint
    announcement: PlanAnnouncement = field(compare=False, repr=False)


def log_keys(federation: Federation) -> tuple[VerifierKey, ...]:
    """Return the keys under which a federation's log may sign checkpoints: the host's, who runs it.

    A second gateway signs a log of its own, under another name (SPEC 8.5).
    """
    return (VerifierKey(federation.log_origin, federation.hospitals[0].log_key),)


def read(data: bytes, federation: Federation) -> Announced:
    """Open an announcement, without regard to what a device knows. Raises LogError, RecordError."""
    announcement = decode(PlanAnnouncement, data)
    # 1. A log of this federation signed the checkpoint, under its own name.
    checkpoint = parse_and_verify(announcement.checkpoint, log_keys(federation))
    # 2. The plan is an entry of that log.
    name = digest(announcement.plan)
    entry = encode(LoggedObject("round-plan", name))
    verify_inclusion(
        leaf_hash(entry),
        announcement.index,
        checkpoint.size,
        announcement.inclusion,
        checkpoint.root,
    )
    return Announced(announcement.plan, name, checkpoint, announcement)


def check_growth(announced: Announced, known: Checkpoint | None) -> None:
    """Check that the log a device knew is a prefix. Raises LogError, UnknownHistoryError."""
    if known is None:
        return
    new = announced.checkpoint
    if new.size < known.size:
        raise LogError(
            f"the log shrank from {known.size} to {new.size} entries: it was rolled back "
            "or another log is shown"
        )
    if new.size == known.size:
        verify_consistency(known.size, new.size, (), known.root, new.root)
        return
    for proof in announced.announcement.consistency:
        if proof.size == known.size:
            verify_consistency(known.size, new.size, proof.hashes, known.root, new.root)
            return
    raise UnknownHistoryError(
        f"the announcement has no proof from our checkpoint of {known.size} entries"
    )


def check_roster(announced: Announced, federation: Federation) -> None:
    """Check that the log held the roster, among whose keys devices are to sign, before the plan.

    Raises LogError for a roster that others may not see, SignatureError or RecordError for a
    plan that no aggregator signed.
    """
    roster = trust.peek_round_plan(announced.signed_plan, federation).roster
    shown, checkpoint = announced.announcement, announced.checkpoint
    if shown.roster_index >= shown.index:
        raise LogError(
            f"the roster of the plan is entry {shown.roster_index} of the log, after the plan, "
            f"which is entry {shown.index}"
        )
    try:
        verify_inclusion(
            leaf_hash(encode(LoggedObject("roster", roster))),
            shown.roster_index,
            checkpoint.size,
            shown.roster_inclusion,
            checkpoint.root,
        )
    except LogError as error:
        raise LogError(f"false ring: roster {roster.hex()} is not in the log: {error}") from error
