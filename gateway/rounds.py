"""The life of a round: open, closed with its sum, done with its model (SPEC 10.1).

Each step is one transaction that writes the state and its log entries
together. Each is idempotent: after a crash the same message is taken again
and changes nothing.
"""

import logging
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitalring.database import transaction
from vitalring.errors import ConfigError, Reason, RecordError
from vitalring.gateway import agreement, contributions, log, rosters, store, words
from vitalring.protocol import agreement as shares
from vitalring.protocol import commitments, trust, two_server
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.records import (
    Bundle,
    EncryptedSum,
    Federation,
    GlobalModel,
    LoggedObject,
    PlanAnnouncement,
    Receipts,
    RoundPlan,
    RoundReport,
)
from vitalring.protocol.signing import sign
from vitalring.protocol.weights import unpack_weights

_logger = logging.getLogger(__name__)


class EarlyModelError(RecordError):
    """A model came before the commitments that it needs."""


@dataclass(frozen=True)
class Round:
    """A round as the database has it."""

    number: int
    plan: bytes
    signed_plan: bytes
    position: int
    status: str
    sum: bytes | None
    admitted: int
    opened_ms: int
    admission_us: int
    report: bytes | None
    receipts: bytes | None


_COLUMNS = (
    "round, plan, signed_plan, position, status, sum, admitted, opened_ms, admission_us, "
    "report, receipts"
)


def latest(db: sqlite3.Connection) -> Round | None:
    """Return the newest round, or None before the first."""
    row = db.execute(f"SELECT {_COLUMNS} FROM rounds ORDER BY round DESC LIMIT 1").fetchone()  # noqa: S608
    return Round(*row) if row else None


def open_study_log(
    db: sqlite3.Connection, key: log.LogKey, records: dict[str, bytes], objects: list[bytes]
) -> None:
    """Log a study's signed records and keep its objects; a second call changes nothing.

    Raises ConfigError for a log that belongs to another study: a log tells of one.
    """
    foreign = [k for k, content in records.items() if not store.get_object(db, digest(content))]
    if foreign and log.size(db):
        raise ConfigError(
            f"the log in this state folder has another {foreign[0]}: "
            "give each study a state folder of its own"
        )
    with transaction(db):
        for content in objects:
            store.put_object(db, digest(content), content)
        for kind in foreign:
            if kind == rosters.KIND:
                rosters.append(db, (records[kind],))
            else:
                log.append_object(db, kind, records[kind])
        log.sign_checkpoint(db, key)


def begin(
    db: sqlite3.Connection,
    key: log.LogKey,
    study: trust.Study,
    proposal: Bundle,
    now_ms: int,
    new_rosters: Sequence[bytes] = (),
) -> RoundPlan | None:
    """Open the round that aggregators propose; None where it is known already.

    `study` is the study under the roster that the plan names, and `new_rosters` are those that
    lead there from the newest of the log (`protocol.rosters.follow`): they are logged before it.

    One that comes after its deadline is opened too, and ends without updates: aggregators
    sign one plan a round, so refusing it would end the study. Raises RecordError for a
    proposal that does not follow on the last round.
    """
    plan = trust.open_round_plan(proposal.record, study)
    name, last = digest(proposal.record), latest(db)
    if last and name == last.plan:
        return None
    if last and last.status != "done":
        raise RecordError(f"round {plan.round} is proposed while round {last.number} has no model")
    wanted = last.number + 1 if last else 1
    if plan.round != wanted:
        raise RecordError(f"round {plan.round} is proposed, round {wanted} is next")
    # What a verifier would refuse must not come into a log that nobody can mend.
    if last:
        model = trust.open_model(last_model(db), study.federation, study.plan)
        if model.final:
            raise RecordError(f"round {plan.round} is proposed after the study's final model")
        trust.check_plan_follows(plan, model.weights, model.clip_factor)
    with transaction(db):
        _keep_weights(db, proposal, plan.weights, study)
        rosters.append(db, new_rosters)
        position = log.append_object(db, "round-plan", proposal.record)
        db.execute(
            "INSERT INTO rounds (round, plan, signed_plan, position, status, opened_ms) "
            "VALUES (?, ?, ?, ?, 'open', ?)",
            (plan.round, name, proposal.record, position, now_ms),
        )
        log.sign_checkpoint(db, key)
    return plan


def announcement(db: sqlite3.Connection, current: Round) -> bytes:
    """Return what devices are told: the plan with its proofs in the log as it stands."""
    note = log.latest_checkpoint(db)
    if note is None:
        raise RecordError("a round cannot be announced before the log has a checkpoint")
    size, roster = log.size(db), rosters.position(db)
    return encode(
        PlanAnnouncement(
            current.signed_plan,
            current.position,
            log.inclusion(db, current.position, size),
            roster,
            log.inclusion(db, roster, size),
            note,
            log.recent_consistency(db, size),
        )
    )


