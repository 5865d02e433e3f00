"""Measured in a process of its own: those who hold the key decrypt a sum, and check it.

The fields of the sum are compared with those that the devices had: figures are of sums that
came out exactly. Times are processor seconds of all threads.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitalring.aggregator import key
from vitalring.protocol.quantise import decode_sum
from vitalring.protocol.secure_sum import Decrypt, HeSum, Joint, sum_scheme, threshold_params
from vitalring.protocol.threshold import decryption
from vitalring.protocol.threshold.pieces import decode_piece
from vitalring.protocol.two_server import Unmask, VectorSum
from vitalring.stopwatch import Stages
from vitalring.tools.bench.secure_sum_cell import SEED, Cell, sum_file, update
from vitalring.tools.measuring.child import answer, peak_bytes


@dataclass(frozen=True)
class Opened:
    """A sum that was decrypted once."""

    fields: npt.NDArray[np.uint64]
    release: list[dict[str, float]]  # a hospital's seconds, for each that decrypts
    combine: dict[str, float] = field(default_factory=dict)
    released_bytes: int = 0  # what one hospital sends the others


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Decrypt a cell's sum `request["repeats"]` times."""
    cell, folder = Cell(**request["cell"]), Path(request["folder"])
    stored = (folder / "sum").read_bytes()
    if cell.joint is None:
        open_once = _one_holder(cell, folder, stored)
    else:
        open_once = _joint_holders(cell, cell.joint, folder, stored)
    runs = [open_once() for _ in range(request["repeats"])]
    fields = runs[-1].fields
    _check_fields(cell, folder, fields)
    return {
        "release": [sample for run in runs for sample in run.release],
        "combine": [run.combine for run in runs],
        "released_bytes": runs[-1].released_bytes,
        "error": _error(cell, fields),
        "peak_bytes": peak_bytes(),
    }


def _one_holder(cell: Cell, folder: Path, stored: bytes) -> Callable[[], Opened]:
    """Return what opens a sum of one key holder, one in clear, or those of two servers."""
    scheme = sum_scheme(cell.mode, cell.codec, cell.dimension)
    held = key.load(folder / "secret.key", scheme.params) if isinstance(scheme, HeSum) else None
    masks = (folder / sum_file(1)).read_bytes() if isinstance(scheme, VectorSum) else b""

    def open_once() -> Opened:
        watch = Stages(time.process_time)
        decrypt: Decrypt = held.decrypt if held else np.asarray
        if isinstance(scheme, VectorSum):
            decrypt = Unmask(scheme.decode_sum(masks), scheme.params)
        fields = scheme.open_sum(scheme.decode_sum(stored), cell.updates, decrypt)
        watch.done("decrypt")
        return Opened(fields, [watch.seconds])

    return open_once


def _joint_holders(cell: Cell, joint: Joint, folder: Path, stored: bytes) -> Callable[[], Opened]:
    """Return what opens a sum with the first `threshold` hospitals: checks, then parts."""
    params = threshold_params(cell.codec, cell.dimension, joint)
    scheme = HeSum(params.bfv)
    members = tuple(range(cell.threshold))
    shares = []
    for hospital in members:
        pieces = [
            decode_piece((folder / f"{index}.piece").read_bytes(), index, params.bfv.degree)
            for index in joint.access.held_by(hospital)
        ]
        shares.append(decryption.key_share(hospital, pieces, members, params))
    # In a round the hospitals draw it together, after the sum was fixed.
    challenge = hashlib.sha256(stored).digest()

    def open_once() -> Opened:
        total = scheme.decode_sum(stored)
        checks, parts, samples = [], [], []
        for share in shares:
            watch = Stages(time.process_time)
            check, part = share.decrypt(total, challenge)
            checks.append(decryption.encode_check(check, params))
            parts.append(decryption.encode_part(part, params))
            watch.done("part with check")
            samples.append(watch.seconds)
        watch = Stages(time.process_time)
        opened = {h: decryption.decode_check(check, params) for h, check in enumerate(checks)}
        decryption.open_checks(total, opened, challenge, params)
        shown = {h: decryption.decode_part(part, params) for h, part in enumerate(parts)}
        coefficients = decryption.combine(total, shown, params)
        fields = scheme.open_sum(total, cell.updates, lambda _: coefficients)
        watch.done("combine")
        return Opened(fields, samples, watch.seconds, len(checks[0]) + len(parts[0]))

    return open_once


def _check_fields(cell: Cell, folder: Path, fields: npt.NDArray[np.uint64]) -> None:
    expected = np.zeros_like(fields)
    for number in range(cell.updates):
        expected += np.load(folder / f"{number}.npy")
    if not np.array_equal(fields, expected):
        raise AssertionError("a sum did not decrypt to the sum of its updates")


def _error(cell: Cell, fields: npt.NDArray[np.uint64]) -> float:
    """Return the error of the mean in units of the mean, both root mean squares."""
    mean = decode_sum(fields, cell.updates, cell.codec, cell.dimension, SEED).mean
    true = np.zeros(cell.dimension)
    for number in range(cell.updates):
        true += update(number, cell.dimension) / cell.updates
    return float(np.linalg.norm(mean - true) / np.linalg.norm(true))


if __name__ == "__main__":
    answer(measure)
