"""What a log must show of its study and of each round (SPEC 8.16, 8.17).

Rules kept here: a record is believed for its signatures alone, a count for the entries that
bear it out, and an update for its ring signature; each fault names its file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vitalring.errors import LogError
from vitalring.models.artefact import artefact_from_bytes, initial_weights
from vitalring.models.dataset import FeatureSchema
from vitalring.models.dataset.statistics import Question
from vitalring.protocol import commitments, rosters, trust
from vitalring.protocol.agreement import open_share_report
from vitalring.protocol.cbor import digest
from vitalring.protocol.records import (
    Federation,
    GlobalModel,
    RoundPlan,
    RoundReport,
    StudyPlan,
)
from vitalring.protocol.release import SetCommitment
from vitalring.protocol.ring_suite import Verdict
from vitalring.protocol.secure_sum import KEYLESS
from vitalring.protocol.signing import Signed
from vitalring.protocol.update import check_signatures, round_checks
from vitalring.protocol.weights import pack_weights, unpack_weights
from vitalring.tools import log_shares
from vitalring.tools.log_folder import Entry, LogFolder, RoundEntries, blame


@dataclass(frozen=True)
class RoundVerdict:
    """A round of the log. `status` is "open" before its report, then what the report says.

    `weights` is the SHA-256 of its model's weights, None while it has no model; `final` says
    whether that model ends the study. `clip_factor` is the factor that the round's clip had, and
    `next_factor` the next one's (SPEC 7.17).
    """

    number: int
    status: str
    expected: int
    admitted: int
    weights: bytes | None = None
    final: bool = False
    reports: tuple[bytes, ...] = ()
    """Digests of both gateways' reports, where each holds a share and the round has its model."""
    clip_factor: float = 1.0
    next_factor: float = 1.0


def open_logged_study(
    files: LogFolder, entries: Sequence[Entry], federation: Federation
) -> tuple[trust.Study, bytes]:
    """Return the study and the digest of the weights that it begins from."""
    named, plan, roster, key = entries
    # 1. The log names the very federation whose key signed its checkpoint.
    with blame(named.object_path):
        opened = trust.open_federation(files.record(named), federation.authority_key)
    if opened != federation:
        raise named.fault("names another federation than the one that signed the checkpoint")
    # 2. Plan, roster and sum key are signed by those who must.
    data = [files.record(entry) for entry in (plan, roster, key)]
    with blame(plan.object_path):
        study_plan = trust.open_study_plan(data[0], federation)
    with blame(roster.object_path):
        keys = trust.open_roster(data[1], federation)
    with blame(key.object_path):
        sum_key = trust.open_sum_key(data[2], federation, study_plan)
    # 3. The objects that they name are here; step 2 of `verify_log` hashed them.
    start = _start(files, study_plan)
    if study_plan.secure_sum not in KEYLESS:
        files.blob(sum_key.key, "it is the public key of the encrypted sum")
    study = trust.Study(
        federation,
        study_plan,
        digest(data[0]),
        keys,
        digest(data[1]),
        sum_key,
        digest(data[2]),
    )
    with blame(roster.object_path):
        trust.check_rings(study)
    return study, start


def _start(files: LogFolder, plan: StudyPlan) -> bytes:
    """Return the digest of what a study starts from: its first weights, or no bytes."""
    why = "the study plan names it as its model"
    model, info = (files.blob(name, why) for name in (plan.model.artefact, plan.model.info))
    companions = tuple(files.blob(name, why) for name in plan.model.companions)
    path = f"objects/{plan.model.info.hex()}"
    if plan.task == "statistics":
        with blame(path):
            question = Question.from_json(info)
            if sum(question.widths) != plan.model.dimension:
                raise LogError("it asks for other numbers than the study plan")
        return digest(b"")
    if plan.model.features:
        features = files.blob(plan.model.features, "the study plan names it as its features")
        with blame(f"objects/{plan.model.features.hex()}"):
            FeatureSchema.from_json(features)
    with blame(path):
        artefact = artefact_from_bytes(info, model, companions, plan.model.info)
        if (artefact.info.dimension, artefact.info.classes) != (
            plan.model.dimension,
            plan.model.classes,
        ):
            raise LogError("it describes another network than the study plan")
    return digest(pack_weights(initial_weights(artefact, plan.model.initial_seed)))


