"""Measured in a process of its own: a device encodes and encrypts updates.

Times are processor seconds of all threads.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vitalring.edge_agent.randomness import SecureGenerator
from vitalring.protocol.quantise import encode_update
from vitalring.protocol.secure_sum import update_encryptor
from vitalring.protocol.two_server import ROLES, Array, share_params, split
from vitalring.stopwatch import Stages
from vitalring.tools.bench.secure_sum_cell import SEED, Cell, update, update_file
from vitalring.tools.measuring.child import answer, peak_bytes


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Write the updates of a cell, and their fields to compare the sum with later."""
    cell, folder = Cell(**request["cell"]), Path(request["folder"])
    public_key = (folder / "public.key").read_bytes()
    encrypt = _encryption(cell, public_key)
    samples = []
    for number in range(cell.updates):
        vector = update(number, cell.dimension)
        watch = Stages(time.process_time)
        encoded = encode_update(vector, 1, cell.codec, SEED, rng=SecureGenerator())
        watch.done("encode")
        contents = encrypt(encoded.fields)
        watch.done("encrypt")
        samples.append(watch.seconds)
        for part, content in enumerate(contents):
            (folder / update_file(number, part)).write_bytes(content)
        np.save(folder / f"{number}.npy", encoded.fields.astype(np.uint16))
    return {"samples": samples, "bytes": sum(map(len, contents)), "peak_bytes": peak_bytes()}


def _encryption(cell: Cell, public_key: bytes) -> Callable[[Array], tuple[bytes, ...]]:
    """Return what makes an update's bytes of its fields: two halves for two servers."""
    if cell.mode == "two-server":
        params = share_params(cell.codec, cell.dimension)

        def halves(fields: Array) -> tuple[bytes, ...]:
            shares = split(fields, params)
            return tuple(shares.link + shares.of(role) for role in ROLES)

        return halves
    encryptor = update_encryptor(cell.mode, cell.codec, cell.dimension, public_key, cell.joint)
    return lambda fields: (encryptor.encrypt(fields),)


if __name__ == "__main__":
    answer(measure)
