"""From a network to its inference graph, by reading what TensorFlow traced of it.

A layer's `deploy` states its inference form in TensorFlow operations. This module lets TensorFlow
trace them with the weights as an input, so that it sees which weights go where, and translates
operation by operation. An operation that it does not know is refused by name: an export that
means something else than the network would be worse than none.

Inside a layer, windows may have a further axis of one row, because TensorFlow's convolutions are
of pictures; a `_Value` says whether it has.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from vitalring.errors import ModelError
from vitalring.models.graph_node import Node, Weight, constant
from vitalring.models.inference_graph import InferenceGraph
from vitalring.models.layers import Tensor
from vitalring.models.network import Network
from vitalring.models.simplify import simplified

LOGIT_RANGE = 16.0  # of the int8 logits; e^-16 is nothing beside int8 probabilities
LOGIT_STEP = LOGIT_RANGE / 128

Constant = npt.NDArray[Any]


class _Value(NamedTuple):
    """A value of the graph being made; with `row`, an axis of one row follows the batch."""

    place: int
    row: bool = False


_Traced = _Value | Weight | Constant


def trace(network: Network) -> InferenceGraph:
    """Return the inference graph of a network at the size of its layer.

    Raises:
        ModelError: a layer's `deploy` uses an operation that has no place in the graph.
    """

    def logits(x: Tensor, w: Tensor) -> Tensor:
        return network.layer.deploy(x, w, True)

    shape, dimension = network.layer.in_shape, int(network.layer.dimension)
    specs = [
        tf.TensorSpec(s, tf.float32, name=n) for s, n in (((1, *shape), "x"), ((dimension,), "w"))
    ]
    concrete = tf.function(logits, input_signature=specs).get_concrete_function()
    tracer = _Tracer(network.name)
    tracer.known[concrete.inputs[0].name] = _Value(0)
    tracer.known[concrete.inputs[1].name] = Weight((dimension,), 0)
    for operation in concrete.graph.get_operations():
        if operation.type not in ("Placeholder", "NoOp"):
            tracer.translate(operation)
    result = tracer.known[concrete.structured_outputs.name]
    nodes = tracer.nodes
    if not isinstance(result, _Value) or result.place != len(nodes):
        raise ModelError(f"{network.name}: the last operation does not give the logits")
    nodes.append(Node("range", (len(nodes),), low=-LOGIT_RANGE, high=LOGIT_RANGE - LOGIT_STEP))
    simple = simplified(tuple(nodes))
    return InferenceGraph(network.name, tuple(shape), len(network.classes), dimension, simple)


class _Tracer:
    """Translates operations one after the other, in the order in which they are computed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[Node] = []
        self.known: dict[str, _Traced] = {}

    def translate(self, operation: Tensor) -> None:
        given = [self.known[tensor.name] for tensor in operation.inputs]
        if operation.type == "Const":
            result: _Traced = tf.make_ndarray(operation.get_attr("value"))
        elif all(isinstance(one, np.ndarray) for one in given):
            result = _evaluated(operation, given)
        elif operation.type in _TRANSLATIONS:
            result = _TRANSLATIONS[operation.type](self, operation, given)
        else:
            raise self.refusal(operation, "has no place in an inference graph")
        self.known[operation.outputs[0].name] = result

    def refusal(self, operation: Tensor, complaint: str) -> ModelError:
        return ModelError(
            f"{self.name}: operation {operation.type} ({operation.name}) {complaint}; state the "
            "layer's deploy in other operations, or teach vitalring.models.trace this one"
        )

    def add(self, node: Node, *, row: bool = False) -> _Value:
        self.nodes.append(node)
        return _Value(len(self.nodes), row)

    # -- translations: (operation, what its inputs are) -> what its output is

    def same(self, _operation: Tensor, given: list[_Traced]) -> _Traced:
        return given[0]

    def strided_slice(self, operation: Tensor, given: list[_Traced]) -> _Traced:
        source, *numbers = given
        spec = _slice_spec(operation, [np.asarray(one) for one in numbers])
        if isinstance(source, Weight):
            if len(spec) != 1 or len(source.shape) != 1 or not isinstance(spec[0], slice):
                raise self.refusal(operation, "takes weights in another way than as a run")
            first, end, step = spec[0].indices(source.size)
            if step != 1:
                raise self.refusal(operation, "takes weights in steps")
            return Weight((end - first,), source.start + first)
        if not isinstance(source, _Value):
            raise self.refusal(operation, "slices what is no value")
        if any(one is None for one in spec):
            return self.relaid(operation, given)
        shape = [int(length) for length in operation.inputs[0].shape]
        spec += [slice(None)] * (len(shape) - len(spec))
        begin: list[int] = []
        size: list[int] = []
        for one, length in zip(spec[1:], shape[1:], strict=True):
            first, end, step = (
                one.indices(length)
                if isinstance(one, slice)
                else (one % length, one % length + 1, 1)
            )
            if step != 1:
                raise self.refusal(operation, "takes samples in steps")
            begin.append(first)
            size.append(-1 if end == length else end - first)
        if source.row or (not any(begin) and all(one == -1 for one in size)):
            return self.relaid(operation, given)
        taken = self.add(Node("slice", (source.place,), begin=tuple(begin), shape=tuple(size)))
        if any(isinstance(one, int) for one in spec[1:]):
            return self.add(Node("reshape", (taken.place,), shape=_shape_after(operation)))
        return taken

    def relaid(self, operation: Tensor, given: list[_Traced]) -> _Traced:
        """Translate what only lays numbers out anew."""
        source = given[0]
        after = _static(operation.outputs[0])
        if isinstance(source, Weight):
            return (
                replace(source, shape=tuple(after))
                if source.start >= 0
                else constant(source.of(np.empty(0, np.float32)).reshape(after))
            )
        if not isinstance(source, _Value):
            raise self.refusal(operation, "lays out what is no value")
        before = _static(operation.inputs[0])
        plain = before[:1] + before[2:] if source.row else before
        if after == plain:
            return _Value(source.place)
        if after == [plain[0], 1, *plain[1:]] and len(plain) == 3:
            return _Value(source.place, row=True)
        shape = after[1:]
        if len(plain) > 2 and len(shape) > 1 and shape[0] == plain[1]:
            shape = [-1, *shape[1:]]  # whatever the time is
        elif len(shape) == 1:
            shape = [-1]
        return self.add(Node("reshape", (source.place,), shape=tuple(shape)))

    def convolution(self, operation: Tensor, given: list[_Traced]) -> _Traced:
        source, kernel = given
        depthwise = operation.type == "DepthwiseConv2dNative"
        if isinstance(kernel, np.ndarray):
            kernel = constant(kernel)
        if not isinstance(source, _Value) or not source.row or not isinstance(kernel, Weight):
            raise self.refusal(operation, "is no convolution over time")
        rows, width, channels, last = kernel.shape
        if rows != 1 or (depthwise and last != 1) or set(operation.get_attr("dilations")) != {1}:
            raise self.refusal(operation, f"has a kernel {kernel.shape} or dilations")
        shape = (width, channels) if depthwise else (width, channels, last)
        node = Node(
            "depthwise" if depthwise else "conv",
            (source.place,),
            (replace(kernel, shape=shape),),
            width=width,
            stride=int(operation.get_attr("strides")[2]),
            same=self.is_same(operation),
        )
        return self.add(node, row=True)

    def pool(self, operation: Tensor, given: list[_Traced]) -> _Traced:
        source = given[0]
        if not isinstance(source, _Value) or not source.row:
            raise self.refusal(operation, "is no pool over time")
        node = Node(
            "max_pool" if operation.type == "MaxPool" else "average_pool",
            (source.place,),
            width=int(operation.get_attr("ksize")[2]),
            stride=int(operation.get_attr("strides")[2]),
            same=self.is_same(operation),
        )
        return self.add(node, row=True)

    def is_same(self, operation: Tensor) -> bool:
        padding = operation.get_attr("padding").decode()
        if padding not in ("SAME", "VALID"):
            raise self.refusal(operation, f"has padding {padding}")
        return bool(padding == "SAME")

    def product(self, operation: Tensor, given: list[_Traced]) -> _Traced:
        source, kernel = given
        if isinstance(kernel, np.ndarray):
            kernel = constant(kernel)
        turned = operation.get_attr("transpose_a") or operation.get_attr("transpose_b")
        if not isinstance(source, _Value) or not isinstance(kernel, Weight) or turned:
            raise self.refusal(operation, "is no product of a value with weights")
        return self.add(Node("dense", (source.place,), (kernel,)))

    def binary(self, operation: Tensor, given: list[_Traced]) -> _Traced:
        names = {"Sub": "subtract", "Mul": "multiply"}
        op = names.get(operation.type, "add")
        left, right = given
        if not isinstance(left, _Value) and op != "subtract":
            left, right = right, left
        if not isinstance(left, _Value):
            raise self.refusal(operation, "joins no value")
        if isinstance(right, _Value):
            if left.row != right.row:
                raise self.refusal(operation, "joins values of unlike axes")
            return self.add(Node(op, (left.place, right.place)), row=left.row)
        weight = constant(right) if isinstance(right, np.ndarray) else right
        return self.add(Node(op, (left.place,), (weight,)), row=left.row)

    def each(self, operation: Tensor, given: list[_Traced]) -> _Traced:
        (source,) = given
        if not isinstance(source, _Value):
            raise self.refusal(operation, "works on no value")
        return self.add(Node(operation.type.lower(), (source.place,)), row=source.row)

    def fake_quant(self, operation: Tensor, given: list[_Traced]) -> _Traced:
        (source,) = given
        if not isinstance(source, _Value) or operation.get_attr("num_bits") != 8:
            raise self.refusal(operation, "is not the range of an int8 value")
        low, high = float(operation.get_attr("min")), float(operation.get_attr("max"))
        return self.add(Node("range", (source.place,), low=low, high=high), row=source.row)

    def reduction(self, operation: Tensor, given: list[_Traced]) -> _Traced:
        source, where = given
        if not isinstance(source, _Value) or source.row or not isinstance(where, np.ndarray):
            raise self.refusal(operation, "does not go over fixed axes of a value")
        rank = len(operation.inputs[0].shape)
        axes = sorted(int(axis) % rank - 1 for axis in where.reshape(-1))
        op = "mean" if operation.type == "Mean" else "maximum"
        keep = bool(operation.get_attr("keep_dims"))
        return self.add(Node(op, (source.place,), axes=tuple(axes), keep=keep))

    def concat(self, operation: Tensor, given: list[_Traced]) -> _Traced:
        *parts, axis = given
        values = [part for part in parts if isinstance(part, _Value)]
        if (
            len(values) < len(parts)
            or len(operation.inputs[0].shape) != 2
            or int(np.asarray(axis)) % 2 != 1
        ):
            raise self.refusal(operation, "joins something else than vectors")
        return self.add(Node("concat", tuple(value.place for value in values)))

    def tile(self, operation: Tensor, given: list[_Traced]) -> _Traced:
        source, times = given
        if not isinstance(source, _Value) or source.row or not isinstance(times, np.ndarray):
            raise self.refusal(operation, "repeats no value")
        return self.add(Node("tile", (source.place,), shape=tuple(int(n) for n in times[1:])))

    def pad(self, operation: Tensor, given: list[_Traced]) -> _Traced:
        source, sides = given[:2]
        number = np.asarray(given[2]) if len(given) > 2 else np.zeros(1)
        if not isinstance(source, _Value) or source.row or not isinstance(sides, np.ndarray):
            raise self.refusal(operation, "pads no value")
        if sides.shape != (3, 2) or sides[0].any() or sides[2].any():
            raise self.refusal(operation, "pads something else than time")
        before, after = (int(one) for one in sides[1])
        low = float(number.reshape(-1)[0])
        return self.add(Node("pad", (source.place,), begin=(before,), shape=(after,), low=low))


