"""The records that parties exchange, sign and log (SPEC 2.5).

Frozen dataclasses with bounds in their annotations; `cbor.encode` and
`cbor.decode` are their only way to and from bytes. Digests are SHA-256 of an
encoded record or of an object's bytes; times are milliseconds since 1970 UTC.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from vitalring.protocol import limits
from vitalring.protocol.guarantee import Terms
from vitalring.protocol.privacy import (
    MAX_FACTOR,
    MIN_FACTOR,
    Privacy,
    Training,
    follows_quantile,
)
from vitalring.protocol.quantise import Codec
from vitalring.protocol.secure_sum import SECURE_SUMS
from vitalring.schema import OneOf, Pattern, Range, Size

Name = Annotated[str, Pattern("[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")]
DataClass = Annotated[str, Pattern("(?:[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?)?")]
Digest = Annotated[bytes, Size(32)]
Key = Annotated[bytes, Size(32)]
Index = Annotated[int, Range(0, 2**48)]
Time = Annotated[int, Range(0, 2**53)]
Count = Annotated[int, Range(0, limits.MAX_DEVICES)]
Factor = Annotated[float, Range(MIN_FACTOR, MAX_FACTOR)]


@dataclass(frozen=True)
class Hospital:
    """One hospital's public keys: who it is, its gateway and its aggregator."""

    name: Name
    identity_key: Key
    log_key: Key
    sealing_key: Key
    aggregator_key: Key


@dataclass(frozen=True)
class Federation:
    """Who the hospitals are. Signed by the authority; devices pin it at enrolment."""

    TYPE: ClassVar[str] = "vitalring/federation/1"
    MAX_BYTES: ClassVar[int] = limits.MAX_RECORD_BYTES

    name: Name
    authority_key: Key
    hospitals: Annotated[tuple[Hospital, ...], Size(1, 64)]
    log_origin: Annotated[str, Pattern(r"[!-*,-~]{1,200}")]


@dataclass(frozen=True)
class Model:
    """The network that a study trains: its artefact and the start of its weights.

    `artefact` is the digest of the TFLite model, `info` that of the text that describes it,
    `companions` those of the files that the text names: a model for inference, weights to
    start from. `features` is the digest of the agreed feature schema, or no bytes where records
    are windows. In a study of statistics `info` describes the question, and `artefact` is the
    digest of no bytes (SPEC 4.10).
    """

    name: Annotated[str, Pattern("[a-z0-9_]{1,64}")]
    artefact: Digest
    info: Digest
    dimension: Annotated[int, Range(1, limits.MAX_DIMENSION)]
    classes: Annotated[tuple[str, ...], Size(2, 100)]
    initial_seed: Digest
    companions: Annotated[tuple[Digest, ...], Size(0, 4)] = ()
    features: Annotated[bytes, Size(0, 32)] = b""


@dataclass(frozen=True)
class ServerOptimiser:
    """How the server turns an average update into new weights.

    `momentum` is beta_1 of adam and yogi, `second_momentum` their beta_2 and `adaptivity` their
    tau (Reddi et al. 2021); each counts only for the optimisers that have it.
    """

    name: Annotated[str, OneOf(("fedavg", "momentum", "adam", "yogi"))]
    learning_rate: Annotated[float, Range(1e-6, 100.0)]
    momentum: Annotated[float, Range(0.0, 0.999)]
    second_momentum: Annotated[float, Range(0.0, 0.9999)] = 0.99
    adaptivity: Annotated[float, Range(1e-9, 1.0)] = 1e-3


@dataclass(frozen=True)
class StudyPlan:
    """What a study trains, with which privacy, for how long. Signed by the authority.

    `threshold` hospitals decrypt where the sum has a joint key; elsewhere it is 0. Each round's
    updates are cut into up to `groups` disjoint sub-cohorts, whose means `combine` makes one of
    (SPEC 11.12). A study of the task `statistics` has one round, which agrees on a feature schema.
    `ring_suite` says how devices sign: 1 by LSAG, 2 by one-of-many proofs (SPEC 6.13).
    `data_class` is the kind of records that it trains on, or nothing (SPEC 7.19).
    """

    TYPE: ClassVar[str] = "vitalring/study-plan/1"
    MAX_BYTES: ClassVar[int] = limits.MAX_RECORD_BYTES

    federation: Name
    study: Name
    model: Model
    training: Training
    privacy: Privacy
    codec: Codec
    server: ServerOptimiser
    secure_sum: Annotated[str, OneOf(SECURE_SUMS)]
    min_cohort: Annotated[int, Range(limits.DECRYPTION_FLOOR, limits.MAX_DEVICES)]
    min_ring: Annotated[int, Range(2, limits.MAX_DEVICES)]
    quorum: Annotated[int, Range(1, 64)]
    threshold: Annotated[int, Range(0, 64)] = 0
    groups: Annotated[int, Range(1, 64)] = 1
    combine: Annotated[str, OneOf(("mean", "median", "trimmed-mean"))] = "mean"
    task: Annotated[str, OneOf(("train", "statistics"))] = "train"
    ring_suite: Annotated[int, Range(1, 2)] = 1
    data_class: DataClass = ""

    @property
    def vector_size(self) -> int:
        """Return the coordinates that a device sends: the model's, and a count's (SPEC 7.17)."""
        return self.model.dimension + follows_quantile(self.privacy)

    @property
    def terms(self) -> Terms:
        """Return the numbers that the study's guarantee follows from."""
        return Terms(self.privacy, self.training, self.codec, self.vector_size, self.min_cohort)


