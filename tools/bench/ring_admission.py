"""How many updates a second a gateway admits, in one large ring: honest traffic and forged.

All that a gateway does to an update is measured, from its sealed box on: opening, decoding, the
checks, the ring signature in batches, and the commit of the sum to a database on disk.
Ciphertexts are random residues, which cost a gateway what encryptions do.
"""

import hashlib
import secrets
import sqlite3
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from nacl.public import PrivateKey

from vitalring.errors import ConfigError, Reason, RefusedError
from vitalring.gateway import admission, store
from vitalring.gateway.waiting import WaitingUpdates
from vitalring.mqtt import Message
from vitalring.protocol import group, lsag, ring_suite, sealing
from vitalring.protocol.cbor import encode
from vitalring.protocol.ciphertext import encode_ciphertexts
from vitalring.protocol.privacy import Privacy, Training
from vitalring.protocol.quantise import Codec
from vitalring.protocol.records import RoundPlan, SealedUpdate
from vitalring.protocol.secure_sum import Joint, sum_scheme, threshold_params
from vitalring.protocol.threshold.pieces import Access
from vitalring.protocol.update import RoundChecks, round_checks, update_digest
from vitalring.tools.measuring.machine import machine
from vitalring.tools.measuring.spread import spread

PARAMETERS: Final = 10_000
FORGED_SHARE: Final = 0.1
_PLAN = hashlib.sha256(b"the measured plan").digest()
_NOWHERE = Message("", b"")
_JOINT = Joint(Access(3, 2), 3)
"""Two of three hospitals decrypt, as by default."""
_ZERO = bytes(32)


def measure_admission(
    ring_size: int, updates: int, repeats: int, say: Callable[[str], object]
) -> dict[str, Any]:
    """Return processor seconds of one core for an update: honest traffic, and two with forgeries.

    A tenth of the traffic is forged, on top of `updates` honest ones: by somebody without a key,
    or by one who proves tags of keys. Raises ConfigError where something was judged wrongly.
    """
    forgeries = max(1, round(updates * FORGED_SHARE / (1 - FORGED_SHARE)))
    if updates + forgeries > ring_size:
        raise ConfigError(f"{updates} updates and a tenth more take a ring of as many keys")
    pairs = sorted((lsag.keygen() for _ in range(ring_size)), key=lambda pair: pair.public)
    ring = ring_suite.prepare(ring_suite.for_size(ring_size), [pair.public for pair in pairs])
    checks, key = _checks(ring), sealing.new_secret()
    signers = secrets.SystemRandom().sample(pairs, updates + forgeries)
    say(f"{len(signers)} signatures in a ring of {ring_size:,}")
    signed = [_update(checks, signer.secret) for signer in signers]
    honest, spare = signed[:updates], signed[updates:]
    public = bytes(key.public_key)

    def boxes(forged: Sequence[SealedUpdate]) -> list[bytes]:
        mixed = [*honest, *forged]
        secrets.SystemRandom().shuffle(mixed)
        return [sealing.seal(encode(update), public) for update in mixed]

    traffic = {
        "honest": boxes([]),
        "forged without a key": boxes([_other_message(checks, update) for update in spare]),
        "forged with a key": boxes([_insider(update) for update in spare]),
    }
    found: dict[str, Any] = {}
    for name, sent in traffic.items():
        say(f"admission: {name}")
        samples = [_admit(checks, key, sent, updates) for _ in range(repeats)]
        stages = {stage: spread([each[stage] for each in samples]) for stage in samples[0]}
        found[name] = {stage: asdict(figure) for stage, figure in stages.items()}
    return {
        "ring": ring_size,
        "updates": updates,
        "forged": forgeries,
        "parameters": PARAMETERS,
        "update_bytes": len(encode(honest[0])),
        "seconds": found,
        "load": machine()["load"],
    }


def _checks(ring: ring_suite.Ring) -> RoundChecks:
    training = Training(sampling_rate=1.0, steps=1, rounds=1, learning_rate=1.0, batch=1, records=1)
    plan = RoundPlan(
        federation="bench",
        study="admission",
        study_plan=_ZERO,
        cohort="ward",
        epoch=1,
        round=1,
        weights=_ZERO,
        training=training,
        privacy=Privacy(),
        codec=Codec(n_max=10_000, clip=1.0, weight_cap=1),
        sum_key=_ZERO,
        roster=_ZERO,
        min_cohort=10,
        opens_ms=0,
        window_ms=0,
        deadline_ms=2**52,
    )
    scheme = sum_scheme("threshold-he", plan.codec, PARAMETERS, _JOINT)
    return round_checks(plan, _PLAN, scheme, (ring,))


