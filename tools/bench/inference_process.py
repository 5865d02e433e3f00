"""Measured in a process of its own: the exported models of a network in this runtime."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from vitalring.edge_agent.inference import Array, Int8Model
from vitalring.models.artefact import artefact_from_bytes
from vitalring.models.runtime import TrainableModel, interpreter
from vitalring.tools.bench.child import answer, peak_bytes
from vitalring.tools.bench.machine import machine

RUNTIMES = ("tflite-runtime", "ai-edge-litert")
_WARM_UP = 50
_TIMED = 2_000

Predict = Callable[[Array], tuple[Array, float]]
"""Takes one window; returns its probabilities (classes,) and the seconds that they took."""


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Return predictions, bytes and times of the three models in `request["arrays"]`.

    The int8 model comes first, so that the peak of memory is its own.
    """
    with np.load(request["arrays"]) as arrays:
        x, weights = arrays["x"], arrays["weights"]
        files = {name: arrays[name].tobytes() for name in ("info", "training", "float", "int8")}
    artefact = artefact_from_bytes(files["info"], files["training"])
    classes = len(artefact.info.classes)
    int8 = Int8Model(files["int8"], artefact.info.input_shape, classes)

    def by_int8(row: Array) -> tuple[Array, float]:
        found = int8.predict(row)
        return found.probabilities, found.latency_s

    first = _run(by_int8, x, len(files["int8"]))
    peak = peak_bytes()
    graph = TrainableModel(artefact)
    # The training graph is what accuracy is compared with, in whole batches and exactly once.
    labels = graph.probabilities(weights, x).argmax(axis=1)

    def by_graph(row: Array) -> tuple[Array, float]:
        began = time.perf_counter()
        found = graph.probabilities(weights, row[np.newaxis])[0]
        return found, time.perf_counter() - began

    rest = {
        "float": _run(_float_model(files["float"]), x, len(files["float"])),
        "training": _run(by_graph, x[:_TIMED], len(files["training"]))
        | {"labels": labels.tolist()},
    }
    facts = machine()
    names = [f"{name} {facts[name]}" for name in RUNTIMES if name in facts]
    return {
        "runtime": names[0] if names else "unknown",
        "machine": facts,
        "models": {**rest, "int8": first},
        "peak_bytes": peak,
    }


def _float_model(model: bytes) -> Predict:
    loaded = interpreter(model)
    (entry,), (out,) = loaded.get_input_details(), loaded.get_output_details()

    def predict(row: Array) -> tuple[Array, float]:
        began = time.perf_counter()
        loaded.set_tensor(entry["index"], row[np.newaxis])
        loaded.invoke()
        found: npt.NDArray[np.float32] = loaded.get_tensor(out["index"])[0]
        return found, time.perf_counter() - began

    return predict


def _run(predict: Predict, x: Array, size: int) -> dict[str, Any]:
    """Return labels of all windows and the seconds that single ones took, once warm."""
    for row in x[:_WARM_UP]:
        predict(row)
    results = [predict(row) for row in x]
    seconds = [seconds for _, seconds in results[:_TIMED]]
    low, middle, high = np.percentile(seconds, [5, 50, 95]).tolist()
    return {
        "labels": [int(np.argmax(found)) for found, _ in results],
        "bytes": size,
        "seconds": {"low": low, "median": middle, "high": high},
    }


if __name__ == "__main__":
    answer(measure)
