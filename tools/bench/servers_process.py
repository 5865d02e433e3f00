"""Measured in a process of its own: gateway and aggregator take a round of updates.

The gateway's checks run one by one on copies of their inputs, then together as
`admission.check`, which is what a gateway really does.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np

from vitalring.aggregator import optimisers
from vitalring.aggregator.config import AggregatorConfig, load_decrypt
from vitalring.aggregator.evaluate import evaluator
from vitalring.aggregator.following import first_vector, following, weights_of
from vitalring.config import load_config
from vitalring.errors import ConfigError
from vitalring.gateway import admission, rounds, store
from vitalring.gateway.config import GatewayConfig, load_keys, load_study
from vitalring.models.artefact import initial_weights, load_artefact
from vitalring.protocol import trust
from vitalring.protocol.cbor import decode
from vitalring.protocol.chunks import Reassembler
from vitalring.protocol.quantise import decode_sum
from vitalring.protocol.records import EncryptedSum, SealedUpdate
from vitalring.protocol.sealing import unseal
from vitalring.protocol.update import RoundChecks, rotation_seed, round_checks, update_digest
from vitalring.stopwatch import Stages
from vitalring.tools.measuring.child import answer


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Admit the updates of `request["keys"]`, close the round, and turn its sum into a model."""
    hospital = Path(request["hospital"])
    config = load_config(GatewayConfig, hospital / "gateway.toml")
    files = load_study(config)
    keys = load_keys(config, files.study)
    db = store.open_store(config.state_dir)
    try:
        current = _open_round(db, files.study)
        keep, admitted = files.study.joint is not None, []
        for name in request["keys"]:
            frames = sorted(Path(request["out"]).glob(f"{name}-*.frame"), key=_frame_number)
            contents = [frame.read_bytes() for frame in frames]
            admitted.append(_admit(db, current, keys, config, contents, keep=keep))
        watch = Stages()
        rounds.close(db, keys.log, current.plan, len(request["keys"]), {}, _now_ms())
        watch.done("close the round")
        total = _sum(db, files.study)
    finally:
        db.close()
    aggregator = load_config(AggregatorConfig, hospital / "aggregator.toml")
    concluded = [
        _conclude(aggregator, files.study, current.plan_digest, total)
        for _ in range(request["repeats"])
    ]
    return {"admit": admitted, "close": watch.seconds, "conclude": concluded}


def _open_round(db: Any, study: trust.Study) -> RoundChecks:  # noqa: ANN401
    latest = rounds.latest(db)
    if latest is None:
        raise ConfigError("the measured study has no open round")
    plan = trust.open_round_plan(latest.signed_plan, study)
    return round_checks(plan, latest.plan, study.scheme(), study.rings)


def _admit(
    db: Any,  # noqa: ANN401
    current: RoundChecks,
    keys: Any,  # noqa: ANN401
    config: GatewayConfig,
    frames: list[bytes],
    *,
    keep: bool,
) -> dict[str, float]:
    """Time the parts of an admission, then the admission."""
    reassembler = Reassembler(config.chunks)
    watch = Stages()
    boxes = [box for frame in frames if (box := reassembler.add(frame, 0.0)) is not None]
    watch.done("reassemble")
    update = decode(SealedUpdate, unseal(boxes[0], keys.sealing))
    watch.done("unseal, decode")
    current.scheme.decode(update.ciphertexts)
    watch.done("check ciphertexts")
    digest = update_digest(update.plan, update.ring, update.ciphertexts)
    ring = current.rings[update.ring]
    ring.verify(current.context, digest, update.signature)
    watch.done("verify ring signature")
    screened = admission.screen(db, current, boxes[0], keys.sealing, _now_ms())
    if screened is None:
        raise ConfigError("an update that is measured was counted before")
    judged = admission.judge(db, current, [screened], max_passes=1)
    watch.done("all checks")
    if judged.refused or admission.count(db, current, judged.valid, 0, keep=keep):
        raise ConfigError("an update that is measured was refused")
    watch.done("fold, commit")
    return watch.seconds


def _sum(db: Any, study: trust.Study) -> EncryptedSum:  # noqa: ANN401
    closed = rounds.latest(db)
    if closed is None:
        raise ConfigError("the measured study has no round")
    report = trust.open_report(closed.report or b"", study.federation)
    total = store.get_object(db, report.sum)
    if total is None:
        raise ConfigError("the measured round gave no sum: too few updates")
    return decode(EncryptedSum, total)


def _conclude(
    config: AggregatorConfig, study: trust.Study, plan: bytes, total: EncryptedSum
) -> dict[str, float]:
    """Time what follows on a closed round, from the sum's bytes to an evaluated model."""
    model, codec = study.plan.model, study.plan.codec
    scheme = study.scheme()
    decrypt = load_decrypt(config, study)
    artefact = load_artefact(model.name)
    evaluate = evaluator(artefact, config.held_out)
    terms = study.plan.terms
    optimiser = following(optimisers.build(study.plan.server), terms)
    count = len(total.contributions)
    weights = initial_weights(artefact, model.initial_seed).astype(np.float64)
    before = optimiser.init(first_vector(weights, terms))
    watch = Stages()
    fields = scheme.open_sum(scheme.decode_sum(total.ciphertexts), count, decrypt)
    watch.done("decrypt, unpack")
    decoded = decode_sum(fields, count, codec, study.plan.vector_size, rotation_seed(plan))
    watch.done("decode")
    after = optimiser.apply(before, decoded.mean)
    watch.done("optimiser")
    evaluate(weights_of(after.weights, terms))
    watch.done("evaluate")
    return watch.seconds


def _frame_number(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


if __name__ == "__main__":
    answer(measure)
