"""`vitalring bench robust` as a command: its options, its page and its picture."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from vitalring.tools.measuring import pages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.add_argument("--data", type=Path, required=True, help="folder of a data set")
    parser.add_argument("--model", help="network; none takes one that fits the data")
    parser.add_argument("--devices", type=int, default=105, help="how many virtual devices")
    parser.add_argument("--rows", type=int, default=60, help="rows of each")
    parser.add_argument("--rounds", type=int, default=12, help="how many rounds each run trains")
    parser.add_argument("--seeds", type=int, default=1, help="how often each run is made")
    parser.add_argument(
        "--shares", type=_shares, default=(0.01, 0.1, 0.2), help="hostile shares, as 0.1,0.2"
    )
    parser.add_argument("--out", type=Path, help="folder for JSON, Markdown and the picture")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    # Networks are of no use to the other measurements, which run many small processes.
    from vitalring.tools.bench.robust import RobustSettings, measure_robust  # noqa: PLC0415

    settings = RobustSettings(
        options.devices, options.rows, options.rounds, options.seeds, options.shares
    )
    result = measure_robust(options.data, options.model, settings, Console(stderr=True).print)
    show(result, options.out)
    return 0


def show(result: dict[str, Any], out: Path | None) -> None:
    """Print a result's tables, and write page, figures and picture to the folder `out`."""
    from vitalring.tools.bench.robust_plots import robust_plot  # noqa: PLC0415
    from vitalring.tools.bench.robust_text import robust_facts, robust_tables  # noqa: PLC0415

    page = pages.Page(
        "robust",
        f"Hostile devices: {result['dataset']}",
        _command(result),
        robust_facts(result),
        robust_tables(result),
        "Macro-F1 by attack and defence",
        lambda: robust_plot(result),
    )
    pages.show(page, result, out)


def _command(result: dict[str, Any]) -> str:
    """Return the command that makes such a result; the folder's place is one machine's business."""
    settings = result["settings"]
    shares = ",".join(f"{share:g}" for share in settings["shares"])
    return (
        f"vitalring bench robust --data FOLDER --model {result['model']} "
        f"--devices {settings['devices']} --rows {settings['rows']} "
        f"--rounds {settings['rounds']} --seeds {settings['seeds']} --shares {shares}"
    )


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not shares such as 0.1,0.2") from error
