"""`vitalring bench fleet` as a command: its options, its page and its picture."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from vitalring.config import load_config
from vitalring.tools.measuring.pages import Page, show
from vitalring.tools.settings import SimulationSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.add_argument("--data", type=Path, required=True, help="folder of a data set")
    parser.add_argument(
        "--config", type=Path, required=True, help="settings of a study with unit device"
    )
    parser.add_argument(
        "--devices",
        type=int,
        default=1000,
        help="virtual devices that its records are dealt to; 0: its devices as they are",
    )
    parser.add_argument(
        "--epsilon", type=_epsilons, default=(1.0, 2.0), help="guarantees, such as 0.5,1,2"
    )
    parser.add_argument("--seeds", type=int, default=5, help="how often each side is run")
    parser.add_argument("--out", type=Path, help="folder for JSON, Markdown and the picture")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    # Networks are of no use to the other measurements, which run many small processes.
    from vitalring.tools.bench.fleet import FleetSettings, measure_fleet  # noqa: PLC0415
    from vitalring.tools.bench.fleet_plots import fleet_plot  # noqa: PLC0415
    from vitalring.tools.bench.fleet_text import fleet_facts, fleet_tables  # noqa: PLC0415

    settings = FleetSettings(options.devices, options.epsilon, options.seeds)
    study = load_config(SimulationSettings, options.config)
    result = measure_fleet(options.data, study, settings, Console(stderr=True).print)
    page = Page(
        "fleet",
        f"The price of privacy in a fleet: {result['dataset']}",
        _command(result, options.config),
        fleet_facts(result),
        fleet_tables(result),
        "Accuracy by epsilon",
        lambda: fleet_plot(result),
    )
    show(page, result, options.out)
    return 0


def _command(result: dict[str, Any], config: Path) -> str:
    """Return the command that makes such a result; the folder's place is one machine's business."""
    settings = result["settings"]
    epsilons = ",".join(f"{epsilon:g}" for epsilon in settings["epsilons"])
    return (
        f"vitalring bench fleet --data FOLDER --config docs/studies/{config.name} "
        f"--devices {settings['devices']} --epsilon {epsilons} --seeds {settings['seeds']} "
        "--out docs/results"
    )


def _epsilons(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers such as 0.5,1,2") from error
