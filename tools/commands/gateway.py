"""`vitalring gateway`: a hospital server's part."""

import argparse
from pathlib import Path

from vitalring.config import load_config
from vitalring.gateway.config import GatewayConfig
from vitalring.gateway.main import export, run_gateway, status_text
from vitalring.tools.commands.services import stop_on_signals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    actions = parser.add_subparsers(dest="action", required=True)
    run_parser = actions.add_parser("run", help="admit updates until stopped")
    status_parser = actions.add_parser("status", help="say how the gateway is doing")
    export_parser = actions.add_parser("export", help="write the log as a folder to serve")
    export_parser.add_argument("folder", type=Path)
    for each in (run_parser, status_parser, export_parser):
        each.add_argument("--config", type=Path, required=True, help="gateway.toml")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    config = load_config(GatewayConfig, options.config)
    if options.action == "run":
        run_gateway(config, stop_on_signals())
    elif options.action == "status":
        print(status_text(config))
    else:
        export(config, options.folder)
        print(f"log written to {options.folder}")
    return 0
