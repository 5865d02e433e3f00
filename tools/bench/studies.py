"""`vitalring bench studies`: finished simulations side by side, from their reports."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from vitalring.errors import ConfigError
from vitalring.files import read_file, write_atomic
from vitalring.tools.measuring.table import Table, markdown, print_tables

_FACTS = (
    "dataset",
    "model",
    "parameters",
    "devices",
    "secure_sum",
    "privacy",
    "seconds",
    "started",
    "version",
)
_SCORES = {"accuracy": "accuracy", "macro_f1": "macro-F1", "auroc": "AUROC"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="output folder of a finished simulation"
    )
    parser.add_argument("--out", type=Path, help="folder for the results as JSON and Markdown")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    studies = [_read(folder) for folder in options.runs]
    command = "vitalring bench studies" + " RUN" * len(studies)
    facts, tables = studies_facts(studies), studies_tables(studies)
    print_tables(facts, tables, Console())
    if options.out is not None:
        text = markdown("Studies on published data", command, facts, tables)
        write_atomic(options.out / "studies.md", text.encode())
        content = json.dumps({"command": command, "studies": studies}, indent=2) + "\n"
        write_atomic(options.out / "studies.json", content.encode())
    return 0


def studies_facts(studies: list[dict[str, Any]]) -> list[str]:
    """Return what all figures have in common, in sentences."""
    return [
        "Each line is one run of `vitalring simulate` with the settings in docs/studies/, through "
        "broker, gateway, encrypted sum and log.",
        "In brackets: 95 % intervals, by drawing the held-out people anew (rows, where people are "
        "not devices).",
        "Centralised: the same network on all devices' rows in one place, in the same run.",
        *(
            f"{one['dataset']}: sum {one['secure_sum']}, version {one['version']} "
            f"on {one['started'][:10]}, {one['seconds']:.0f} s in all."
            for one in studies
        ),
    ]


def studies_tables(studies: list[dict[str, Any]]) -> list[Table]:
    """Return what was trained, how good it is beside centralised training, and each class."""
    trained = tuple(
        (
            one["dataset"],
            one["model"],
            f"{one['parameters']:,}",
            str(one["devices"]),
            str(one["rounds"]),
            f"{one['bytes']:,}",
        )
        for one in studies
    )
    scores = tuple(
        (one["dataset"], side, *(_interval(one[key].get(name)) for name in _SCORES))
        for one in studies
        for side, key in (("federated", "test"), ("centralised", "centralised"))
        if one[key]
    )
    titles = ("study", "network", "parameters", "devices", "rounds", "bytes a device and round")
    return [
        Table("What was trained", titles, trained),
        Table("On held-out records", ("study", "training", *_SCORES.values()), scores),
        *(_classes(one) for one in studies),
    ]


def _classes(study: dict[str, Any]) -> Table:
    test, pooled = study["test"], study["centralised"] or {}
    rows = tuple(
        (
            name,
            f"{counts['rows']:,}",
            str(counts["devices"]),
            _interval(test["recall"][name]),
            _interval(test["precision"][name]),
            _interval(pooled.get("recall", {}).get(name)),
        )
        for name, counts in test["classes"].items()
    )
    titles = ("class", "held-out rows", "on devices", "recall", "precision", "centralised recall")
    return Table(f"{study['dataset']}: by class", titles, rows)


def _interval(value: dict[str, float] | None) -> str:
    if value is None:
        return "–"
    return f"{value['value']:.3f} ({value['low']:.3f}–{value['high']:.3f})"


def _read(folder: Path) -> dict[str, Any]:
    """Return what the page says of a run. Raises ConfigError for one that is not finished."""
    report = json.loads(read_file(folder / "report.json"))
    if report["status"] != "finished" or report.get("test") is None:
        raise ConfigError(f"{folder} is no finished simulation with held-out rows")
    scores = ("accuracy", "macro_f1", "auroc", "recall", "precision", "classes", "loss")
    pooled = report.get("centralised")  # a run may have left it out
    return {
        **{name: report[name] for name in _FACTS},
        "rounds": len(report["rounds"]),
        "bytes": report["bytes"]["update"],
        "test": {name: report["test"].get(name) for name in scores},
        "centralised": pooled and {name: pooled.get(name) for name in scores},
    }
