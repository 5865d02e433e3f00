"""An inference graph and weights as an ONNX model, without the `onnx` package.

Source: ONNX's `onnx.proto` (field numbers below), operator set 13, and the Protocol Buffers
encoding. The model takes any number of windows `x` and gives class probabilities `probs`, in
float32. ONNX's convolutions and pools want channels before time, so that is how windows are held;
they are turned back only where a reshape needs their order.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import numpy.typing as npt

from vitalring.models.graph_node import Array, Node, folded, padding_of, shape_of
from vitalring.models.inference_graph import InferenceGraph

OPSET = 13
_IR_VERSION = 7
_FLOAT, _INT64 = 1, 7
_Attribute = int | list[int]
_KINDS = {
    "max_pool": "MaxPool",
    "average_pool": "AveragePool",
    "mean": "ReduceMean",
    "maximum": "ReduceMax",
    "relu": "Relu",
    "log": "Log",
    "add": "Add",
    "subtract": "Sub",
    "multiply": "Mul",
}


def write_onnx(graph: InferenceGraph, weights: Array) -> bytes:
    """Return the model."""
    return _Writer(graph, weights).model()


class _Writer:
    """Nodes and initializers as they come."""

    def __init__(self, graph: InferenceGraph, weights: Array) -> None:
        self._graph = graph
        self._weights = weights
        self._shapes = graph.shapes()
        self._nodes: list[bytes] = []
        self._constants: list[bytes] = []

    def model(self) -> bytes:
        graph = self._graph
        names = [self._channels_first("x", len(graph.input_shape))]
        for place, node in enumerate(graph.nodes):
            given, name = [names[source] for source in node.inputs], f"value{place + 1}"
            wanted = f"{name}_before_relu" if node.relu else name
            found = _FORMS[node.op](self, wanted, node, given)
            if node.relu:
                self.add("Relu", [found], name)
            names.append(name if node.relu else found)
        self.add("Softmax", [names[-1]], "probs", axis=-1)
        body = [
            *(_field(1, node) for node in self._nodes),
            _field(2, graph.name.encode()),
            *(_field(5, tensor) for tensor in self._constants),
            _field(11, _value_info("x", graph.input_shape)),
            _field(12, _value_info("probs", (graph.classes,))),
        ]
        fields = [
            _field(1, _IR_VERSION),
            _field(2, b"vitalring"),
            _field(7, b"".join(body)),
            _field(8, _field(2, OPSET)),
        ]
        return b"".join(fields)

    def add(self, kind: str, inputs: Iterable[str], output: str, **attributes: _Attribute) -> str:
        """Add a node; return its output."""
        fields = [
            *(_field(1, name.encode()) for name in inputs),
            _field(2, output.encode()),
            _field(3, output.encode()),
            _field(4, kind.encode()),
            *_attributes(attributes),
        ]
        self._nodes.append(b"".join(fields))
        return output

    def constant(self, name: str, values: npt.NDArray[np.generic]) -> str:
        """Add an initializer; return its name."""
        kind = _INT64 if values.dtype == np.int64 else _FLOAT
        data = np.ascontiguousarray(values, "<i8" if kind == _INT64 else "<f4").tobytes()
        dims = b"".join(_field(1, length) for length in values.shape)
        fields = [dims, _field(2, kind), _field(8, name.encode()), _field(9, data)]
        self._constants.append(b"".join(fields))
        return name

    # -- forms: (result's name, operation, its inputs' names) -> name of what holds the result

    def range(self, name: str, node: Node, given: list[str]) -> str:
        if node is self._graph.nodes[-1]:
            return given[0]  # of the logits, for int8 alone
        ends = [
            self.constant(f"{name}_{end}", np.array(getattr(node, end), np.float32))
            for end in ("low", "high")
        ]
        return self.add("Clip", [*given, *ends], name)

    def convolution(self, name: str, node: Node, given: list[str]) -> str:
        kernel, bias = folded(node, self._weights)
        # ONNX wants (filters, channels of a group, width).
        turned = kernel.transpose(2, 1, 0) if node.op == "conv" else kernel.T[:, None]
        inputs = [*given, *self._kernel_and_bias(name, turned, bias)]
        group = 1 if node.op == "conv" else kernel.shape[1]
        return self.add("Conv", inputs, name, group=group, **self._windows(node))

    def pool(self, name: str, node: Node, given: list[str]) -> str:
        windows = self._windows(node)
        return self.add(_KINDS[node.op], given, name, kernel_shape=[node.width], **windows)

    def dense(self, name: str, node: Node, given: list[str]) -> str:
        inputs = self._kernel_and_bias(name, *folded(node, self._weights))
        return self.add("Gemm", given + inputs, name)

    def affine(self, name: str, node: Node, given: list[str]) -> str:
        scale, shift = (
            self._aligned(f"{name}_{i}", np.asarray(values), self._rank(node))
            for i, values in enumerate(folded(node, self._weights))
        )
        self.add("Mul", [given[0], scale], f"{name}_scaled")
        return self.add("Add", [f"{name}_scaled", shift], name)

    def reduction(self, name: str, node: Node, given: list[str]) -> str:
        axes = sorted(_axis(axis, self._rank(node)) for axis in node.axes)
        return self.add(_KINDS[node.op], given, name, axes=axes, keepdims=int(node.keep))

    def reshape(self, name: str, node: Node, given: list[str]) -> str:
        source, after = given[0], shape_of(node, [self._shapes[node.inputs[0]]])
        if self._rank(node) == 2:
            source = self.add("Transpose", given, f"{name}_turned", perm=[0, 2, 1])
        shape = np.array([0, *after], np.int64)  # 0 keeps the number of windows
        self.add("Reshape", [source, self.constant(f"{name}_to", shape)], name)
        return self._channels_first(name, len(after))

    def slice(self, name: str, node: Node, given: list[str]) -> str:
        rank = self._rank(node)
        axes = [_axis(axis, rank) for axis in range(rank)]
        whole = self._shapes[node.inputs[0]]
        sides = zip(whole, node.begin, node.shape, strict=True)
        ends = [total if size == -1 else begin + size for total, begin, size in sides]
        numbers = [
            self.constant(f"{name}_{word}", np.array(values, np.int64))
            for word, values in (("begin", node.begin), ("end", ends), ("axes", axes))
        ]
        return self.add("Slice", [*given, *numbers], name)

    def pad(self, name: str, node: Node, given: list[str]) -> str:
        sides = np.array([0, 0, *node.begin, 0, 0, *node.shape], np.int64)
        number = np.array(node.low, np.float32)
        more = [self.constant(f"{name}_sides", sides), self.constant(f"{name}_with", number)]
        return self.add("Pad", given + more, name)

    def tile(self, name: str, node: Node, given: list[str]) -> str:
        times = node.shape[::-1] if self._rank(node) == 2 else node.shape
        to = self.constant(f"{name}_times", np.array([1, *times], np.int64))
        return self.add("Tile", [*given, to], name)

    def concat(self, name: str, _node: Node, given: list[str]) -> str:
        return self.add("Concat", given, name, axis=1)

    def each(self, name: str, node: Node, given: list[str]) -> str:
        return self.add(_KINDS[node.op], given, name)

    def square(self, name: str, _node: Node, given: list[str]) -> str:
        return self.add("Mul", [*given, *given], name)

    def rsqrt(self, name: str, _node: Node, given: list[str]) -> str:
        self.add("Sqrt", given, f"{name}_root")
        return self.add("Reciprocal", [f"{name}_root"], name)

    def binary(self, name: str, node: Node, given: list[str]) -> str:
        more = [
            self._aligned(f"{name}_{i}", weight.of(self._weights), self._rank(node))
            for i, weight in enumerate(node.weights)
        ]
        return self.add(_KINDS[node.op], given + more, name)

    # -- what they share

    def _rank(self, node: Node) -> int:
        return len(self._shapes[node.inputs[0]])

    def _windows(self, node: Node) -> dict[str, list[int]]:
        time = self._shapes[node.inputs[0]][0]
        return {"strides": [node.stride], "pads": list(padding_of(time, node))}

    def _channels_first(self, name: str, rank: int) -> str:
        if rank != 2:
            return name
        return self.add("Transpose", [name], f"{name}_channels_first", perm=[0, 2, 1])

    def _aligned(self, name: str, values: Array, rank: int) -> str:
        """Add numbers that broadcast with a value of `rank` axes."""
        if rank == 2:
            values = values.reshape((1,) * (2 - values.ndim) + values.shape).T
        return self.constant(name, values)

    def _kernel_and_bias(self, name: str, kernel: Array, bias: Array | None) -> list[str]:
        names = [self.constant(f"{name}_kernel", kernel)]
        return names if bias is None else [*names, self.constant(f"{name}_bias", bias)]


_FORMS: Mapping[str, Callable[[_Writer, str, Node, list[str]], str]] = {
    "range": _Writer.range,
    "conv": _Writer.convolution,
    "depthwise": _Writer.convolution,
    "max_pool": _Writer.pool,
    "average_pool": _Writer.pool,
    "dense": _Writer.dense,
    "affine": _Writer.affine,
    "mean": _Writer.reduction,
    "maximum": _Writer.reduction,
    "reshape": _Writer.reshape,
    "slice": _Writer.slice,
    "pad": _Writer.pad,
    "tile": _Writer.tile,
    "concat": _Writer.concat,
    "relu": _Writer.each,
    "log": _Writer.each,
    "square": _Writer.square,
    "rsqrt": _Writer.rsqrt,
    "add": _Writer.binary,
    "subtract": _Writer.binary,
    "multiply": _Writer.binary,
}


def _axis(axis: int, rank: int) -> int:
    """Return where an axis of a value lies in ONNX."""
    return 2 - axis if rank == 2 else 1 + axis


def _attributes(attributes: Mapping[str, _Attribute]) -> Iterable[bytes]:
    for name, value in attributes.items():
        if isinstance(value, int):
            content = _field(3, value) + _field(20, 2)
        else:
            content = b"".join(_field(8, one) for one in value) + _field(20, 7)
        yield _field(5, _field(1, name.encode()) + content)


def _value_info(name: str, shape: tuple[int, ...]) -> bytes:
    dims = [_field(2, b"windows"), *(_field(1, length) for length in shape)]
    tensor = _field(1, _FLOAT) + _field(2, b"".join(_field(1, dim) for dim in dims))
    return _field(1, name.encode()) + _field(2, _field(1, tensor))


def _field(number: int, value: int | bytes) -> bytes:
    """Return a field of a message: a whole number, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    value &= 2**64 - 1  # negative numbers are two's complement of 64 bits
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
