"""Run a TFLite model once in a process of its own, because a damaged one can crash its runtime.

`python -m vitalring.tools.model_check FILE SHAPES` prints what each signature took and gave as
JSON; SHAPES is JSON of inputs' shapes by name, for those that a model leaves open.
"""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitalring.errors import ModelError
from vitalring.models.runtime import interpreter
from vitalring.schema import from_plain

_RUNS = 20
_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Run:
    """A signature that ran: shapes of its results by name, and the median seconds of a call."""

    signature: str
    results: dict[str, tuple[int, ...]]
    seconds: float


@dataclass(frozen=True)
class Check:
    """Which runtime ran a model, and how."""

    runtime: str
    runs: tuple[Run, ...]


def check_model(path: Path, shapes: dict[str, tuple[int, ...]]) -> Check:
    """Return how the installed runtime runs a model on zeros.

    Raises:
        ModelError: it does not; the message says what the runtime said, or how it died.
    """
    command = [sys.executable, "-m", "vitalring.tools.model_check", str(path), json.dumps(shapes)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{path}: the runtime did not end within {_TIMEOUT_S:g} s") from error
    if done.returncode < 0:
        raise ModelError(
            f"{path}: the runtime died of signal {-done.returncode}; the file is damaged: fetch "
            "or export it again"
        )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ModelError(f"{path}: {said[-1] if said else 'the runtime failed'}")
    return from_plain(Check, json.loads(done.stdout), ModelError)


def main() -> int:
    """Run the model that the command line names."""
    path, shapes = Path(sys.argv[1]), json.loads(sys.argv[2])
    try:
        loaded = interpreter(path.read_bytes())
        runs = [_run(loaded, name, shapes) for name in sorted(loaded.get_signature_list())]
    except (ModelError, ValueError, RuntimeError) as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        return 1
    runtime = type(loaded).__module__.split(".")[0]
    sys.stdout.write(json.dumps({"runtime": runtime, "runs": runs}))
    return 0


def _run(loaded: Any, name: str, shapes: dict[str, list[int]]) -> dict[str, Any]:  # noqa: ANN401
    runner = loaded.get_signature_runner(name)
    given = {
        key: np.zeros(shapes.get(key, [abs(int(n)) for n in one["shape"]]), one["dtype"])
        for key, one in runner.get_input_details().items()
    }
    took = []
    for _ in range(_RUNS):
        began = time.perf_counter()
        out = runner(**given)
        took.append(time.perf_counter() - began)
    results = {key: list(array.shape) for key, array in sorted(out.items())}
    return {"signature": name, "results": results, "seconds": statistics.median(took)}


if __name__ == "__main__":
    sys.exit(main())
