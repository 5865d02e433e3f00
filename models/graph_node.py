"""One operation of an inference graph: its settings, its weights, the shape that it gives.

Shapes leave the batch out: (time, channels) or (features,); T time, C channels, F filters.

    conv          kernel (width, C, F)[, bias (F,)] -> (steps, F); width, stride, same, relu
    depthwise     kernel (width, C)[, bias (C,)] -> (steps, C); width, stride, same, relu
    dense         kernel (inputs, outputs)[, bias (outputs,)]; relu
    affine        a · scale + shift for each of the last axis; weights (C,), (C,); relu
    max_pool, average_pool     over time; width, stride, same
    mean, maximum              over `axes` (0 is the first after the batch), kept as 1 if `keep`
    pad           begin[0] samples before and shape[0] after, all of them `low`
    reshape       to `shape`, one of it -1
    tile          each axis repeated `shape` times
    slice         begin, shape; -1 is all that is left
    concat        any number of vectors
    relu, square, rsqrt, log   of each number
    add, subtract, multiply    a value with another, or with a weight; they broadcast
    range         clips to low..high, in int8 its levels; that of the logits (the last) only marks

The first four may have further pairs of weights, scale and shift, which apply one after the other
before the relu: a normalisation that was folded in. With same padding there are ⌈T/stride⌉ steps
and the zeros lie as TensorFlow puts them; without, ⌊(T - width)/stride⌋ + 1.
"""

import base64
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitalring.errors import ModelError

Shape = tuple[int, ...]
Array = npt.NDArray[np.float32]

WEIGHTED = ("conv", "depthwise", "dense", "affine")


@dataclass(frozen=True)
class Weight:
    """Weights w[start:start + size] as `shape`, or, with start -1, constants.

    Constants are base64 of little-endian float32.
    """

    shape: Shape
    start: int = -1
    constant: str = ""

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return math.prod(self.shape)

    def of(self, weights: Array) -> Array:
        """Return the numbers, as `shape`."""
        if self.start >= 0:
            own: Array = weights[self.start : self.start + self.size]
        else:
            own = np.frombuffer(base64.b64decode(self.constant), "<f4").astype(np.float32)
        return own.reshape(self.shape)


def constant(values: npt.ArrayLike) -> Weight:
    """Return a weight that does not change."""
    array = np.asarray(values, "<f4")
    return Weight(array.shape, -1, base64.b64encode(array.tobytes()).decode())


@dataclass(frozen=True)
class Node:
    """One operation; which settings count is told by the module's table."""

    op: str
    inputs: tuple[int, ...]
    weights: tuple[Weight, ...] = ()
    relu: bool = False
    width: int = 1
    stride: int = 1
    same: bool = False
    keep: bool = False
    axes: tuple[int, ...] = ()
    begin: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    low: float = 0.0
    high: float = 0.0


def folded(node: Node, weights: Array) -> tuple[Array, Array | None]:
    """Return kernel and bias of an operation with weights, its further scales folded in.

    Of an affine operation they are scale and shift, both (C,).
    """
    values = [weight.of(weights) for weight in node.weights]
    kernel, bias = values[0], values[1] if len(values) > 1 else None
    for scale, shift in zip(values[2::2], values[3::2], strict=True):
        kernel = kernel * scale
        bias = shift if bias is None else bias * scale + shift
    return kernel, bias