@dataclass(frozen=True)
class Roster:
    """Ring keys of one cohort and epoch, sorted. Signed by every hospital.

    Keys are cut into rings of at most `ring_size` neighbours (SPEC 6.7). `serial` counts the
    rosters of a cohort, over all its epochs (SPEC 9.14).
    """

    TYPE: ClassVar[str] = "vitalring/roster/1"
    MAX_BYTES: ClassVar[int] = limits.MAX_LARGE_RECORD_BYTES

    federation: Name
    cohort: Name
    epoch: Index
    ring_size: Annotated[int, Range(2, limits.MAX_DEVICES)]
    keys: Annotated[tuple[Key, ...], Size(2, limits.MAX_DEVICES)]
    serial: Index = 0


@dataclass(frozen=True)
class SumKey:
    """The public key of the encrypted sum. Signed by every hospital."""

    TYPE: ClassVar[str] = "vitalring/sum-key/1"
    MAX_BYTES: ClassVar[int] = limits.MAX_RECORD_BYTES

    federation: Name
    study: Name
    secure_sum: Annotated[str, OneOf(SECURE_SUMS)]
    key: Digest


@dataclass(frozen=True)
class RoundPlan:
    """One round, complete in itself. Signed by a quorum of aggregators.

    A device submits at a random time between `opens_ms` and `opens_ms +
    window_ms`; nothing is admitted after `deadline_ms`. The study's clips count times
    `clip_factor`, which is 1 unless they follow a quantile (SPEC 7.17).
    """

    TYPE: ClassVar[str] = "vitalring/round-plan/1"
    MAX_BYTES: ClassVar[int] = limits.MAX_RECORD_BYTES

    federation: Name
    study: Name
    study_plan: Digest
    cohort: Name
    epoch: Index
    round: Annotated[int, Range(1, limits.MAX_ROUNDS)]
    weights: Digest
    training: Training
    privacy: Privacy
    codec: Codec
    sum_key: Digest
    roster: Digest
    min_cohort: Annotated[int, Range(limits.DECRYPTION_FLOOR, limits.MAX_DEVICES)]
    opens_ms: Time
    window_ms: Annotated[int, Range(0, 2**40)]
    deadline_ms: Time
    clip_factor: Factor = 1.0


@dataclass(frozen=True)
class SealedUpdate:
    """A device's contribution; it travels inside a padded sealed box."""

    TYPE: ClassVar[str] = "vitalring/sealed-update/1"
    MAX_BYTES: ClassVar[int] = limits.MAX_UPDATE_BYTES

    plan: Digest
    ring: Annotated[int, Range(0, limits.MAX_DEVICES)]
    ciphertexts: bytes
    signature: Annotated[bytes, Size(96, 64 * limits.KIB)]


@dataclass(frozen=True)
class AcceptedUpdate:
    """The log entry of a counted update: all that a verifier of its ring signature needs."""

    TYPE: ClassVar[str] = "vitalring/accepted-update/1"
    MAX_BYTES: ClassVar[int] = limits.MAX_RECORD_BYTES

    plan: Digest
    ring: Annotated[int, Range(0, limits.MAX_DEVICES)]
    digest: Digest
    signature: Annotated[bytes, Size(96, limits.MAX_RECORD_BYTES)]


OBJECT_KINDS = (
    "federation",
    "study-plan",
    "roster",
    "sum-key",
    "round-plan",
    "agreed-set",
    "round-report",
    "peer-report",
    "set-commitment",
    "release-refusal",
    "global-model",
)


