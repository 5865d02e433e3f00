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
import numpy.typing as npt
from rich.console import Console

from vitalring.aggregator.goals import open_artefact
from vitalring.edge_agent import model_in_use, personal_files
from vitalring.edge_agent.personal import KeepRule, PersonalResult, keep_rule
from vitalring.errors import ConfigError
from vitalring.files import read_file, write_atomic
from vitalring.models.artefact import Artefact
from vitalring.models.dataset import DatasetInfo, FeatureSchema
from vitalring.models.export import export
from vitalring.mqtt import BrokerConfig, Link
from vitalring.protocol import trust
from vitalring.protocol.weights import pack_weights
from vitalring.schema import from_plain, to_plain
from vitalring.tools import report as report_files
from vitalring.tools.embedded_broker import EmbeddedBroker
from vitalring.tools.explain.api import Explanation, Options, explain
from vitalring.tools.federation import Made
from vitalring.tools.settings import SimulationSettings, StudySettings
from vitalring.tools.simulate import alone, layout, pooled, results, watch
from vitalring.tools.simulate.apart import Progress, run_apart
from vitalring.tools.simulate.final import FinalEvaluation, evaluate_final, label_counts
from vitalring.tools.simulate.one_place import Recipe
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
    if settings.hospitals != 1:
        raise ConfigError(
            f"hospitals is {settings.hospitals}: several hospitals need the secure sum "
            "threshold-he, which is not available in this version; use 1"
        )
    if settings.study.unit == "none" and settings.study.noise != "none":
        raise ConfigError("unit none goes with noise none: add --noise none")


@dataclass(frozen=True)
class _Measured:
    """The final model on rows that nobody trained on, and what it is held against."""

    singles: tuple[alone.AloneResult, ...] = ()
    test: FinalEvaluation | None = None
    centralised: pooled.Centralised | None = None
    personal: tuple[dict[str, Any], ...] = ()
    labels: dict[str, list[int]] | None = None
    explanations: tuple[Explanation, ...] = ()


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
                reached, stopped = training.run(
                    made, self._workers, display, lambda: self._devices_done(made)
                )
            measured = _Measured()
            if not stopped:
                measured, stopped = self._measure(made, reached, display)
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

    def _measure(
        self, made: Made, reached: list[watch.RoundResult], display: Display
    ) -> tuple[_Measured, bool]:
        """Measure the final model and what it is held against; True where somebody stopped us."""
        artefact, features = open_artefact(made.study)
        log_file = self._state / "logs" / "measure.log"
        folder, info = self._chosen.folder, self._chosen.info
        seed = self._settings.study.seed
        weights = watch.final_weights(made.layout.hospital_folder)
        display.comparing("the final model on the test rows", 0, 1)
        try:
            singles = self._alone(made, display) if self._settings.alone else ()
            test = run_apart(_evaluate, (folder, info, features, artefact, weights, seed), log_file)
            centralised = None
            if self._settings.centralised:
                recipe = self._recipe(made, len(reached))
                task = pooled.PooledTask(
                    folder,
                    self._chosen.devices,
                    features,
                    recipe,
                    seed,
                    seed,
                    self._kept_back,
                )
                centralised = run_apart(
                    pooled.train_pooled,
                    (task,),
                    log_file,
                    lambda share: display.comparing(
                        "all records in one place, to compare", round(100 * share), 100
                    ),
                )
            explanations = None
            if self._settings.explain:
                explanations = run_apart(
                    explain,
                    (folder, info, features, artefact, weights, Options(seed=seed)),
                    log_file,
                    lambda share: display.comparing(
                        "what the model looks at", round(100 * share), 100
                    ),
                )
        except KeyboardInterrupt:
            display.say(STOPPING)
            return _Measured(), True
        labels = label_counts(folder, info, features, self._chosen.devices)
        measured = _Measured(
            singles, test, centralised, self._personal(made), labels, explanations or ()
        )
        return measured, False

    @property
    def _kept_back(self) -> KeepRule | None:
        """By which rule devices keep records back for heads of their own."""
        settings = self._settings
        return None if settings.personalise == "none" else keep_rule(settings.study.unit)

    def _recipe(self, made: Made, rounds: int) -> Recipe:
        plan = made.study.study.plan
        artefact, _ = open_artefact(made.study)
        training = dataclasses.replace(plan.training, rounds=rounds)
        return Recipe(artefact, plan.model.initial_seed, training, plan.privacy.clip, plan.server)

    def _alone(self, made: Made, display: Display) -> tuple[alone.AloneResult, ...]:
        _, features = open_artefact(made.study)
        recipe = self._recipe(made, made.study.study.plan.training.rounds)
        tasks = [
            alone.Task(
                self._chosen.folder,
                name,
                features,
                recipe,
                self._settings.study.seed + index,
                self._kept_back,
            )
            for index, name in enumerate(self._chosen.devices)
        ]
        compared: list[alone.AloneResult] = []
        for result in alone.train_alone(tasks, self._workers, self._state / "logs" / "alone.log"):
            compared.append(result)
            display.comparing("devices alone, to compare", len(compared), len(tasks))
        order = {name: index for index, name in enumerate(self._chosen.devices)}
        return tuple(sorted(compared, key=lambda result: order[result.device]))

    def _personal(self, made: Made) -> tuple[dict[str, Any], ...]:
        """Return each device's global and personal head side by side, where heads are personal."""
        if self._settings.personalise == "none":
            return ()
        rows = []
        for name in self._chosen.devices:
            result = personal_files.load_result(made.layout.device_folder(name) / "state")
            if result is not None:
                rows.append(_personal_row(name, result))
        return tuple(rows)

    def _devices_done(self, made: Made) -> bool:
        """Tell whether each device has the final model, where it fits a head to it."""
        if self._settings.personalise == "none":
            return True
        states = (made.layout.device_folder(name) / "state" for name in self._chosen.devices)
        return all(model_in_use.describe(state).get("final") for state in states)

    def _write_model(self, made: Made) -> None:
        weights = watch.final_weights(made.layout.hospital_folder)
        write_atomic(self._out / "weights.bin", pack_weights(weights))
        artefact, _ = open_artefact(made.study)
        for name, content in export(artefact, weights.astype(np.float32)).items():
            write_atomic(self._out / name, content)


def _evaluate(
    folder: Path,
    info: DatasetInfo,
    features: FeatureSchema | None,
    artefact: Artefact,
    weights: npt.NDArray[np.float64],
    seed: int,
    _progress: Progress,
) -> FinalEvaluation:
    return evaluate_final(folder, info, features, artefact, weights, seed)


def _personal_row(device: str, result: PersonalResult) -> dict[str, Any]:
    scores = {"global": result.global_head, "personal": result.personal_head}
    return {
        "device": device,
        "rows": result.rows,
        **{
            name: {"accuracy": score.accuracy, "macro_f1": score.macro_f1}
            for name, score in scores.items()
        },
        "used": result.used,
        "reason": result.reason,
    }


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
