"""The numbers behind the pictures, in JSON's types."""

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from vitalring.tools.explain.examples import Example
from vitalring.tools.explain.occlusion import Real
from vitalring.tools.explain.permutation import Drop, Permuted
from vitalring.tools.explain.windows import ShownExample, WindowFindings


def of_example(found: WindowFindings, shown: ShownExample) -> dict[str, Any]:
    """Return one window's drops of log-odds: by channel and sample, and of whole channels."""
    of: Example = shown.example
    return {
        "device": shown.device,
        "class": found.classes[of.label],
        "said": found.classes[of.said],
        "probability": of.probability,
        "of": of.of,
        "patches": _by_channel(found, shown.patches),
        "channels": _rounded(shown.channels),
    }


def of_averages(found: WindowFindings) -> dict[str, Any]:
    """Return each class's mean drops, and what the patches were."""
    return {
        "sampling_hz": found.sampling_hz,
        "patch_samples": found.patch.width,
        "stride_samples": found.patch.stride,
        "channels": [channel.label for channel in found.channels],
        "likeness_to_shuffled_weights": found.likeness,
        "classes": {
            found.classes[average.label]: {
                "windows": average.rows,
                "devices": average.devices,
                "patches": _by_channel(found, average.patches[0]),
                "channels": _rounded(average.channels[0]),
            }
            for average in found.averages
        },
    }


def of_permuted(permuted: Permuted) -> dict[str, Any]:
    """Return every column's drops; null where a figure is not defined."""
    return {
        "rows": permuted.rows,
        "repeats": permuted.repeats,
        "auroc": _number(permuted.auroc),
        "macro_f1": permuted.macro_f1,
        "columns": [
            {"column": one.column, "auroc": _drop(one.auroc), "macro_f1": _drop(one.macro_f1)}
            for one in permuted.columns
        ],
    }


def _by_channel(found: WindowFindings, patches: Real) -> dict[str, list[float]]:
    return {str(place): _rounded(patches[:, place]) for place in found.searched}


def _rounded(values: Real) -> list[float]:
    return [float(value) for value in np.round(values, 4) + 0.0]


def _drop(drop: Drop) -> dict[str, float | None]:
    return {name: _number(value) for name, value in asdict(drop).items()}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
