"""Cells one after the other: what is measured stays, what failed is said and tried again."""

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any, Final

from vitalring.errors import VitalRingError
from vitalring.tools.bench.papers.store import (
    DISTURBED,
    FAILED,
    MEASURED,
    NOTHING,
    Cell,
    Found,
    Store,
)
from vitalring.tools.measuring.child import run_child
from vitalring.tools.measuring.machine import machine

TIMED: Final = ("time", "pace", "ledger")
"""Kinds that are nothing but times: where others had the cores, nothing was measured."""

_TIMEOUT_S: Final = 24 * 3600.0

Say = Callable[[str], object]
Run = Callable[[Cell, Path], dict[str, Any]]


def measure_cells(
    cells: Mapping[str, Cell],
    store: Store,
    room: Path,
    say: Say,
    run: Run | None = None,
    *,
    times: bool = True,
) -> dict[str, Found]:
    """Measure what is not measured yet; return what is known of every label.

    `room` is for unfinished runs. Each cell is kept before the next one begins. Without `times`
    cells that are nothing but times are left for later.
    """
    run = run or _in_child
    known: dict[str, Found] = {}
    for number, (label, cell) in enumerate(cells.items(), 1):
        found = store.load(cell)
        if not times and cell.kind in TIMED:
            found = found or NOTHING
        elif found is None or not found.whole:
            say(f"{number} of {len(cells)}: {cell.name}")
            found = _measured(cell, room / cell.key[:20], run)
            store.save(cell, found)
            if not found.whole:
                say(f"  {found.status.upper()}: {found.reason}")
        known[label] = found
    return known


def known_cells(cells: Mapping[str, Cell], store: Store) -> dict[str, Found]:
    """Return what is known of every label, measuring nothing."""
    return {label: store.load(cell) or NOTHING for label, cell in cells.items()}


def _measured(cell: Cell, room: Path, run: Run) -> Found:
    began = monotonic()
    room.mkdir(parents=True, exist_ok=True)
    try:
        result = run(cell, room)
    except VitalRingError as error:
        found = Found(FAILED, str(error))
    else:
        result = _finite(result)
        found = Found(MEASURED, "", result)
        if cell.kind in TIMED and result.get("disturbed"):
            share = result["others"]
            reason = f"others had {share:.0%} of the cores meanwhile; measure on a machine at rest"
            found = Found(DISTURBED, reason, result)
    # A run that failed would fail again where it stopped; one that was killed never comes here.
    shutil.rmtree(room, ignore_errors=True)
    return Found(**{**asdict(found), "seconds": monotonic() - began, "machine": machine()})


def _finite(value: Any) -> Any:  # noqa: ANN401
    """Return figures with None for what is no number: JSON has no word for that."""
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _in_child(cell: Cell, room: Path) -> dict[str, Any]:
    request = {**cell.request, **cell.place, "kind": cell.kind, "room": str(room)}
    answer = run_child("papers.cell_process", request, timeout_s=_TIMEOUT_S)
    if "failed" in answer:
        raise CellError(answer["failed"])
    result: dict[str, Any] = answer["result"]
    return result


class CellError(VitalRingError):
    """A cell could not be measured, for the reason that its process gave."""
