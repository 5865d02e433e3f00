"""Measured in a process of its own: the exported models of a network in this runtime."""

import time
from collections.abc import Callable
from itertools import cycle, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from vitalring.edge_agent.inference import Array, Int8Model
from vitalring.models.artefact import artefact_from_bytes
from vitalring.models.runtime import TrainableModel, interpreter
from vitalring.tools.measuring.child import answer, peak_bytes
from vitalring.tools.measuring.machine import machine

RUNTIMES = ("tflite-runtime", "ai-edge-litert")
_WARM_UP = 50
_TIMED = 2_000
_BATCHES = 50

Predict = Callable[[npt.NDArray[Any]], tuple[Array, float]]
"""Takes one row; returns its probabilities (classes,) and the seconds that they took."""


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Return predictions, times and memory of the three models in `request["arrays"]`.

    The int8 model comes first, with no more rows than `timed`, so that the peak of memory is that
    of a device that predicts.
    """
    with np.load(request["arrays"]) as arrays:
        timed, model = arrays["timed"], arrays["int8"].tobytes()
        start = peak_bytes()
        int8 = Int8Model(model, timed.shape[1:], request["classes"])

        def by_int8(row: Array) -> tuple[Array, float]:
            found = int8.predict(row)
            return found.probabilities, found.latency_s

        seconds = _seconds(by_int8, timed)
        peak = peak_bytes()
        alone = _seconds(_bare(interpreter(model)), _levels(interpreter(model), timed))
        by_float = _bare(interpreter(arrays["float"].tobytes()))
        x, weights = arrays["x"], arrays["weights"]
        graph = TrainableModel(
            artefact_from_bytes(arrays["info"].tobytes(), arrays["training"].tobytes())
        )
    found = {
        "training": {
            "labels": graph.probabilities(weights, x).argmax(axis=1).tolist(),
            "batch": graph.info.physical_batch,
            "seconds": _batch_seconds(graph, weights, x),
        },
        "float": {"labels": _labels(by_float, x), "seconds": _seconds(by_float, timed)},
        "int8": {"labels": _labels(by_int8, x), "seconds": seconds, "alone": alone},
    }
    facts = machine()
    # The order is that in which `interpreter` looks for them.
    names = [f"{name} {facts[name]}" for name in RUNTIMES if name in facts]
    return {
        "runtime": names[0] if names else "unknown",
        "machine": facts,
        "models": found,
        "start_bytes": start,
        "peak_bytes": peak,
    }


def _levels(loaded: Any, rows: Array) -> npt.NDArray[np.int8]:  # noqa: ANN401
    """Return rows as an int8 model takes them."""
    step, zero = loaded.get_input_details()[0]["quantization"]
    levels: npt.NDArray[np.int8] = np.clip(np.rint(rows / step) + zero, -128, 127).astype(np.int8)
    return levels


def _bare(loaded: Any) -> Predict:  # noqa: ANN401
    """Return the model without a way to or from its numbers."""
    (entry,), (out,) = loaded.get_input_details(), loaded.get_output_details()

    def predict(row: npt.NDArray[Any]) -> tuple[Array, float]:
        began = time.perf_counter()
        loaded.set_tensor(entry["index"], row[np.newaxis])
        loaded.invoke()
        found: Array = loaded.get_tensor(out["index"])[0]
        return found, time.perf_counter() - began

    return predict


def _labels(predict: Predict, x: Array) -> list[int]:
    return [int(np.argmax(predict(row)[0])) for row in x]


def _seconds(predict: Predict, timed: npt.NDArray[Any]) -> dict[str, float]:
    """Return what a row takes once the model is warm, over the same rows again and again."""
    rows = islice(cycle(timed), _WARM_UP + _TIMED)
    return _percentiles([predict(row)[1] for row in rows][_WARM_UP:])


def _batch_seconds(graph: TrainableModel, weights: Array, x: Array) -> dict[str, float]:
    """Return what one full physical batch takes in the training graph, once warm."""
    batch = np.resize(x, (graph.info.physical_batch, *x.shape[1:]))
    seconds = []
    for _ in range(_BATCHES + 1):
        began = time.perf_counter()
        graph.probabilities(weights, batch)
        seconds.append(time.perf_counter() - began)
    return _percentiles(seconds[1:])


def _percentiles(seconds: list[float]) -> dict[str, float]:
    low, middle, high = np.percentile(seconds, [5, 50, 95]).tolist()
    return {"low": low, "median": middle, "high": high}


if __name__ == "__main__":
    answer(measure)
