"""In a child: a study through the real parties, for what it learns or for what it costs."""

import io
import itertools
import json
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vitalring.errors import ConfigError
from vitalring.files import read_file
from vitalring.schema import from_plain
from vitalring.tools.bench.papers.watching import MOST_OTHERS, Watch
from vitalring.tools.bench.rounds import reports_in
from vitalring.tools.settings import SimulationSettings
from vitalring.tools.simulate.api import Simulation, simulate

_DEVICE_STAGES = ("encode", "encrypt", "sign")


def settings_of(request: Mapping[str, Any]) -> SimulationSettings:
    """Return a cell's settings with the places of its data on this machine. Raises ConfigError."""
    settings = from_plain(SimulationSettings, request["settings"], ConfigError)
    features = Path(request["features"]) if request.get("features") else None
    study = replace(settings.study, features=features)
    return replace(settings, data=Path(request["data"]), study=study)


def study_cell(request: Mapping[str, Any]) -> dict[str, Any]:
    """Run a study and return how its final model does on the test rows, and its rounds.

    `request["room"]` is its folder: one that was killed goes on where it stopped.
    """
    settings = settings_of(request)
    run = _run(settings, Path(request["room"]) / "run")
    report = run.report
    test = report.get("test")
    if test is None:
        raise ConfigError(f"{report['dataset']} holds no row out to test on")
    missing = sum(row["expected"] - row["admitted"] for row in report["rounds"])
    return {
        **{name: test[name] for name in ("accuracy", "macro_f1", "auroc", "confusion", "rows")},
        "curve": [row["accuracy"] for row in report["rounds"]],
        "curve_on": report["rounds_on"],
        "privacy": report["privacy"],
        "rounds": len(report["rounds"]),
        "missing_updates": missing,
        "model": report["model"],
        "parameters": report["parameters"],
        "devices": report["devices"],
        "secure_sum": report["secure_sum"],
        "update_bytes": report["bytes"]["update"],
        "log_leaves": report["log"]["leaves"],
        "log_bytes": _size(run.folder / "log"),
    }


def time_cell(request: Mapping[str, Any]) -> dict[str, Any]:
    """Run a few rounds of a study and return their time and the parties' memory.

    A round lasts from its opening to the next one's; the first is left out, in which parties
    still start. Where others had the cores meanwhile, the times say nothing.
    """
    settings = settings_of(request)
    with tempfile.TemporaryDirectory(prefix="vitalring-papers-") as folder, Watch() as watch:
        run = _run(settings, Path(folder) / "run")
        reports = reports_in(run.folder / "log")
    missing = sum(report.expected - report.admitted for report in reports)
    if missing:
        raise ConfigError(f"{missing} updates did not arrive: the timed rounds are not whole")
    opened = [report.opened_ms / 1000 for report in reports[1:]]
    stages = [row["stages"] for row in run.report["rounds"][1:]]
    middle = {
        name: statistics.median(each[name] for each in stages) for name in stages[0]
    }  # every round has the same stages
    return {
        "round_seconds": statistics.median(b - a for a, b in itertools.pairwise(opened)),
        "update_seconds": sum(middle.get(name, 0.0) for name in _DEVICE_STAGES),
        "stages": middle,
        "update_bytes": run.report["bytes"]["update"],
        "peak_bytes": watch.peaks,
        **others(watch),
    }


def others(watch: Watch) -> dict[str, Any]:
    """Return how much of the machine others had, and whether that spoils times."""
    return {"others": watch.others, "disturbed": watch.others > MOST_OTHERS}


def _run(settings: SimulationSettings, out: Path) -> Simulation:
    done = out / "report.json"
    if done.exists():
        report = json.loads(read_file(done))
        # It came to its end, but whoever waited for it was killed before it was kept.
        if report["status"] == "finished":
            return Simulation(out, report)
    run = simulate(replace(settings, out=out), console=Console(file=io.StringIO()))
    if not run.finished:
        raise ConfigError("the run was stopped before its end")
    return run


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
