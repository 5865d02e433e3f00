"""Run by an interpreter with tensorflow-privacy 0.8.12: its membership attacks on one model."""

import json
import os
import sys
from importlib.metadata import version
from typing import Any


def attack(request: dict[str, Any]) -> dict[str, Any]:
    """Return ROC areas and true-positive rates at 0.1 % and 1 % false positives, by attack."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import numpy as np  # noqa: PLC0415

    # scikit-learn comes with tensorflow-privacy, into an environment of its own.
    from sklearn.metrics import roc_curve  # type: ignore[import-not-found]  # noqa: PLC0415
    from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack import (  # noqa: PLC0415
        advanced_mia,
        data_structures,
        membership_inference_attack,
    )

    with np.load(request["arrays"]) as arrays:
        probabilities, y = arrays["probabilities"], arrays["y"]
        confidences, members = arrays["confidences"], arrays["members"]
    inside = members[0]
    kinds = data_structures.AttackType
    results = membership_inference_attack.run_attacks(
        data_structures.AttackInputData(
            probs_train=probabilities[inside],
            probs_test=probabilities[~inside],
            labels_train=y[inside],
            labels_test=y[~inside],
        ),
        attack_types=(kinds.THRESHOLD_ATTACK, kinds.LOGISTIC_REGRESSION),
    )
    curves = {
        str(each.attack_type.value): (each.roc_curve.fpr, each.roc_curve.tpr)
        for each in results.single_attack_results
    }
    others, had = confidences[1:], members[1:]
    usable = np.flatnonzero((had.sum(0) > 0) & ~had.all(0))
    ratios = advanced_mia.compute_score_lira(
        list(confidences[0, usable, None]),
        [others[had[:, n], n][:, None] for n in usable],
        [others[~had[:, n], n][:, None] for n in usable],
        option="both",
        fix_variance=True,
    )
    # Its ratios are higher for those that were not trained on.
    fpr, tpr, _ = roc_curve(inside[usable], -np.ravel(ratios))
    curves["likelihood ratio"] = (fpr, tpr)
    return {
        "version": version("tensorflow-privacy"),
        "attacks": {
            name: {
                "auc": float(np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1])) / 2.0),
                "tpr": [float(tpr[fpr <= rate].max(initial=0.0)) for rate in (0.001, 0.01)],
            }
            for name, (fpr, tpr) in curves.items()
        },
    }


if __name__ == "__main__":
    print(json.dumps(attack(json.loads(sys.argv[1]))))
