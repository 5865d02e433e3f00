"""`vitalring bench rounds`: simulated rounds a second, where training takes next to no time.

A simulation of real parties, as `vitalring simulate` runs it, on devices with
a few records each that train one step without privacy; what is left is the
machinery: broker, encryption, signatures, checks, log, and with a joint key
an aggregator for each hospital, which fetches every update, checks it and
decrypts together with the others.
"""

import io
import itertools
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from vitalring.errors import ConfigError, RecordError
from vitalring.protocol.cbor import decode, type_of
from vitalring.protocol.records import RoundReport
from vitalring.protocol.signing import Signed
from vitalring.tools.measuring.machine import in_words, machine
from vitalring.tools.measuring.spread import Spread, milliseconds, shown, spread
from vitalring.tools.measuring.table import Table
from vitalring.tools.settings import StudySettings, hospitals_of, rings_of
from vitalring.tools.simulate.api import simulate
from vitalring.tools.simulate.layout import SHIPPED_DATA

_RECORDS = 4
_STAGES = ("train", "encode", "encrypt", "sign", "admit")


def measure_rounds(
    devices: int,
    rounds: int,
    secure_sum: str,
    hospitals: int = 0,
    threshold: int = 0,
    ring_size: int = 0,
) -> dict[str, Any]:
    """Run a simulation and return the time from each round's opening to the next one's.

    `hospitals` and `threshold` are those of a joint key and `ring_size` is the most keys in a
    ring, as in `StudySettings`: 0 is its default. The first round is left out: its parties are
    still starting. Raises VitalRingError.
    """
    study = StudySettings(
        secure_sum=secure_sum, hospitals=hospitals, threshold=threshold, ring_size=ring_size
    )
    hospitals, threshold = hospitals_of(study)
    suite, ring_size = rings_of(study, devices)
    if rounds < 3:
        raise ConfigError(f"--rounds {rounds} leaves nothing to measure: use 3 or more")
    with tempfile.TemporaryDirectory(prefix="vitalring-bench-") as folder:
        data, out = Path(folder) / "data", Path(folder) / "run"
        _write_fleet(data, devices)
        run = simulate(
            console=Console(file=io.StringIO()),
            data=data,
            out=out,
            alone=False,
            rounds=rounds,
            unit="none",
            noise="none",
            local_epochs=0.001,
            batch=_RECORDS,
            ring_size=ring_size,
            secure_sum=secure_sum,
            hospitals=hospitals,
            threshold=threshold,
            window_s=0.0,
            timeout_s=3600.0,
        )
        if not run.finished:
            raise ConfigError("the measured simulation was stopped before its end")
        reports = reports_in(out / "log")
    missing = sum(report.expected - report.admitted for report in reports)
    if missing:
        raise ConfigError(f"{missing} updates did not arrive: the measured rounds are not whole")
    pairs = list(itertools.pairwise(reports[1:]))
    seconds = [(after.opened_ms - report.opened_ms) / 1000 for report, after in pairs]
    collecting = [(report.closed_ms - report.opened_ms) / 1000 for report, _ in pairs]
    concluding = [(after.opened_ms - report.closed_ms) / 1000 for report, after in pairs]
    return {
        "machine": machine(),
        "devices": devices,
        "rounds": rounds,
        "secure_sum": secure_sum,
        "hospitals": hospitals,
        "threshold": threshold,
        "ring": ring_size,
        "ring_suite": suite,
        "parameters": run.report["parameters"],
        "seconds": asdict(spread(seconds)),
        "collecting": asdict(spread(collecting)),
        "concluding": asdict(spread(concluding)),
        "rounds_per_second": len(seconds) / sum(seconds),
        "update_bytes": run.report["bytes"]["update"],
        "stages": _stages(run.report["rounds"][1:]),
    }


def rounds_tables(result: dict[str, Any]) -> list[Table]:
    """Return the figures as a table."""
    row = (
        f"{result['devices']:,}",
        result["secure_sum"],
        _hospitals(result),
        shown(Spread(**result["seconds"]), milliseconds),
        f"{result['rounds_per_second']:.3f}",
    )
    head = ("devices", "sum", "hospitals", "ms a round", "rounds a second")
    return [Table("Rounds", head, (row,))]


def rounds_facts(result: dict[str, Any]) -> list[str]:
    """Return what a reader must know to compare the figures with others."""
    return [
        in_words(result["machine"]),
        f"{result['rounds']} rounds, {result['parameters']:,} parameters, rings of "
        f"{result['ring']} in suite {result['ring_suite']}, embedded broker, log. A device trains "
        f"one step on {_RECORDS} records without privacy: not nothing, and its time is in the "
        "figure.",
        "A round lasts from its opening to the next one's; the first is left out. "
        "The median, with the least and the greatest in brackets; rounds a second over all.",
        f"Of a round, {milliseconds(result['collecting']['median'])} ms until its close, while "
        "devices train and the gateway admits, and "
        f"{milliseconds(result['concluding']['median'])} ms until the next one opens, while "
        "hospitals fetch and check the updates, open the sum and sign model and plan (medians).",
        "Of an update, while all of them share the cores: "
        + ", ".join(f"{name} {milliseconds(time)} ms" for name, time in result["stages"].items())
        + " (medians).",
    ]


def _stages(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Return the median seconds of what a device does to an update, and of its admission."""
    return {
        name: statistics.median(row["stages"][name] for row in rounds)
        for name in _STAGES
        if all(name in row["stages"] for row in rounds)
    }


def _hospitals(result: dict[str, Any]) -> str:
    hospitals, threshold = result["hospitals"], result["threshold"]
    return f"{threshold} of {hospitals}" if threshold else f"{hospitals}"


def _write_fleet(folder: Path, devices: int) -> None:
    """Write a data set of small devices, all with the same shipped heartbeats, and one to test."""
    with np.load(sorted((SHIPPED_DATA / "devices").glob("*.npz"))[0]) as shipped:
        rows = {"x": shipped["x"][:_RECORDS], "y": shipped["y"][:_RECORDS]}
    (folder / "devices").mkdir(parents=True)
    width = len(str(devices))
    for name in ["test", *(f"d{number:0{width}}" for number in range(1, devices + 1))]:
        np.savez(folder / "devices" / f"{name}.npz", **rows)
    lines = (SHIPPED_DATA / "dataset.toml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("name", "test_devices"))]
    text = "\n".join([*kept, 'name = "bench"', 'test_devices = ["test"]', ""])
    (folder / "dataset.toml").write_text(text)


def reports_in(log: Path) -> list[RoundReport]:
    """Return the round reports in a log's folder, in their order."""
    found = []
    for path in (log / "objects").iterdir():
        try:
            payload = decode(Signed, path.read_bytes()).payload
        except RecordError:
            continue  # a model, weights, a key
        if type_of(payload) == RoundReport.TYPE:
            found.append(decode(RoundReport, payload))
    return sorted(found, key=lambda report: report.round)
