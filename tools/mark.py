"""`vitalring agent mark`: the wearer's event button on the command line."""

import argparse
import time
from pathlib import Path

from vitalring.config import load_config
from vitalring.edge_agent.config import AgentConfig
from vitalring.edge_agent.sensing.marks import mark
from vitalring.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.add_argument("label", help="a class of [labels] in agent.toml")
    parser.add_argument("--config", type=Path, required=True, help="agent.toml of the device")
    parser.add_argument(
        "--at",
        metavar="TIME",
        help="ISO 8601 with an offset, or milliseconds since 1970; default: now",
    )
    parser.add_argument(
        "--for",
        dest="seconds",
        type=float,
        metavar="SECONDS",
        help="from that time on; default: as [labels] says of a press",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    config = load_config(AgentConfig, options.config)
    if config.sensing is None:
        raise ConfigError(f"{options.config} has no live sensor: there is nothing to mark")
    made = mark(
        config.sensing,
        config.state_dir,
        options.label,
        at=options.at,
        seconds=options.seconds,
        now_ms=time.time_ns() // 1_000_000,
    )
    length_s = (made.end_ms - made.start_ms) / 1000
    print(
        f"{made.label} from {made.start_ms} ms on for {length_s:g} s; "
        f"{made.windows} windows of that time have this label now"
    )
    return 0
