"""What an aggregator does in a round: propose it, release its sum once, publish a model.

Every step is stored before it is sent, so after a crash the same bytes go out
again. A sum is decrypted only if its gateway's signed report names it, it
holds at least `min_cohort` updates, and no other sum of the round was
released (SPEC 5.9, 11.1).
"""

import logging
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

from vitalring.aggregator import store
from vitalring.aggregator.following import factor_of, unclipped_of
from vitalring.aggregator.goals import Fields, Goal
from vitalring.aggregator.optimisers import ServerState, Vector
from vitalring.database import transaction
from vitalring.errors import CiphertextError, DataError, EncodingRangeError, RecordError
from vitalring.protocol import limits, trust
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.records import (
    Bundle,
    EncryptedSum,
    Evaluation,
    GlobalModel,
    RoundPlan,
    RoundReport,
)
from vitalring.protocol.secure_sum import Decrypt, SumScheme
from vitalring.protocol.signing import sign
from vitalring.schema import Range

_log = logging.getLogger(__name__)


PATIENCE: Final = Range(0, limits.MAX_ROUNDS)
"""Rounds without a better macro-F1 that end a study; 0 is never."""


@dataclass(frozen=True)
class Schedule:
    """How long rounds last, in milliseconds, and when a study stops before its plan's last round.

    `patience` rounds without a better macro-F1 end it; 0 means never. Where several hospitals
    work together, each drafts what they sign `turn_ms` after the one before it might have, and
    waits `patience_ms` for those with whom it decrypts.
    """

    window_ms: Annotated[int, Range(0, 2**40)] = 3_600_000
    turn_ms: Annotated[int, Range(1, 2**40)] = 60_000
    patience_ms: Annotated[int, Range(1, 2**40)] = 60_000
    timeout_ms: Annotated[int, Range(1, 2**40)] = 86_400_000
    rounds: Annotated[int, Range(1, limits.MAX_ROUNDS)] = limits.MAX_ROUNDS
    patience: Annotated[int, PATIENCE] = 0


@dataclass(frozen=True)
class Aggregator:
    """All that the steps of a round need."""

    study: trust.Study
    scheme: SumScheme
    decrypt: Decrypt
    signing_seed: bytes
    goal: Goal
    schedule: Schedule

    def __repr__(self) -> str:
        return f"Aggregator({self.study.plan.study!r})"


def start(db: sqlite3.Connection, aggregator: Aggregator) -> None:
    """Keep the first state; a second call changes nothing."""
    if db.execute("SELECT 1 FROM state LIMIT 1").fetchone() is None:
        with transaction(db):
            store.save_state(db, 0, aggregator.goal.optimiser.init(aggregator.goal.start))


def propose(
    db: sqlite3.Connection, aggregator: Aggregator, now_ms: int, rosters: Sequence[bytes] = ()
) -> store.Round:
    """Sign and keep the plan of the next round, with rosters that the log may lack."""
    plan, weights = next_plan(db, aggregator, now_ms)
    signed = sign(plan, [aggregator.signing_seed])
    return keep_plan(db, plan.round, signed, weights, rosters)


def next_plan(
    db: sqlite3.Connection, aggregator: Aggregator, now_ms: int
) -> tuple[RoundPlan, bytes]:
    """Return the plan of the next round, and the weights that it starts from."""
    study, schedule = aggregator.study, aggregator.schedule
    last = store.latest(db)
    number = last.number + 1 if last else 1
    vector = store.load_state(db, number - 1).weights
    weights = aggregator.goal.content(vector)
    plan = RoundPlan(
        federation=study.federation.name,
        study=study.plan.study,
        study_plan=study.plan_digest,
        cohort=study.roster.cohort,
        epoch=study.roster.epoch,
        round=number,
        weights=digest(weights),
        training=study.plan.training,
        privacy=study.plan.privacy,
        codec=study.plan.codec,
        sum_key=study.sum_key_digest,
        roster=study.roster_digest,
        min_cohort=study.plan.min_cohort,
        opens_ms=now_ms,
        window_ms=schedule.window_ms,
        deadline_ms=now_ms + schedule.timeout_ms,
        clip_factor=factor_of(vector, study.plan.terms),
    )
    return plan, weights


