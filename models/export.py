"""A trained model as files that others run: TFLite float, TFLite int8, ONNX. No TensorFlow here.

Every activation range of a network is fixed when it is built, so of an inference model only the
weights change: their bytes, and in int8 their scales and the biases that depend on those. So the
project ships each inference model with placeholder weights and a list of the places where weights
lie, and this module writes trained weights into those places. The tests compare the outcome with
what TensorFlow's converter makes of the same weights.

int8 follows the TFLite quantisation specification: weights symmetric in steps of max|w|/127, with
one scale for each filter of a convolution and one for a dense kernel; biases int32 in steps of
input scale · weight scale.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vitalring.errors import ModelError
from vitalring.models.artefact import read_shipped

FORMATS = {"float": "-infer.tflite", "int8": "-int8.tflite", "onnx": "-infer.onnx"}


@dataclass(frozen=True)
class FloatSlot:
    """Where float32 weights go: w[start:start+size] as `shape`, axes in `order`, at `offset`."""

    offset: int
    start: int
    shape: tuple[int, ...]
    order: tuple[int, ...]


@dataclass(frozen=True)
class Int8Slot:
    """Where a layer with kernel (inputs, outputs) at w[start:], then a bias, goes in int8.

    `scales` is 1 or `outputs`. Offsets are of the int8 kernel (outputs, inputs), its scales, the
    int32 bias and its scales; a layer without a bias has None in place of the last two.
    """

    start: int
    inputs: int
    outputs: int
    scales: int
    input_scale: float
    kernel: int
    kernel_scales: int
    bias: int | None
    bias_scales: int | None


@dataclass(frozen=True)
class Template:
    """An inference model with placeholder weights, and the places to write."""

    name: str
    dimension: int
    model: bytes = field(repr=False)
    slots: tuple[FloatSlot, ...] | tuple[Int8Slot, ...]

    def __post_init__(self) -> None:
        covered = sum(_size(slot) for slot in self.slots)
        if covered != self.dimension:
            raise ModelError(
                f"template {self.name!r} has places for {covered} of {self.dimension} weights; "
                "build the artefacts again"
            )


def load_template(name: str, kind: str) -> Template:
    """Return a shipped template; `kind` is a key of `FORMATS`.

    Raises:
        ModelError: there is none, or its bytes are not the ones that were built.
    """
    table = json.loads(read_shipped(f"{name}-export.json"))
    model = read_shipped(name + FORMATS[kind])
    if hashlib.sha256(model).hexdigest() != table[kind]["sha256"]:
        raise ModelError(
            f"{name}{FORMATS[kind]} is not the file that was built; install the project again"
        )
    return Template(name, table["dimension"], model, slots_from_json(kind, table[kind]["slots"]))


def slots_from_json(
    kind: str, rows: list[dict[str, Any]]
) -> tuple[FloatSlot, ...] | tuple[Int8Slot, ...]:
    """Read what `dataclasses.asdict` wrote of a template's slots."""
    if kind == "int8":
        return tuple(Int8Slot(**row) for row in rows)
    return tuple(
        FloatSlot(row["offset"], row["start"], tuple(row["shape"]), tuple(row["order"]))
        for row in rows
    )


def fill(template: Template, weights: npt.NDArray[np.float32]) -> bytes:
    """Return the template with `weights` (dimension,) in their places.

    Raises:
        ModelError: the weights have a wrong shape or are not finite.
    """
    if weights.shape != (template.dimension,) or weights.dtype != np.float32:
        raise ModelError(
            f"weights have shape {weights.shape} and type {weights.dtype}; {template.name} has "
            f"({template.dimension},) of float32"
        )
    if not np.isfinite(weights).all():
        raise ModelError("weights are not finite; export a model that has not diverged")
    model = bytearray(template.model)
    for slot in template.slots:
        for offset, data in _pieces(slot, weights):
            model[offset : offset + len(data)] = data
    return bytes(model)


def export(name: str, weights: npt.NDArray[np.float32]) -> Mapping[str, bytes]:
    """Return `model.tflite`, `model-int8.tflite` and `model.onnx` with these weights.

    Each takes windows (the ONNX one any number, the others one at a time) and gives class
    probabilities; the int8 model's input and output are int8, with scales in the file.
    """
    files = {"model.tflite": "float", "model-int8.tflite": "int8", "model.onnx": "onnx"}
    return {file: fill(load_template(name, kind), weights) for file, kind in files.items()}


def _size(slot: FloatSlot | Int8Slot) -> int:
    if isinstance(slot, FloatSlot):
        return int(np.prod(slot.shape))
    return (slot.inputs + (slot.bias is not None)) * slot.outputs


def _pieces(
    slot: FloatSlot | Int8Slot, weights: npt.NDArray[np.float32]
) -> list[tuple[int, bytes]]:
    """Return (offset, bytes) of everything that a slot writes."""
    own = weights[slot.start : slot.start + _size(slot)]
    if isinstance(slot, FloatSlot):
        return [
            (slot.offset, own.reshape(slot.shape).transpose(slot.order).astype("<f4").tobytes())
        ]
    kernel = own[: slot.inputs * slot.outputs].reshape(slot.inputs, slot.outputs)
    largest = np.abs(kernel).max(axis=0 if slot.scales > 1 else (0, 1), keepdims=True)
    scales = np.maximum(largest, 1e-8).astype(np.float64)[0] / 127
    levels = np.clip(np.rint(kernel / scales), -127, 127).astype(np.int8)
    pieces = [
        (slot.kernel, levels.T.tobytes()),
        (slot.kernel_scales, scales.astype("<f4").tobytes()),
    ]
    if slot.bias is not None and slot.bias_scales is not None:
        steps = scales * slot.input_scale
        limit = 2**31 - 1
        bias = np.clip(np.rint(own[slot.inputs * slot.outputs :] / steps), -limit, limit)
        pieces.append((slot.bias, bias.astype("<i4").tobytes()))
        pieces.append((slot.bias_scales, steps.astype("<f4").tobytes()))
    return pieces
