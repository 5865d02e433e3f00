"""One study of a simulation: its files, its parties at work, and its log."""

import functools
import time
from collections.abc import Callable
from pathlib import Path

from vitalring.files import read_file, write_atomic
from vitalring.gateway import store
from vitalring.gateway.export import export_log
from vitalring.protocol import trust
from vitalring.tools.federation import Layout, Made
from vitalring.tools.settings import SimulationSettings
from vitalring.tools.simulate import fleet, layout, watch
from vitalring.tools.simulate.progress import Display
from vitalring.tools.verify import SECOND_LOG

_POLL_S = 0.2
STOPPING = "stopping; the same command goes on from here"


class Phase:
    """A study in its own folder; a stopped one goes on where it stopped.

    `draw` draws up its plan, once, where there is none yet.
    """

    def __init__(
        self,
        settings: SimulationSettings,
        chosen: layout.Fleet,
        state: Path,
        logs: Path,
        draw: Callable[[], layout.Drawn],
    ) -> None:
        self._settings = settings
        self._chosen = chosen
        self._state = state
        self._logs = logs
        self._draw = functools.cache(draw)

    @property
    def prepared(self) -> bool:
        """Tell whether keys and plan are made already."""
        return (self._state / "ready").exists()

    def check(self) -> None:
        """Draw up the plan, if there is none, before anything is written. Raises ConfigError."""
        if not self.prepared:
            self._draw()

    def prepare(self, broker_url: str) -> Made:
        """Make what the parties need, or open what was made."""
        ready = self._state / "ready"
        if self.prepared:
            authority = bytes.fromhex(ready.read_text())
            folders = Layout(self._state / "federation")
            read = lambda name: read_file(folders.public / name)  # noqa: E731
            made = Made(folders, authority, trust.open_study_files(read, authority))
        else:
            plan, objects = self._draw()
            made = layout.write_federation(self._settings, self._chosen, plan, objects, self._state)
            write_atomic(ready, made.authority_key.hex().encode())
        layout.write_configs(self._settings, self._chosen, made, self._state, broker_url)
        return made

    def run(
        self, made: Made, workers: int, display: Display, ended: Callable[[], bool] = lambda: True
    ) -> tuple[list[watch.RoundResult], bool]:
        """Run the parties until the final model is logged and `ended` says so too.

        Returns the rounds, and True where somebody stopped us.
        """
        home, study = made.host, made.study.study
        reached = watch.finished_rounds(home, study, 0)
        devices = self._chosen.devices
        try:
            with fleet.parties(made, self._logs, devices, min(workers, len(devices))) as started:
                while not (reached and reached[-1].model.final and ended()):
                    for party in started:
                        party.check()
                    display.standing(watch.standing(home))
                    for result in watch.finished_rounds(home, study, len(reached)):
                        display.finished(result, made.study.study.plan.training.rounds)
                        reached.append(result)
                    time.sleep(_POLL_S)
        except KeyboardInterrupt:
            display.say(STOPPING)
            return reached, True
        return reached, False


def write_log(made: Made, folder: Path) -> bytes:
    """Write a study's log into `folder`; return its checkpoint.

    That of a second gateway is written beside it.
    """
    for number, hospital in enumerate(made.gateways):
        db = store.open_store(made.layout.folder_of(hospital) / "gateway")
        try:
            target = folder.with_name(f"{folder.name}{SECOND_LOG}") if number else folder
            export_log(db, made.study, target)
        finally:
            db.close()
    return read_file(folder / "checkpoint")
