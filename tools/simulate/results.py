"""From what a simulation left behind to the dictionary of `report.json`."""

import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

import vitalring
from vitalring.aggregator.evaluate import has_validation
from vitalring.edge_agent.accountant import epsilon
from vitalring.edge_agent.announcement import log_keys
from vitalring.models import metrics
from vitalring.models.dataset import FeatureSchema
from vitalring.protocol import chunks, sealing, trust
from vitalring.protocol.checkpoint import parse_and_verify
from vitalring.protocol.guarantee import noise_of, study_spend
from vitalring.protocol.privacy import follows_quantile
from vitalring.protocol.records import Evaluation, StudyPlan
from vitalring.schema import to_plain
from vitalring.tools.calibration import too_small, unsteady_clip
from vitalring.tools.federation import Made
from vitalring.tools.roles import MAX_PAYLOAD_BYTES
from vitalring.tools.simulate import comparison, watch
from vitalring.tools.simulate.alone import AloneResult
from vitalring.tools.simulate.final import FinalEvaluation
from vitalring.tools.simulate.layout import Fleet
from vitalring.tools.simulate.pooled import Centralised
from vitalring.tools.simulate.watch import RoundResult

_MEASURES = ("train", "encode", "encrypt", "sign")


def uplink_bytes(update_bytes: int, frame_bytes: int) -> int:
    """Return what a device sends for an update of this many bytes: sealed, padded, framed."""
    box = sealing.sealed_bytes(update_bytes)
    frames = -(-box // (frame_bytes - chunks.HEADER_BYTES))
    return box + frames * chunks.HEADER_BYTES


def report_dict(
    made: Made,
    fleet: Fleet,
    reached: Sequence[RoundResult],
    compared: Sequence[AloneResult],
    checkpoint: bytes,
    *,
    command: str,
    started: datetime,
    seconds: float,
    stopped: bool,
    test: FinalEvaluation | None = None,
    centralised: Centralised | None = None,
    personal: Sequence[Mapping[str, Any]] = (),
    features: FeatureSchema | None = None,
    explanations: Sequence[Mapping[str, str]] = (),
    labels: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Return the content of `report.json`; `checkpoint` is the log's newest one, signed.

    `personal` has a row for each device: `{device, rows, global: {accuracy, macro_f1}, personal:
    {accuracy, macro_f1}, used, reason}`. `explanations` have `{title, text, svg}`. `labels` are
    counts by class of the rows that train and test, as `final.label_counts` makes them.
    """
    study, plan = made.study.study, made.study.study.plan
    tree = parse_and_verify(checkpoint, log_keys(study.federation))
    states = [made.layout.device_folder(name) / "state" for name in fleet.devices]
    rows = [
        round_dict(
            result,
            watch.stage_seconds(states, result.report.round),
            plan.model.classes,
            MAX_PAYLOAD_BYTES,
        )
        | clip
        for result, clip in zip(reached, clip_dicts(plan, reached), strict=True)
    ]
    last = reached[-1].model.evaluation if reached else None
    final = test.evaluation if test else last
    sent = max((row["bytes_up_per_device"] for row in rows), default=0)
    return {
        "version": vitalring.__version__,
        "command": command,
        "started": started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seconds": seconds,
        "status": "stopped" if stopped else "finished",
        "dataset": fleet.info.name,
        "model": plan.model.name,
        "classes": list(plan.model.classes),
        "parameters": plan.model.dimension,
        "devices": len(fleet.devices),
        "hospitals": len(study.federation.hospitals),
        "secure_sum": plan.secure_sum,
        "training": training_dict(plan),
        "privacy": privacy_dict(study, watch.logged_rounds(made.host)),
        "rounds": rows,
        "rounds_on": "validation" if has_validation(fleet.info) else "test",
        "final": {
            **evaluation_dict(final, plan.model.classes),
            "confusion": [list(row) for row in final.confusion] if final else None,
        },
        "alone": alone_dict(compared),
        **comparison.parts(
            test,
            centralised,
            classes=plan.model.classes,
            personal=personal,
            features=features,
            declared=fleet.info.features is not None,
            explanations=explanations,
            labels=labels,
        ),
        "bytes": {
            "update": sent,
            "per_parameter": sent / plan.model.dimension,
            "float32": 4 * plan.model.dimension,
        },
        "log": {
            "checkpoint": checkpoint.decode(),
            "leaves": tree.size,
            "root": tree.root.hex(),
            "authority": made.authority_key.hex(),
        },
    }


def training_dict(plan: StudyPlan) -> dict[str, Any]:
    """Return the numbers that the plan trains with, said or by its unit."""
    training = plan.training
    return {
        "batch": training.batch,
        "learning_rate": training.learning_rate,
        "proximal": training.proximal,
        "balance": training.balance,
        "class_weights": list(training.class_weights),
        "update_clip": plan.codec.clip,
        "server": to_plain(plan.server),
    }


def privacy_dict(study: trust.Study, rounds: int) -> dict[str, Any]:
    """Return the guarantee, and epsilon for the first so many rounds: those that the log has."""
    plan = study.plan
    privacy, training = plan.privacy, plan.training
    done = study_spend(plan.terms, rounds)
    spent = epsilon(done, privacy.delta) if done else 0.0
    return {
        "unit": privacy.unit,
        "noise": privacy.noise,
        "epsilon": privacy.epsilon,
        "delta": privacy.delta,
        "spent": spent,
        "noise_multiplier": privacy.noise_multiplier,
        "schedule": list(privacy.schedule),
        "clip": privacy.clip,
        "colluders": privacy.colluders,
        "shares": noise_of(plan.terms).shares if privacy.noise == "distributed" else None,
        "note": too_small(plan.terms, len(study.roster.keys)),
        "clip_quantile": privacy.clip_quantile or None,
        "clip_rate": privacy.clip_rate or None,
        "clip_share": privacy.clip_share or None,
        "clip_note": unsteady_clip(plan.terms, len(study.roster.keys)),
        "sampling_rate": training.sampling_rate,
        "steps": training.steps,
        "rounds": training.rounds,
    }


def round_dict(
    result: RoundResult, stages: dict[str, float], classes: Sequence[str], frame_bytes: int
) -> dict[str, Any]:
    """Return one row of `rounds`."""
    report, evaluation = result.report, result.model.evaluation
    shown = {stage: stages[stage] for stage in _MEASURES if stage in stages}
    shown["admit"] = report.admission_ms / 1000 / max(1, report.admitted)
    shown["aggregate"] = result.aggregate_seconds
    size = int(stages.get("update_bytes", 0))
    return {
        "round": report.round,
        "status": report.status,
        **evaluation_dict(evaluation, classes),
        "expected": report.expected,
        "admitted": report.admitted,
        "refused": dict(report.refused),
        "seconds": (report.closed_ms - report.opened_ms) / 1000 + result.aggregate_seconds,
        "bytes_up_per_device": uplink_bytes(size, frame_bytes) if size else 0,
        "stages": shown,
    }


def clip_dicts(plan: StudyPlan, reached: Sequence[RoundResult]) -> list[dict[str, Any]]:
    """Return each round's clip, and the noisy share that it left as it was; {} for a fixed clip."""
    if not follows_quantile(plan.privacy):
        return [{} for _ in reached]
    start = plan.privacy.clip if plan.privacy.unit == "record" else plan.codec.clip
    # A round has the factor that the model before it says.
    factors = [1.0, *(result.model.clip_factor for result in reached)]
    return [
        {
            "clip": factor * start,
            "unclipped": result.model.unclipped if result.model.applied else None,
        }
        for factor, result in zip(factors, reached, strict=False)
    ]


def evaluation_dict(evaluation: Evaluation | None, classes: Sequence[str]) -> dict[str, Any]:
    """Return accuracy, macro-F1, loss and recall by class; None each where not evaluated."""
    if evaluation is None:
        return {"accuracy": None, "macro_f1": None, "loss": None, "recall": None}
    recall = metrics.recall(np.array(evaluation.confusion, np.int64))
    return {
        "accuracy": evaluation.accuracy,
        "macro_f1": evaluation.macro_f1,
        "loss": evaluation.loss,
        "recall": {name: float(value) for name, value in zip(classes, recall, strict=True)},
    }


def alone_dict(alone: Sequence[AloneResult]) -> dict[str, Any] | None:
    """Return what single devices reach, or None where none was trained."""
    if not alone:
        return None
    scores = [result.macro_f1 for result in alone]
    return {
        "macro_f1": scores,
        "accuracy": [result.accuracy for result in alone],
        "median": statistics.median(scores),
        "mean": statistics.fmean(scores),
        "best": max(scores),
    }
