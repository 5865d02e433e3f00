"""In a child: the same network on all rows in one place, with a look at each round's worth.

It is `vitalring.tools.simulate.pooled`'s recipe: a device's own algorithm, as many passes over the
rows as the federation makes, and no noise.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vitalring.aggregator.evaluate import evaluate_weights, has_validation, round_rows
from vitalring.edge_agent.dpsgd import train
from vitalring.errors import ConfigError
from vitalring.models.artefact import Artefact, initial_weights
from vitalring.models.dataset import FeatureSchema, Records
from vitalring.models.runtime import TrainableModel
from vitalring.protocol.privacy import Privacy
from vitalring.tools.bench.papers.studies import others, settings_of
from vitalring.tools.bench.papers.watching import Watch
from vitalring.tools.settings import SimulationSettings
from vitalring.tools.simulate import layout
from vitalring.tools.simulate.comparison import test_dict
from vitalring.tools.simulate.final import FinalEvaluation, evaluate_final
from vitalring.tools.simulate.one_place import Recipe, training_rows
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

    def evaluate(self, weights: np.ndarray[Any, np.dtype[np.float32]]) -> FinalEvaluation:
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
    """Train and return how the model does on the test rows, and what each round's worth took.

    One worth is as many passes over all rows as each device makes over its own in a round.
    """
    settings = settings_of(request)
    with Watch() as watch:
        work = work_of(settings)
        model = TrainableModel(work.artefact)
        count = len(work.fleet.devices)
        recipe = pooled_recipe(work.recipe, count)
        training = replace(recipe.training, proximal=0.0)
        generator = np.random.default_rng(work.seed)
        weights = initial_weights(work.artefact, recipe.initial_seed)
        x, y = work.records.x, work.records.y
        curve, seconds = [], []
        held_out = round_rows(work.fleet.folder, work.features)
        for _ in range(work.recipe.training.rounds):
            began = time.perf_counter()
            for _ in range(count):
                privacy = Privacy(clip=recipe.clip)
                weights = train(model, weights, x, y, training, privacy, generator).weights
            seconds.append(time.perf_counter() - began)
            curve.append(evaluate_weights(model, weights, held_out.x, held_out.y).accuracy)
        test = test_dict(work.evaluate(weights))
    return {
        **{name: test[name] for name in ("accuracy", "macro_f1", "auroc", "confusion", "rows")},
        "curve": curve,
        "curve_on": "validation" if has_validation(work.fleet.info) else "test",
        "train_rows": len(y),
        "parameters": work.artefact.info.dimension,
        "round_seconds": float(np.median(seconds)),
        "peak_bytes": watch.peaks,
        **others(watch),
    }