def close(
    db: sqlite3.Connection,
    key: log.LogKey,
    plan: RoundPlan,
    expected: int,
    refused: Mapping[Reason, int],
    now_ms: int,
    agreed: bytes | None = None,
) -> None:
    """Close a round: log its updates sorted by digest, sign receipts and report.

    Below `min_cohort` no sum is handed out and the report says so. `agreed` is the set that two
    gateways signed, where they hold shares: it is logged before the report.
    """
    current = latest(db)
    if current is None or current.status != "open" or current.number != plan.round:
        return
    with transaction(db):
        rows = db.execute(
            "SELECT digest, entry FROM admitted WHERE plan = ? ORDER BY digest", (current.plan,)
        ).fetchall()
        digests = tuple(row[0] for row in rows)
        log.append(db, [row[1] for row in rows])
        # The log has them now, and no more are admitted.
        db.execute("DELETE FROM admitted WHERE plan = ?", (current.plan,))
        if agreed is not None:
            log.append_object(db, "agreed-set", agreed)
        total, status = b"", "below_min_cohort"
        if len(rows) >= plan.min_cohort and current.sum is not None:
            status = "summed"
            total = encode(EncryptedSum(current.plan, digests, current.sum))
            store.put_object(db, digest(total), total)
        else:
            contributions.forget(db, current.plan)
        report = sign(
            RoundReport(
                plan=current.plan,
                round=plan.round,
                status=status,
                expected=expected,
                admitted=len(rows),
                refused={reason.value: count for reason, count in refused.items()},
                sum=digest(total) if total else b"",
                opened_ms=current.opened_ms,
                closed_ms=now_ms,
                admission_ms=current.admission_us // 1000,
            ),
            [key.seed],
        )
        log.append_object(db, "round-report", report)
        receipts = sign(Receipts(current.plan, digests), [key.seed])
        db.execute(
            "UPDATE rounds SET status = 'closed', report = ?, receipts = ? WHERE plan = ?",
            (report, receipts, current.plan),
        )
        # The running sum of too few updates is of no use to anybody but a curious one.
        db.execute("UPDATE rounds SET sum = NULL WHERE plan = ?", (current.plan,))
        log.sign_checkpoint(db, key)
    if contributions.any_kept(db):
        _forget_order(db)
    _forget_what_was_deleted(db)


def sum_bundle(db: sqlite3.Connection, closed: Round, study: trust.Study) -> bytes:
    """Return what aggregators are told of a closed round: the report and the sum, if any.

    Hospitals that decrypt together recompute the sum; they are told the receipts instead.
    """
    if closed.report is None or closed.receipts is None:
        raise RecordError(f"round {closed.number} has no report yet")
    name = trust.open_report(closed.report, study.federation).sum
    if name and study.joint is not None:
        return encode(Bundle(closed.report, (closed.receipts,)))
    total = store.get_object(db, name) if name else None
    if total is None:
        return encode(Bundle(closed.report, ()))
    known = agreement.state(db, closed.plan)
    agreed = known.both if known else None
    return encode(Bundle(closed.report, (total,) if agreed is None else (total, agreed)))


def delete_overdue(
    db: sqlite3.Connection, federation: Federation, kept: contributions.KeptUpdates, now_ms: int
) -> bool:
    """Delete updates, and sum, of a round that closed too long ago without a model; tell so."""
    current = latest(db)
    if current is None or current.report is None or not contributions.any_kept(db):
        return False
    report = trust.open_report(current.report, federation)
    if now_ms <= contributions.due_ms(report, kept):
        return False
    with transaction(db):
        contributions.forget(db, current.plan)
        db.execute("DELETE FROM objects WHERE digest = ?", (report.sum,))
    _forget_what_was_deleted(db)
    return True


def finish(
    db: sqlite3.Connection, key: log.LogKey, study: trust.Study, bundle: Bundle
) -> GlobalModel | None:
    """Take the model of the closed round; None where it is known already.

    Raises EarlyModelError where enough hospitals' commitments are not here yet, RecordError for
    a model that does not follow from the round's report.
    """
    model = trust.open_model(bundle.record, study.federation, study.plan)
    current = latest(db)
    if current is None or model.plan != current.plan:
        raise RecordError(f"a model of round {model.round} arrived, which is not the latest round")
    if current.status == "done":
        if store.get_object(db, digest(bundle.record)) is None:
            raise RecordError(f"another model of round {model.round} is in the log already")
        return None
    if current.status != "closed" or current.report is None:
        raise RecordError(f"a model of round {model.round} arrived before the round closed")
    if model.report != digest(_named_report(key, study, current.report, bundle)):
        raise RecordError(f"the model of round {model.round} follows from another report")
    report = trust.open_report(current.report, study.federation)
    plan = trust.open_round_plan(current.signed_plan, study)
    trust.check_model_follows(model, plan, report)
    closed = commitments.ClosedRound(current.number, current.plan, digest(current.report))
    try:
        commitments.check_committed(model, words.committed(db, study, closed), study)
    except RecordError as error:
        raise EarlyModelError(str(error)) from error
    peer = _peer_report(key, study, plan, model, bundle) if study.shared else None
    with transaction(db):
        _keep_weights(db, bundle, model.weights, study)
        if peer is not None:
            log.append_object(db, "peer-report", peer)
        log.append_object(db, "global-model", bundle.record)
        db.execute("UPDATE rounds SET status = 'done' WHERE plan = ?", (current.plan,))
        if study.joint is not None:
            _keep_for_hospitals(db, model, bundle)
        # The sum has served; a ciphertext that is gone can never be decrypted by a later key.
        db.execute("DELETE FROM objects WHERE digest = ?", (report.sum,))
        contributions.forget(db, current.plan)
        log.sign_checkpoint(db, key)
    _forget_what_was_deleted(db)
    return model


