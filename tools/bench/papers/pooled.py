"""In a child: the same network on all rows in one place, with a look at each round's worth.

It is `vitalring.tools.simulate.pooled`'s recipe: a device's own algorithm, as many passes over the
rows as the federation makes, and no noise.
"""

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vitalring.aggregator.evaluate import evaluate_weights, has_validation, round_rows
from vitalring.errors import ConfigError
from vitalring.models.artefact import Artefact
from vitalring.models.dataset import FeatureSchema, Records
from vitalring.models.runtime import TrainableModel
from vitalring.tools.bench.papers.studies import others, settings_of
from vitalring.tools.bench.papers.watching import Watch
from vitalring.tools.settings import SimulationSettings
from vitalring.tools.simulate import layout
from vitalring.tools.simulate.comparison import test_dict
from vitalring.tools.simulate.final import FinalEvaluation, evaluate_final
from vitalring.tools.simulate.one_place import Recipe, rounds_of, training_rows
from vitalring.tools.simulate.pooled import pooled_recipe


@dataclass(frozen=True)
class Work:
    """A study's data in one place, and what its plan trains with."""

    fleet: layout.Fleet
    features: FeatureSchema | None
    artefact: Artefact
    records: Records
    recipe: Recipe
    seed: int

    def evaluate(self, weights: npt.NDArray[np.float32]) -> FinalEvaluation:
        """Return how weights (d,) do on the test rows."""
        return evaluate_final(
            self.fleet.folder,
            self.fleet.info,
            self.features,
            self.artefact,
            weights.astype(np.float64),
            self.seed,
        )


def work_of(settings: SimulationSettings) -> Work:
    """Return a study's rows in one place. Raises ConfigError, DataError or ModelError."""
    fleet = layout.choose_fleet(settings)
    known = layout.features_known(settings, fleet.folder, fleet.info)
    if known is None:
        raise ConfigError(f"{fleet.folder}: it is not known what the columns become")
    plan, _ = layout.draw_training(settings, fleet, known)
    artefact = layout.artefact_of(settings, fleet, known)
    features = FeatureSchema.from_json(known) if known else None
    first = plan.model.initial_seed
    recipe = Recipe(artefact, first, plan.training, plan.privacy.clip, plan.server)
    records = training_rows(fleet.folder, fleet.devices, features, None)
    return Work(fleet, features, artefact, records, recipe, settings.study.seed)


def pooled_cell(request: Mapping[str, Any]) -> dict[str, Any]:
    """Train and return how the model does on the test rows, and after each round's worth.

    One worth is as many passes over all rows as each device makes over its own in a round.
    """
    work = work_of(settings_of(request))
    model = TrainableModel(work.artefact)
    held_out = round_rows(work.fleet.folder, work.features)
    curve = []
    for weights in _worths(work):
        curve.append(evaluate_weights(model, weights, held_out.x, held_out.y).accuracy)
    test = test_dict(work.evaluate(weights))
    return {
        **{name: test[name] for name in ("accuracy", "macro_f1", "auroc", "confusion", "rows")},
        "curve": curve,
        "curve_on": "validation" if has_validation(work.fleet.info) else "test",
        "train_rows": len(work.records.y),
        "parameters": work.artefact.info.dimension,
    }


def pace_cell(request: Mapping[str, Any]) -> dict[str, Any]:
    """Train a few rounds' worth and return the time of one (median), and this process's memory."""
    with Watch() as watch:
        work = work_of(settings_of(request))
        seconds, began = [], time.perf_counter()
        for _ in _worths(work):
            seconds.append(time.perf_counter() - began)
            began = time.perf_counter()
    return {
        # The first is left out, as of the parties' rounds.
        "round_seconds": statistics.median(seconds[1:]),
        "peak_bytes": watch.peaks,
        **others(watch),
    }


def _worths(work: Work) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the weights (d,) after each round's worth of training."""
    recipe = pooled_recipe(work.recipe, len(work.fleet.devices))
    count = recipe.training.rounds // work.recipe.training.rounds
    x, y = work.records.x, work.records.y
    for number, (weights, _) in enumerate(rounds_of(recipe, x, y, work.seed), start=1):
        if number % count == 0:
            yield weights.astype(np.float32)
