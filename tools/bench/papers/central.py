"""In a child: DP-SGD on all rows in one place, by tensorflow-privacy's Keras optimisers.

The reference for what a federation gives up: one party sees every row, takes one large batch a
step and adds the noise once. The noise is that of `edge_agent.accountant`, which accounts the
device's own; tensorflow-privacy states what it makes of the same numbers.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitalring.aggregator.evaluate import final_rows
from vitalring.edge_agent.accountant import calibrate
from vitalring.errors import ConfigError
from vitalring.models.artefact import initial_weights
from vitalring.models.dataset import Records
from vitalring.protocol.privacy import Spend
from vitalring.tools.bench.papers.pooled import pooled_rows
from vitalring.tools.bench.papers.settings import Central
from vitalring.tools.bench.papers.studies import settings_of
from vitalring.tools.bench.papers.work import SCORES, Work, work_of
from vitalring.tools.measuring.child import require_modules, run_child
from vitalring.tools.simulate.comparison import test_dict
from vitalring.tools.simulate.final import evaluation_of

_TIMEOUT_S = 6 * 3600.0


def central_cell(request: Mapping[str, Any]) -> dict[str, Any]:
    """Train at `request["epsilon"]` and return how the model does on the test rows.

    Raises ConfigError where there is no TensorFlow, or the batch is too large for the rows.
    """
    python = request["tensorflow"]
    require_modules(python, ("tensorflow", "tensorflow_privacy", "vitalring"))
    settings, central = settings_of(request), Central(**request["central"])
    work = work_of(settings)
    records = pooled_rows(work)
    rows = len(records)
    if central.batch > rows:
        raise ConfigError(f"a batch of {central.batch} is more than the {rows} pooled rows")
    rate = central.batch / rows
    steps = max(1, round(central.passes / rate))
    delta = settings.study.delta
    # One party's noise on exact sums: nothing is rounded, and no sampler's last bits are charged.
    multiplier = calibrate(
        request["epsilon"], delta, lambda each: [Spend(rate, each, steps, epsilon=0.0)]
    )
    asked = {
        "model": work.artefact.info.name,
        "optimiser": central.optimiser,
        "learning_rate": central.learning_rate,
        "clip": central.clip,
        "noise_multiplier": multiplier,
        "batch": central.batch,
        "steps": steps,
        "delta": delta,
        "classes": len(work.fleet.info.classes),
        "seed": work.seed,
    }
    with tempfile.TemporaryDirectory(prefix="vitalring-papers-") as folder:
        answer, probabilities = _train(work, records, asked, Path(folder), python)
    held_out = final_rows(work.fleet.folder, work.features)
    test = test_dict(evaluation_of(work.fleet.info, held_out, probabilities, work.seed))
    return {
        **{name: test[name] for name in SCORES},
        "epsilon": request["epsilon"],
        "delta": delta,
        "noise_multiplier": multiplier,
        "sampling_rate": rate,
        "steps": steps,
        "train_rows": rows,
        "statement": answer["statement"],
        "versions": answer["versions"],
    }


def _train(
    work: Work, records: Records, asked: Mapping[str, Any], folder: Path, python: str
) -> tuple[dict[str, Any], npt.NDArray[np.float32]]:
    """Train in TensorFlow's environment; return its answer and the test rows' probabilities."""
    held_out = final_rows(work.fleet.folder, work.features)
    start = initial_weights(work.artefact, work.plan.model.initial_seed)
    arrays, found = folder / "arrays.npz", folder / "found.npz"
    np.savez(arrays, x=records.x, y=records.y, start=start, test=held_out.x)
    request = {**asked, "arrays": str(arrays), "found": str(found)}
    answer = run_child("papers.dpsgd_process", request, python=python, timeout_s=_TIMEOUT_S)
    with np.load(found) as content:
        return answer, content["probabilities"].astype(np.float32)