def steps_of(time: int, node: Node) -> int:
    """Return how many steps a convolution or pool makes over `time`."""
    return -(-time // node.stride) if node.same else (time - node.width) // node.stride + 1


def padding_of(time: int, node: Node) -> tuple[int, int]:
    """Return how many zeros lie before and after, as TensorFlow's SAME padding puts them."""
    if not node.same:
        return 0, 0
    total = max((steps_of(time, node) - 1) * node.stride + node.width - time, 0)
    return total // 2, total - total // 2


def check_weight(weight: Weight, dimension: int) -> None:
    """Raise ModelError unless the weight lies within `dimension`, or is a whole constant."""
    if not all(isinstance(length, int) and length > 0 for length in weight.shape):
        raise ModelError(f"a weight has shape {weight.shape}")
    if weight.start >= 0:
        if weight.start + weight.size > dimension or weight.constant:
            raise ModelError(f"weights {weight.start} to {weight.start + weight.size} are not all")
    elif weight.start != -1 or len(base64.b64decode(weight.constant)) != 4 * weight.size:
        raise ModelError(f"a constant of shape {weight.shape} has other bytes")


def shape_of(node: Node, given: list[Shape]) -> Shape:
    """Return the shape that an operation gives.

    Raises:
        ModelError: the operation is unknown, or does not fit shapes or weights.
    """
    if node.op not in _RULES:
        raise ModelError("it is no operation that is known")
    if node.op not in ("concat", "add", "subtract", "multiply") and len(given) != 1:
        raise ModelError(f"it takes one value, not {len(given)}")
    if node.weights and node.op not in (*WEIGHTED, "add", "subtract", "multiply"):
        raise ModelError("it has no weights")
    return _RULES[node.op](node, given)


def _weighted(node: Node, given: list[Shape]) -> Shape:
    first, weights = given[0], [weight.shape for weight in node.weights]
    # A bias is there or not; all else comes in pairs.
    if len(weights) not in (1, 2, 4, 6, 8) or any(s != weights[0][-1:] for s in weights[1:]):
        raise ModelError(f"weights of shapes {weights}")
    kernel = weights[0]
    if node.op == "affine":
        if kernel != first[-1:] or len(weights) < 2:
            raise ModelError(f"weights of shapes {weights} for {first}")
        return first
    if node.op == "dense":
        if first != kernel[:1] or len(kernel) != 2:
            raise ModelError(f"a kernel {kernel} for {first}")
        return kernel[1:]
    time, channels = first
    if kernel[:2] != (node.width, channels) or len(kernel) != 2 + (node.op == "conv"):
        raise ModelError(f"a kernel {kernel} of width {node.width} for {first}")
    return _windows(time, node), kernel[-1]


def _pool(node: Node, given: list[Shape]) -> Shape:
    ((time, channels),) = given
    return _windows(time, node), channels


def _windows(time: int, node: Node) -> int:
    if node.width < 1 or node.stride < 1 or (time < node.width and not node.same):
        raise ModelError(f"width {node.width} and stride {node.stride} over {time} steps")
    return steps_of(time, node)


def _reduced(node: Node, given: list[Shape]) -> Shape:
    (first,) = given
    axes = set(node.axes)
    if not axes or not axes <= set(range(len(first))):
        raise ModelError(f"there are no axes {node.axes} of {first}")
    kept = [(axis, 1 if axis in axes else length) for axis, length in enumerate(first)]
    return tuple(length for axis, length in kept if node.keep or axis not in axes)


def _padded(node: Node, given: list[Shape]) -> Shape:
    (before,), (after,), ((time, channels),) = node.begin, node.shape, given
    if min(before, after) < 0:
        raise ModelError(f"padding {before} and {after}")
    return before + time + after, channels


def _reshaped(node: Node, given: list[Shape]) -> Shape:
    (first,) = given
    known = math.prod(length for length in node.shape if length != -1)
    wild = math.prod(first) // max(known, 1)
    shape = tuple(wild if length == -1 else length for length in node.shape)
    if math.prod(shape) != math.prod(first) or node.shape.count(-1) > 1:
        raise ModelError(f"{first} cannot be {node.shape}")
    return shape


def _tiled(node: Node, given: list[Shape]) -> Shape:
    return tuple(a * b for a, b in zip(given[0], node.shape, strict=True))


def _sliced(node: Node, given: list[Shape]) -> Shape:
    (first,) = given
    shape = []
    for whole, begin, length in zip(first, node.begin, node.shape, strict=True):
        shape.append(whole - begin if length == -1 else length)
        if begin < 0 or begin + shape[-1] > whole:
            raise ModelError(f"{first} has nothing at {node.begin} of shape {node.shape}")
    return tuple(shape)


def _joined(_node: Node, given: list[Shape]) -> Shape:
    if any(len(shape) != 1 for shape in given):
        raise ModelError(f"it joins vectors, not {given}")
    return (sum(shape[0] for shape in given),)


def _as_given(node: Node, given: list[Shape]) -> Shape:
    if node.op == "range" and not -math.inf < node.low <= 0 < node.high < math.inf:
        raise ModelError(f"{node.low} to {node.high} is no range around 0")
    return given[0]


def _broadcast(node: Node, given: list[Shape]) -> Shape:
    left, right = given + [weight.shape for weight in node.weights]
    if len(left) < len(right):
        raise ModelError(f"{right} has more axes than {left}")
    return tuple(int(length) for length in np.broadcast_shapes(left, right))


_RULES: Mapping[str, Callable[[Node, list[Shape]], Shape]] = {
    **dict.fromkeys(WEIGHTED, _weighted),
    **dict.fromkeys(("max_pool", "average_pool"), _pool),
    **dict.fromkeys(("mean", "maximum"), _reduced),
    **dict.fromkeys(("relu", "square", "rsqrt", "log", "range"), _as_given),
    **dict.fromkeys(("add", "subtract", "multiply"), _broadcast),
    "pad": _padded,
    "reshape": _reshaped,
    "tile": _tiled,
    "slice": _sliced,
    "concat": _joined,
}
