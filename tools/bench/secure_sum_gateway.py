"""Measured in a process of its own: a gateway checks updates and adds them.

As in `gateway.admission`, whose sum lies encoded in its database; without that database, and
without the ring signature, which `vitalring bench path` measures. Times are processor seconds.
"""

import time
from pathlib import Path
from typing import Any

from vitalring.protocol.secure_sum import sum_scheme
from vitalring.stopwatch import Stages
from vitalring.tools.bench.child import answer, peak_bytes
from vitalring.tools.bench.secure_sum_cell import Cell


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Add updates over and over, and write the sum in which each of them is once.

    The sum of more copies than one would not decrypt: the noise of equal ciphertexts adds up
    faster than that of different ones, for which parameters are chosen.
    """
    cell, folder = Cell(**request["cell"]), Path(request["folder"])
    scheme = sum_scheme(cell.mode, cell.codec, cell.dimension, cell.joint)
    stored = b""
    samples = []
    for turn in range(cell.additions):
        content = (folder / f"{turn % cell.updates}.update").read_bytes()
        watch = Stages(time.process_time)
        total = scheme.decode(content)
        watch.done("check")
        if stored:
            total = scheme.add(scheme.decode_sum(stored), total)
        stored = scheme.encode_sum(total)
        watch.done("add")
        samples.append(watch.seconds)
        if turn + 1 == cell.updates:
            (folder / "sum").write_bytes(stored)
    return {"samples": samples, "peak_bytes": peak_bytes()}


if __name__ == "__main__":
    answer(measure)
