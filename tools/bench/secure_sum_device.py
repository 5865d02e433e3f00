"""Measured in a process of its own: a device encodes and encrypts updates.

Times are processor seconds of all threads.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np

from vitalring.edge_agent.randomness import SecureGenerator
from vitalring.protocol.quantise import encode_update
from vitalring.protocol.secure_sum import update_encryptor
from vitalring.stopwatch import Stages
from vitalring.tools.bench.child import answer, peak_bytes
from vitalring.tools.bench.secure_sum_cell import SEED, Cell, update


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Write the updates of a cell, and their fields to compare the sum with later."""
    cell, folder = Cell(**request["cell"]), Path(request["folder"])
    public_key = (folder / "public.key").read_bytes()
    encryptor = update_encryptor(cell.mode, cell.codec, cell.dimension, public_key, cell.joint)
    samples = []
    for number in range(cell.updates):
        vector = update(number, cell.dimension)
        watch = Stages(time.process_time)
        encoded = encode_update(vector, 1, cell.codec, SEED, rng=SecureGenerator())
        watch.done("encode")
        content = encryptor.encrypt(encoded.fields)
        watch.done("encrypt")
        samples.append(watch.seconds)
        (folder / f"{number}.update").write_bytes(content)
        np.save(folder / f"{number}.npy", encoded.fields.astype(np.uint16))
    return {"samples": samples, "bytes": len(content), "peak_bytes": peak_bytes()}


if __name__ == "__main__":
    answer(measure)
