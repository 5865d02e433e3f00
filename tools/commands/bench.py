"""`vitalring bench`: measure."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from vitalring.errors import ConfigError
from vitalring.files import write_atomic
from vitalring.tools.bench.log import log_facts, log_tables, measure_log
from vitalring.tools.bench.path import measure_path
from vitalring.tools.bench.path_text import path_facts, path_tables
from vitalring.tools.bench.rounds import measure_rounds, rounds_facts, rounds_tables
from vitalring.tools.bench.table import Table, markdown, print_tables
from vitalring.tools.settings import SimulationSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    actions = parser.add_subparsers(dest="action", required=True)
    path = actions.add_parser("path", help="memory, time and bytes of an update's path")
    path.add_argument(
        "--tensorflow", metavar="PYTHON", help="interpreter with vitalring[models], to compare"
    )
    log = actions.add_parser("log", help="entries a second that the log takes")
    log.add_argument("--entries", type=int, default=20_000, help="entries of a measurement")
    log.add_argument("--disk", type=Path, help="folder on the disk to measure")
    rounds = actions.add_parser("rounds", help="simulated rounds a second")
    rounds.add_argument("--devices", type=int, default=100, help="how many devices take part")
    rounds.add_argument("--rounds", type=int, default=8, help="how many rounds to run")
    rounds.add_argument("--secure-sum", default="single-he", help="single-he or plain")
    rounds.add_argument("--out", type=Path, help="folder for the results as JSON and Markdown")
    for each, repeats in ((path, 5), (log, 3)):
        each.add_argument("--repeats", type=int, default=repeats, help="how often to measure")
        each.add_argument("--out", type=Path, help="folder for the results as JSON and Markdown")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    if options.action != "rounds" and options.repeats < 1:
        raise ConfigError(f"--repeats {options.repeats} measures nothing: use 1 or more")
    {"path": _path, "log": _log, "rounds": _rounds}[options.action](options)
    return 0


def _path(options: argparse.Namespace) -> None:
    result = measure_path(SimulationSettings(), options.repeats, options.tensorflow)
    command = f"vitalring bench path --repeats {options.repeats}"
    # The interpreter's place is one machine's business.
    command += " --tensorflow PYTHON" if options.tensorflow else ""
    title = "The path of an update"
    _show(options, title, command, result, path_facts(result), path_tables(result))


def _log(options: argparse.Namespace) -> None:
    result = measure_log(options.entries, options.repeats, options.disk)
    command = f"vitalring bench log --entries {options.entries} --repeats {options.repeats}"
    _show(options, "The log", command, result, log_facts(result), log_tables(result))


def _rounds(options: argparse.Namespace) -> None:
    result = measure_rounds(options.devices, options.rounds, options.secure_sum)
    command = (
        f"vitalring bench rounds --devices {options.devices} --rounds {options.rounds} "
        f"--secure-sum {options.secure_sum}"
    )
    _show(options, "Rounds", command, result, rounds_facts(result), rounds_tables(result))


def _show(
    options: argparse.Namespace,
    title: str,
    command: str,
    result: dict[str, Any],
    facts: list[str],
    tables: list[Table],
) -> None:
    print_tables(facts, tables, Console())
    if options.out is not None:
        text = markdown(title, command, facts, tables)
        content = json.dumps({"command": command, **result}, indent=2) + "\n"
        write_atomic(options.out / f"{options.action}.md", text.encode())
        write_atomic(options.out / f"{options.action}.json", content.encode())
