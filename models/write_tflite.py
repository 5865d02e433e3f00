"""An inference graph and weights as a TFLite model, in float32 or int8.

Sources: TensorFlow Lite's schema (`tensorflow/compiler/mlir/lite/schema/schema.fbs`), whose field
numbers and codes stand below, and its "8-bit quantization specification": weights symmetric in
steps of max|w|/127, one scale for each filter of a convolution and one for a dense kernel; biases
int32 in steps of input scale · weight scale; activations in steps of a fixed range.

An operation runs in int8 where its input has a range and a range follows; what lies between runs
in float32 and says so by DEQUANTIZE and QUANTIZE. So a group norm stays exact, and everything
else is int8. Windows (time, channels) are held as [1, 1, time, channels].
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vitalring.errors import ModelError
from vitalring.models.flatbuffer import Bytes, Scalar, Table, write
from vitalring.models.graph_node import Array, Node, Shape, folded
from vitalring.models.inference_graph import InferenceGraph, ranges_after

IDENTIFIER = b"TFL3"
# Operation: builtin code, version in float32, version in int8, number in the union of options.
OPERATIONS = {
    "ADD": (0, 1, 2, 11),
    "AVERAGE_POOL_2D": (1, 1, 2, 5),
    "CONCATENATION": (2, 1, 2, 10),
    "CONV_2D": (3, 1, 3, 1),
    "DEPTHWISE_CONV_2D": (4, 1, 3, 2),
    "DEQUANTIZE": (6, 1, 2, 38),
    "FULLY_CONNECTED": (9, 1, 4, 8),
    "MAX_POOL_2D": (17, 1, 2, 5),
    "MUL": (18, 1, 2, 21),
    "RELU": (19, 1, 2, 0),
    "RESHAPE": (22, 1, 1, 17),
    "SOFTMAX": (25, 1, 2, 9),
    "MEAN": (40, 1, 2, 27),
    "SUB": (41, 1, 2, 28),
    "SLICE": (65, 1, 2, 48),
    "PADV2": (60, 1, 2, 43),
    "TILE": (69, 1, 2, 51),
    "RSQRT": (76, 1, 2, 0),
    "REDUCE_MAX": (82, 1, 2, 27),
    "SQUARE": (92, 1, 1, 66),
    "QUANTIZE": (114, 1, 2, 89),
}
_FLOAT32, _INT32, _INT8 = 0, 2, 9
_TYPES = {np.dtype("f4"): _FLOAT32, np.dtype("i4"): _INT32, np.dtype("i1"): _INT8}
_BINARY = {"add": "ADD", "subtract": "SUB", "multiply": "MUL"}
_UNARY = ("reshape", "slice", "pad", "max_pool", "average_pool", "maximum", "mean", "relu")
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Quant:
    """Real number = scale · (level - zero), level from -128 to 127."""

    scale: float
    zero: int


PROBABILITIES = Quant(1 / 256, -128)  # what the int8 softmax gives, whatever is asked for


@dataclass(frozen=True)
class _Held:
    """A value in the model: its tensor, and its levels if it is int8."""

    tensor: int
    quant: Quant | None


def write_tflite(graph: InferenceGraph, weights: Array, *, int8: bool) -> bytes:
    """Return a model with one signature, `infer`: one window `x` -> class probabilities `probs`.

    In int8, input and output are int8 with their scales in the file; the input stays float32
    where the graph gives it no range.
    """
    return _Lowering(graph, weights, int8).model()


def quant_of(node: Node) -> Quant:
    """Return the int8 levels of a range: 256, from low to high, one of them 0."""
    scale = (node.high - node.low) / 255
    return Quant(scale, round(-128 - node.low / scale))


def int8_levels(
    kernel: Array, axes: tuple[int, ...] | None
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float64]]:
    """Round as training does, symmetric, with one scale for all weights along `axes`.

    Returns levels in the kernel's shape, and scales with the axes kept.
    """
    largest = np.abs(kernel).max(axis=axes, keepdims=True)
    scales = np.maximum(largest, 1e-8).astype(np.float64) / 127
    return np.clip(np.rint(kernel / scales), -127, 127).astype(np.int8), scales


class _Model:
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
        kind = _TYPES[values.dtype]
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


class _Lowering:
    """One way through the graph, from the window to the probabilities."""

    def __init__(self, graph: InferenceGraph, weights: Array, int8: bool) -> None:
        self._graph = graph
        self._weights = weights
        self._int8 = int8
        self._shapes = graph.shapes()
        self._ranges = ranges_after(graph) if int8 else {}
        self._out = _Model()
        self._held: list[_Held] = []

    def model(self) -> bytes:
        out, shape = self._out, (1, *self._graph.input_shape)
        quant = self._wanted(0)
        source = self._tensor("x", shape, quant)
        held = _Held(source, quant)
        if len(shape) == 3:
            held = self._reshaped(held, (1, *shape))
        self._held.append(held)
        for place, node in enumerate(self._graph.nodes):
            self._held.append(self._lower(place + 1, node))
        logits = self._held[-1]
        quant = PROBABILITIES if logits.quant else None
        result = self._tensor("probs", (1, self._graph.classes), quant)
        options = {0: Scalar("f", 1.0)}
        out.operator("SOFTMAX", [logits.tensor], result, options, int8=quant is not None)
        return out.bytes(self._graph.name, source, result)

    def _lower(self, value: int, node: Node) -> _Held:
        if node.op == "range":
            return self._range(value, node)
        if node.op in _WEIGHTED:
            return self._weighted(value, node)
        if node.op in _UNARY:
            return self._unary(value, node)
        if node.op == "concat":
            return self._concat(value, node)
        return self._in_float(value, node)

    # -- ranges

    def _wanted(self, value: int) -> Quant | None:
        node = self._ranges.get(value)
        return quant_of(node) if node else None

    def _range(self, value: int, node: Node) -> _Held:
        held = self._held[node.inputs[0]]
        if not self._int8 or held.quant == quant_of(node):
            return held
        return self._quantised(held, quant_of(node), value)

    def _quantised(self, held: _Held, quant: Quant, value: int) -> _Held:
        tensor = self._tensor(f"value{value}_int8", self._shape(value), quant)
        already = held.quant is not None
        self._out.operator("QUANTIZE", [held.tensor], tensor, {}, int8=already)
        return _Held(tensor, quant)

    def _float(self, value: int) -> int:
        """Return the tensor of a value in float32."""
        held = self._held[value]
        if held.quant is None:
            return held.tensor
        tensor = self._tensor(f"value{value}_float", self._shape(value), None)
        self._out.operator("DEQUANTIZE", [held.tensor], tensor, {}, int8=True)
        return tensor

    # -- operations with weights

    def _weighted(self, value: int, node: Node) -> _Held:
        form = _WEIGHTED[node.op](node, self._weights)
        given, wanted = self._held[node.inputs[0]], self._wanted(value)
        int8 = given.quant is not None and wanted is not None
        if node.op == "affine" and not int8:
            return self._affine_in_float(value, node)
        name = f"{node.op}{value}"
        constants = self._constants(name, form, given.quant if int8 else None)
        source = given.tensor if int8 else self._float(node.inputs[0])
        shape = self._shape(value)
        flat = node.op == "affine" and len(shape) != 4  # a depthwise convolution over no time
        if flat:
            steps = (1, 1, math.prod(shape[:-1]), shape[-1])
            source = self._reshaped(_Held(source, given.quant), steps).tensor
            held = self._result(name, steps, wanted)
        else:
            held = self._result(value, shape, wanted if int8 else None)
        inputs = [source, *constants]
        self._out.operator(form.operation, inputs, held.tensor, form.options, int8=int8)
        return self._reshaped(held, shape) if flat else held

    def _constants(self, name: str, form: "_Form", source: Quant | None) -> list[int]:
        """Add kernel and bias; -1 stands for a bias that there is not."""
        out, kernel, bias = self._out, form.kernel, form.bias
        if source is None:
            tensors = [out.constant(f"{name}_kernel", kernel)]
            return [*tensors, -1 if bias is None else out.constant(f"{name}_bias", bias)]
        levels, scales = int8_levels(kernel, form.one_scale)
        steps = scales.reshape(-1) * source.scale
        if bias is not None and form.op == "affine":
            # A shift may be large beside its scale: then a coarser step, that the shift fits too.
            steps = np.maximum(steps, np.abs(bias) / 2**30)
            scales = (steps / source.scale).reshape(scales.shape)
            levels = np.rint(kernel / scales).astype(np.int8)
        tensors = [out.constant(f"{name}_kernel", levels, scales.reshape(-1), form.axis)]
        if bias is None:
            return [*tensors, -1]
        rounded = np.clip(np.rint(bias / steps), -_INT32_MAX, _INT32_MAX).astype("i4")
        return [*tensors, out.constant(f"{name}_bias", rounded, steps)]

    def _affine_in_float(self, value: int, node: Node) -> _Held:
        form = _WEIGHTED[node.op](node, self._weights)
        scale = self._out.constant(f"affine{value}_scale", form.kernel.reshape(-1))
        shift = self._out.constant(f"affine{value}_shift", np.asarray(form.bias))
        shape = self._shape(value)
        scaled = self._tensor(f"affine{value}_scaled", shape, None)
        self._out.operator("MUL", [self._float(node.inputs[0]), scale], scaled, {}, int8=False)
        held = self._result(value, shape, None)
        options = {0: Scalar("b", int(node.relu))}
        self._out.operator("ADD", [scaled, shift], held.tensor, options, int8=False)
        return held

    # -- operations without weights

    def _unary(self, value: int, node: Node) -> _Held:
        given = self._held[node.inputs[0]]
        quant = given.quant
        if quant is not None and node.op in ("mean", "relu"):
            quant = self._wanted(value) or quant
        shape = self._shape(value)
        if node.op == "reshape":
            return self._reshaped(given, shape)
        held = self._result(value, shape, quant)
        name, extra, options = self._unary_form(node, quant)
        inputs = [given.tensor, *extra]
        self._out.operator(name, inputs, held.tensor, options, int8=quant is not None)
        return held

    def _unary_form(self, node: Node, quant: Quant | None) -> tuple[str, list[int], dict[int, Any]]:
        """Return the operation, its further inputs, its options."""
        rank = len(self._shapes[node.inputs[0]])
        if node.op == "relu":
            return "RELU", [], {}
        if node.op in ("mean", "maximum"):
            axes = [1 + axis for axis in node.axes] if rank != 2 else [2 + a for a in node.axes]
            if rank == 2 and not node.keep:
                axes = [1, *axes]  # the axis that only holds a window's place goes too
            name = "MEAN" if node.op == "mean" else "REDUCE_MAX"
            return name, [self._int32(axes)], {0: Scalar("?", node.keep)}
        if node.op == "slice":
            before = [0] * (2 if rank == 2 else 1)
            begin, size = before + list(node.begin), [1] * len(before) + list(node.shape)
            return "SLICE", [self._int32(begin), self._int32(size)], {}
        if node.op == "pad":
            sides = np.array([[0, 0], [0, 0], [*node.begin, *node.shape], [0, 0]], "i4")
            return "PADV2", [self._out.constant("padding", sides), self._padding(node, quant)], {}
        name = "MAX_POOL_2D" if node.op == "max_pool" else "AVERAGE_POOL_2D"
        return name, [], _window_options(node) | {3: Scalar("i", node.width), 4: Scalar("i", 1)}

    def _padding(self, node: Node, quant: Quant | None) -> int:
        """Add the number to pad with; in int8 the lowest level stands for all that is lower."""
        if quant is None:
            return self._out.constant("pad", np.array([node.low], "f4"))
        level = np.clip(np.rint(node.low / quant.scale) + quant.zero, -128, 127)
        levels = np.array([level]).astype(np.int8)
        return self._out.tensor("pad", (1,), _INT8, quant.scale, quant.zero, data=levels.tobytes())

    def _concat(self, value: int, node: Node) -> _Held:
        parts = [self._held[source] for source in node.inputs]
        quants = {part.quant for part in parts}
        quant = self._wanted(value) or (quants.pop() if len(quants) == 1 else None)
        if quant is None or any(part.quant is None for part in parts):
            quant, tensors = None, [self._float(source) for source in node.inputs]
        else:
            tensors = [
                part.tensor if part.quant == quant else self._quantised(part, quant, source).tensor
                for part, source in zip(parts, node.inputs, strict=True)
            ]
        held = self._result(value, self._shape(value), quant)
        options = {0: Scalar("i", 1)}
        self._out.operator("CONCATENATION", tensors, held.tensor, options, int8=quant is not None)
        return held

    def _in_float(self, value: int, node: Node) -> _Held:
        tensors = [self._float(source) for source in node.inputs]
        tensors += [
            self._out.constant(f"{node.op}{value}_{place}", weight.of(self._weights))
            for place, weight in enumerate(node.weights)
        ]
        held = self._result(value, self._shape(value), None)
        if node.op == "tile":
            rank = len(self._shapes[node.inputs[0]])
            tensors.append(self._int32([1] * (2 if rank == 2 else 1) + list(node.shape)))
        name = _BINARY.get(node.op, node.op.upper())
        if name not in OPERATIONS:
            raise ModelError(f"{self._graph.name}: TFLite has no operation for {node.op}")
        self._out.operator(name, tensors, held.tensor, {}, int8=False)
        return held

    # -- tensors

    def _shape(self, value: int) -> Shape:
        """Return a value's shape in the model: a window has an axis more, for two dimensions."""
        shape = self._shapes[value]
        return (1, 1, *shape) if len(shape) == 2 else (1, *shape)

    def _tensor(self, name: str, shape: Shape, quant: Quant | None) -> int:
        if quant is None:
            return self._out.tensor(name, shape, _FLOAT32)
        return self._out.tensor(name, shape, _INT8, quant.scale, quant.zero)

    def _result(self, value: int | str, shape: Shape, quant: Quant | None) -> _Held:
        name = value if isinstance(value, str) else f"value{value}"
        return _Held(self._tensor(name, shape, quant), quant)

    def _reshaped(self, held: _Held, shape: Shape) -> _Held:
        tensor = self._tensor(f"reshaped{held.tensor}", shape, held.quant)
        target = self._int32(list(shape))
        options = {0: np.array(shape, "i4")}
        self._out.operator(
            "RESHAPE", [held.tensor, target], tensor, options, int8=held.quant is not None
        )
        return _Held(tensor, held.quant)

    def _int32(self, numbers: list[int]) -> int:
        return self._out.constant(f"numbers{len(self._out.tensors)}", np.array(numbers, "i4"))


