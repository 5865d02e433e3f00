"""What passes between a device that claims an update and its verifier (SPEC 6.23, 6.26).

A claim carries everything that shows which update it is about: the signed records that make
the round, the log's entry with its inclusion proof, and the signed checkpoint. Device and
verifier make the same statement of it by the same checks, so that a device proves nothing
that a verifier would not ask. Nothing here needs a clock, a file or a secret but `claim`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from vitalring.errors import LogError, RecordError, SignatureError
from vitalring.protocol import claims, group, limits, lsag, trust
from vitalring.protocol.cbor import decode, digest, encode, type_of
from vitalring.protocol.checkpoint import (
    MAX_NOTE_BYTES,
    Checkpoint,
    VerifierKey,
    parse_and_verify,
)
from vitalring.protocol.merkle import leaf_hash, root_of, verify_inclusion
from vitalring.protocol.records import AcceptedUpdate, Digest, Federation, Index, Key, RoundPlan
from vitalring.protocol.signing import Signed
from vitalring.protocol.update import round_context
from vitalring.schema import Size

SignedBytes = Annotated[bytes, Size(1, Signed.MAX_BYTES)]


@dataclass(frozen=True)
class ClaimRequest:
    """A verifier's fresh key and nonce, with proof that somebody has the key's secret."""

    TYPE: ClassVar[str] = "vitalring/claim-request/1"
    MAX_BYTES: ClassVar[int] = 256

    key: Key
    nonce: Digest
    possession: Annotated[bytes, Size(lsag.POSSESSION_BYTES)]


@dataclass(frozen=True)
class Evidence:
    """A counted update and what shows its round; all of it is public.

    The first five are signed records, `entry` is an encoded `AcceptedUpdate`, `index` its
    position in the log, and `inclusion` proves that the checkpoint's tree holds it there.
    """

    federation: SignedBytes
    study_plan: SignedBytes
    roster: SignedBytes
    sum_key: SignedBytes
    round_plan: SignedBytes
    checkpoint: Annotated[bytes, Size(1, MAX_NOTE_BYTES)]
    entry: Annotated[bytes, Size(1, AcceptedUpdate.MAX_BYTES)]
    index: Index
    inclusion: Annotated[tuple[Digest, ...], Size(0, 64)]


@dataclass(frozen=True)
class Claim:
    """Proof to the maker of one request that ring key `key` made the update in `evidence`."""

    TYPE: ClassVar[str] = "vitalring/claim/1"
    MAX_BYTES: ClassVar[int] = 2 * limits.MIB

    verifier: Key
    nonce: Digest
    key: Key
    proof: Annotated[bytes, Size(claims.PROOF_BYTES)]
    evidence: Evidence


@dataclass(frozen=True)
class Counted:
    """An update that evidence shows to be counted; `ring` has the keys it may come from."""

    study: trust.Study
    plan: RoundPlan
    update: AcceptedUpdate
    checkpoint: Checkpoint
    ring: tuple[bytes, ...]

    @property
    def tag(self) -> bytes:
        """The tag of the update's signature."""
        return self.update.signature[: group.POINT_BYTES]


def request(verifier: lsag.KeyPair, nonce: bytes) -> bytes:
    """Return a request by a verifier: key pair and 32-byte nonce are fresh (SPEC 6.23)."""
    possession = lsag.prove_possession(verifier.secret, _asked(nonce))
    return encode(ClaimRequest(verifier.public, nonce, possession))


def open_request(data: bytes) -> ClaimRequest:
    """Open a request (SPEC 6.23). Raises RecordError or SignatureError.

    A key whose secret nobody had would make a claim that convinces everybody.
    """
    opened = decode(ClaimRequest, data)
    try:
        lsag.verify_possession(opened.key, _asked(opened.nonce), opened.possession)
    except SignatureError as error:
        raise SignatureError(
            f"the request does not show that its maker has the secret of its key, and a claim "
            f"might convince others: {error}"
        ) from error
    return opened


def claim(asked: ClaimRequest, keys: lsag.KeyPair, evidence: Evidence, authority: bytes) -> bytes:
    """Return the claim by the device with this ring key (SPEC 6.24).

    Raises RecordError, LogError or SignatureError where the evidence is not sound or the
    update is not the device's.
    """
    counted = open_evidence(evidence, authority)
    proof = claims.prove(statement(counted, evidence, keys.public, asked), keys.secret)
    return encode(Claim(asked.key, asked.nonce, keys.public, proof, evidence))


