"""Measured in a process of its own: what the agent's accounting process does once a plan."""

import time
from typing import Any

from vitalring.tools.measuring.child import answer, peak_bytes

_BEGAN = time.perf_counter()


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Compute the epsilon of `request["spends"]`, as `edge_agent.accountant.main` does."""
    from vitalring.edge_agent import accountant  # noqa: PLC0415
    from vitalring.protocol.privacy import Spend  # noqa: PLC0415

    spends = [Spend(**spend) for spend in request["spends"]]
    epsilon = accountant.epsilon(spends, request["delta"])
    return {
        "epsilon": epsilon,
        "seconds": time.perf_counter() - _BEGAN,
        "peak_bytes": peak_bytes(),
    }


if __name__ == "__main__":
    answer(measure)