def model_for_hospitals(db: sqlite3.Connection) -> bytes:
    """Return the newest logged model with weights and state; no bytes before the first.

    Hospitals go by it alone: of models that a quorum signed, the log holds one.
    """
    row = db.execute("SELECT model FROM rounds WHERE model IS NOT NULL").fetchone()
    return row[0] if row else b""


def _keep_for_hospitals(db: sqlite3.Connection, model: GlobalModel, bundle: Bundle) -> None:
    found = {digest(content): content for content in bundle.objects}
    if model.state not in found or model.weights not in found:
        raise RecordError(f"the model of round {model.round} came without weights or state")
    objects = (found[model.weights], found[model.state])
    db.execute("UPDATE rounds SET model = NULL WHERE round < ?", (model.round,))
    db.execute(
        "UPDATE rounds SET model = ? WHERE round = ?",
        (encode(Bundle(bundle.record, objects)), model.round),
    )


def recent_receipts(db: sqlite3.Connection, most: int) -> list[tuple[int, bytes]]:
    """Return round numbers and receipts of the newest closed rounds; of all where `most` is -1."""
    return db.execute(
        "SELECT round, receipts FROM rounds WHERE receipts IS NOT NULL ORDER BY round DESC LIMIT ?",
        (most,),
    ).fetchall()


def last_report(db: sqlite3.Connection) -> bytes | None:
    """Return the signed report of the newest closed round, or None before the first."""
    row = db.execute(
        "SELECT report FROM rounds WHERE report IS NOT NULL ORDER BY round DESC LIMIT 1"
    ).fetchone()
    return row[0] if row else None


def last_model(db: sqlite3.Connection) -> bytes:
    """Return the signed model while its round is the newest: the log's last entry names it."""
    size = log.size(db)
    entry = decode(LoggedObject, log.entries(db, size - 1, size)[0])
    return store.get_object(db, entry.digest) or b""


def _named_report(key: log.LogKey, study: trust.Study, own: bytes, bundle: Bundle) -> bytes:
    """Return the report that a model names: of two gateways' reports the first one's."""
    if not study.shared or trust.log_of(study.federation, key.public) == two_server.VECTOR:
        return own
    return shares.peer_report(bundle, study.federation, two_server.VECTOR)


def _peer_report(
    key: log.LogKey, study: trust.Study, plan: RoundPlan, model: GlobalModel, bundle: Bundle
) -> bytes:
    """Return the other gateway's report, which says of the round what the model says."""
    role = trust.log_of(study.federation, key.public)
    found = shares.peer_report(bundle, study.federation, 1 - role)
    report = shares.open_share_report(found, study.federation, 1 - role)
    trust.check_model_follows(model, plan, report)
    return found


def _forget_what_was_deleted(db: sqlite3.Connection) -> None:
    """Empty SQLite's write-ahead log, which would hold each state of a round in turn (SPEC 10.4).

    That is the order in which updates came, and running sums that differ by one update. While
    an export reads, the log stays as it is until the round's next step: nobody waits for it.
    """
    waits_ms = db.execute("PRAGMA busy_timeout").fetchone()[0]
    db.execute("PRAGMA busy_timeout = 0")
    try:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        db.execute(f"PRAGMA busy_timeout = {waits_ms}")


def _forget_order(db: sqlite3.Connection) -> None:
    """Write the database anew in the order of its keys (SPEC 10.4).

    SQLite takes pages as content comes, so the place of an update in the file would tell when
    it came, for as long as updates are kept. Where the disk has no room for a copy of the file
    the round goes on without: what is kept is deleted when it is done.
    """
    try:
        db.execute("VACUUM")
    except sqlite3.Error as error:
        _logger.warning("the order of updates stays visible in the file of the database: %s", error)


def _keep_weights(db: sqlite3.Connection, bundle: Bundle, name: bytes, study: trust.Study) -> None:
    """Keep the weights that a bundle's record names. What else came along is unsigned.

    In a study of statistics a feature schema takes their place, which a gateway does not read.
    """
    for content in bundle.objects:
        if digest(content) == name:
            if study.plan.task == "train":
                unpack_weights(content, study.plan.model.dimension)
            store.put_object(db, name, content)
    if store.get_object(db, name) is None:
        raise RecordError(f"weights {name.hex()} did not come with the record that names them")
