"""A model's weights as bytes: float32, little-endian, in the artefact's order (SPEC 4.1)."""

from typing import Any

import numpy as np
import numpy.typing as npt

from vitalring.errors import RecordError


def pack_weights(weights: npt.NDArray[np.floating[Any]]) -> bytes:
    """Return the weights (d,) as bytes. Raises RecordError if one is not finite."""
    with np.errstate(over="ignore"):
        packed = np.ascontiguousarray(weights, dtype="<f4")
    if not np.isfinite(packed).all():
        raise RecordError("weights hold a value that is not a finite number")
    return packed.tobytes()


def unpack_weights(data: bytes, dimension: int) -> npt.NDArray[np.float32]:
    """Return the weights (d,). Raises RecordError for another size or a value not finite."""
    if len(data) != 4 * dimension:
        raise RecordError(f"weights have {len(data)} bytes, {dimension} parameters need four each")
    weights = np.frombuffer(data, dtype="<f4").astype(np.float32)
    if not np.isfinite(weights).all():
        raise RecordError("weights hold a value that is not a finite number")
    return weights
