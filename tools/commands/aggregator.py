"""`vitalring aggregator`: the key holder's part."""

import argparse
from pathlib import Path

from vitalring.aggregator.config import AggregatorConfig
from vitalring.aggregator.main import run_aggregator
from vitalring.config import load_config
from vitalring.tools.commands.services import add_parent_option, stop_on_signals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    actions = parser.add_subparsers(dest="action", required=True)
    run_parser = actions.add_parser("run", help="run rounds until the final model is out")
    add_parent_option(run_parser)
    run_parser.add_argument("--config", type=Path, required=True, help="aggregator.toml")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    run_aggregator(load_config(AggregatorConfig, options.config), stop_on_signals(options))
    return 0