def keep_plan(
    db: sqlite3.Connection,
    number: int,
    signed: bytes,
    weights: bytes,
    rosters: Sequence[bytes] = (),
) -> store.Round:
    """Keep a signed plan for this round, in place of another that came to nothing."""
    proposal = encode(Bundle(signed, (weights, *rosters)))
    with transaction(db):
        db.execute(
            "INSERT INTO rounds (round, proposal, plan) VALUES (?, ?, ?) ON CONFLICT (round) "
            "DO UPDATE SET proposal = excluded.proposal, plan = excluded.plan",
            (number, proposal, digest(signed)),
        )
    return store.Round(number, proposal, digest(signed), None, None)


def conclude(
    db: sqlite3.Connection,
    aggregator: Aggregator,
    bundle: Bundle,
    reports: tuple[bytes, ...] = (),
) -> GlobalModel | None:
    """Turn a closed round into a signed model; None where that is done already.

    `reports` go with the model to gateways that have to know each other's. Raises RecordError
    for a report or a sum that is not to be believed.
    """
    study, current = aggregator.study, store.latest(db)
    report = trust.open_report(bundle.record, study.federation)
    if current is None or report.plan != current.plan:
        raise RecordError(f"a sum of round {report.round} arrived, which is not the latest round")
    if current.model is not None:
        return None
    started = time.monotonic()
    mean = None
    if report.status == "summed":
        total = _release(db, aggregator, current, report, bundle)
        try:
            mean = _decode(aggregator, current.plan, total, report.admitted)
        except (CiphertextError, EncodingRangeError, RecordError, DataError) as error:
            # One hostile device can spoil a sum; it must not be able to stop the study.
            _log.error("round %d: the sum cannot be used: %s", current.number, error)
    result = result_of(db, aggregator, current, bundle.record, mean)
    signed = sign(result.model, [aggregator.signing_seed])
    keep_model(db, result, signed, time.monotonic() - started, reports)
    return result.model


@dataclass(frozen=True, eq=False)
class Result:
    """What follows from a closed round: the server's next state, and the model to sign."""

    after: ServerState
    weights: bytes
    model: GlobalModel

    @property
    def objects(self) -> tuple[bytes, ...]:
        """Return what goes with the model: its weights, and the state where it names one."""
        state = (store.state_bytes(self.after),) if self.model.state else ()
        return (self.weights, *state)


def result_of(
    db: sqlite3.Connection,
    aggregator: Aggregator,
    current: store.Round,
    report_record: bytes,
    mean: Vector | None,
) -> Result:
    """Move the server's state by a mean update (v,); None leaves it as it was.

    So does a mean that leads to weights that cannot be published.
    """
    study, goal = aggregator.study, aggregator.goal
    report = trust.open_report(report_record, study.federation)
    after, applied, unclipped = store.load_state(db, current.number - 1), False, 0.0
    if mean is not None:
        try:
            moved = goal.optimiser.apply(after, mean)
            goal.content(moved.weights)
            after, applied, unclipped = moved, True, unclipped_of(mean, study.plan.terms)
        except (EncodingRangeError, RecordError, DataError) as error:
            _log.error("round %d: the sum cannot be used: %s", current.number, error)
    evaluation, weights = goal.evaluate(after.weights), goal.content(after.weights)
    model = GlobalModel(
        federation=study.federation.name,
        study=study.plan.study,
        round=current.number,
        plan=current.plan,
        report=digest(report_record),
        weights=digest(weights),
        contributions=report.admitted if applied else 0,
        applied=applied,
        final=_is_final(db, aggregator, current.number, evaluation),
        evaluation=evaluation,
        state=digest(store.state_bytes(after)) if study.joint else b"",
        clip_factor=factor_of(after.weights, study.plan.terms),
        unclipped=unclipped,
    )
    return Result(after, weights, model)


def agreed_result(aggregator: Aggregator, model: GlobalModel, bundle: Bundle) -> Result:
    """Return what a quorum agreed on, from the model's bundle (SPEC 11.15).

    Raises RecordError where weights or state are missing or do not fit together.
    """
    found = {digest(content): content for content in bundle.objects}
    if model.weights not in found or model.state not in found:
        raise RecordError(f"the model of round {model.round} came without weights or state")
    goal = aggregator.goal
    slots = len(goal.optimiser.init(goal.start).memory)
    after = store.state_from_bytes(found[model.state], goal.start.size, slots)
    weights = goal.content(after.weights)
    if digest(weights) != model.weights:
        raise RecordError(f"the state of round {model.round} does not lead to its weights")
    if factor_of(after.weights, aggregator.study.plan.terms) != model.clip_factor:
        raise RecordError(f"the state of round {model.round} does not lead to its clip_factor")
    return Result(after, weights, model)


