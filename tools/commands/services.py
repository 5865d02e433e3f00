"""What the commands of long-running roles share."""

import argparse
import signal
import sys
import threading
from types import FrameType


def add_parent_option(parser: argparse.ArgumentParser) -> None:
    """Let a role end with the process that started it, whatever ends that."""
    parser.add_argument(
        "--until-stdin-closes",
        action="store_true",
        help="stop when standard input closes, as it does when the parent process dies",
    )


def stop_on_signals(options: argparse.Namespace) -> threading.Event:
    """Return an event that SIGTERM or SIGINT sets, so that a role ends between two steps."""
    stop = threading.Event()
    if options.until_stdin_closes:
        threading.Thread(target=_wait_for_parent, args=(stop,), daemon=True).start()

    def handle(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    return stop


def _wait_for_parent(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()
