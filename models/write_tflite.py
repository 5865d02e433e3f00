"""An inference graph and weights as a TFLite model, in float32 or int8.

Source: TensorFlow Lite's "8-bit quantization specification". Activations go in steps of a fixed
range; `tflite_forms` says how weights do.

In float32 a range clips, as training does.

Training does not bound logits. In 8 bits, those of several classes would end at the same bound, or
lie on the same one of few levels, and their order be lost. So an int8 model's logits have 16 bits,
with a range that no window leaves ("16x8" in TFLite); the probabilities have 8 again.

An operation runs in int8 where its input has a range and a range follows; what lies between runs
in float32 and says so by DEQUANTIZE and QUANTIZE. So a group norm stays exact, and everything
else is int8. Windows (time, channels) are held as [1, 1, time, channels].
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitalring.errors import ModelError
from vitalring.models.flatbuffer import Scalar
from vitalring.models.graph_node import Array, Node, Shape
from vitalring.models.inference_graph import InferenceGraph, logit_bound, ranges_after
from vitalring.models.tflite_forms import FORMS, Form, int8_levels, window_options
from vitalring.models.tflite_model import (
    FLOAT32,
    INT8,
    INT16,
    OPERATIONS,
    Quant,
    TfliteModel,
)

_BINARY = {"add": "ADD", "subtract": "SUB", "multiply": "MUL"}
_UNARY = ("reshape", "slice", "pad", "max_pool", "average_pool", "maximum", "mean", "relu")
_INT32_MAX = 2**31 - 1
_INT16_MAX = 2**15 - 1
_BIAS_MAX = 2**46  # what TFLite's scaling of 64-bit sums takes
_SOFTMAX = {0: Scalar("f", 1.0)}


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


class _Lowering:
    """One way through the graph, from the window to the probabilities."""

    def __init__(self, graph: InferenceGraph, weights: Array, int8: bool) -> None:
        self._graph = graph
        self._weights = weights
        self._int8 = int8
        self._shapes = graph.shapes()
        self._ranges = ranges_after(graph) if int8 else {}
        self._bound = logit_bound(graph, weights) if int8 else None
        self._out = TfliteModel()
        self._held: list[_Held] = []

    def model(self) -> bytes:
        out, shape = self._out, (1, *self._graph.input_shape)
        quant = self._wanted(0)
        source = self._tensor("x", shape, quant)
        held = _Held(source, quant)
        if len(shape) == 3:
            held = self._reshaped(held, (1, *shape))
        self._held.append(held)
        nodes, bound = self._graph.nodes, self._bound
        for place, node in enumerate(nodes if bound is None else nodes[:-2]):
            self._held.append(self._lower(place + 1, node))
        if bound is None:
            result = self._probabilities(self._held[-1])
        else:
            result = self._wide_probabilities(nodes[-2], bound)
        return out.bytes(self._graph.name, source, result)

    def _probabilities(self, logits: _Held) -> int:
        quant = PROBABILITIES if logits.quant else None
        result = self._tensor("probs", (1, self._graph.classes), quant)
        int8 = quant is not None
        self._out.operator("SOFTMAX", [logits.tensor], result, _SOFTMAX, int8=int8)
        return result

    def _wide_probabilities(self, node: Node, bound: float) -> int:
        """Lower the last dense operation and the softmax, with 16 bits between them."""
        out, form = self._out, FORMS["dense"](node, self._weights)
        given, shape = self._held[node.inputs[0]], (1, self._graph.classes)
        if given.quant is None:
            raise ModelError(f"{self._graph.name}: what its last operation takes is not int8")
        source = out.tensor("given", self._shape(node.inputs[0]), INT16, given.quant.scale)
        out.operator("CAST", [given.tensor], source, {}, int8=True)
        levels, scales = int8_levels(form.kernel, form.one_scale)
        steps = scales.reshape(-1) * given.quant.scale
        # 16-bit levels have their zero at 0: what that adds to each sum, the bias takes away.
        bias = -given.quant.zero * levels.sum(axis=1, dtype=np.int64)
        if form.bias is not None:
            bias += np.clip(np.rint(form.bias / steps), -_BIAS_MAX, _BIAS_MAX).astype(np.int64)
        inputs = [
            source,
            out.constant("logits_kernel", levels, scales.reshape(-1), form.axis),
            out.constant("logits_bias", bias, steps),
        ]
        logits = out.tensor("logits", shape, INT16, max(bound, 1.0) / _INT16_MAX)
        out.operator("FULLY_CONNECTED 16x8", inputs, logits, form.options, int8=True)
        wide = out.tensor("probs_wide", shape, INT16, 1 / (_INT16_MAX + 1))
        out.operator("SOFTMAX 16", [logits], wide, _SOFTMAX, int8=True)
        result = self._tensor("probs", shape, PROBABILITIES)
        out.operator("QUANTIZE", [wide], result, {}, int8=True)
        return result

    def _lower(self, value: int, node: Node) -> _Held:
        if node.op == "range":
            return self._range(value, node)
        if node.op in FORMS:
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
        if self._int8:
            quant = quant_of(node)
            return held if held.quant == quant else self._quantised(held, quant, value)
        if value == len(self._graph.nodes):
            return held
        return self._clipped(held, node, value)

    def _clipped(self, held: _Held, node: Node, value: int) -> _Held:
        source = node.inputs[0]
        ends = [("MAXIMUM", node.low), ("MINIMUM", node.high)]
        if node.low == 0 and source > 0 and self._graph.nodes[source - 1].relu:
            del ends[0]  # the relu has seen to it
        for name, end in ends:
            tensor = self._tensor(f"value{value}_{name.lower()}", self._shape(value), None)
            bound = self._out.constant(f"value{value}_{name.lower()}_of", np.array([end], "f4"))
            self._out.operator(name, [held.tensor, bound], tensor, {}, int8=False)
            held = _Held(tensor, None)
        return held

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
        form = FORMS[node.op](node, self._weights)
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

    def _constants(self, name: str, form: Form, source: Quant | None) -> list[int]:
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
        form = FORMS[node.op](node, self._weights)
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
        if node.op == "mean" and self._wanted(value) is None:
            given = _Held(self._float(node.inputs[0]), None)  # the given levels are too few for it
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
        return name, [], window_options(node) | {3: Scalar("i", node.width), 4: Scalar("i", 1)}

    def _padding(self, node: Node, quant: Quant | None) -> int:
        """Add the number to pad with; in int8 the lowest level stands for all that is lower."""
        if quant is None:
            return self._out.constant("pad", np.array([node.low], "f4"))
        level = np.clip(np.rint(node.low / quant.scale) + quant.zero, -128, 127)
        levels = np.array([level]).astype(np.int8)
        return self._out.tensor("pad", (1,), INT8, quant.scale, quant.zero, data=levels.tobytes())

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
            return self._out.tensor(name, shape, FLOAT32)
        return self._out.tensor(name, shape, INT8, quant.scale, quant.zero)

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