@dataclass(frozen=True)
class LoggedObject:
    """The log entry of a signed record, which is kept by its digest beside the log."""

    TYPE: ClassVar[str] = "vitalring/logged-object/1"
    MAX_BYTES: ClassVar[int] = 256

    kind: Annotated[str, OneOf(OBJECT_KINDS)]
    digest: Digest


@dataclass(frozen=True)
class PlanAnnouncement:
    """What a gateway tells devices of a round. Each part is verified on its own.

    `roster_index` and `roster_inclusion` are those of the entry of the roster that the plan names.
    """

    TYPE: ClassVar[str] = "vitalring/plan-announcement/1"
    MAX_BYTES: ClassVar[int] = limits.MAX_RECORD_BYTES

    plan: bytes
    index: Index
    inclusion: Annotated[tuple[Digest, ...], Size(0, 64)]
    roster_index: Index
    roster_inclusion: Annotated[tuple[Digest, ...], Size(0, 64)]
    checkpoint: bytes
    consistency: Annotated[tuple["ConsistencyProof", ...], Size(0, limits.RECENT_CHECKPOINTS)]


@dataclass(frozen=True)
class ConsistencyProof:
    """Proof that an older tree of `size` entries is a prefix of the newer one."""

    size: Index
    hashes: Annotated[tuple[Digest, ...], Size(0, 64)]


@dataclass(frozen=True)
class Receipts:
    """Digests of a round's counted updates, sorted; one message for all devices."""

    TYPE: ClassVar[str] = "vitalring/receipts/1"
    MAX_BYTES: ClassVar[int] = limits.MAX_LARGE_RECORD_BYTES

    plan: Digest
    digests: Annotated[tuple[Digest, ...], Size(0, limits.MAX_DEVICES)]


@dataclass(frozen=True)
class RoundReport:
    """How a round ended: counts by reason, never a name."""

    TYPE: ClassVar[str] = "vitalring/round-report/1"
    MAX_BYTES: ClassVar[int] = limits.MAX_RECORD_BYTES

    plan: Digest
    round: Annotated[int, Range(1, limits.MAX_ROUNDS)]
    status: Annotated[str, OneOf(("summed", "below_min_cohort"))]
    expected: Count
    admitted: Count
    refused: dict[Annotated[str, Pattern("[a-z_]{1,32}")], Index]
    sum: Annotated[bytes, Size(0, 32)]
    opened_ms: Time
    closed_ms: Time
    admission_ms: Index


@dataclass(frozen=True)
class EncryptedSum:
    """The encrypted sum of a round with the digests of what went into it."""

    TYPE: ClassVar[str] = "vitalring/encrypted-sum/1"
    MAX_BYTES: ClassVar[int] = limits.MAX_OBJECT_BYTES

    plan: Digest
    contributions: Annotated[tuple[Digest, ...], Size(0, limits.MAX_DEVICES)]
    ciphertexts: bytes


@dataclass(frozen=True)
class Evaluation:
    """Measured on held-out devices by the aggregator; recall by class as in the plan."""

    accuracy: Annotated[float, Range(0, 1)]
    macro_f1: Annotated[float, Range(0, 1)]
    loss: Annotated[float, Range(0, 1e9)]
    confusion: tuple[tuple[Index, ...], ...]


@dataclass(frozen=True)
class GlobalModel:
    """New weights after a round. Signed by a quorum of aggregators.

    `applied` is false where the round brought no sum; the weights are then
    those of before. `state` is the digest of the server optimiser's state, from which a
    hospital that missed the round goes on; no bytes with one hospital (SPEC 11.15).
    `clip_factor` is that of the next round, and `unclipped` the noisy share of what this round's
    clip left as it was, which it follows from; 1 and 0 where the clip is fixed (SPEC 7.17).
    """

    TYPE: ClassVar[str] = "vitalring/global-model/1"
    MAX_BYTES: ClassVar[int] = limits.MAX_RECORD_BYTES

    federation: Name
    study: Name
    round: Annotated[int, Range(1, limits.MAX_ROUNDS)]
    plan: Digest
    report: Digest
    weights: Digest
    contributions: Count
    applied: bool
    final: bool
    evaluation: Evaluation | None
    state: Annotated[bytes, Size(0, 32)] = b""
    clip_factor: Factor = 1.0
    unclipped: Annotated[float, Range(-1.0, 2.0)] = 0.0


@dataclass(frozen=True)
class Bundle:
    """A signed record with the objects it names, between gateway and aggregator."""

    TYPE: ClassVar[str] = "vitalring/bundle/1"
    MAX_BYTES: ClassVar[int] = 2 * limits.MAX_OBJECT_BYTES

    record: bytes
    objects: Annotated[tuple[bytes, ...], Size(0, 16)]
