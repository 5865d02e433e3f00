"""`vitalring bench utility` as a command: its options, its page and its picture."""

import argparse
from pathlib import Path

from rich.console import Console

from vitalring.tools.measuring.pages import Page, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.add_argument("--data", type=Path, required=True, help="folder of a data set")
    parser.add_argument(
        "--ladder", type=Path, required=True, help="steps, such as docs/studies/utility-mitbih.toml"
    )
    parser.add_argument("--seeds", type=int, default=2, help="how often each step is run")
    parser.add_argument("--out", type=Path, help="folder for JSON, Markdown and the picture")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    # Networks are of no use to the other measurements, which run many small processes.
    from vitalring.tools.bench.ladder import load_subject, measure_ladder  # noqa: PLC0415
    from vitalring.tools.bench.ladder_plots import ladder_plot  # noqa: PLC0415
    from vitalring.tools.bench.ladder_settings import load_ladder  # noqa: PLC0415
    from vitalring.tools.bench.ladder_text import ladder_facts, ladder_tables  # noqa: PLC0415

    ladder = load_ladder(options.ladder)
    subject = load_subject(options.data)
    result = measure_ladder(subject, ladder, options.seeds, Console(stderr=True).print)
    page = Page(
        "utility",
        f"What each technique brings under privacy: {result['dataset']}",
        f"vitalring bench utility --data FOLDER --ladder docs/studies/{options.ladder.name} "
        f"--seeds {options.seeds} --out docs/results",
        ladder_facts(result),
        ladder_tables(result),
        "Each step with noise and without",
        lambda: ladder_plot(result),
    )
    show(page, result, options.out)
    return 0
