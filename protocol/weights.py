"""A model's weights as bytes: float32, little-endian, in the artefact's order (SPEC 4.1)."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vitalring.errors import RecordError

MAX_WEIGHT: Final = 2.0**14
"""The largest weight. Beyond it a model has diverged, and float32 computes no norms (SPEC 7.4)."""


def are_weights(values: npt.NDArray[np.floating[Any]]) -> bool:
    """Tell whether `values` (d,) can be a model's weights: none is beyond MAX_WEIGHT, or NaN."""
    return bool((np.abs(values) <= MAX_WEIGHT).all())


def pack_weights(weights: npt.NDArray[np.floating[Any]]) -> bytes:
    """Return the weights (d,) as bytes. Raises RecordError for a value that is no weight."""
    with np.errstate(over="ignore"):
        packed = np.ascontiguousarray(weights, dtype="<f4")
    _check(packed)
    return packed.tobytes()


def unpack_weights(data: bytes, dimension: int) -> npt.NDArray[np.float32]:
    """Return the weights (d,). Raises RecordError for another size or a value that is none."""
    if len(data) != 4 * dimension:
        raise RecordError(f"weights have {len(data)} bytes, {dimension} parameters need four each")
    weights = np.frombuffer(data, dtype="<f4").astype(np.float32)
    _check(weights)
    return weights


def _check(weights: npt.NDArray[np.float32]) -> None:
    if not are_weights(weights):
        raise RecordError(
            f"weights hold a value that is no number between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}: "
            "the model has diverged"
        )