def follow_rosters(files: LogFolder, study: trust.Study, logged: RoundEntries) -> trust.Study:
    """Return the study under the roster of a round; `study` is under that of the round before.

    Raises LogError for a roster that does not follow on the one before it (SPEC 9.14).
    """
    for entry in logged.rosters:
        data = files.record(entry)
        with blame(entry.object_path):
            study = rosters.next_study(study, data)
    return study


def check_round(
    files: LogFolder,
    study: trust.Study,
    number: int,
    logged: RoundEntries,
    before: bytes,
    hospital: int = 0,
    factor: float = 1.0,
) -> RoundVerdict:
    """Check a round of a hospital's log.

    It must start from the weights with digest `before`, and with this factor on its clip.
    """
    # 1. A quorum signed the plan, which keeps to the study and is the next one.
    path = logged.plan.object_path
    data = files.record(logged.plan)
    with blame(path):
        plan = trust.open_round_plan(data, study)
    if plan.round != number:
        raise logged.plan.fault(f"plans round {plan.round} where round {number} is next")
    # 2. It starts from the weights of the model before it, the first round from the seed's.
    _check_weights(files, study, path, plan.weights)
    with blame(path):
        trust.check_plan_follows(plan, before, factor)
    # 3. Its updates are counted once each, and signed from within a ring.
    _check_updates(study, plan, logged)
    if logged.report is None:
        return RoundVerdict(
            number, "open", len(study.roster.keys), 0, clip_factor=factor, next_factor=factor
        )
    # 4. The report and the receipts say what the entries say.
    report = _report(files, study, plan, logged, logged.report, hospital)
    log_shares.check_agreed(files, study, plan, logged, report)
    verdict = RoundVerdict(
        number,
        report.status,
        report.expected,
        report.admitted,
        clip_factor=factor,
        next_factor=factor,
    )
    # 5. Hospitals' words are theirs and about this round.
    committed = _words(files, study, plan, logged, logged.report)
    if logged.model is None:
        return verdict
    # 6. The model follows from this report, and enough hospitals committed to one set.
    named = log_shares.check_peer(files, study, plan, logged, hospital) or logged.report
    model = _model(files, study, plan, named, report, logged.model)
    reports = log_shares.reports_of(files, study, plan, model, logged, hospital)
    with blame(logged.model.object_path):
        commitments.check_committed(model, committed, study)
    return replace(
        verdict,
        weights=model.weights,
        final=model.final,
        reports=reports,
        next_factor=model.clip_factor,
    )


def _check_updates(study: trust.Study, plan: RoundPlan, logged: RoundEntries) -> None:
    verdicts = _signatures(study, plan, logged)
    signers: dict[bytes, int] = {}
    last = b""
    for (entry, update), verdict in zip(logged.updates, verdicts, strict=True):
        # 1. It belongs to this round's plan and stands in its place.
        if update.plan != logged.plan.value.digest:
            raise entry.fault(f"is an update to another plan than that of round {plan.round}")
        if update.digest <= last:
            raise entry.fault("is not sorted by digest without repeats")
        last = update.digest
        # 2. A ring of the roster signed it.
        if update.ring >= len(study.rings):
            raise entry.fault(f"names ring {update.ring}, the roster has {len(study.rings)}")
        if verdict.tag is None:
            raise entry.fault(f"is not signed by its ring: {verdict.error}") from verdict.error
        # 3. Its signer is counted once.
        if verdict.tag in signers:
            raise entry.fault(f"counts the signer of entry {signers[verdict.tag]} a second time")
        signers[verdict.tag] = entry.position
    # 4. The sum had room for all of them.
    if len(signers) > plan.codec.n_max:
        raise logged.updates[-1][0].fault(
            f"is update {len(signers)} of a round whose sum holds {plan.codec.n_max}"
        )


