"""A cell in a process of its own: what it holds is its own, and its end takes nothing along."""

import importlib
import os
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from vitalring.errors import VitalRingError
from vitalring.tools.measuring.child import answer

KINDS: Final[Mapping[str, str]] = {
    "study": "studies",
    "time": "studies",
    "played": "played",
    "pooled": "pooled",
    "pace": "pooled",
    "central": "central",
    "source": "attacks",
    "membership": "attacks",
    "ledger": "ledger",
}
"""Where each kind's function `<kind>_cell` is."""

_WATCH_S: Final = 2.0


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Return a cell's figures under `result`, or why there are none under `failed`."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    kind = request["kind"]
    module = importlib.import_module(f"vitalring.tools.bench.papers.{KINDS[kind]}")
    try:
        return {"result": getattr(module, f"{kind}_cell")(request)}
    except VitalRingError as error:
        return {"failed": str(error)}


def _end_with(parent: int) -> None:
    """End when the command ends that waits for the figures: nobody would keep them."""
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    os._exit(1)


if __name__ == "__main__":
    answer(measure)
