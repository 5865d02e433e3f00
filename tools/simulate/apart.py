"""Run a function in a process of its own: what its libraries print stays out of the terminal."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from vitalring.errors import VitalRingError

T = TypeVar("T")
Progress = Callable[[float], None]


class ApartError(VitalRingError):
    """The process ended without a result."""


def run_apart(
    function: Callable[..., T],
    arguments: tuple[Any, ...],
    log_file: Path,
    on_progress: Progress = lambda _: None,
) -> T:
    """Return `function(*arguments, progress)`, run in a new process.

    `progress(share)` may be called from there with a share of the work done; `on_progress` gets
    it here. What is printed as an error goes to `log_file`. An interrupt ends the process.
    Raises what the function raises of VitalRingError, and ApartError for any other end.
    """
    context = spawning()
    here, there = context.Pipe()
    process = context.Process(target=_main, args=(there, log_file))
    process.start()
    there.close()
    try:
        # Not with the start, which would wait for ever for a process that ends before it reads.
        here.send((function, arguments))
        while True:
            done, value = here.recv()
            if not done:
                on_progress(value)
            elif isinstance(value, VitalRingError):
                raise value
            else:
                result: T = value
                return result
    except (EOFError, ConnectionError) as error:
        process.join()
        where = f"see {log_file}"
        if not log_file.exists():
            where = 'in a script, keep what starts it behind if __name__ == "__main__":'
        raise ApartError(
            f"{function.__name__} ended with code {process.exitcode}: {where}"
        ) from error
    finally:
        process.terminate()
        process.join()
        here.close()


def spawning() -> multiprocessing.context.SpawnContext:
    """Return what starts processes that train: one thread of linear algebra each."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Spawned, not forked: TFLite keeps threads that a fork would lose.
    return multiprocessing.get_context("spawn")


def quietly(log_file: Path) -> None:
    """Send this process's errors to `log_file`, and leave Ctrl-C to the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _main(connection: Connection, log_file: Path) -> None:
    quietly(log_file)
    function, arguments = connection.recv()
    try:
        value = function(*arguments, lambda share: connection.send((False, share)))
    except VitalRingError as error:
        value = error
    connection.send((True, value))
