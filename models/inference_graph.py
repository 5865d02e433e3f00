"""What an inference model computes, as data: the one source of TFLite, int8 and ONNX exports.

An artefact's export table is the JSON of an `InferenceGraph`. It names operations and the places
of their weights in the flat vector, so a model can be written for any weights without TensorFlow.
`vitalring.models.trace` makes it from a network; `graph_node` says what operations there are.

Value 0 is the window; node i gives value i + 1; the last value is the logits.
"""

import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import accumulate
from typing import Any

import numpy as np

from vitalring.errors import ModelError
from vitalring.models.graph_node import Array, Node, Shape, Weight, check_weight, folded, shape_of
from vitalring.schema import from_plain

MAX_NODES = 1000
MAX_LENGTH = 2**24  # of one axis; far above any window


@dataclass(frozen=True)
class InferenceGraph:
    """Everything that an inference model needs but the weights.

    Raises:
        ModelError: an operation is unknown, or shapes do not fit.
    """

    name: str
    input_shape: Shape
    classes: int
    dimension: int
    nodes: tuple[Node, ...] = field(repr=False)

    def __post_init__(self) -> None:
        if not 0 < len(self.nodes) <= MAX_NODES:
            raise ModelError(f"{self.name}: {len(self.nodes)} operations; 1 to {MAX_NODES} can be")
        last = self.shapes()[-1]
        if last != (self.classes,):
            raise ModelError(f"{self.name}: the logits have shape {last}, not ({self.classes},)")

    def shapes(self) -> list[Shape]:
        """Return the shape of every value, checked. Raises ModelError."""
        found = [self.input_shape]
        for place, node in enumerate(self.nodes):
            try:
                shape = _checked_shape(node, found, self.dimension)
            except (ModelError, ValueError, TypeError, IndexError) as error:
                raise ModelError(
                    f"{self.name}: operation {place}, {node.op}, does not fit: {error}; build the "
                    "artefact again"
                ) from error
            found.append(shape)
        return found

    def to_json(self) -> bytes:
        """Return the one text that stands for this graph; settings with their default left out."""
        table = {**asdict(self), "nodes": [_node_to_plain(node) for node in self.nodes]}
        return (json.dumps(table, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, text: bytes) -> "InferenceGraph":
        """Read what `to_json` wrote, and nothing else. Raises ModelError."""
        try:
            table = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"export table: the JSON cannot be read ({error})") from error
        graph = from_plain(cls, table, ModelError, "export table")
        if graph.to_json() != text:
            raise ModelError("export table: the JSON is not in its one encoding; build it again")
        return graph


def resized(
    graph: InferenceGraph,
    blocks: dict[int, Shape],
    input_shape: Shape,
    classes: int,
) -> InferenceGraph:
    """Return the graph of a sizeable network at another size.

    `blocks` are the new shapes of its runs of weights by where each starts in `graph`, in order.

    Raises:
        ModelError: a weight is not a whole run, or an operation does not fit the size.
    """
    starts = dict(zip(blocks, accumulate(map(math.prod, blocks.values()), initial=0), strict=False))
    nodes = []
    for node in graph.nodes:
        weights = tuple(_resized(weight, blocks, starts) for weight in node.weights)
        nodes.append(replace(node, weights=weights))
    dimension = sum(map(math.prod, blocks.values()))
    return InferenceGraph(graph.name, input_shape, classes, dimension, tuple(nodes))


def _resized(weight: Weight, blocks: dict[int, Shape], starts: dict[int, int]) -> Weight:
    if weight.start == -1:
        return weight
    if weight.start not in blocks:
        raise ModelError(f"weights from {weight.start} on are no run of their own")
    return Weight(blocks[weight.start], starts[weight.start])


def ranges_after(graph: InferenceGraph) -> dict[int, Node]:
    """Return, by value, the range that is the only one to take it."""
    takers: dict[int, list[Node]] = {}
    for node in graph.nodes:
        for source in node.inputs:
            takers.setdefault(source, []).append(node)
    return {
        value: nodes[0]
        for value, nodes in takers.items()
        if len(nodes) == 1 and nodes[0].op == "range"
    }


def logit_bound(graph: InferenceGraph, weights: Array) -> float | None:
    """Return what no logit's absolute value exceeds, whatever the window.

    It follows from the range of what the last dense operation takes; None where that is unknown.
    """
    if len(graph.nodes) < 2 or graph.nodes[-1].op != "range":
        return None
    dense = graph.nodes[-2]
    given = _range_of(graph, dense.inputs[0])
    if dense.op != "dense" or dense.relu or given is None:
        return None
    kernel, bias = folded(dense, weights)
    largest = max(-given.low, given.high) * np.abs(kernel, dtype=np.float64).sum(axis=0)
    return float((largest + np.abs(0.0 if bias is None else bias)).max())


_WITHIN = ("reshape", "slice", "max_pool", "average_pool", "maximum", "mean")  # add no number


def _range_of(graph: InferenceGraph, value: int) -> Node | None:
    """Return the range that a value is known to lie in."""
    while value > 0:
        node = graph.nodes[value - 1]
        if node.op == "range":
            return node
        if node.op not in _WITHIN:
            return None
        value = node.inputs[0]
    return None


def _checked_shape(node: Node, found: list[Shape], dimension: int) -> Shape:
    if not node.inputs or not all(0 <= source < len(found) for source in node.inputs):
        raise ModelError("it takes a value that comes later or not at all")
    for weight in node.weights:
        check_weight(weight, dimension)
    shape = shape_of(node, [found[source] for source in node.inputs])
    if not shape or not all(0 < length < MAX_LENGTH for length in shape):
        raise ModelError(f"it would give shape {shape}")
    return shape


def _node_to_plain(node: Node) -> dict[str, Any]:
    plain = {
        one.name: getattr(node, one.name)
        for one in fields(Node)
        if getattr(node, one.name) != one.default
    }
    if node.weights:
        plain["weights"] = [
            {"shape": weight.shape, "start": weight.start}
            if weight.start >= 0
            else {"shape": weight.shape, "constant": weight.constant}
            for weight in node.weights
        ]
    return plain
