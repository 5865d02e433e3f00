"""Read how a simulation stands from its parties' databases, without disturbing them.

`hospital` is the folder in which gateway and aggregator keep theirs.
"""

import json
import statistics
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitalring.aggregator.following import weights_of
from vitalring.database import is_made, open_read_only
from vitalring.protocol import trust
from vitalring.protocol.cbor import decode
from vitalring.protocol.records import Bundle, GlobalModel, RoundReport, StudyPlan


@dataclass(frozen=True)
class RoundResult:
    """A finished round: the gateway's report, the aggregator's model and its time."""

    report: RoundReport
    model: GlobalModel
    aggregate_seconds: float


@dataclass(frozen=True)
class Standing:
    """Where a simulation stands now."""

    round: int
    status: str
    admitted: int


def standing(hospital: Path) -> Standing | None:
    """Return the newest round as the gateway has it, or None before the first."""
    row = _one(
        hospital / "gateway" / "gateway.sqlite",
        "SELECT round, status, admitted FROM rounds ORDER BY round DESC LIMIT 1",
    )
    return Standing(*row) if row else None


def logged_rounds(hospital: Path) -> int:
    """Return how many rounds the log has, the open one too: devices have paid for it."""
    newest = standing(hospital)
    return newest.round if newest else 0


def finished_rounds(hospital: Path, study: trust.Study, after: int) -> list[RoundResult]:
    """Return the rounds after number `after` that have a model."""
    models = _all(
        hospital / "aggregator" / "aggregator.sqlite",
        "SELECT round, model, seconds FROM rounds WHERE model IS NOT NULL AND round > ? "
        "ORDER BY round",
        (after,),
    )
    results = []
    for number, bundle, seconds in models:
        row = _one(
            hospital / "gateway" / "gateway.sqlite",
            "SELECT report FROM rounds WHERE round = ? AND status = 'done'",
            (number,),
        )
        if row is None:
            break  # the gateway has not logged the model yet
        model = trust.open_model(decode(Bundle, bundle).record, study.federation, study.plan)
        results.append(RoundResult(trust.open_report(row[0], study.federation), model, seconds))
    return results


def final_weights(hospital: Path, plan: StudyPlan) -> npt.NDArray[np.float64]:
    """Return the weights (d,) that the aggregator arrived at."""
    row = _one(
        hospital / "aggregator" / "aggregator.sqlite",
        "SELECT weights FROM state ORDER BY round DESC LIMIT 1",
    )
    return weights_of(np.frombuffer(row[0] if row else b"", "<f8"), plan.terms)


def stage_seconds(states: Iterable[Path], round_number: int) -> dict[str, float]:
    """Return the median seconds of each stage over the devices that took part in a round."""
    stages: dict[str, list[float]] = {}
    for folder in states:
        row = _one(
            folder / "agent.sqlite", "SELECT timings FROM rounds WHERE round = ?", (round_number,)
        )
        for stage, seconds in (json.loads(row[0]) if row else {}).items():
            stages.setdefault(stage, []).append(seconds)
    return {stage: statistics.median(seconds) for stage, seconds in stages.items()}


def _one(path: Path, query: str, values: tuple[Any, ...] = ()) -> tuple[Any, ...] | None:
    rows = _all(path, query, values)
    return rows[0] if rows else None


def _all(path: Path, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if not is_made(path):
        return []
    with closing(open_read_only(path)) as db:
        return db.execute(query, values).fetchall()
