"""How an aggregator is doing, read beside the running service."""

import sqlite3
from typing import Any

from vitalring.aggregator import rosters, store
from vitalring.aggregator.config import AggregatorConfig, load_study
from vitalring.aggregator.release_store import failed_checks
from vitalring.database import is_made, open_read_only
from vitalring.errors import ConfigError
from vitalring.files import read_secret
from vitalring.protocol import trust
from vitalring.protocol.cbor import decode
from vitalring.protocol.records import Bundle
from vitalring.protocol.secure_sum import Joint, threshold_params
from vitalring.protocol.signing import public_key

_REFUSALS = 20
"""Refusals that are shown, the newest first."""


def status(config: AggregatorConfig) -> dict[str, Any]:
    """Return where the study stands for this aggregator, and what it refused to decrypt.

    Raises ConfigError where it has not run yet.
    """
    path = config.state_dir / store.FILE
    if not is_made(path):
        raise ConfigError(f"{path} does not exist: the aggregator has not run yet")
    db = open_read_only(path)
    try:
        study = load_study(config, rosters.newest_record(db)).study
        found: dict[str, Any] = {"study": study.plan.study, **_rounds(db, study)}
        if study.joint is not None:
            found["hospital"] = _hospital(config, study)
            found["key"] = _key(db, study, study.joint)
            found["refusals"] = [
                {"round": number, "reason": reason, "detail": detail}
                for number, reason, detail in db.execute(
                    "SELECT round, reason, detail FROM release_refusals "
                    "ORDER BY round DESC LIMIT ?",
                    (_REFUSALS,),
                )
            ]
    finally:
        db.close()
    return found


def _rounds(db: sqlite3.Connection, study: trust.Study) -> dict[str, Any]:
    current = store.latest(db)
    found: dict[str, Any] = {"round": current.number if current else 0, "model": None}
    row = db.execute(
        "SELECT model FROM rounds WHERE model IS NOT NULL ORDER BY round DESC LIMIT 1"
    ).fetchone()
    if row is not None:
        model = trust.open_model(decode(Bundle, row[0]).record, study.federation, study.plan)
        found["model"] = {
            "round": model.round,
            "updates": model.contributions,
            "applied": model.applied,
            "final": model.final,
            "macro_f1": model.evaluation.macro_f1 if model.evaluation else None,
        }
    return found


def _hospital(config: AggregatorConfig, study: trust.Study) -> str | None:
    key = public_key(read_secret(config.signing_key, 32))
    names = {each.aggregator_key: each.name for each in study.federation.hospitals}
    return names.get(key)


def _key(db: sqlite3.Connection, study: trust.Study, joint: Joint) -> dict[str, int]:
    """Return how much of the joint key's life is used up here (SPEC 5.11, 11.10)."""
    params = threshold_params(study.plan.codec, study.plan.vector_size, joint)
    used = db.execute(
        "SELECT COALESCE(SUM(sums), 0) FROM release_sessions JOIN releases USING (round) "
        "WHERE sum_key = ?",
        (study.sum_key_digest,),
    ).fetchone()[0]
    return {
        "decryptions": int(used),
        "decryptions_at_most": params.releases,
        "failed_checks": failed_checks(db, study.sum_key_digest),
        "failed_checks_tolerated": params.tolerated_failures,
    }
