"""What a finished run is measured on, and what it is held against."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitalring.aggregator.goals import open_artefact
from vitalring.edge_agent import model_in_use, personal_files
from vitalring.edge_agent.personal import KeepRule, PersonalResult, keep_rule
from vitalring.errors import ModelError
from vitalring.models.artefact import Artefact
from vitalring.models.dataset import DatasetInfo, FeatureSchema
from vitalring.tools.explain.api import Explanation, Options, explain
from vitalring.tools.federation import Made
from vitalring.tools.settings import SimulationSettings
from vitalring.tools.simulate import alone, pooled, watch
from vitalring.tools.simulate.apart import Progress, run_apart
from vitalring.tools.simulate.final import FinalEvaluation, evaluate_final, label_counts
from vitalring.tools.simulate.layout import Fleet
from vitalring.tools.simulate.one_place import Recipe
from vitalring.tools.simulate.progress import Display


@dataclass(frozen=True)
class Measured:
    """The final model on rows that nobody trained on, and what it is held against."""

    singles: tuple[alone.AloneResult, ...] = ()
    test: FinalEvaluation | None = None
    centralised: pooled.Centralised | None = None
    personal: tuple[dict[str, Any], ...] = ()
    labels: dict[str, list[int]] | None = None
    explanations: tuple[Explanation, ...] = ()


@dataclass(frozen=True)
class Run:
    """A run that came to its final model after so many rounds.

    What the runtimes of its measurements print goes to files in `logs`.
    """

    settings: SimulationSettings
    fleet: Fleet
    made: Made
    rounds: int
    logs: Path
    workers: int

    @property
    def kept_back(self) -> KeepRule | None:
        """By which rule devices keep records back for heads of their own."""
        settings = self.settings
        return None if settings.personalise == "none" else keep_rule(settings.study.unit)

    def recipe(self, rounds: int) -> Recipe:
        """Return the plan's training, for so many rounds."""
        plan = self.made.study.study.plan
        artefact, _ = open_artefact(self.made.study)
        training = dataclasses.replace(plan.training, rounds=rounds)
        return Recipe(artefact, plan.model.initial_seed, training, plan.privacy.clip, plan.server)

    def states(self) -> list[tuple[str, Path]]:
        """Return each device with its state folder."""
        layout = self.made.layout
        return [(name, layout.device_folder(name) / "state") for name in self.fleet.devices]


def measure(run: Run, display: Display) -> Measured:
    """Measure the final model and all that the settings ask to hold it against.

    Raises KeyboardInterrupt where somebody stops us.
    """
    artefact, features = open_artefact(run.made.study)
    folder, info, seed = run.fleet.folder, run.fleet.info, run.settings.study.seed
    weights = watch.final_weights(run.made.host, run.made.study.study.plan)
    log_file = run.logs / "measure.log"
    singles = _alone(run, features, display) if run.settings.alone else ()
    display.comparing("the final model on the test rows", 0, 1)
    test = run_apart(_evaluate, (folder, info, features, artefact, weights, seed), log_file)
    centralised = _centralised(run, features, log_file, display)
    explanations: tuple[Explanation, ...] = ()
    if run.settings.explain:
        arguments = (folder, info, features, artefact, weights, Options(seed=seed))
        explanations = run_apart(explain, arguments, log_file, _shown(display, "what it looks at"))
    return Measured(
        singles,
        test,
        centralised,
        _personal(run),
        label_counts(folder, info, features, run.fleet.devices),
        explanations,
    )


def heads_are_fitted(run: Run) -> bool:
    """Tell whether each device has the final model, under a head of its own where it has one."""
    return all(model_in_use.describe(state).get("final") for _, state in run.states())


def _alone(
    run: Run, features: FeatureSchema | None, display: Display
) -> tuple[alone.AloneResult, ...]:
    recipe = run.recipe(run.made.study.study.plan.training.rounds)
    seed = run.settings.study.seed
    tasks = [
        alone.Task(run.fleet.folder, name, features, recipe, seed + index, run.kept_back)
        for index, name in enumerate(run.fleet.devices)
    ]
    compared: list[alone.AloneResult] = []
    for result in alone.train_alone(tasks, run.workers, run.logs / "alone.log"):
        compared.append(result)
        display.comparing("devices alone, to compare", len(compared), len(tasks))
    order = {name: index for index, name in enumerate(run.fleet.devices)}
    return tuple(sorted(compared, key=lambda result: order[result.device]))


def _centralised(
    run: Run, features: FeatureSchema | None, log_file: Path, display: Display
) -> pooled.Centralised | None:
    if not run.settings.centralised:
        return None
    seed = run.settings.study.seed
    task = pooled.PooledTask(
        run.fleet.folder,
        run.fleet.devices,
        features,
        run.recipe(run.rounds),
        seed,
        seed,
        run.kept_back,
    )
    shown = _shown(display, "all records in one place, to compare")
    try:
        return run_apart(pooled.train_pooled, (task,), log_file, shown)
    except ModelError as error:
        # The federation's result stands without it.
        display.say(f"there is no centralised model to compare with: {error}")
        return None


def _shown(display: Display, what: str) -> Callable[[float], None]:
    return lambda share: display.comparing(what, round(100 * share), 100)


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


def _personal(run: Run) -> tuple[dict[str, Any], ...]:
    """Return each device's global and personal head side by side, where heads are personal."""
    if run.settings.personalise == "none":
        return ()
    results = ((name, personal_files.load_result(state)) for name, state in run.states())
    return tuple(_row(name, result) for name, result in results if result is not None)


def _row(device: str, result: PersonalResult) -> dict[str, Any]:
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
