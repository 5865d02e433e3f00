"""`vitalring aggregator`: the part of who decrypts."""

import argparse
import json
from pathlib import Path

from vitalring.aggregator.config import AggregatorConfig
from vitalring.aggregator.main import run_aggregator
from vitalring.aggregator.status import status
from vitalring.config import load_config
from vitalring.tools.commands.services import add_parent_option, stop_on_signals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    actions = parser.add_subparsers(dest="action", required=True)
    run_parser = actions.add_parser("run", help="run rounds until the final model is out")
    add_parent_option(run_parser)
    status_parser = actions.add_parser("status", help="say where the study stands, and why not on")
    for each in (run_parser, status_parser):
        each.add_argument("--config", type=Path, required=True, help="aggregator.toml")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    config = load_config(AggregatorConfig, options.config)
    if options.action == "status":
        print(json.dumps(status(config), indent=2))
        return 0
    run_aggregator(config, stop_on_signals(options))
    return 0
