"""The parties of a simulation as processes: each role's own command, started and stopped."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from vitalring.errors import VitalRingError
from vitalring.tools.federation import Made

_STOP_TIMEOUT_S = 20.0


class PartyError(VitalRingError):
    """A process of the simulation ended although it should not have."""


class Party:
    """One process that runs `vitalring ARGUMENTS` until the `with` block ends."""

    def __init__(self, name: str, arguments: Sequence[str], log_file: Path) -> None:
        self.name = name
        self._arguments = list(arguments)
        self._log_file = log_file
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        # Small matrices: threads of the linear algebra library would only fight over cores.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "vitalring.tools.cli",
                    *self._arguments,
                    "--until-stdin-closes",
                ],
                # Its end tells the party that we are gone, should we die without a word.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                # Ctrl-C reaches the simulation alone, which then stops its parties in order.
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def check(self) -> None:
        """Raise PartyError if it ended with a fault; an end in order is none."""
        code = None if self._process is None else self._process.poll()
        if code:
            tail = self._log_file.read_text(errors="replace").strip().splitlines()[-3:]
            raise PartyError(f"{self.name} ended with code {code}: {' / '.join(tail)}")


@contextmanager
def parties(made: Made, logs: Path, devices: Sequence[str], workers: int) -> Iterator[list[Party]]:
    """Run each gateway, each aggregator, and agents while the block lasts."""
    layout = made.layout
    with ExitStack() as stack:
        started = []
        for role, hospitals in (("gateway", made.gateways), ("aggregator", made.aggregators)):
            for number, hospital in enumerate(hospitals):
                # The host's log is found under the same name however many hospitals there are.
                name = f"{role}-{hospital}" if number else role
                folder = layout.folder_of(hospital)
                started.append(stack.enter_context(_party(role, name, folder, logs)))
        for index in range(workers):
            arguments = ["agent", "run"]
            for name in devices[index::workers]:
                arguments += ["--config", str(layout.device_folder(name) / "agent.toml")]
            party = Party(f"agents {index}", arguments, logs / f"agents-{index}.log")
            started.append(stack.enter_context(party))
        yield started


def _party(role: str, name: str, folder: Path, logs: Path) -> Party:
    arguments = [role, "run", "--config", str(folder / f"{role}.toml")]
    return Party(name, arguments, logs / f"{name}.log")