_TRANSLATIONS: Mapping[str, Callable[[_Tracer, Tensor, list[_Traced]], _Traced]] = {
    "Identity": _Tracer.same,
    "StopGradient": _Tracer.same,
    "StridedSlice": _Tracer.strided_slice,
    "Reshape": _Tracer.relaid,
    "ExpandDims": _Tracer.relaid,
    "Squeeze": _Tracer.relaid,
    "Conv2D": _Tracer.convolution,
    "DepthwiseConv2dNative": _Tracer.convolution,
    "MaxPool": _Tracer.pool,
    "AvgPool": _Tracer.pool,
    "MatMul": _Tracer.product,
    "AddV2": _Tracer.binary,
    "Add": _Tracer.binary,
    "BiasAdd": _Tracer.binary,
    "Sub": _Tracer.binary,
    "Mul": _Tracer.binary,
    "Relu": _Tracer.each,
    "Square": _Tracer.each,
    "Rsqrt": _Tracer.each,
    "Log": _Tracer.each,
    "FakeQuantWithMinMaxArgs": _Tracer.fake_quant,
    "Mean": _Tracer.reduction,
    "Max": _Tracer.reduction,
    "ConcatV2": _Tracer.concat,
    "Tile": _Tracer.tile,
    "Pad": _Tracer.pad,
    "PadV2": _Tracer.pad,
}


