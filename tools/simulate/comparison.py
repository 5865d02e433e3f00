"""The parts of `report.json` that a run has only where it was asked for them, or has the data."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from vitalring.errors import DataError
from vitalring.models.bootstrap import LEVEL, Bootstrap, Estimate
from vitalring.models.dataset import FeatureSchema
from vitalring.models.dataset.features import Number
from vitalring.tools.simulate.final import OVERALL, FinalEvaluation
from vitalring.tools.simulate.pooled import Centralised

_BY_CLASS: Final = ("recall", "precision")


def parts(
    test: FinalEvaluation | None,
    centralised: Centralised | None,
    *,
    classes: Sequence[str],
    personal: Sequence[Mapping[str, Any]],
    features: FeatureSchema | None,
    declared: bool,
    explanations: Sequence[Mapping[str, str]],
    labels: Mapping[str, Sequence[int]] | None,
) -> dict[str, Any]:
    """Return the optional parts that there is something to say about."""
    return {
        name: part
        for name, part in (
            ("test", test_dict(test) if test else None),
            ("centralised", centralised_dict(centralised, test) if centralised else None),
            ("personal", [dict(row) for row in personal]),
            ("features", features_dict(features, declared=declared) if features else None),
            ("explanations", [dict(row) for row in explanations]),
            ("labels", labels_dict(labels, classes) if labels else None),
        )
        if part
    }


def test_dict(test: FinalEvaluation) -> dict[str, Any]:
    """Return a final evaluation; each figure is `{value, low, high}`."""
    return {
        "rows": sum(test.rows),
        "resampled": test.resampled,
        "clusters": test.figures.clusters,
        "draws": len(test.figures.draws),
        "level": LEVEL,
        "loss": test.evaluation.loss,
        **_figures(test.classes, test.figures.estimate),
        "classes": {
            name: {"rows": rows, "devices": holders}
            for name, rows, holders in zip(test.classes, test.rows, test.holders, strict=True)
        },
        "confusion": [list(row) for row in test.evaluation.confusion],
        "by_device": [asdict(device) for device in test.devices],
    }


def centralised_dict(centralised: Centralised, test: FinalEvaluation | None) -> dict[str, Any]:
    """Return the pooled model's evaluation, how it was trained, and the differences.

    A difference is the federated figure less the centralised one, on the same draws.
    Raises DataError where the two were not evaluated on the same rows.
    """
    theirs = centralised.evaluation
    if test and (test.rows, test.resampled) != (theirs.rows, theirs.resampled):
        raise DataError("federated and centralised model were evaluated on different rows")
    return {
        **test_dict(theirs),
        "training": asdict(centralised.training),
        "difference": _difference(test.figures, theirs) if test else None,
    }


def features_dict(features: FeatureSchema, *, declared: bool) -> dict[str, Any]:
    """Return what columns became inputs, and how the sites came to agree on it."""
    numbers = sum(isinstance(feature, Number) for feature in features.features)
    return {
        "inputs": features.inputs,
        "columns": len(features.columns),
        "numbers": numbers,
        "categories": len(features.columns) - numbers,
        "how": "declared" if declared else "agreed",
        "digest": features.digest.hex(),
    }


def labels_dict(
    labels: Mapping[str, Sequence[int]], classes: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Return counts of rows by part (train, test) and class."""
    return {
        part: dict(zip(classes, map(int, counts), strict=True)) for part, counts in labels.items()
    }


def _figures(classes: Sequence[str], estimate: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return all figures of one kind; `estimate` gives a figure by its name."""
    return {
        **{name: asdict(estimate(name)) for name in OVERALL},
        **{
            name: {label: asdict(estimate(f"{name}:{k}")) for k, label in enumerate(classes)}
            for name in _BY_CLASS
        },
    }


def _difference(mine: Bootstrap, theirs: FinalEvaluation) -> dict[str, Any]:
    def difference(name: str) -> Estimate:
        return mine.difference(theirs.figures, name)

    return _figures(theirs.classes, difference)
