"""NVFLARE's and Flower's sides of `vitalring bench secure-sum`, measured by their interpreters."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vitalring.tools.bench.secure_sum_cell import (
    LARGE,
    LARGE_UPDATES,
    Sizes,
    additions_timed,
    updates_made,
)
from vitalring.tools.measuring.child import run_script
from vitalring.tools.measuring.spread import by_name

_HERE = Path(__file__).parent
_NVFLARE_CLIENTS = 10
_SHARES = 21  # of Flower's clients, with two thirds of them to reconstruct


def nvflare_row(python: str, dimension: int, sizes: Sizes) -> dict[str, Any]:
    """Measure NVFLARE's parties; what they do does not depend on the number of devices."""
    most = max(sizes.devices)
    with tempfile.TemporaryDirectory(prefix="vitalring-bench-") as room:
        request = {
            "folder": room,
            "dimension": dimension,
            "clients": min(updates_made(dimension, most), _NVFLARE_CLIENTS),
            "additions": additions_timed(dimension, most),
            "repeats": sizes.repeats,
        }
        device, server, release = (
            run_script(_HERE / "secure_sum_nvflare.py", {"role": role, **request}, python=python)
            for role in ("device", "server", "release")
        )
    return {
        "side": "NVFLARE",
        "version": device["version"],
        "precision": "scale 2^40",
        "dimension": dimension,
        "devices": most,
        "additions": request["additions"],
        "update_bytes": device["bytes"],
        "device": stages(device["samples"]),
        "server": stages(server["added"]),
        "release": stages(release["samples"]),
        "combine": stages(server["mean"]),
        "peak_bytes": peaks(device, server, release),
        "error": release["error"],
    }


def flower_rows(python: str, dimension: int, sizes: Sizes) -> list[dict[str, Any]]:
    """Measure SecAgg+ for each number of neighbours, then adding for each number of devices."""
    rows = []
    for shares in sorted({min(devices, _SHARES) for devices in sizes.devices}):
        devices = [n for n in sizes.devices if min(n, _SHARES) == shares]
        with tempfile.TemporaryDirectory(prefix="vitalring-bench-") as room:
            request = {
                "folder": room,
                "dimension": dimension,
                "shares": shares,
                "threshold": max(2, -(-2 * shares // 3)),
                # All of them where their sum is checked: a part of them leaves masks in it.
                "clients": LARGE_UPDATES if dimension > LARGE and shares == _SHARES else shares,
            }
            script = _HERE / "secure_sum_flower.py"
            device = run_script(script, {"role": "device", **request}, python=python)
            for count in devices:
                additions = additions_timed(dimension, count)
                server = run_script(
                    script, {"role": "server", "additions": additions, **request}, python=python
                )
                rows.append(_flower_row(device, server, request, count, additions))
    return rows


def _flower_row(
    device: dict[str, Any],
    server: dict[str, Any],
    request: dict[str, Any],
    devices: int,
    additions: int,
) -> dict[str, Any]:
    # One seed after the other is rebuilt and its mask taken away.
    release = [
        {stage: seconds * devices for stage, seconds in sample.items()}
        for sample in server["removed"]
    ]
    return {
        "side": "Flower SecAgg+",
        "version": device["version"],
        "precision": "22 bits over ±8",
        "shares": request["shares"],
        "threshold": request["threshold"],
        "dimension": request["dimension"],
        "devices": devices,
        "additions": additions,
        "update_bytes": device["bytes"],
        "device": stages(device["samples"]),
        "server": stages(server["added"]),
        "release": stages(release),
        "combine": {},
        "peak_bytes": peaks(device, server, None),
        "error": server["error"],
    }


def peaks(
    device: dict[str, Any], server: dict[str, Any], release: dict[str, Any] | None
) -> dict[str, int | None]:
    """Return the peak memory of each party, in bytes; None where no party releases."""
    return {
        "device": device["peak_bytes"],
        "server": server["peak_bytes"],
        "release": release["peak_bytes"] if release else None,
    }


def stages(samples: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Sum up samples stage by stage, as JSON takes them."""
    return {name: asdict(figure) for name, figure in by_name(samples).items()}
