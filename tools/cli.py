"""The `vitalring` command.

Subcommands are loaded only when they are called: an agent must not load what a
device lacks. A known error becomes one line on standard error and exit code 2;
anything else keeps its traceback, because it is a fault of ours.
"""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from vitalring import __version__
from vitalring.errors import VitalRingError

COMMANDS = {
    "simulate": ("vitalring.tools.commands.simulate", "run a fleet of devices on this machine"),
    "federation": ("vitalring.tools.commands.federation", "make keys, roster and plan"),
    "gateway": ("vitalring.tools.commands.gateway", "run a hospital's gateway"),
    "aggregator": ("vitalring.tools.commands.aggregator", "run a hospital's aggregator"),
    "agent": ("vitalring.tools.commands.agent", "run a device's agent"),
    "data": ("vitalring.tools.commands.data", "import, split, resample and check data sets"),
    "model": ("vitalring.tools.commands.model", "build, list, inspect, import, export, explain"),
    "verify": ("vitalring.tools.verify", "check a log from outside"),
    "claim": ("vitalring.tools.commands.claim", "show one verifier whose update one was"),
    "privacy": ("vitalring.tools.commands.privacy", "what was spent, and whether claims hold"),
    "attack": ("vitalring.tools.commands.attack", "measure what attackers get"),
    "bench": ("vitalring.tools.commands.bench", "measure"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="vitalring",
        description="Federated learning for wearables.",
        epilog="`vitalring COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"vitalring {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in words if not word.startswith("-")), None)
    for name, (module, text) in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text)
        if name == chosen:
            importlib.import_module(module).add_arguments(sub)
    options = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # The accountant's library reports every order of its bound that it leaves out.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        code: int = importlib.import_module(COMMANDS[options.command][0]).run(options)
    except VitalRingError as error:
        print(f"vitalring: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read our output has enough; Python must not complain of it at the end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("vitalring: stopped", file=sys.stderr)
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
