"""`vitalring simulate`: a fleet on this machine."""

import argparse
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from vitalring.config import load_config
from vitalring.tools import report_text
from vitalring.tools.settings import DEVICE, SERVERS, WITH_NOISE, WITHOUT_NOISE, SimulationSettings
from vitalring.tools.simulate.api import Simulation, apply_changes, simulate


def _by_unit(name: str) -> str:
    with_noise, without = getattr(WITH_NOISE, name), getattr(WITHOUT_NOISE, name)
    return f"default: {with_noise}; with unit none {without}"


_OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("data", Path, "folder of a data set; default: the electrocardiograms shipped"),
    ("model", str, "network to train, or path of an artefact's JSON; default: one for the data"),
    ("devices", int, "how many devices take part; default: all that train"),
    ("rounds", int, "rounds of training"),
    (
        "local-epochs",
        float,
        f"passes over a device's records in a round; {_by_unit('local_epochs')}",
    ),
    (
        "batch",
        int,
        f"expected records in a step; {_by_unit('batch')}, or a quarter of the smallest device",
    ),
    ("lr", float, f"learning rate on the device; {_by_unit('lr')}"),
    ("proximal", float, "FedProx: pull towards the weights that a round starts from"),
    ("balance", str, "oversample repeats records of rare classes; only with unit none"),
    ("bits", int, "bits of a quantised value"),
    ("unit", str, "whom the guarantee protects: record, device or none"),
    (
        "noise",
        str,
        "who carries the guarantee: local, each device by itself, or distributed, the devices of "
        f"a sum together; {_by_unit('noise')}, with unit device {DEVICE.noise}",
    ),
    ("epsilon", float, "epsilon of the guarantee, for the whole study"),
    ("delta", float, "delta of the guarantee"),
    ("clip-quantile", float, "quantile that the clip follows from round to round; 0: it is fixed"),
    ("secure-sum", str, "threshold-he, two-server, single-he, or plain for comparison"),
    (
        "hospitals",
        int,
        "how many hospitals; default: 3 with threshold-he, 2 with two-server, else 1",
    ),
    ("threshold", int, "how many of them decrypt together; default: a majority"),
    ("personalise", str, "head: each device fits the final model's head to its own records"),
    ("dropout", float, "chance that a device sits a round out"),
    ("broker", str, "URL of a broker; default: one of its own"),
    ("seed", int, "seed of the initial weights"),
    ("out", Path, "folder for report, model and log; a stopped run's folder resumes"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.add_argument("--config", type=Path, help="TOML file with any of these and more")
    for name, kind, text in _OPTIONS:
        parser.add_argument(f"--{name}", type=kind, help=text)
    parser.add_argument(
        "--server",
        choices=("fedavg", "momentum", "adam", "yogi"),
        help="server optimiser, with its default settings, more in the TOML file; "
        f"default: {WITH_NOISE.server.name}; with unit none {WITHOUT_NOISE.server.name}",
    )
    for name, text in (
        ("centralised", "also train on all devices' records in one place, for comparison"),
        ("explain", "also show what the final model looks at"),
    ):
        parser.add_argument(f"--{name}", action="store_true", default=None, help=text)
    parser.add_argument(
        "--no-alone",
        dest="alone",
        action="store_false",
        default=None,
        help="do not train each device alone for comparison",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; exit code 130 where it was stopped."""
    base = load_config(SimulationSettings, options.config) if options.config else None
    names = [name.replace("-", "_") for name, _, _ in _OPTIONS]
    names += ["alone", "centralised", "explain"]
    given = {name: getattr(options, name) for name in names}
    changes = {name: value for name, value in given.items() if value is not None}
    # Whoever asks for no privacy means no noise either, whatever a file says.
    if changes.get("unit") == "none":
        changes.setdefault("noise", "none")
    if options.server:
        changes["server"] = SERVERS[options.server]
    settings = apply_changes(base or SimulationSettings(), changes)
    console = Console()
    command = shlex.join(["vitalring", *sys.argv[1:]])
    # A service manager's stop is a person's Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    result = simulate(settings, console=console, command=command)
    if not result.finished:
        return 130
    for line in summary(result):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0


def summary(result: Simulation) -> list[str]:
    """Return the closing lines of a finished run."""
    report, final = result.report, result.report["final"]
    lines = [
        "",
        f"accuracy   {final['accuracy']:.3f}",
        f"macro-F1   {final['macro_f1']:.3f}",
    ]
    if report["alone"]:
        alone = report["alone"]
        lines.append(
            f"           single devices alone, without privacy: median {alone['median']:.3f}, "
            f"mean {alone['mean']:.3f}, best {alone['best']:.3f}"
        )
    lines += report_text.closing_lines(report)
    privacy = report["privacy"]
    if privacy["unit"] == "none":
        lines.append("privacy    none: no noise was added")
    else:
        lines.append(
            f"privacy    unit {privacy['unit']}, noise {privacy['noise']}, "
            f"epsilon {privacy['spent']:.2f} of {privacy['epsilon']:g} "
            f"at delta {privacy['delta']:g}"
        )
        notes = (privacy["note"], privacy["clip_note"])
        lines += [f"           warning: {note}" for note in notes if note]
    rounds = report["rounds"]
    mean_seconds = sum(row["seconds"] for row in rounds) / len(rounds)
    return [
        *lines,
        f"bytes      {report['bytes']['update']:,} a device and round "
        f"({report['bytes']['per_parameter']:.1f} a parameter), sum: {report['secure_sum']}",
        f"seconds    {mean_seconds:.1f} a round, {report['seconds']:.0f} in all",
        f"log        {report['log']['leaves']} entries; check it: vitalring verify {result.folder}",
        f"report     {result.folder / 'report.html'}",
    ]
