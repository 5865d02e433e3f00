"""From what a simulation left behind to the dictionary of `report.json`."""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from vitalring.edge_agent.accountant import epsilon
from vitalring.models import metrics
from vitalring.protocol import chunks, sealing, trust
from vitalring.protocol.privacy import study_spend
from vitalring.protocol.records import Evaluation
from vitalring.tools.simulate.alone import AloneResult
from vitalring.tools.simulate.watch import RoundResult

_MEASURES = ("train", "encode", "encrypt", "sign")


def uplink_bytes(update_bytes: int, frame_bytes: int) -> int:
    """Return what a device sends for an update of this many bytes: sealed, padded, framed."""
    box = sealing.sealed_bytes(update_bytes)
    frames = -(-box // (frame_bytes - chunks.HEADER_BYTES))
    return box + frames * chunks.HEADER_BYTES


def privacy_dict(study: trust.Study, rounds: int) -> dict[str, Any]:
    """Return the guarantee, and epsilon for the rounds that were really run."""
    plan = study.plan
    privacy, training = plan.privacy, plan.training
    spend = study_spend(privacy, training, plan.model.dimension)
    spent = 0.0
    if spend is not None and rounds:
        done = type(spend)(spend.sampling_rate, spend.noise_multiplier, training.steps * rounds)
        spent = epsilon((done,), privacy.delta)
    return {
        "unit": privacy.unit,
        "noise": privacy.noise,
        "epsilon": privacy.epsilon,
        "delta": privacy.delta,
        "spent": spent,
        "noise_multiplier": privacy.noise_multiplier,
        "clip": privacy.clip,
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
