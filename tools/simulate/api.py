"""`vitalring.simulate(...)`: run a fleet and return what it reached."""

import dataclasses
import functools
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

from vitalring.aggregator.goals import open_artefact
from vitalring.errors import ConfigError
from vitalring.files import read_file, write_atomic
from vitalring.models.export import export
from vitalring.mqtt import BrokerConfig, Link
from vitalring.protocol import trust
from vitalring.protocol.weights import pack_weights
from vitalring.schema import from_plain, to_plain
from vitalring.tools import report as report_files
from vitalring.tools.embedded_broker import EmbeddedBroker
from vitalring.tools.federation import Made, joint_lines, training_line
from vitalring.tools.settings import SimulationSettings, StudySettings, hospitals_of
from vitalring.tools.simulate import layout, results, watch
from vitalring.tools.simulate.measure import Measured, Run, heads_are_fitted, measure
from vitalring.tools.simulate.phase import STOPPING, Phase, write_log
from vitalring.tools.simulate.progress import Display

_BROKER_TIMEOUT_S = 20.0


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
    return _Run(settings, console or Console(), command).go()


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
    hospitals_of(settings.study)
    if settings.study.unit == "none" and settings.study.noise not in (None, "none"):
        raise ConfigError(f"unit none goes with noise none: leave out noise {settings.study.noise}")


class _Run:
    """One run of a simulation in its folder."""

    def __init__(self, settings: SimulationSettings, console: Console, command: str) -> None:
        self._settings = settings
        self._console = console
        self._command = command
        self._out = _output_folder(settings.out)
        self._state = self._out / "state"
        self._agreed = self._out / trust.FEATURES_FILE
        self._workers = settings.workers or os.cpu_count() or 1
        self._started = datetime.now(UTC)
        self._chosen = layout.choose_fleet(settings)
        # When devices are no longer waited for (monotonic seconds), once all rounds are over.
        self._patience: float | None = None

    def go(self) -> Simulation:
        began = time.monotonic()
        resumed = self._is_resumed()
        features = layout.features_known(self._settings, self._chosen.folder, self._chosen.info)
        if features is None and resumed and self._agreed.exists():
            features = read_file(self._agreed)
        # What cannot be drawn up is found before anything is written.
        agreement = self._agreement() if features is None else None
        (agreement or self._training(features or b"")).check()
        if self._settings.broker:
            _require_broker(self._settings.broker)
        self._claim_folder(resumed)
        with Display(self._console, self._settings.study.rounds) as display:
            if resumed:
                display.say(f"going on with the run in {self._out}")
            with _broker(self._settings.broker, self._state / "logs" / "broker.log") as url:
                if agreement:
                    features = self._agree(agreement, url, display)
                if features is None:
                    return Simulation(self._out, {"status": "stopped"})
                training = self._training(features)
                made = training.prepare(url)
                display.say(f"training: {training_line(made.study.study.plan)}")
                for line in joint_lines(made.study.study):
                    display.say(f"sum: {line}")
                reached, stopped = training.run(
                    made, self._workers, display, lambda: self._devices_done(made)
                )
            measured = Measured()
            if not stopped:
                try:
                    measured = measure(self._finished(made, len(reached)), display)
                except KeyboardInterrupt:
                    display.say(STOPPING)
                    stopped = True
        seconds = time.monotonic() - began
        checkpoint = write_log(made, self._out / "log")
        if reached and not stopped:
            self._write_model(made)
        content = results.report_dict(
            made,
            self._chosen,
            reached,
            measured.singles,
            checkpoint,
            command=self._command,
            started=self._started,
            seconds=seconds,
            stopped=stopped,
            test=measured.test,
            centralised=measured.centralised,
            personal=measured.personal,
            features=open_artefact(made.study)[1],
            labels=measured.labels,
            explanations=[
                {"title": one.title, "text": one.text, "svg": one.svg}
                for one in measured.explanations
            ],
        )
        report_files.write_report(content, self._out)
        if not stopped:
            # The keys of a simulated federation serve no longer; what its parties said stays.
            (self._state / "logs").replace(self._out / "processes")
            shutil.rmtree(self._state)
        return Simulation(self._out, content)

    def _agreement(self) -> Phase:
        return Phase(
            self._settings,
            self._chosen,
            self._state / "statistics",
            self._state / "logs" / "statistics",
            lambda: layout.draw_statistics(self._settings, self._chosen),
        )

    @functools.cache  # noqa: B019 - a run lives as long as its process
    def _training(self, features: bytes) -> Phase:
        return Phase(
            self._settings,
            self._chosen,
            self._state,
            self._state / "logs",
            lambda: layout.draw_training(self._settings, self._chosen, features),
        )

    def _is_resumed(self) -> bool:
        """Tell whether the folder holds a stopped run of the same settings."""
        if _is_finished(self._out):
            raise ConfigError(f"{self._out} holds a finished run: choose another folder with --out")
        resumed = any(
            (folder / "ready").exists() for folder in (self._state, self._state / "statistics")
        )
        if resumed and (self._out / "settings.json").read_text() != self._wanted():
            raise ConfigError(
                f"{self._out} holds a stopped run with other settings: "
                "repeat its settings to go on, or choose another folder with --out"
            )
        return resumed

    def _wanted(self) -> str:
        shown = dataclasses.replace(self._settings, out=None, broker=None, workers=0)
        return json.dumps(to_plain(shown), indent=2, sort_keys=True, default=str)

    def _claim_folder(self, resumed: bool) -> None:
        if not resumed and self._state.exists():
            shutil.rmtree(self._state)  # stopped before it began: nothing in it was used
        write_atomic(self._out / "settings.json", self._wanted().encode())
        (self._state / "logs").mkdir(parents=True, exist_ok=True)

    def _agree(self, agreement: Phase, url: str, display: Display) -> bytes | None:
        """Let the sites agree on the features of their tables; None where somebody stopped us."""
        display.say("the sites agree on features: their statistics, through the secure sum")
        made = agreement.prepare(url)
        reached, stopped = agreement.run(made, self._workers, display)
        if stopped:
            return None
        model = reached[-1].model
        folder = self._out / "statistics"
        write_log(made, folder)
        if not model.applied:
            raise ConfigError(
                f"the sites could not agree on features: {self._state / 'logs' / 'statistics'} "
                "says why"
            )
        features = read_file(folder / "objects" / model.weights.hex())
        write_atomic(self._agreed, features)
        return features

    def _finished(self, made: Made, rounds: int) -> Run:
        logs = self._state / "logs"
        return Run(self._settings, self._chosen, made, rounds, logs, self._workers)

    def _devices_done(self, made: Made) -> bool:
        """Tell whether no device is awaited: each fits a head of its own to the final model."""
        if self._settings.personalise == "none":
            return True
        self._patience = self._patience or time.monotonic() + self._settings.timeout_s
        return heads_are_fitted(self._finished(made, 0)) or time.monotonic() > self._patience

    def _write_model(self, made: Made) -> None:
        weights = watch.final_weights(made.host, made.study.study.plan)
        write_atomic(self._out / "weights.bin", pack_weights(weights))
        artefact, _ = open_artefact(made.study)
        for name, content in export(artefact, weights.astype(np.float32)).items():
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
