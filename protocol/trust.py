"""Whose word counts for what: the checks before any signed record is used (SPEC 9).

Pure functions from bytes and pinned keys to records. A party that holds a
record from here need not ask again who signed it; a record that fails raises
SignatureError or RecordError and is never returned.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import comb

from vitalring.errors import RecordError
from vitalring.protocol import limbs, ring_suite, two_server
from vitalring.protocol.adaptive_clip import FACTOR_TOLERANCE, next_factor
from vitalring.protocol.cbor import R, digest
from vitalring.protocol.guarantee import check_terms
from vitalring.protocol.privacy import follows_quantile
from vitalring.protocol.records import (
    Federation,
    GlobalModel,
    Receipts,
    Roster,
    RoundPlan,
    RoundReport,
    StudyPlan,
    SumKey,
)
from vitalring.protocol.secure_sum import (
    KEYLESS,
    Joint,
    SumScheme,
    UpdateEncryptor,
    sum_scheme,
    update_encryptor,
)
from vitalring.protocol.signing import verify
from vitalring.protocol.threshold.pieces import Access


@dataclass(frozen=True)
class Study:
    """A study as its signed records describe it, with the digest each is known by."""

    federation: Federation
    plan: StudyPlan
    plan_digest: bytes
    roster: Roster
    roster_digest: bytes
    sum_key: SumKey
    sum_key_digest: bytes

    @property
    def joint(self) -> Joint | None:
        """Return who decrypts its sums, None without a joint key."""
        return joint_of(self.plan, len(self.federation.hospitals))

    @property
    def shared(self) -> bool:
        """Tell whether two gateways hold shares of its updates (SPEC 5.24)."""
        return self.plan.secure_sum == "two-server"

    @cached_property
    def rings(self) -> tuple[ring_suite.Ring, ...]:
        """Return the rings of its cohort, prepared once for an epoch (SPEC 6.7).

        Raises SignatureError for a roster that cannot be cut.
        """
        roster = self.roster
        return ring_suite.cut(self.plan.ring_suite, roster.keys, roster.ring_size)

    def scheme(self) -> SumScheme:
        """Return how its updates are added. Raises ConfigError."""
        plan = self.plan
        return sum_scheme(plan.secure_sum, plan.codec, plan.vector_size, self.joint)

    def encryptor(self, public_key: bytes) -> UpdateEncryptor:
        """Return how a device encrypts. Raises ConfigError or CiphertextError."""
        plan = self.plan
        size = plan.vector_size
        return update_encryptor(plan.secure_sum, plan.codec, size, public_key, self.joint)


def open_federation(data: bytes, authority_key: bytes) -> Federation:
    """SPEC 9.1: the authority alone says who the hospitals are."""
    federation = verify(Federation, data, {authority_key}, 1)
    if federation.authority_key != authority_key:
        raise RecordError("the federation names another authority key than the one that signed it")
    names = [hospital.name for hospital in federation.hospitals]
    if len(set(names)) != len(names):
        raise RecordError(f"federation {federation.name} lists a hospital twice: {names}")
    return federation


def log_origin(federation: Federation, hospital: int) -> str:
    """SPEC 8.5: each log has a name of its own; the federation's is that of its host's log."""
    if hospital == 0:
        return federation.log_origin
    return f"{federation.log_origin}/{federation.hospitals[hospital].name}"


def log_of(federation: Federation, key: bytes) -> int:
    """Return the number of the hospital whose log signs with `key`. Raises RecordError."""
    keys = [hospital.log_key for hospital in federation.hospitals]
    if key not in keys:
        raise RecordError(f"log key {key.hex()} is of no hospital of federation {federation.name}")
    return keys.index(key)


def open_study_plan(data: bytes, federation: Federation) -> StudyPlan:
    """SPEC 9.2: the authority signs the plan; its quorum can be met."""
    plan = verify(StudyPlan, data, {federation.authority_key}, 1)
    _same_federation(plan.TYPE, plan.federation, federation)
    if plan.quorum > len(federation.hospitals):
        raise RecordError(
            f"study {plan.study} asks for {plan.quorum} aggregators, "
            f"the federation has {len(federation.hospitals)}"
        )
    check_terms(plan.terms)
    if plan.secure_sum == "plain" and plan.privacy.noise == "distributed":
        raise RecordError(
            f"study {plan.study} adds distributed noise to a sum in clear: single updates have "
            "too little of it; encrypt the sum"
        )
    weights = plan.training.class_weights
    if weights and len(weights) != len(plan.model.classes):
        raise RecordError(
            f"study {plan.study} has {len(weights)} class weights for {len(plan.model.classes)} "
            "classes; name one for each, or none"
        )
    _check_task(plan)
    _check_joint(plan, len(federation.hospitals))
    if plan.min_ring > ring_suite.most_keys(plan.ring_suite):
        raise RecordError(
            f"study {plan.study} asks for rings of {plan.min_ring} keys at least; those of suite "
            f"{plan.ring_suite} have {ring_suite.most_keys(plan.ring_suite)} at most"
        )
    if plan.min_cohort > plan.codec.n_max:
        raise RecordError(
            f"study {plan.study} wants at least {plan.min_cohort} devices, "
            f"its codec carries {plan.codec.n_max}"
        )
    return plan


def open_roster(data: bytes, federation: Federation) -> Roster:
    """SPEC 9.3: every hospital signs each roster; keys are sorted without repeats."""
    roster = _signed_by_all(Roster, data, federation)
    _same_federation(roster.TYPE, roster.federation, federation)
    check_order(roster)
    return roster


def check_order(roster: Roster) -> None:
    """SPEC 9.3: keys are sorted without repeats."""
    if list(roster.keys) != sorted(set(roster.keys)):
        raise RecordError(f"the roster of cohort {roster.cohort} is not sorted without repeats")


def open_sum_key(data: bytes, federation: Federation, plan: StudyPlan) -> SumKey:
    """SPEC 9.4: every hospital signs the key that updates are encrypted to."""
    key = _signed_by_all(SumKey, data, federation)
    _same_federation(key.TYPE, key.federation, federation)
    if (key.study, key.secure_sum) != (plan.study, plan.secure_sum):
        raise RecordError(
            f"the sum key is for {key.secure_sum} in study {key.study}, "
            f"not for {plan.secure_sum} in {plan.study}"
        )
    return key


def open_study(federation: Federation, plan: bytes, roster: bytes, sum_key: bytes) -> Study:
    """Open the three records that make a study, given the pinned federation."""
    opened, members = open_study_plan(plan, federation), open_roster(roster, federation)
    study = Study(
        federation,
        opened,
        digest(plan),
        members,
        digest(roster),
        open_sum_key(sum_key, federation, opened),
        digest(sum_key),
    )
    check_rings(study)
    return study


def check_rings(study: Study) -> None:
    """SPEC 9.4: rings are as large as the study asks, and no larger than its suite allows."""
    roster = study.roster
    check_ring_sizes(study.plan, roster.cohort, len(roster.keys), roster.ring_size)
    _ = study.rings  # they can be made: each key is a point


def check_ring_sizes(plan: StudyPlan, cohort: str, keys: int, ring_size: int) -> None:
    """SPEC 9.4, as far as numbers go: of a roster whose keys need not be drawn yet."""
    most = ring_suite.most_keys(plan.ring_suite)
    if ring_size > most:
        raise RecordError(
            f"the roster of {cohort} is cut at {ring_size} keys; rings of suite "
            f"{plan.ring_suite} have {most} at most"
        )
    smallest = ring_suite.smallest(keys, ring_size)
    if smallest < plan.min_ring:
        raise RecordError(
            f"the roster of {cohort} cuts rings of {smallest} keys, "
            f"study {plan.study} asks for {plan.min_ring} at least"
        )


ROSTER_FILE = "roster.cbor"
STUDY_FILES = ("federation.cbor", "study.cbor", ROSTER_FILE, "sum-key.cbor")
KEY_FILE = "sum-key.bin"
ARTEFACT_FILE = "artefact.tflite"
INFO_FILE = "artefact.json"
FEATURES_FILE = "features.json"


def companion_file(name: bytes) -> str:
    """Return the name of the file of a companion with this digest."""
    return f"{name.hex()}.bin"


@dataclass(frozen=True)
class StudyFiles:
    """A study with the bytes that say so: records by log kind, and objects by file name."""

    study: Study
    records: dict[str, bytes]
    objects: dict[str, bytes]


def open_study_files(read: Callable[[str], bytes], authority_key: bytes) -> StudyFiles:
    """Open a study's public files, which `read` returns by name (SPEC 9.10).

    Raises RecordError where an object is not the one that its record names.
    """
    data = [read(name) for name in STUDY_FILES]
    federation = open_federation(data[0], authority_key)
    study = open_study(federation, data[1], data[2], data[3])
    model = study.plan.model
    named = {ARTEFACT_FILE: model.artefact, INFO_FILE: model.info}
    named |= {companion_file(name): name for name in model.companions}
    if model.features:
        named[FEATURES_FILE] = model.features
    if study.plan.secure_sum not in KEYLESS:
        named[KEY_FILE] = study.sum_key.key
    objects = {name: read(name) for name in named}
    for name, wanted in named.items():
        if digest(objects[name]) != wanted:
            raise RecordError(f"{name} is not the object that the study's signed records name")
    kinds = ("federation", "study-plan", "roster", "sum-key")
    return StudyFiles(study, dict(zip(kinds, data, strict=True)), objects)


def peek_round_plan(data: bytes, federation: Federation) -> RoundPlan:
    """Open a round plan before its study is known: at least one aggregator signed it.

    Use `open_round_plan` before acting on it.
    """
    plan = verify(RoundPlan, data, _aggregators(federation), 1)
    _same_federation(plan.TYPE, plan.federation, federation)
    return plan


def open_round_plan(data: bytes, study: Study) -> RoundPlan:
    """SPEC 9.5: a quorum of aggregators signs a round, within the limits of its study."""
    federation, plan = study.federation, study.plan
    round_plan = verify(RoundPlan, data, _aggregators(federation), plan.quorum)
    _same_federation(round_plan.TYPE, round_plan.federation, federation)
    # The authority's limits stand: aggregators choose rounds, not guarantees.
    agreed = {
        "study": plan.study,
        "study_plan": study.plan_digest,
        "cohort": study.roster.cohort,
        "epoch": study.roster.epoch,
        "training": plan.training,
        "privacy": plan.privacy,
        "codec": plan.codec,
        "sum_key": study.sum_key_digest,
        "roster": study.roster_digest,
    }
    for field, wanted in agreed.items():
        if getattr(round_plan, field) != wanted:
            raise RecordError(
                f"round {round_plan.round} has another {field} than study {plan.study} agreed"
            )
    if round_plan.min_cohort < plan.min_cohort:
        raise RecordError(
            f"round {round_plan.round} would decrypt a sum of {round_plan.min_cohort} updates; "
            f"study {plan.study} allows none below {plan.min_cohort}"
        )
    if round_plan.round > plan.training.rounds:
        raise RecordError(
            f"round {round_plan.round} is beyond the {plan.training.rounds} rounds of the study"
        )
    if round_plan.opens_ms + round_plan.window_ms > round_plan.deadline_ms:
        raise RecordError(f"round {round_plan.round} has its deadline before its window ends")
    moves = follows_quantile(plan.privacy) and round_plan.round > 1
    if round_plan.clip_factor != 1.0 and not moves:
        raise RecordError(
            f"round {round_plan.round} has a clip_factor of {round_plan.clip_factor:g}, must be 1: "
            "a clip moves only where it follows a quantile, and not before the first count"
        )
    return round_plan


def open_receipts(data: bytes, federation: Federation) -> Receipts:
    """SPEC 9.6: a gateway signs, with its log key, which updates it counted."""
    receipts = verify(Receipts, data, _logs(federation), 1)
    if list(receipts.digests) != sorted(set(receipts.digests)):
        raise RecordError("receipts are not sorted without repeats")
    return receipts


def open_report(data: bytes, federation: Federation) -> RoundReport:
    """SPEC 9.7: a gateway signs, with its log key, how a round ended."""
    return verify(RoundReport, data, _logs(federation), 1)


def open_model(data: bytes, federation: Federation, plan: StudyPlan) -> GlobalModel:
    """SPEC 9.8: a quorum of aggregators signs a model."""
    model = verify(GlobalModel, data, _aggregators(federation), plan.quorum)
    _same_federation(model.TYPE, model.federation, federation)
    if model.study != plan.study:
        raise RecordError(f"the model is of study {model.study}, not {plan.study}")
    return model


def peek_model(data: bytes, federation: Federation) -> GlobalModel:
    """Open a model before its study is known: at least one aggregator signed it.

    Use `open_model` before acting on it.
    """
    return verify(GlobalModel, data, _aggregators(federation), 1)


def check_model_follows(model: GlobalModel, plan: RoundPlan, report: RoundReport) -> None:
    """SPEC 9.8: a model says of its round what the gateway's report says.

    A sum may be there and not applied: one hostile device can make a sum that
    nobody can decode. The round then counts nobody and leaves the weights.
    """
    if (model.round, model.plan) != (report.round, report.plan):
        raise RecordError(f"the model of round {model.round} follows from another round")
    if model.applied and report.status != "summed":
        raise RecordError(f"the model of round {model.round} applies a sum that there was not")
    counted = report.admitted if model.applied else 0
    if model.contributions != counted:
        raise RecordError(
            f"the model of round {model.round} counts {model.contributions} updates, not {counted}"
        )
    if not model.applied and model.weights != plan.weights:
        raise RecordError(f"the weights changed in round {model.round}, which applied no sum")
    _check_clip(model, plan)


def check_plan_follows(plan: RoundPlan, weights: bytes, clip_factor: float) -> None:
    """SPEC 9.5: a round goes on from the weights and the clip of the model before it."""
    if plan.weights != weights:
        raise RecordError(f"round {plan.round} starts from other weights than its last model's")
    if plan.clip_factor != clip_factor:
        raise RecordError(
            f"round {plan.round} has a clip_factor of {plan.clip_factor:g}, the model before it "
            f"says {clip_factor:g}"
        )


def _check_clip(model: GlobalModel, plan: RoundPlan) -> None:
    """SPEC 9.8: the clip follows from the share that the model says, or stays as it was."""
    moves = follows_quantile(plan.privacy) and model.applied
    if not moves and model.unclipped != 0.0:
        raise RecordError(
            f"the model of round {model.round} says a share of {model.unclipped:g} unclipped, of "
            "which it has no count"
        )
    due = plan.clip_factor
    if moves:
        due = next_factor(due, model.unclipped, plan.privacy)
    if abs(model.clip_factor - due) > (FACTOR_TOLERANCE * due if moves else 0.0):
        raise RecordError(
            f"the model of round {model.round} has a clip_factor of {model.clip_factor:g}, from "
            f"its share of {model.unclipped:g} unclipped follows {due:g}"
        )


def joint_of(plan: StudyPlan, hospitals: int) -> Joint | None:
    """Return who decrypts a study's sums, None without a joint key (SPEC 5.11).

    Each set of `threshold` hospitals may be asked once for every sum of a round, and once
    when the key is rehearsed.
    """
    if plan.secure_sum != "threshold-he":
        return None
    sums = plan.training.rounds * plan.groups + 1
    return Joint(Access(hospitals, plan.threshold), sums * comb(hospitals, plan.threshold))


def _check_joint(plan: StudyPlan, hospitals: int) -> None:
    """SPEC 9.2: who decrypts is said where the sum has a joint key, and only there."""
    if plan.secure_sum == "two-server" and hospitals != len(two_server.ROLES):
        raise RecordError(
            f"study {plan.study} shares its updates between the gateways of two hospitals, "
            f"the federation has {hospitals}"
        )
    if plan.secure_sum == "threshold-he":
        if not 2 <= plan.threshold <= hospitals:
            raise RecordError(
                f"study {plan.study} has its sums decrypted by {plan.threshold} of {hospitals} "
                "hospitals: a joint key takes 2 at least, and not more than there are"
            )
        if plan.quorum < plan.threshold:
            raise RecordError(
                f"study {plan.study} lets {plan.quorum} hospitals sign what {plan.threshold} are "
                "needed to decrypt: the quorum is at least the threshold"
            )
    elif plan.threshold:
        raise RecordError(
            f"study {plan.study} names a threshold of {plan.threshold}, which goes with "
            f"threshold-he, not with {plan.secure_sum}"
        )
    if plan.groups > 1 and plan.secure_sum != "threshold-he":
        raise RecordError(
            f"study {plan.study} cuts its rounds into {plan.groups} groups: that takes the nonces "
            "of several hospitals, so it goes with threshold-he"
        )
    if (plan.groups > 1) != (plan.combine != "mean"):
        raise RecordError(
            f"study {plan.study} combines {plan.groups} groups by {plan.combine}: "
            "one group goes with mean, several with median or trimmed-mean"
        )


def _check_task(plan: StudyPlan) -> None:
    """SPEC 4.10: a study of statistics sums exact numbers once and trains nothing."""
    if len(plan.model.features) not in (0, 32):
        raise RecordError(f"study {plan.study} names features by {len(plan.model.features)} bytes")
    if plan.task == "train":
        return
    codec = plan.codec
    kept = (codec.bits, codec.keep, codec.noise_width) == (limbs.LIMB_BITS, 1.0, 0)
    one = plan.training.rounds == plan.groups == 1
    if not (kept and one) or plan.privacy.unit != "none":
        raise RecordError(
            f"study {plan.study} asks for statistics: that takes one round in one group, privacy "
            f"unit none and a codec of {limbs.LIMB_BITS} bits that keeps every field"
        )


def _signed_by_all(cls: type[R], data: bytes, federation: Federation) -> R:
    keys = {hospital.identity_key for hospital in federation.hospitals}
    return verify(cls, data, keys, len(keys))


def _aggregators(federation: Federation) -> set[bytes]:
    return {hospital.aggregator_key for hospital in federation.hospitals}


def _logs(federation: Federation) -> set[bytes]:
    return {hospital.log_key for hospital in federation.hospitals}


def _same_federation(kind: str, name: str, federation: Federation) -> None:
    if name != federation.name:
        raise RecordError(f"{kind} belongs to federation {name}, not {federation.name}")
