"""`vitalring bench log`: how fast the gateway's log takes entries."""

import secrets
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vitalring.database import transaction
from vitalring.errors import ConfigError
from vitalring.gateway import log, store
from vitalring.protocol.cbor import encode
from vitalring.protocol.lsag import signature_bytes
from vitalring.protocol.records import AcceptedUpdate
from vitalring.tools.measuring.machine import in_words, machine
from vitalring.tools.measuring.spread import Spread, shown, spread
from vitalring.tools.measuring.table import Table

BATCHES = (1, 50, 1000)
RING = 32
# A batch of one waits for the disk each time; so many are enough for a median.
_MOST_TRANSACTIONS = 500


def measure_log(entries: int, repeats: int, folder: Path | None) -> dict[str, Any]:
    """Append about `entries` entries in batches, each with its checkpoint, in one transaction.

    The databases are made in `folder`, because a disk's speed is what is
    measured; none takes the system's folder for temporary files. Raises ConfigError.
    """
    if entries < max(BATCHES):
        raise ConfigError(f"--entries {entries} is less than one batch of {max(BATCHES)}")
    results = {}
    for batch in BATCHES:
        count = min(entries // batch, _MOST_TRANSACTIONS)
        rates = []
        for _ in range(repeats):
            with tempfile.TemporaryDirectory(prefix="vitalring-bench-", dir=folder) as room:
                rates.append(_rate(Path(room), batch, count))
        results[str(batch)] = {"transactions": count, "leaves_per_second": asdict(spread(rates))}
    return {"machine": machine(), "entry_bytes": len(_entry()), "batches": results}


def log_tables(result: dict[str, Any]) -> list[Table]:
    """Return the figures as a table."""
    rows = tuple(
        (
            f"{int(batch):,}",
            f"{measured['transactions']:,}",
            shown(Spread(**measured["leaves_per_second"]), lambda rate: f"{rate:,.0f}"),
        )
        for batch, measured in result["batches"].items()
    )
    return [Table("Leaves a second", ("batch", "batches", "leaves a second"), rows)]


def log_facts(result: dict[str, Any]) -> list[str]:
    """Return what a reader must know to compare the figures with others."""
    return [
        in_words(result["machine"]),
        f"Entries are those of counted updates in a ring of {RING}, {result['entry_bytes']:,} "
        "bytes. A batch is one transaction with a signed checkpoint, on disk when it ends "
        "(SQLite, synchronous=FULL).",
        "Each figure is a median, with the least and the greatest in brackets.",
    ]


def _rate(folder: Path, batch: int, count: int) -> float:
    """Return the leaves a second of `count` batches on a new log."""
    key = log.LogKey("log.example/bench", secrets.token_bytes(32))
    db = store.open_store(folder)
    try:
        batches = [[_entry() for _ in range(batch)] for _ in range(count)]
        began = time.perf_counter()
        for entries in batches:
            with transaction(db):
                log.append(db, entries)
                log.sign_checkpoint(db, key)
        return batch * count / (time.perf_counter() - began)
    finally:
        db.close()


def _entry() -> bytes:
    digest = secrets.token_bytes(32)
    return encode(AcceptedUpdate(digest, 0, digest, secrets.token_bytes(signature_bytes(RING))))