def _slice_spec(operation: Tensor, numbers: list[Constant]) -> list[Any]:
    """Return the slice as Python writes it: slices, whole numbers, None for a new axis."""
    begin, end, step = (one.tolist() for one in numbers)
    masks = {
        name: int(operation.get_attr(f"{name}_mask"))
        for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
    }
    spec: list[Any] = []
    for place in range(len(begin)):
        has = {name: bool(mask >> place & 1) for name, mask in masks.items()}
        if has["ellipsis"]:
            raise ModelError(f"{operation.name}: an ellipsis in a slice; name every axis instead")
        if has["new_axis"]:
            spec.append(None)
        elif has["shrink_axis"]:
            spec.append(begin[place])
        else:
            first = None if has["begin"] else begin[place]
            last = None if has["end"] else end[place]
            spec.append(slice(first, last, step[place]))
    return spec


def _evaluated(operation: Tensor, given: list[_Traced]) -> Constant:
    """Compute an operation of constants now."""
    name = operation.type
    definition = operation.op_def
    arguments: dict[str, Any] = {}
    left = list(given)
    for argument in definition.input_arg:
        count = operation.get_attr(argument.number_attr) if argument.number_attr else None
        taken = [left.pop(0) for _ in range(1 if count is None else count)]
        arguments[argument.name] = taken[0] if count is None else taken
    known = {one.name for one in definition.attr}
    inferred = {a.type_attr for a in definition.input_arg} | {
        a.number_attr for a in definition.input_arg
    }
    for attribute in known - inferred:
        arguments[attribute] = operation.get_attr(attribute)
    with tf.init_scope():
        result: Constant = getattr(tf.raw_ops, name)(**arguments).numpy()
    return result


def _static(tensor: Tensor) -> list[int]:
    return [int(length) for length in tensor.shape]


def _shape_after(operation: Tensor) -> tuple[int, ...]:
    shape = _static(operation.outputs[0])[1:]
    return (-1,) if len(shape) == 1 else tuple(shape)