def last_round(aggregator: Aggregator) -> int:
    """Return the round that ends the study in any case (SPEC 9.9)."""
    return min(aggregator.schedule.rounds, aggregator.study.plan.training.rounds)


def deadline_of(current: store.Round, study: trust.Study) -> int:
    """Return a round's deadline; long past where this hospital missed its plan."""
    if not current.proposal:
        return 0
    # It was verified when it was kept, under its own roster.
    record = decode(Bundle, current.proposal).record
    return trust.peek_round_plan(record, study.federation).deadline_ms


def keep_model(
    db: sqlite3.Connection,
    result: Result,
    signed: bytes,
    seconds: float,
    reports: tuple[bytes, ...] = (),
) -> None:
    """Keep a round's result with its signed model; it took so many seconds."""
    model = result.model
    with transaction(db):
        store.save_state(db, model.round, result.after)
        store.forget_before(db, model.round)
        db.execute(
            "INSERT INTO rounds (round, proposal, plan, model, macro_f1, seconds) "
            "VALUES (?, x'', ?, ?, ?, ?) ON CONFLICT (round) DO UPDATE SET "
            "model = excluded.model, macro_f1 = excluded.macro_f1, seconds = excluded.seconds",
            (
                model.round,
                model.plan,
                encode(Bundle(signed, (result.weights, *reports))),
                model.evaluation.macro_f1 if model.evaluation else None,
                seconds,
            ),
        )


def _release(
    db: sqlite3.Connection,
    aggregator: Aggregator,
    current: store.Round,
    report: RoundReport,
    bundle: Bundle,
) -> EncryptedSum:
    """Return the round's one sum once it may be decrypted (SPEC 11.1)."""
    # 1. The sum is the one that the signed report names.
    if len(bundle.objects) != 1 or digest(bundle.objects[0]) != report.sum:
        raise RecordError(f"round {report.round} came without the sum that its report names")
    total = decode(EncryptedSum, bundle.objects[0])
    # 2. It belongs to the plan and holds as many updates as the report says.
    if total.plan != current.plan or len(set(total.contributions)) != report.admitted:
        raise RecordError(f"the sum of round {report.round} does not fit its report")
    # 3. Enough updates went into it: as many as the devices were promised.
    plan = trust.open_round_plan(decode(Bundle, current.proposal).record, aggregator.study)
    if report.admitted < plan.min_cohort:
        raise RecordError(
            f"the sum of round {report.round} holds {report.admitted} updates; "
            f"none below {plan.min_cohort} is decrypted"
        )
    # 4. No other sum of this round was decrypted; the promise is on disk before the key is used.
    if current.released not in (None, report.sum):
        raise RecordError(f"another sum of round {report.round} was released already")
    with transaction(db):
        db.execute("UPDATE rounds SET released = ? WHERE round = ?", (report.sum, current.number))
    return total


def _decode(aggregator: Aggregator, plan_digest: bytes, total: EncryptedSum, count: int) -> Vector:
    """Decrypt a sum and return the average update (v,)."""
    residues = aggregator.scheme.decode_sum(total.ciphertexts)

    def fields() -> Fields:
        return aggregator.scheme.open_sum(residues, count, aggregator.decrypt)

    return aggregator.goal.decode([(fields, count)], plan_digest)


def _is_final(
    db: sqlite3.Connection, aggregator: Aggregator, number: int, evaluation: Evaluation | None
) -> bool:
    """SPEC 9.9: the last round of the schedule, or no better macro-F1 for `patience` rounds."""
    schedule = aggregator.schedule
    if number >= last_round(aggregator):
        return True
    if not schedule.patience or evaluation is None:
        return False
    row = db.execute(
        "SELECT round, macro_f1 FROM rounds WHERE macro_f1 IS NOT NULL "
        "ORDER BY macro_f1 DESC, round LIMIT 1"
    ).fetchone()
    best_round, best = row or (number, -1.0)
    return evaluation.macro_f1 <= best and number - best_round >= schedule.patience