def _signatures(study: trust.Study, plan: RoundPlan, logged: RoundEntries) -> list[Verdict]:
    """Return whether its ring signed each update, those of one ring checked together."""
    checks = round_checks(plan, logged.plan.value.digest, study.scheme(), study.rings)
    named = [number for number, (_, u) in enumerate(logged.updates) if u.ring < len(study.rings)]
    updates = [logged.updates[number][1] for number in named]
    items = [(update.ring, update.digest, update.signature) for update in updates]
    found = check_signatures(checks, items, max_passes=max(1, len(items)))
    verdicts = [Verdict()] * len(logged.updates)
    for number, verdict in zip(named, found, strict=True):
        verdicts[number] = verdict
    return verdicts


def _report(
    files: LogFolder,
    study: trust.Study,
    plan: RoundPlan,
    logged: RoundEntries,
    entry: Entry,
    hospital: int,
) -> RoundReport:
    # 1. A gateway of the federation signed the report; where there are two, the log's own.
    data = files.record(entry)
    with blame(entry.object_path):
        report = trust.open_report(data, study.federation)
        if study.shared:
            report = open_share_report(data, study.federation, hospital)
    # 2. It is this round's, and counts what the log counts.
    counted = len(logged.updates)
    status = "summed" if counted >= plan.min_cohort else "below_min_cohort"
    _agree(
        entry.object_path,
        {
            "plan": (report.plan, logged.plan.value.digest),
            "round": (report.round, plan.round),
            "number of admitted updates": (report.admitted, counted),
            "status": (report.status, status),
            "length of the sum's digest": (len(report.sum), 32 if status == "summed" else 0),
        },
    )
    if not counted <= report.expected <= len(study.roster.keys):
        raise LogError(
            f"{entry.object_path}: {report.expected} devices were expected; the roster has "
            f"{len(study.roster.keys)} and {counted} were admitted"
        )
    # 3. Devices were given receipts for exactly these updates.
    path = f"receipts/{plan.round}"
    signed = files.read(path, Signed.MAX_BYTES, f"round {plan.round} is closed")
    with blame(path):
        receipts = trust.open_receipts(signed, study.federation)
    _agree(
        path,
        {
            "plan": (receipts.plan, logged.plan.value.digest),
            "list of updates": (receipts.digests, tuple(u.digest for _, u in logged.updates)),
        },
    )
    return report


def _words(
    files: LogFolder, study: trust.Study, plan: RoundPlan, logged: RoundEntries, report: Entry
) -> list[tuple[int, SetCommitment]]:
    """Return the commitments among the hospitals' words, by hospital."""
    closed = commitments.ClosedRound(plan.round, logged.plan.value.digest, report.value.digest)
    committed, seen = [], set()
    for entry in logged.words:
        with blame(entry.object_path):
            signer, word = commitments.open_word(entry.kind, files.record(entry), study, closed)
        if (signer, commitments.slot(word)) in seen:
            raise entry.fault(f"is another {entry.kind} of a hospital that gave this one before")
        seen.add((signer, commitments.slot(word)))
        if isinstance(word, SetCommitment):
            committed.append((signer, word))
    return committed


def _model(
    files: LogFolder,
    study: trust.Study,
    plan: RoundPlan,
    report: Entry,
    summed: RoundReport,
    entry: Entry,
) -> GlobalModel:
    # 1. A quorum of aggregators signed the model.
    data, path = files.record(entry), entry.object_path
    with blame(path):
        model = trust.open_model(data, study.federation, study.plan)
    # 2. It follows from this round's plan and report.
    _agree(path, {"report": (model.report, report.value.digest)})
    with blame(path):
        trust.check_model_follows(model, plan, summed)
    # 3. Its weights are here.
    _check_weights(files, study, path, model.weights)
    return model


def _check_weights(files: LogFolder, study: trust.Study, path: str, name: bytes) -> None:
    content = files.blob(name, f"{path} names it as its weights")
    with blame(f"objects/{name.hex()}"):
        if study.plan.task == "train":
            unpack_weights(content, study.plan.model.dimension)
        elif content:
            FeatureSchema.from_json(content)


def _agree(path: str, facts: Mapping[str, tuple[object, object]]) -> None:
    """Each pair is what a record says and what the log shows."""
    for what, (said, shown) in facts.items():
        if said != shown:
            raise LogError(f"{path}: its {what} is not what the log shows")
