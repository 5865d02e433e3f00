"""In a child: the log at paper B's size: rounds of updates, each one entry, on disk.

A round writes what a gateway's log gets of it, in the same three transactions, each with a signed
checkpoint: the plan when it opens; its updates and the report when it closes; the model.
"""

import secrets
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from vitalring.database import transaction
from vitalring.gateway import log, store
from vitalring.protocol import lsag, ring_suite
from vitalring.protocol.cbor import encode
from vitalring.protocol.records import AcceptedUpdate
from vitalring.tools.bench.papers.studies import others
from vitalring.tools.bench.papers.watching import Watch

RECORD_BYTES: Final = 1500
"""About what a signed plan, report or model of three hospitals takes."""


def ledger_cell(request: Mapping[str, Any]) -> dict[str, Any]:
    """Write `rounds` rounds of `updates` entries, `repeats` times on new logs; medians."""
    signature = _signature_bytes(request["updates"])
    runs = []
    with Watch() as watch:
        for _ in range(request["repeats"]):
            # Beside the cells: the system's folder for temporary files may be memory.
            with tempfile.TemporaryDirectory(prefix="ledger-", dir=request["room"]) as folder:
                runs.append(_run(Path(folder), request["rounds"], request["updates"], signature))
    middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return {**middle, "signature_bytes": signature, **others(watch)}


def _run(folder: Path, rounds: int, updates: int, signature: int) -> dict[str, float]:
    key = log.LogKey("log.example/bench", secrets.token_bytes(32))
    db = store.open_store(folder)
    commits, all_seconds = [], 0.0
    try:
        for _ in range(rounds):
            entries = [_entry(signature) for _ in range(updates)]
            plan, report, model = (secrets.token_bytes(RECORD_BYTES) for _ in range(3))
            began = time.perf_counter()
            with transaction(db):
                log.append_object(db, "round-plan", plan)
                log.sign_checkpoint(db, key)
            opened = time.perf_counter()
            with transaction(db):
                log.append(db, entries)
                log.append_object(db, "round-report", report)
                log.sign_checkpoint(db, key)
            commits.append(time.perf_counter() - opened)
            with transaction(db):
                log.append_object(db, "global-model", model)
                log.sign_checkpoint(db, key)
            all_seconds += time.perf_counter() - began
        leaves = log.size(db)
    finally:
        db.close()  # SQLite then moves what its write-ahead log holds into the database
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {
        "leaves": leaves,
        "leaves_per_second": leaves / all_seconds,
        "commit_seconds": statistics.median(commits),
        "slowest_commit_seconds": max(commits),
        "bytes": size,
    }


def _signature_bytes(devices: int) -> int:
    """Return the length of a signature in one ring of all devices."""
    keys = sorted(lsag.keygen().public for _ in range(devices))
    return ring_suite.prepare(ring_suite.for_size(devices), keys).signature_bytes


def _entry(signature: int) -> bytes:
    digest = secrets.token_bytes(32)
    return encode(AcceptedUpdate(digest, 0, digest, secrets.token_bytes(signature)))
