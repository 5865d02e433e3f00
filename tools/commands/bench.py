"""`vitalring bench`: measure."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from vitalring.errors import ConfigError
from vitalring.files import write_atomic
from vitalring.tools.bench import (
    fleet_command,
    inference,
    ladder_command,
    ring,
    robust_command,
    secure_sum,
    studies,
)
from vitalring.tools.bench.log import log_facts, log_tables, measure_log
from vitalring.tools.bench.papers import command as papers
from vitalring.tools.bench.path import NETWORK, measure_path
from vitalring.tools.bench.path_text import path_facts, path_tables
from vitalring.tools.bench.rounds import measure_rounds, rounds_facts, rounds_tables
from vitalring.tools.measuring.pages import Page, show
from vitalring.tools.measuring.table import Table, markdown, print_tables
from vitalring.tools.settings import SimulationSettings
from vitalring.tools.simulate.api import apply_changes


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
    rounds.add_argument(
        "--secure-sum", default="threshold-he", help="threshold-he, single-he or plain"
    )
    rounds.add_argument(
        "--hospitals", type=int, default=0, help="holders of a joint key; 0 is 3, or 1 without one"
    )
    rounds.add_argument(
        "--threshold", type=int, default=0, help="how many decrypt together; 0 is a majority"
    )
    rounds.add_argument(
        "--ring-size", type=int, default=0, help="most keys in a ring; 0: the whole cohort"
    )
    rounds.add_argument("--out", type=Path, help="folder for the results as JSON and Markdown")
    skew = actions.add_parser(
        "skew", help="unlike devices: FedAvg, FedProx, Adam, Yogi and personal heads"
    )
    skew.add_argument("--data", type=Path, required=True, help="folder of a data set")
    skew.add_argument("--model", help="network; none takes one that fits the data")
    skew.add_argument("--rounds", type=int, default=20, help="how many rounds each side trains")
    skew.add_argument(
        "--search-rounds", type=int, default=5, help="rounds of each setting that a side tries"
    )
    skew.add_argument("--seeds", type=int, default=3, help="how often each side is run")
    skew.add_argument(
        "--alphas", type=_numbers, default=(0.1, 1.0, 100.0), help="Dirichlet skews, as 0.1,1,100"
    )
    skew.add_argument(
        "--rates",
        type=_numbers,
        default=(0.03, 0.1, 0.3, 1.0),
        help="learning rates on the device that every side tries, as 0.03,0.1,0.3,1",
    )
    skew.add_argument(
        "--devices", type=int, default=0, help="devices of a Dirichlet skew; 0 is one a person"
    )
    skew.add_argument("--out", type=Path, help="folder for JSON, Markdown and the picture")
    robust_command.add_arguments(
        actions.add_parser("robust", help="hostile devices, and what groups do about them")
    )
    fleet_command.add_arguments(
        actions.add_parser("fleet", help="the price of privacy in a fleet of many devices")
    )
    ladder_command.add_arguments(
        actions.add_parser("utility", help="what each technique brings under privacy")
    )
    inference.add_arguments(
        actions.add_parser("inference", help="the int8 model against the training graph")
    )
    ring.add_arguments(
        actions.add_parser("ring", help="ring signatures of both suites, and what they stand on")
    )
    studies.add_arguments(actions.add_parser("studies", help="finished simulations side by side"))
    secure_sum.add_arguments(
        actions.add_parser("secure-sum", help="the sum in every mode, beside NVFLARE and Flower")
    )
    papers.add_arguments(
        actions.add_parser("papers", help="the tables of two papers, on public data")
    )
    for each, repeats in ((path, 5), (log, 3)):
        each.add_argument("--repeats", type=int, default=repeats, help="how often to measure")
        each.add_argument("--out", type=Path, help="folder for the results as JSON and Markdown")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    if options.action == "fleet":
        return fleet_command.run(options)
    if options.action == "utility":
        return ladder_command.run(options)
    if options.action == "inference":
        return inference.run(options)
    if options.action == "ring":
        return ring.run(options)
    if options.action == "robust":
        return robust_command.run(options)
    if options.action == "papers":
        return papers.run(options)
    if options.action == "secure-sum":
        return secure_sum.run(options)
    if options.action == "studies":
        return studies.run(options)
    if options.action in ("path", "log") and options.repeats < 1:
        raise ConfigError(f"--repeats {options.repeats} measures nothing: use 1 or more")
    {"path": _path, "log": _log, "rounds": _rounds, "skew": _skew}[options.action](options)
    return 0


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers such as 0.1,1,100") from error


def _path(options: argparse.Namespace) -> None:
    result = measure_path(
        apply_changes(SimulationSettings(), NETWORK), options.repeats, options.tensorflow
    )
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
    result = measure_rounds(
        options.devices,
        options.rounds,
        options.secure_sum,
        options.hospitals,
        options.threshold,
        options.ring_size,
    )
    command = (
        f"vitalring bench rounds --devices {options.devices} --rounds {options.rounds} "
        f"--secure-sum {options.secure_sum}"
    )
    if result["threshold"]:
        command += f" --hospitals {result['hospitals']} --threshold {result['threshold']}"
    if options.ring_size:
        command += f" --ring-size {options.ring_size}"
    _show(options, "Rounds", command, result, rounds_facts(result), rounds_tables(result))


def _skew(options: argparse.Namespace) -> None:
    # Networks and plots are of no use to the other measurements, which run many small processes.
    from vitalring.tools.bench.skew import SkewSettings, measure_skew  # noqa: PLC0415
    from vitalring.tools.bench.skew_plots import skew_plot  # noqa: PLC0415
    from vitalring.tools.bench.skew_text import skew_facts, skew_tables  # noqa: PLC0415

    settings = SkewSettings(
        alphas=options.alphas,
        devices=options.devices,
        rounds=options.rounds,
        search_rounds=options.search_rounds,
        seeds=options.seeds,
        rates=options.rates,
    )
    console = Console(stderr=True)
    result = measure_skew(options.data, options.model, settings, console.print)
    alphas = ",".join(f"{alpha:g}" for alpha in settings.alphas)
    rates = ",".join(f"{rate:g}" for rate in settings.rates)
    # The folder's place is one machine's business.
    command = f"vitalring bench skew --data FOLDER --model {result['model']} --alphas {alphas}"
    command += f" --devices {settings.devices}" if settings.devices else ""
    command += f" --rounds {settings.rounds} --search-rounds {settings.search_rounds}"
    command += f" --seeds {settings.seeds} --rates {rates}"
    page = Page(
        "skew",
        f"Unlike devices: {result['dataset']}",
        command,
        skew_facts(result),
        skew_tables(result),
        "Learning by round, and accuracy on own rows",
        lambda: skew_plot(result),
    )
    show(page, result, options.out)


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
