"""`vitalring.simulate(...)`: run a fleet and return what it reached."""

import dataclasses
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from vitalring.errors import ConfigError
from vitalring.files import read_file, write_atomic
from vitalring.gateway import store
from vitalring.gateway.export import export_log
from vitalring.models.export import export
from vitalring.mqtt import BrokerConfig, Link
from vitalring.protocol import trust
from vitalring.protocol.records import StudyPlan
from vitalring.protocol.weights import pack_weights
from vitalring.schema import from_plain, to_plain
from vitalring.tools import report as report_files
from vitalring.tools.embedded_broker import EmbeddedBroker
from vitalring.tools.federation import Layout, Made
from vitalring.tools.settings import SimulationSettings, StudySettings
from vitalring.tools.simulate import alone, fleet, layout, results, watch
from vitalring.tools.simulate.progress import Display

_POLL_S = 0.2
_BROKER_TIMEOUT_S = 20.0
_STOPPING = "stopping; the same command goes on from here"


@dataclass(frozen=True)
class Simulation:
    """What a simulation reached; `report` is the content of `report.json`."""

    folder: Path
    report: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Tell whether it ran to its final model."""
        return bool(self.report["status"] == "finished")


def simulate(
    settings: SimulationSettings | None = None,
    *,
    console: Console | None = None,
    command: str = "",
    **changes: Any,  # noqa: ANN401
) -> Simulation:
    """Run a fleet of virtual devices with real parties between them.

    `changes` are fields of `SimulationSettings` or `StudySettings` by name:
    `simulate(rounds=5, epsilon=4.0, out=Path("run"))`. A stopped run's folder
    given again goes on where it stopped. Raises VitalRingError.
    """
    settings = apply_changes(settings or SimulationSettings(), changes)
    _check(settings)
    run = _Run(settings, console or Console(), command)
    return run.go()


def apply_changes(settings: SimulationSettings, changes: dict[str, Any]) -> SimulationSettings:
    """Replace fields of the simulation or of its study by name. Raises ConfigError."""
    outer = {f.name for f in dataclasses.fields(SimulationSettings)}
    inner = {f.name for f in dataclasses.fields(StudySettings)}
    unknown = sorted(set(changes) - outer - inner)
    if unknown:
        raise ConfigError(f"{unknown[0]} is no setting; known: {', '.join(sorted(outer | inner))}")
    study = dataclasses.replace(
        settings.study, **{name: value for name, value in changes.items() if name in inner}
    )
    changed = dataclasses.replace(
        settings,
        study=study,
        **{name: value for name, value in changes.items() if name in outer and name != "study"},
    )
    return from_plain(SimulationSettings, to_plain(changed), ConfigError)


def _check(settings: SimulationSettings) -> None:
    if settings.hospitals != 1:
        raise ConfigError(
            f"hospitals is {settings.hospitals}: several hospitals need the secure sum "
            "threshold-he, which is not available in this version; use 1"
        )
    if settings.study.unit == "none" and settings.study.noise != "none":
        raise ConfigError("unit none goes with noise none: add --noise none")


class _Run:
    """One run of a simulation in its folder."""

    def __init__(self, settings: SimulationSettings, console: Console, command: str) -> None:
        self._settings = settings
        self._console = console
        self._command = command
        self._out = _output_folder(settings.out)
        self._state = self._out / "state"
        self._started = datetime.now(UTC)
        self._workers = settings.workers or os.cpu_count() or 1

    def go(self) -> Simulation:
        began = time.monotonic()
        chosen = layout.choose_fleet(self._settings)
        resumed = self._is_resumed()
        plan = None if resumed else layout.make_plan(self._settings, chosen)
        if self._settings.broker:
            _require_broker(self._settings.broker)
        self._claim_folder(resumed)
        rounds = self._settings.study.rounds
        with Display(self._console, rounds) as display:
            if resumed:
                display.say(f"going on with the run in {self._out}")
            with _broker(self._settings.broker, self._state / "logs" / "broker.log") as url:
                made = self._prepare(chosen, plan, url)
                reached, stopped = self._rounds(chosen, made, display)
            compared: list[alone.AloneResult] = []
            if self._settings.alone and not stopped:
                compared, stopped = self._alone(chosen, made, display)
        seconds = time.monotonic() - began
        checkpoint = self._write_log(made)
        if reached and not stopped:
            self._write_model(made)
        content = results.report_dict(
            made,
            chosen,
            reached,
            compared,
            checkpoint,
            command=self._command,
            started=self._started,
            seconds=seconds,
            stopped=stopped,
        )
        report_files.write_report(content, self._out)
        if not stopped:
            # The keys of a simulated federation serve no longer; what its parties said stays.
            (self._state / "logs").replace(self._out / "processes")
            shutil.rmtree(self._state)
        return Simulation(self._out, content)

    def _is_resumed(self) -> bool:
        """Tell whether the folder holds a stopped run of the same settings."""
        if _is_finished(self._out):
            raise ConfigError(f"{self._out} holds a finished run: choose another folder with --out")
        resumed = (self._state / "ready").exists()
        if resumed and (self._out / "settings.json").read_text() != self._wanted():
            raise ConfigError(
                f"{self._out} holds a stopped run with other settings: "
                "repeat its settings to go on, or choose another folder with --out"
            )
        return resumed

    def _wanted(self) -> str:
        return json.dumps(_plain_settings(self._settings), indent=2, sort_keys=True)

    def _claim_folder(self, resumed: bool) -> None:
        if not resumed and self._state.exists():
            shutil.rmtree(self._state)  # stopped before it began: nothing in it was used
        write_atomic(self._out / "settings.json", self._wanted().encode())
        (self._state / "logs").mkdir(parents=True, exist_ok=True)

    def _prepare(self, chosen: layout.Fleet, plan: StudyPlan | None, broker_url: str) -> Made:
        ready = self._state / "ready"
        if plan is not None:
            made = layout.write_federation(self._settings, chosen, plan, self._state)
            write_atomic(ready, made.authority_key.hex().encode())
        else:
            authority = bytes.fromhex(ready.read_text())
            folders = Layout(self._state / "federation")
            read = lambda name: read_file(folders.public / name)  # noqa: E731
            made = Made(folders, authority, trust.open_study_files(read, authority))
        layout.write_configs(self._settings, chosen, made, self._state, broker_url)
        return made

    def _rounds(
        self, chosen: layout.Fleet, made: Made, display: Display
    ) -> tuple[list[watch.RoundResult], bool]:
        """Run the parties until the final model is logged; True where somebody stopped us."""
        home, study = made.layout.hospital_folder, made.study.study
        reached = watch.finished_rounds(home, study, 0)
        workers = min(self._workers, len(chosen.devices))
        stopped = False
        try:
            with fleet.parties(
                made.layout, self._state / "logs", chosen.devices, workers
            ) as started:
                while not (reached and reached[-1].model.final):
                    for party in started:
                        party.check()
                    display.standing(watch.standing(home))
                    for result in watch.finished_rounds(home, study, len(reached)):
                        display.finished(result)
                        reached.append(result)
                    time.sleep(_POLL_S)
        except KeyboardInterrupt:
            display.say(_STOPPING)
            stopped = True
        return reached, stopped

    def _alone(
        self, chosen: layout.Fleet, made: Made, display: Display
    ) -> tuple[list[alone.AloneResult], bool]:
        plan = made.study.study.plan
        tasks = [
            alone.Task(
                chosen.folder,
                name,
                plan.model.name,
                plan.training,
                plan.privacy.clip,
                plan.server,
                plan.model.initial_seed,
                self._settings.study.seed + index,
            )
            for index, name in enumerate(chosen.devices)
        ]
        compared: list[alone.AloneResult] = []
        try:
            for result in alone.train_alone(
                tasks, self._workers, self._state / "logs" / "alone.log"
            ):
                compared.append(result)
                display.alone(len(compared), len(tasks))
        except KeyboardInterrupt:
            display.say(_STOPPING)
            return [], True
        order = {name: index for index, name in enumerate(chosen.devices)}
        return sorted(compared, key=lambda result: order[result.device]), False

    def _write_log(self, made: Made) -> bytes:
        """Write the log into the output folder; return its checkpoint."""
        db = store.open_store(made.layout.hospital_folder / "gateway")
        try:
            export_log(db, made.study, self._out / "log")
        finally:
            db.close()
        return read_file(self._out / "log" / "checkpoint")

    def _write_model(self, made: Made) -> None:
        weights = np.frombuffer(watch.final_weights(made.layout.hospital_folder), "<f8")
        write_atomic(self._out / "weights.bin", pack_weights(weights))
        model = made.study.study.plan.model.name
        for name, content in export(model, weights.astype(np.float32)).items():
            write_atomic(self._out / name, content)


@contextmanager
def _broker(url: str | None, log_file: Path) -> Iterator[str]:
    """Lend the address of a broker: the given one, which somebody else runs, or one of our own."""
    if url:
        yield url
        return
    with EmbeddedBroker(log_file) as broker:
        yield broker.url


def _require_broker(url: str) -> None:
    """Say at once that a broker cannot be reached. Raises TransportError."""
    with Link(BrokerConfig(url=url)) as link:
        link.wait_connected(_BROKER_TIMEOUT_S)


def _is_finished(folder: Path) -> bool:
    report = folder / "report.json"
    return report.exists() and json.loads(report.read_text())["status"] == "finished"


def _output_folder(wanted: Path | None) -> Path:
    """Return the folder asked for, or the first `vitalring-run` that holds no finished run."""
    if wanted is not None:
        return wanted.absolute()
    names = itertools.chain(["vitalring-run"], (f"vitalring-run-{n}" for n in itertools.count(2)))
    return next(Path(name).absolute() for name in names if not _is_finished(Path(name)))


def _plain_settings(settings: SimulationSettings) -> dict[str, Any]:
    plain = to_plain(dataclasses.replace(settings, out=None, broker=None, workers=0))
    return {name: str(value) if isinstance(value, Path) else value for name, value in plain.items()}