def _ciphertexts(checks: RoundChecks) -> bytes:
    params = threshold_params(checks.plan.codec, PARAMETERS, _JOINT).bfv
    shape = (params.ciphertexts, 2, len(params.data_primes), params.degree)
    moduli = np.array(params.data_primes, dtype=np.uint64)[:, None]
    residues = np.random.default_rng(secrets.randbits(64)).integers(0, moduli, shape, np.uint64)
    if params.short:
        residues[:, 0, 0] = 0
    return encode_ciphertexts(residues, params)


def _update(checks: RoundChecks, secret: bytes) -> SealedUpdate:
    ciphertexts = _ciphertexts(checks)
    digest = update_digest(_PLAN, 0, ciphertexts)
    signature = checks.rings[0].sign(secret, checks.context, digest)
    return SealedUpdate(_PLAN, 0, ciphertexts, signature)


def _other_message(checks: RoundChecks, update: SealedUpdate) -> SealedUpdate:
    """Put a signature on other ciphertexts: what somebody without a key can send."""
    return SealedUpdate(_PLAN, 0, _ciphertexts(checks), update.signature)


def _insider(update: SealedUpdate) -> SealedUpdate:
    """Spoil the scalar that only a pass over the ring can miss: its tag is proven still."""
    at = len(update.signature) - 2 * group.SCALAR_BYTES
    opening = update.signature[at : at + group.SCALAR_BYTES]
    one = (1).to_bytes(group.SCALAR_BYTES, "little")
    spoiled = group.scalar_add(opening, one)
    signature = update.signature[:at] + spoiled + update.signature[at + group.SCALAR_BYTES :]
    return SealedUpdate(_PLAN, 0, update.ciphertexts, signature)


def _admit(
    checks: RoundChecks, key: PrivateKey, boxes: Sequence[bytes], honest: int
) -> dict[str, float]:
    """Admit what came; return processor seconds of each stage for an honest update."""
    spent: defaultdict[str, float] = defaultdict(float)
    refusals: Counter[Reason] = Counter()
    with tempfile.TemporaryDirectory(prefix="vitalring-bench-") as folder:
        db = _open(Path(folder))
        waiting = WaitingUpdates()

        def judge(batch: Sequence[admission.Admission], max_passes: int) -> admission.Judged:
            began = time.process_time()
            judged = admission.judge(db, checks, batch, max_passes)
            spent["verify"] += time.process_time() - began
            return judged

        def count(
            valid: Sequence[admission.Admission], spent_us: int
        ) -> list[tuple[admission.Admission, RefusedError]]:
            began = time.process_time()
            refused = admission.count(db, checks, valid, spent_us, keep=True)
            spent["count"] += time.process_time() - began
            return refused

        began = time.process_time()
        for box in boxes:
            at = time.process_time()
            screened = admission.screen(db, checks, box, key, 0)
            spent["screen"] += time.process_time() - at
            if screened is None:
                raise ConfigError("a measured update was counted twice")
            waiting.add(screened, _NOWHERE, 0, 0.0)
            if waiting.full:
                refusals.update(waiting.step(judge, count).refused)
        while waiting:
            refusals.update(waiting.step(judge, count).refused)
        spent["all"] = time.process_time() - began
        counted = admission.counted(db, _PLAN)
        db.close()
    if counted != honest or refusals != +Counter({Reason.BAD_SIGNATURE: len(boxes) - honest}):
        raise ConfigError(f"{counted} counted, {dict(refusals)} refused: do not use these figures")
    return {stage: seconds / honest for stage, seconds in spent.items()}


def _open(folder: Path) -> sqlite3.Connection:
    db = store.open_store(folder)
    db.execute(
        "INSERT INTO rounds (round, plan, signed_plan, position, status, opened_ms) "
        "VALUES (1, ?, x'', 0, 'open', 0)",
        (_PLAN,),
    )
    db.commit()
    return db
