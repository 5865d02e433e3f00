"""In a child: the same network on all rows in one place, with a look at each round's worth.

It is `vitalring.tools.simulate.pooled`'s recipe: a device's own algorithm, as many passes over the
rows as the federation makes, and no noise.
"""

import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vitalring.aggregator.evaluate import evaluate_weights, has_validation, round_rows
from vitalring.models.dataset import Records
from vitalring.models.runtime import TrainableModel
from vitalring.tools.bench.papers.studies import others, settings_of
from vitalring.tools.bench.papers.watching import Watch
from vitalring.tools.bench.papers.work import Work, work_of
from vitalring.tools.simulate.one_place import Recipe, rounds_of, training_rows
from vitalring.tools.simulate.pooled import pooled_recipe


def pooled_cell(request: Mapping[str, Any]) -> dict[str, Any]:
    """Train and return how the model does on the test rows, and after each round's worth.

    One worth is as many passes over all rows as each device makes over its own in a round.
    """
    work = work_of(settings_of(request))
    model, rows = TrainableModel(work.artefact), pooled_rows(work)
    held_out = round_rows(work.fleet.folder, work.features)
    curve = []
    for weights in _worths(work, rows):
        curve.append(evaluate_weights(model, weights, held_out.x, held_out.y).accuracy)
    return {
        **work.scores(weights),
        "curve": curve,
        "curve_on": "validation" if has_validation(work.fleet.info) else "test",
        "train_rows": len(rows),
        "parameters": work.artefact.info.dimension,
    }


def pace_cell(request: Mapping[str, Any]) -> dict[str, Any]:
    """Train a few rounds' worth and return the time of one (median), and this process's memory."""
    with Watch() as watch:
        work = work_of(settings_of(request))
        rows, seconds, began = pooled_rows(work), [], time.perf_counter()
        for _ in _worths(work, rows):
            seconds.append(time.perf_counter() - began)
            began = time.perf_counter()
    return {
        # The first is left out, as of the parties' rounds.
        "round_seconds": statistics.median(seconds[1:]),
        "peak_bytes": watch.peaks,
        **others(watch),
    }


def pooled_rows(work: Work) -> Records:
    """Return the rows of all devices in one place. Raises DataError."""
    return training_rows(work.fleet.folder, work.fleet.devices, work.features, None)


def _worths(work: Work, rows: Records) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the weights (d,) after each round's worth of training."""
    plan = work.plan
    said = Recipe(
        work.artefact, plan.model.initial_seed, plan.training, plan.privacy.clip, plan.server
    )
    recipe = pooled_recipe(said, len(work.fleet.devices))
    count = recipe.training.rounds // plan.training.rounds
    for number, (weights, _) in enumerate(rounds_of(recipe, rows.x, rows.y, work.seed), start=1):
        if number % count == 0:
            yield weights.astype(np.float32)
