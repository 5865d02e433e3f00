"""`vitalring bench path`: what the path of an update costs, stage by stage, in one run."""

import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vitalring.protocol.guarantee import study_spend
from vitalring.tools.bench import work as works
from vitalring.tools.bench.control_group import control_group, group_peak
from vitalring.tools.measuring.child import require_modules, run_child
from vitalring.tools.measuring.machine import machine
from vitalring.tools.measuring.spread import Spread, by_name, spread
from vitalring.tools.roles import MAX_PAYLOAD_BYTES
from vitalring.tools.settings import SimulationSettings
from vitalring.tools.simulate.api import apply_changes

PROTECTED, PLAIN = "single-he", "plain"
NETWORK = {"model": "ecg_cnn", "epsilon": 8.0}
"""A whole network, so that an update is one of thousands of parameters, and noise it can bear."""


def measure_path(
    settings: SimulationSettings, repeats: int, tensorflow: str | None
) -> dict[str, Any]:
    """Measure the path and return the content of `path.json`: times in seconds, sizes in bytes.

    `repeats` processes are measured where a process is (memory, start); stages
    are measured over the updates of all devices of the roster. `tensorflow` is
    the interpreter of an environment with TensorFlow, None leaves its column
    out. Raises VitalRingError.
    """
    if tensorflow is not None:
        require_modules(tensorflow, ("tensorflow", "vitalring"))
    with tempfile.TemporaryDirectory(prefix="vitalring-bench-") as folder:
        room = Path(folder)
        sides = {
            mode: _prepare(apply_changes(settings, {"secure_sum": mode}), room / mode)
            for mode in (PROTECTED, PLAIN)
        }
        protected = sides[PROTECTED]
        accounting = _accounting(protected, repeats)
        measured = {
            mode: _side(work, room / mode, accounting["epsilon"], repeats)
            for mode, work in sides.items()
        }
        request = works.write_training(settings, protected, room / "training.npz")
        training = {"tflite": _training("training_process", request, repeats)}
        if tensorflow is not None:
            training["tensorflow"] = _training("tensorflow_process", request, repeats, tensorflow)
        return {
            "machine": machine(),
            "work": {
                "device": protected.device,
                "records": protected.records,
                "ring": len(protected.devices),
                "updates": len(protected.devices),
                "repeats": repeats,
                "frame_bytes": MAX_PAYLOAD_BYTES,
                **works.plain_plan(protected.plan),
            },
            "accounting": accounting,
            "modes": measured,
            "float32_bytes": 4 * protected.plan.model.dimension,
            "training": training,
        }


def _prepare(settings: SimulationSettings, folder: Path) -> works.Work:
    (folder / "updates").mkdir(parents=True)
    return works.prepare(settings, folder / "state")


def _accounting(work: works.Work, repeats: int) -> dict[str, Any]:
    """Measure the agent's accounting process, which runs once a plan."""
    plan = work.plan
    spends = [asdict(spend) for spend in study_spend(plan.terms)]
    request = {"spends": spends, "delta": plan.privacy.delta}
    runs = [run_child("accounting_process", request) for _ in range(repeats)]
    return {
        "epsilon": runs[0]["epsilon"],
        "seconds": _plain(spread([run["seconds"] for run in runs])),
        "peak_bytes": _plain(spread([run["peak_bytes"] for run in runs])),
    }


def _side(work: works.Work, folder: Path, epsilon: float, repeats: int) -> dict[str, Any]:
    """Measure all parties of one mode of the sum."""
    first, groups = [], []
    for number in range(repeats):
        out = folder / f"first-{number}"
        out.mkdir()
        request = _request(work, out, epsilon) | {"keys": work.devices[:1]}
        with control_group() as group:
            first.append(run_child("device_process", request, group=group))
            if group is not None:
                groups.append(group_peak(group))
    request = _request(work, folder / "updates", epsilon) | {"keys": work.devices}
    later = run_child("device_process", request)
    servers = run_child("servers_process", request | {"repeats": repeats})
    updates = later["updates"]
    sizes = {name: updates[0][name] for name in ("update_bytes", "sent_bytes", "frames")}
    if any(update[name] != size for update in updates for name, size in sizes.items()):
        raise AssertionError("updates differ in length, which would tell devices apart")
    return {
        "memory": {
            "process_peak_bytes": _plain(spread([run["peak_bytes"] for run in first])),
            "group_peak_bytes": _plain(spread(groups)) if groups else None,
        },
        "import_seconds": _plain(spread([run["import"] for run in first])),
        "stages": {
            "device, first round": _stages([run["updates"][0]["stages"] for run in first]),
            "device, later rounds": _stages([update["stages"] for update in updates[1:]]),
            "gateway": _stages(servers["admit"]),
            "gateway, once a round": _stages([servers["close"]]),
            "aggregator": _stages(servers["conclude"]),
        },
        "bytes": {**sizes, "per_parameter": sizes["sent_bytes"] / work.plan.model.dimension},
    }


def _request(work: works.Work, out: Path, epsilon: float) -> dict[str, Any]:
    return {**work.request, "out": str(out), "epsilon": epsilon}


def _training(
    module: str, request: dict[str, Any], repeats: int, python: str = sys.executable
) -> dict[str, Any]:
    """Measure a training process in an environment of its own or in ours."""
    runs = [run_child(module, request, python=python) for _ in range(repeats)]
    return {
        "times": _stages([run["times"] for run in runs]),
        "peak_bytes": _plain(spread([run["peak_bytes"] for run in runs])),
        "version": runs[0].get("version"),
    }


def _stages(samples: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {name: _plain(figure) for name, figure in by_name(samples).items()}


def _plain(figure: Spread) -> dict[str, float]:
    return asdict(figure)
