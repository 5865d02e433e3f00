"""A study's data, network and plan in one process, and how weights do on its test rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vitalring.errors import ConfigError
from vitalring.models.artefact import Artefact
from vitalring.models.dataset import FeatureSchema
from vitalring.protocol.records import StudyPlan
from vitalring.tools.settings import SimulationSettings
from vitalring.tools.simulate import layout
from vitalring.tools.simulate.comparison import test_dict
from vitalring.tools.simulate.final import evaluate_final

SCORES = ("accuracy", "macro_f1", "auroc", "confusion", "rows")
"""What a cell keeps of how a model does on the test rows."""


@dataclass(frozen=True)
class Work:
    """A study as it would be run, drawn up and not begun."""

    fleet: layout.Fleet
    features: FeatureSchema | None
    artefact: Artefact
    plan: StudyPlan
    seed: int

    def scores(self, weights: npt.NDArray[np.floating[Any]]) -> Mapping[str, Any]:
        """Return how weights (d,) do on the test rows, under the names of SCORES."""
        fleet, exact = self.fleet, weights.astype(np.float64)
        test = test_dict(
            evaluate_final(fleet.folder, fleet.info, self.features, self.artefact, exact, self.seed)
        )
        return {name: test[name] for name in SCORES}


def work_of(settings: SimulationSettings) -> Work:
    """Draw up a study. Raises ConfigError, DataError or ModelError."""
    fleet = layout.choose_fleet(settings)
    known = layout.features_known(settings, fleet.folder, fleet.info)
    if known is None:
        raise ConfigError(f"{fleet.folder}: it is not known what the columns become")
    plan, _ = layout.draw_training(settings, fleet, known)
    artefact = layout.artefact_of(settings, fleet, known)
    features = FeatureSchema.from_json(known) if known else None
    return Work(fleet, features, artefact, plan, settings.study.seed)
