"""`vitalring agent`: a device's part."""

import argparse
from pathlib import Path

from vitalring.config import load_config
from vitalring.edge_agent.config import AgentConfig
from vitalring.edge_agent.main import run_agents
from vitalring.tools.commands.services import add_parent_option, stop_on_signals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    actions = parser.add_subparsers(dest="action", required=True)
    run_parser = actions.add_parser("run", help="take part in a study until stopped")
    add_parent_option(run_parser)
    run_parser.add_argument(
        "--config",
        type=Path,
        action="append",
        required=True,
        help="agent.toml of the device; repeated for the virtual devices of a simulation",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    configs = [load_config(AgentConfig, path) for path in options.config]
    run_agents(configs, stop_on_signals(options))
    return 0