def open_claim(data: bytes, asked: ClaimRequest, authority: bytes) -> tuple[Claim, Counted]:
    """Open a claim that answers a request of one's own (SPEC 6.26).

    Raises RecordError, SignatureError or LogError, naming the check that failed.
    """
    # 1. It answers this request.
    opened = decode(Claim, data)
    if opened.verifier != asked.key:
        raise SignatureError(
            f"the claim is made for verifier {opened.verifier.hex()}, not for {asked.key.hex()}"
        )
    if opened.nonce != asked.nonce:
        raise SignatureError("the claim answers another request: its nonce is not this one's")
    # 2. The update was counted, in a round of this authority's federation.
    counted = open_evidence(opened.evidence, authority)
    # 3. Its ring has the key, whose owner proves that the tag is its own.
    claims.verify(statement(counted, opened.evidence, opened.key, asked), opened.proof)
    return opened, counted


def open_evidence(evidence: Evidence, authority: bytes) -> Counted:
    """Return the update that evidence shows to be counted (SPEC 6.26.2).

    Raises RecordError, SignatureError or LogError.
    """
    # 1. A log of the authority's federation signed the checkpoint, whose tree has the entry.
    federation = trust.open_federation(evidence.federation, authority)
    checkpoint = parse_and_verify(evidence.checkpoint, _logs(federation))
    if evidence.checkpoint.rpartition(b"\n\n")[2].count(b"\n") != 1:
        raise LogError("the claim's checkpoint carries more than the log's own signature")
    if type_of(evidence.entry) != AcceptedUpdate.TYPE:
        raise RecordError(f"the claimed entry is a {type_of(evidence.entry)}, not an update")
    verify_inclusion(
        leaf_hash(evidence.entry),
        evidence.index,
        checkpoint.size,
        evidence.inclusion,
        checkpoint.root,
    )
    update = decode(AcceptedUpdate, evidence.entry)
    # 2. It names a round plan that a quorum signed, of a study that all who must have signed.
    study = trust.open_study(federation, evidence.study_plan, evidence.roster, evidence.sum_key)
    if digest(evidence.round_plan) != update.plan:
        raise RecordError("the claimed update was made for another round plan than the one shown")
    plan = trust.open_round_plan(evidence.round_plan, study)
    # 3. A member of the ring that it names signed it.
    if update.ring >= len(study.rings):
        raise RecordError(f"the claimed update names ring {update.ring}, which the roster has not")
    ring = study.rings[update.ring]
    ring.verify(round_context(plan), update.digest, update.signature)
    return Counted(study, plan, update, checkpoint, ring.keys)


def require_prefix(known: Checkpoint, leaf_hashes: Sequence[bytes], newer: Checkpoint) -> None:
    """Check that a log at hand goes on from a known state of it (SPEC 6.26.4).

    `leaf_hashes` are those of all its entries and `newer` its checkpoint. Raises LogError.
    """
    if known.origin != newer.origin:
        raise LogError(f"known is log {known.origin}, the log at hand is {newer.origin}")
    if known.size > newer.size:
        raise LogError(
            f"known is a log of {known.size} entries, the log at hand has {newer.size}: "
            "fetch it again"
        )
    if root_of(leaf_hashes[: known.size]) != known.root:
        raise LogError(
            f"the first {known.size} entries of the log at hand are not those that are known: "
            "the log shows different histories"
        )


def statement(
    counted: Counted, evidence: Evidence, key: bytes, asked: ClaimRequest
) -> claims.Statement:
    """Return what is proven, the same for device and verifier. Raises SignatureError."""
    if key not in counted.ring:
        raise SignatureError(
            f"ring key {key.hex()} is not in ring {counted.update.ring}, which the update is from"
        )
    return claims.Statement(
        context=round_context(counted.plan),
        roster=counted.study.roster_digest,
        log=counted.checkpoint.encode(),
        entry=evidence.entry,
        tag=counted.tag,
        key=key,
        verifier=asked.key,
        nonce=asked.nonce,
    )


def _asked(nonce: bytes) -> bytes:
    """Context of a request's proof of possession (SPEC 6.11, 6.23)."""
    return group.frame(claims.SUITE + b"/request", nonce)


def _logs(federation: Federation) -> tuple[VerifierKey, ...]:
    """Keys of all the logs of a federation (SPEC 8.5)."""
    return tuple(
        VerifierKey(trust.log_origin(federation, number), hospital.log_key)
        for number, hospital in enumerate(federation.hospitals)
    )