@dataclass(frozen=True)
class _Form:
    """An operation with weights as TFLite lays it out.

    Weights along the axes `one_scale` share a scale, or all where it is None; scales lie along
    `axis`.
    """

    op: str
    operation: str
    kernel: Array
    bias: Array | None
    one_scale: tuple[int, ...] | None
    axis: int
    options: dict[int, Any] = field(repr=False)


def _conv(node: Node, weights: Array) -> _Form:
    kernel, bias = _kernel_and_bias(node, weights)
    options = _window_options(node) | _fused(3, node) | {4: Scalar("i", 1), 5: Scalar("i", 1)}
    turned = kernel.transpose(2, 0, 1)[:, None]
    return _Form(node.op, "CONV_2D", turned, bias, (1, 2, 3), 0, options)


def _depthwise(node: Node, weights: Array) -> _Form:
    """Of an affine operation too: it is a convolution of width 1, whose scales are exact."""
    kernel, bias = _kernel_and_bias(node, weights)
    laid = kernel.reshape(1, 1, -1, kernel.shape[-1])
    one = Scalar("i", 1)
    options = _window_options(node) | _fused(4, node) | {3: one, 5: one, 6: one}
    return _Form(node.op, "DEPTHWISE_CONV_2D", laid, bias, (0, 1, 2), 3, options)


def _dense(node: Node, weights: Array) -> _Form:
    kernel, bias = folded(node, weights)
    return _Form(node.op, "FULLY_CONNECTED", kernel.T, bias, None, 0, _fused(0, node))


_WEIGHTED: Mapping[str, Callable[[Node, Array], _Form]] = {
    "conv": _conv,
    "depthwise": _depthwise,
    "affine": _depthwise,
    "dense": _dense,
}


def _kernel_and_bias(node: Node, weights: Array) -> tuple[Array, Array]:
    """Convolutions need a bias, if only of zeros."""
    kernel, bias = folded(node, weights)
    return kernel, np.zeros(kernel.shape[-1], np.float32) if bias is None else bias


def _window_options(node: Node) -> dict[int, Any]:
    """Return padding (0 same, 1 valid) and strides; pools have them in the same places."""
    return {
        0: Scalar("b", 0 if node.same else 1),
        1: Scalar("i", node.stride),
        # Some kernels know equal strides alone; over the one row it makes no difference.
        2: Scalar("i", node.stride),
    }


def _fused(slot: int, node: Node) -> dict[int, Any]:
    return {slot: Scalar("b", int(node.relu))}
