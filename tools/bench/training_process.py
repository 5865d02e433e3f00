"""Measured in a process of its own: the device's training and nothing around it."""

import time
from typing import Any

from vitalring.stopwatch import Stages
from vitalring.tools.measuring.child import answer, peak_bytes

_BEGAN = time.perf_counter()


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Train two rounds in the TFLite runtime; the first one's peak is the process's."""
    import numpy as np  # noqa: PLC0415

    from vitalring.edge_agent.dpsgd import train  # noqa: PLC0415
    from vitalring.edge_agent.randomness import fresh_generator  # noqa: PLC0415
    from vitalring.models.artefact import load_artefact  # noqa: PLC0415
    from vitalring.models.runtime import TrainableModel  # noqa: PLC0415
    from vitalring.protocol.privacy import Privacy, Training  # noqa: PLC0415

    imported = time.perf_counter() - _BEGAN
    with np.load(request["arrays"]) as arrays:
        x, y, weights = arrays["x"], arrays["y"], arrays["weights"]
    training, privacy = Training(**request["training"]), Privacy(**request["privacy"])
    watch = Stages()
    model = TrainableModel(load_artefact(request["model"]))
    watch.done("load")
    train(model, weights, x, y, training, privacy, fresh_generator())
    watch.done("first round")
    peak = peak_bytes()
    later = Stages()
    train(model, weights, x, y, training, privacy, fresh_generator())
    later.done("later round")
    return {"times": {"import": imported, **watch.seconds, **later.seconds}, "peak_bytes": peak}


if __name__ == "__main__":
    answer(measure)
