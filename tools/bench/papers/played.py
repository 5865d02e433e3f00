"""In a child: the rounds of a study in one process, by what devices and the server compute.

A point of Figure 2 wants an accuracy. The device's own clip, noise and rounding, the sum of the
fields, the server's decoding and its optimiser decide it; encryption, signatures and messages
change no sum. Table I's studies run them all, and stand beside these points. What a network
computes alike in every step is computed once (`one_layer`).
"""

from collections.abc import Mapping
from typing import Any

from vitalring.edge_agent.accountant import check_claim, epsilon
from vitalring.errors import ConfigError
from vitalring.models.dataset import FeatureSchema, load_part
from vitalring.tools.bench.papers.studies import settings_of
from vitalring.tools.bench.trial import federated, stage_of
from vitalring.tools.calibration import too_small
from vitalring.tools.simulate import layout
from vitalring.tools.simulate.comparison import test_dict
from vitalring.tools.simulate.final import evaluate_final


def played_cell(request: Mapping[str, Any]) -> dict[str, Any]:
    """Play a study and return how its final model does on the test rows. Raises ConfigError."""
    settings = settings_of(request)
    fleet = layout.choose_fleet(settings)
    known = layout.features_known(settings, fleet.folder, fleet.info)
    if known is None:
        raise ConfigError(f"{fleet.folder}: it is not known what the columns become")
    plan, _ = layout.draw_training(settings, fleet, known)
    artefact = layout.artefact_of(settings, fleet, known)
    features = FeatureSchema.from_json(known) if known else None
    parts = [load_part(fleet.folder, name, fleet.info, "train", features) for name in fleet.devices]
    seed = settings.study.seed
    weights = federated(stage_of(artefact, parts, ()), plan, seed)
    test = test_dict(
        evaluate_final(
            fleet.folder, fleet.info, features, artefact, weights.astype("float64"), seed
        )
    )
    privacy = plan.privacy
    return {
        **{name: test[name] for name in ("accuracy", "macro_f1", "auroc", "confusion", "rows")},
        "privacy": {
            "unit": privacy.unit,
            "noise": privacy.noise,
            "epsilon": privacy.epsilon,
            "delta": privacy.delta,
            "spent": check_claim(plan.terms, epsilon),
            "note": too_small(plan.terms, len(fleet.devices)),
        },
        "rounds": plan.training.rounds,
        "parameters": artefact.info.dimension,
        "devices": len(fleet.devices),
    }
