"""In TensorFlow's environment: DP-SGD by tensorflow-privacy's Keras optimisers.

The network is the device's own, quantised forward pass and all; its loss tells TensorFlow the
gradient that the device computes, and the optimiser clips each example's and adds the noise.

- Every row enters a step by its own coin (Poisson sampling), as the accountant assumes. A step
  has room for more rows than it may ever draw; what is left empty has loss and gradient 0. So no
  batch is cut short, and the sum is divided by a number that does not depend on the rows.
- A step of SGD is worked off in chunks, whose gradients the optimiser adds up (its own
  `gradient_accumulation_steps`). It adds noise to each chunk, so each gets a share of the
  variance, and the step's noise has the multiplier that was accounted. Adam takes a step whole:
  it counts every chunk as a step when it corrects its bias.

Noise is TensorFlow's own random numbers: fit for a comparison, not for a guarantee.
"""

import math
import os
import re
from typing import Any, Final

from vitalring.tools.measuring.child import answer

CHUNK: Final = 32
_POISSON: Final = re.compile(r"Epsilon assuming Poisson sampling \(\*\):\s*([0-9.]+|inf)")


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Train, write the test rows' probabilities, and return the library's privacy statements."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import numpy as np  # noqa: PLC0415
    import tensorflow as tf  # noqa: PLC0415
    import tensorflow_privacy as tfp  # noqa: PLC0415

    from vitalring.models.network import log_softmax, probabilities  # noqa: PLC0415

    tf.random.set_seed(request["seed"])
    coins = np.random.default_rng(request["seed"])
    with np.load(request["arrays"]) as arrays:
        x, y, start, test = (arrays[name] for name in ("x", "y", "start", "test"))
    network = _network(request["model"], x.shape[1:], request["classes"])
    layer = network.layer
    batch, rate = request["batch"], request["batch"] / len(x)
    capacity = chunks_of(batch) * CHUNK
    chunk = capacity if request["optimiser"] == "adam" else CHUNK
    chunks = capacity // chunk
    options = {
        "l2_norm_clip": request["clip"],
        "noise_multiplier": request["noise_multiplier"] / math.sqrt(chunks),
        "num_microbatches": chunk,
        "gradient_accumulation_steps": chunks,
    }
    if request["optimiser"] == "adam":
        optimiser = tfp.DPKerasAdamOptimizer(**options, learning_rate=request["learning_rate"])
    else:
        # The optimiser divides by the room of a step; the expected batch is what is meant.
        scaled = request["learning_rate"] * capacity / batch
        optimiser = tfp.DPKerasSGDOptimizer(**options, learning_rate=scaled)
    weights = tf.Variable(start)

    @tf.function  # type: ignore[untyped-decorator] # TensorFlow carries no types
    def step(some_x: Any, some_y: Any, mask: Any) -> None:  # noqa: ANN401
        @tf.custom_gradient  # type: ignore[untyped-decorator] # TensorFlow carries no types
        def losses(w: Any) -> Any:  # noqa: ANN401
            logits, cache = layer.forward(some_x, w, network.quantised)
            log_probs = log_softmax(logits)

            def gradient(upstream: Any) -> Any:  # noqa: ANN401
                below = layer.backward(tf.exp(log_probs) - some_y, cache)
                return layer.gradient(below.tape, upstream)

            return -tf.reduce_sum(some_y * log_probs, -1), gradient

        with tf.GradientTape() as tape:
            loss = losses(weights.value()) * mask
        optimiser.minimize(loss, [weights], tape=tape)

    for _ in range(request["steps"]):
        chosen = np.flatnonzero(coins.random(len(x)) < rate)
        if chosen.size > capacity:
            raise SystemExit(f"{chosen.size} rows were drawn, a step has room for {capacity}")
        some_x = np.zeros((capacity, *x.shape[1:]), np.float32)
        some_x[: chosen.size] = x[chosen]
        some_y = np.zeros((capacity, request["classes"]), np.float32)
        some_y[np.arange(chosen.size), y[chosen]] = 1
        mask = (np.arange(capacity) < chosen.size).astype(np.float32)
        for first in range(0, capacity, chunk):
            part = slice(first, first + chunk)
            # Tensors, not arrays: an array's values would be traced into the graph anew.
            step(*(tf.constant(each[part]) for each in (some_x, some_y, mask)))
    found = [
        probabilities(network, weights.value(), tf.constant(test[first : first + 1024])).numpy()
        for first in range(0, len(test), 1024)
    ]
    np.savez(request["found"], probabilities=np.concatenate(found), weights=weights.numpy())
    return {
        "statement": _statements(request, len(x)),
        "versions": {"tensorflow": tf.__version__, "tensorflow-privacy": tfp.__version__},
    }


def chunks_of(batch: int) -> int:
    """Return the chunks of a step that has room for every batch it may draw.

    By Bernstein's inequality a batch of `batch` expected rows exceeds this once in 2^60 steps.
    """
    return math.ceil((batch + 10.0 * math.sqrt(batch) + 30.0) / CHUNK)


def stated_epsilon(statement: str) -> float | None:
    """Return the epsilon under Poisson sampling that a privacy statement names, or None."""
    found = _POISSON.search(statement)
    return float(found[1]) if found else None


def _network(name: str, shape: tuple[int, ...], classes: int) -> Any:  # noqa: ANN401
    """Return the network at the size of the data."""
    from dataclasses import replace  # noqa: PLC0415

    from vitalring.models.registry import build  # noqa: PLC0415

    network = build(name)
    if network.sized is None:
        return network
    return replace(network, layer=network.sized(tuple(map(int, shape)), classes))


def _statements(request: dict[str, Any], rows: int) -> dict[str, float | str | None]:
    """Return the epsilon that tensorflow-privacy states, by accountant; or why it states none."""
    from tensorflow_privacy.privacy.analysis import (  # noqa: PLC0415
        compute_dp_sgd_privacy_lib as library,
    )

    stated: dict[str, float | str | None] = {}
    for kind in library.AccountantType:
        try:
            text = library.compute_dp_sgd_privacy_statement(
                rows,
                request["batch"],
                # A hair less, for the library rounds the number of steps up.
                (request["steps"] - 1e-6) * request["batch"] / rows,
                request["noise_multiplier"],
                request["delta"],
                used_microbatching=False,
                accountant_type=kind,
            )
        except (ArithmeticError, ValueError, TypeError, MemoryError) as error:
            stated[kind.value] = str(error)
        else:
            stated[kind.value] = stated_epsilon(text)
    return stated


if __name__ == "__main__":
    answer(measure)
