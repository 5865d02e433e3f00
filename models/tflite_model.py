"""A TFLite file, written from tensors, constants and operations, and read to say what is in it.

Source: TensorFlow Lite's schema (`tensorflow/compiler/mlir/lite/schema/schema.fbs`), whose field
numbers and codes stand below, and the versions of `tensorflow/lite/tools/versioning`.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vitalring.errors import ModelError
from vitalring.models.flatbuffer import Bytes, Scalar, Table, View, read, write
from vitalring.models.tflite_names import BUILTIN

IDENTIFIER = b"TFL3"
# Operation: builtin code, version in float32, version in int8, number in the union of options.
OPERATIONS = {
    "ADD": (0, 1, 2, 11),
    "AVERAGE_POOL_2D": (1, 1, 2, 5),
    "CONCATENATION": (2, 1, 2, 10),
    "CONV_2D": (3, 1, 3, 1),
    "DEPTHWISE_CONV_2D": (4, 1, 3, 2),
    "DEQUANTIZE": (6, 1, 2, 38),
    "CAST": (53, 1, 1, 37),
    "FULLY_CONNECTED": (9, 1, 4, 8),
    "FULLY_CONNECTED 16x8": (9, 7, 7, 8),
    "MAX_POOL_2D": (17, 1, 2, 5),
    "MUL": (18, 1, 2, 21),
    "RELU": (19, 1, 2, 0),
    "RESHAPE": (22, 1, 1, 17),
    "SOFTMAX": (25, 1, 2, 9),
    "SOFTMAX 16": (25, 3, 3, 9),
    "MEAN": (40, 1, 2, 27),
    "SUB": (41, 1, 2, 28),
    "MAXIMUM": (55, 1, 2, 39),
    "MINIMUM": (57, 1, 2, 39),
    "SLICE": (65, 1, 2, 48),
    "PADV2": (60, 1, 2, 43),
    "TILE": (69, 1, 2, 51),
    "LOG": (73, 1, 2, 0),
    "RSQRT": (76, 1, 2, 0),
    "REDUCE_MAX": (82, 1, 2, 27),
    "SQUARE": (92, 1, 1, 66),
    "QUANTIZE": (114, 1, 2, 89),
}
FLOAT32, INT32, INT64, INT16, INT8 = 0, 2, 4, 7, 9
TYPES = {
    np.dtype("f4"): FLOAT32,
    np.dtype("i4"): INT32,
    np.dtype("i8"): INT64,
    np.dtype("i1"): INT8,
}


@dataclass(frozen=True)
class Quant:
    """Real number = scale · (level - zero), level from -128 to 127."""

    scale: float
    zero: int


class TfliteModel:
    """Tensors, operations and buffers as they come."""

    def __init__(self) -> None:
        self.tensors: list[Table] = []
        self.buffers: list[Table] = [Table({})]  # the first one is empty, by convention
        self.operators: list[Table] = []
        self.codes: dict[tuple[str, int], int] = {}

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        kind: int,
        scales: npt.ArrayLike | None = None,
        zero: int = 0,
        axis: int = 0,
        data: bytes | None = None,
    ) -> int:
        """Add a tensor; return its number."""
        buffer = 0
        if data is not None:
            buffer = len(self.buffers)
            self.buffers.append(Table({0: Bytes(data, 16)}))
        fields: dict[int, Any] = {
            0: np.array(shape, "i4"),
            1: Scalar("b", kind),
            2: Scalar("I", buffer),
            3: name,
        }
        if scales is not None:
            steps = np.atleast_1d(np.asarray(scales, "f4"))
            zeros = np.full(steps.shape, zero, "i8")
            fields[4] = Table({2: steps, 3: zeros, 6: Scalar("i", axis)})
        self.tensors.append(Table(fields))
        return len(self.tensors) - 1

    def constant(
        self,
        name: str,
        values: npt.NDArray[Any],
        scales: npt.ArrayLike | None = None,
        axis: int = 0,
    ) -> int:
        """Add a tensor that does not change."""
        kind = TYPES[values.dtype]
        data = np.ascontiguousarray(values).tobytes()
        return self.tensor(name, values.shape, kind, scales, 0, axis, data)

    def operator(
        self, name: str, inputs: list[int], output: int, options: Mapping[int, Any], *, int8: bool
    ) -> None:
        """Add an operation."""
        _, in_float, in_int8, union = OPERATIONS[name]
        key = (name, in_int8 if int8 else in_float)
        code = self.codes.setdefault(key, len(self.codes))
        fields: dict[int, Any] = {
            0: Scalar("I", code),
            1: np.array(inputs, "i4"),
            2: np.array([output], "i4"),
        }
        if union:
            fields |= {3: Scalar("B", union), 4: Table(options)}
        self.operators.append(Table(fields))

    def bytes(self, name: str, source: int, result: int) -> bytes:
        """Return the file: TFLite schema, version 3."""
        codes = []
        for operation, version in self.codes:
            code = OPERATIONS[operation][0]
            fields: dict[int, Any] = {
                0: Scalar("b", code),
                2: Scalar("i", version),
                3: Scalar("i", code),
            }
            codes.append(Table(fields))
        ends = [np.array([source], "i4"), np.array([result], "i4")]
        graph: dict[int, Any] = {
            0: self.tensors,
            1: ends[0],
            2: ends[1],
            3: self.operators,
            4: "infer",
        }
        signature: dict[int, Any] = {
            0: [Table({0: "x", 1: Scalar("I", source)})],
            1: [Table({0: "probs", 1: Scalar("I", result)})],
            2: "infer",
        }
        root = Table(
            {
                0: Scalar("I", 3),
                1: codes,
                2: [Table(graph)],
                3: name,
                4: self.buffers,
                7: [Table(signature)],
            }
        )
        return write(root, IDENTIFIER)


@dataclass(frozen=True)
class TensorInfo:
    """A tensor that a signature takes or gives; -1 in its shape is a length left open."""

    name: str
    kind: str
    shape: tuple[int, ...]
    quant: Quant | None


@dataclass(frozen=True)
class SignatureInfo:
    """What a caller sees of a model."""

    name: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    operations: Mapping[str, int]
    """How often each operation occurs."""


def read_signatures(model: bytes) -> tuple[SignatureInfo, ...]:
    """Return what is in a TFLite file, without running anything.

    Raises:
        ModelError: it is no TFLite file, or is damaged.
    """
    root = read(model, IDENTIFIER)
    codes = [_operation_name(code) for code in root.tables(1)]
    graphs = root.tables(2)
    return tuple(_signature(one, graphs, codes) for one in root.tables(7))


def _signature(signature: View, graphs: list[View], codes: list[str]) -> SignatureInfo:
    graph = _item(graphs, signature.scalar(4, "I"))
    tensors = graph.tables(0)
    sides = [
        tuple(_tensor_info(one.text(0), _item(tensors, one.scalar(1, "I"))) for one in side)
        for side in (signature.tables(0), signature.tables(1))
    ]
    used = Counter(_item(codes, operator.scalar(0, "I")) for operator in graph.tables(3))
    return SignatureInfo(signature.text(2), sides[0], sides[1], dict(sorted(used.items())))


def _tensor_info(name: str, tensor: View) -> TensorInfo:
    shape = tensor.array(7, "<i4")
    shape = shape if len(shape) else tensor.array(0, "<i4")
    kind, quant = tensor.scalar(1, "b"), tensor.table(4)
    levels = None
    if quant is not None and len(quant.array(2, "<f4")) and len(quant.array(3, "<i8")):
        levels = Quant(float(quant.array(2, "<f4")[0]), int(quant.array(3, "<i8")[0]))
    known = {FLOAT32: "float32", INT32: "int32", INT8: "int8"}
    return TensorInfo(
        name, known.get(kind, f"type {kind}"), tuple(int(length) for length in shape), levels
    )


def _operation_name(code: View) -> str:
    # Codes above 127 do not fit the older field, which then holds 127.
    number = max(code.scalar(3, "i"), code.scalar(0, "b"))
    custom = code.text(1)
    return custom or (BUILTIN[number] if 0 <= number < len(BUILTIN) else f"operation {number}")


def _item(items: list[Any], place: int) -> Any:  # noqa: ANN401
    if place >= len(items):
        raise ModelError("the model is damaged: it names a part that it does not have")
    return items[place]
