"""Measured in a process of its own: a gateway checks updates and adds them.

As in `gateway.admission`, whose sum lies encoded in its database; without that database, and
without the ring signature, which `vitalring bench path` measures. Times are processor seconds.
"""

import time
from pathlib import Path
from typing import Any

from vitalring.protocol.secure_sum import SumScheme, sum_scheme
from vitalring.protocol.two_server import SEED, share_params, share_sum
from vitalring.stopwatch import Stages
from vitalring.tools.bench.secure_sum_cell import Cell, sum_file, update_file
from vitalring.tools.measuring.child import answer, peak_bytes


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Add updates over and over, and write the sum in which each of them is once.

    The sum of more copies than one would not decrypt: the noise of equal ciphertexts adds up
    faster than that of different ones, for which parameters are chosen. Of two servers both are
    measured in one process, one after the other.
    """
    cell, folder = Cell(**request["cell"]), Path(request["folder"])
    schemes: list[SumScheme] = [sum_scheme(cell.mode, cell.codec, cell.dimension, cell.joint)]
    if cell.mode == "two-server":
        schemes.append(share_sum(SEED, share_params(cell.codec, cell.dimension)))
    stored = [b""] * len(schemes)
    samples = []
    for turn in range(cell.additions):
        number = turn % cell.updates
        contents = [
            (folder / update_file(number, part)).read_bytes() for part in range(len(stored))
        ]
        watch = Stages(time.process_time)
        totals = [scheme.decode(content) for scheme, content in zip(schemes, contents, strict=True)]
        watch.done("check")
        for part, (scheme, total) in enumerate(zip(schemes, totals, strict=True)):
            before = stored[part]
            added = scheme.add(scheme.decode_sum(before), total) if before else total
            stored[part] = scheme.encode_sum(added)
        watch.done("add")
        samples.append(watch.seconds)
        if turn + 1 == cell.updates:
            for part, content in enumerate(stored):
                (folder / sum_file(part)).write_bytes(content)
    return {"samples": samples, "peak_bytes": peak_bytes()}


if __name__ == "__main__":
    answer(measure)
