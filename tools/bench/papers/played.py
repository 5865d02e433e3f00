"""In a child: the rounds of a study in one process, by what devices and the server compute.

A point of Figure 2 wants an accuracy. The device's own clip, noise and rounding, the sum of the
fields, the server's decoding and its optimiser decide it; encryption, signatures and messages
change no sum. Table I's studies run them all, and stand beside these points. What a network
computes alike in every step is computed once (`one_layer`).
"""

from collections.abc import Mapping
from typing import Any

from vitalring.edge_agent.accountant import check_claim, epsilon
from vitalring.models.dataset import load_part
from vitalring.tools.bench.papers.studies import settings_of
from vitalring.tools.bench.papers.work import work_of
from vitalring.tools.bench.trial import federated, stage_of
from vitalring.tools.calibration import too_small


def played_cell(request: Mapping[str, Any]) -> dict[str, Any]:
    """Play a study and return how its final model does on the test rows. Raises ConfigError."""
    work = work_of(settings_of(request))
    fleet, plan, privacy = work.fleet, work.plan, work.plan.privacy
    parts = [
        load_part(fleet.folder, name, fleet.info, "train", work.features) for name in fleet.devices
    ]
    weights = federated(stage_of(work.artefact, parts, ()), plan, work.seed)
    return {
        **work.scores(weights),
        "privacy": {
            "unit": privacy.unit,
            "noise": privacy.noise,
            "epsilon": privacy.epsilon,
            "delta": privacy.delta,
            "spent": check_claim(plan.terms, epsilon),
            "note": too_small(plan.terms, len(fleet.devices)),
        },
        "rounds": plan.training.rounds,
        "parameters": work.artefact.info.dimension,
        "devices": len(fleet.devices),
    }
