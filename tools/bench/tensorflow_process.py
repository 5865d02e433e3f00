"""Measured in a process of its own: the same training, as full TensorFlow does it.

The network is the one that the device's model was converted from; sampling,
clipping, physical batch and number of steps are the device's. The noise is
`tf.random.normal`: fit for a comparison, not for a guarantee.
"""

import os
import time
from typing import Any

from vitalring.stopwatch import Stages
from vitalring.tools.measuring.child import answer, peak_bytes

_BEGAN = time.perf_counter()


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Train two rounds; the first one's peak is the process's. The first traces the graph."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import numpy as np  # noqa: PLC0415
    import tensorflow as tf  # noqa: PLC0415

    from vitalring.models.network import clipped_gradient_sum  # noqa: PLC0415
    from vitalring.models.registry import build  # noqa: PLC0415

    imported = time.perf_counter() - _BEGAN
    with np.load(request["arrays"]) as arrays:
        x, y, start = arrays["x"], arrays["y"], arrays["weights"]
    training, privacy = request["training"], request["privacy"]
    generator = np.random.default_rng()
    watch = Stages()
    network = build(request["model"])
    rows = network.physical_batch

    @tf.function  # type: ignore[untyped-decorator] # TensorFlow carries no types
    def gradient(w: Any, some_x: Any, some_y: Any, mask: Any) -> Any:  # noqa: ANN401
        clip = tf.constant(privacy["clip"], tf.float32)
        total, _, _ = clipped_gradient_sum(network, w, some_x, some_y, mask, clip)
        return total

    def train() -> None:
        weights = tf.Variable(start)
        deviation = privacy["clip"] * privacy["noise_multiplier"]
        for _ in range(training["steps"]):
            chosen = np.flatnonzero(generator.random(len(x)) < training["sampling_rate"])
            total = tf.random.normal(start.shape, stddev=deviation)
            for first in range(0, chosen.size, rows):
                part = chosen[first : first + rows]
                some_x = np.zeros((rows, *x.shape[1:]), np.float32)
                some_x[: part.size] = x[part]
                some_y = np.zeros((rows, len(network.classes)), np.float32)
                some_y[np.arange(part.size), y[part]] = 1
                mask = (np.arange(rows) < part.size).astype(np.float32)
                # Tensors, not arrays: an array's values would be traced into the graph anew.
                batch = (tf.constant(some_x), tf.constant(some_y), tf.constant(mask))
                total += gradient(weights.value(), *batch)
            weights.assign_sub(training["learning_rate"] / training["batch"] * total)
        weights.numpy()  # the last step has run when its result is here

    watch.done("load")
    train()
    watch.done("first round")
    peak = peak_bytes()
    later = Stages()
    train()
    later.done("later round")
    return {
        "times": {"import": imported, **watch.seconds, **later.seconds},
        "peak_bytes": peak,
        "version": tf.__version__,
    }


if __name__ == "__main__":
    answer(measure)
