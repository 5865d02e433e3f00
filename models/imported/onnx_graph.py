"""An ONNX file as parts. Needs the `onnx` package.

A graph must be one chain: each node takes what the one before gave, and constants. Nodes that only
move, add or drop axes become nothing (`onnx_chain` says how).

Source: the operator documentation of ONNX, sets 7 to 21.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx

from vitalring.errors import ModelError
from vitalring.models.imported import onnx_axes, onnx_numbers, onnx_products
from vitalring.models.imported.onnx_chain import CURE, Chain
from vitalring.models.imported.parts import Imported

_CURES = {
    **dict.fromkeys(
        ("LSTM", "GRU", "RNN", "Loop", "Scan"),
        "recurrent networks have no trainable form here: use convolutions over time instead",
    ),
    **dict.fromkeys(
        ("Attention", "MultiHeadAttention", "Einsum"),
        "attention has no trainable form here: use convolutions over time instead",
    ),
    **dict.fromkeys(
        ("Sigmoid", "Tanh", "LeakyRelu", "Elu", "Gelu", "HardSwish", "Erf", "PRelu", "Selu"),
        "use a relu inside the network, and one logit for each class at its end",
    ),
}


def read_onnx(path: Path, input_shape: tuple[int, ...] | None = None) -> Imported:
    """Return the network of an ONNX file; `input_shape` (time, channels) fills lengths left open.

    Raises:
        ModelError: the file cannot be read, or a node has no trainable form here; the message
            names the node, its type and the cure.
    """
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:  # the package raises errors of several libraries
        raise ModelError(f"{path} cannot be read as ONNX: {error}") from error
    chain = Chain(model.graph, input_shape)
    return _network(chain)


def _network(chain: Chain) -> Imported:
    shape = [axis for axis in chain.axes if axis.name != "n"]
    names = {axis.name for axis in shape}
    for node in chain.graph.node:
        _take(chain, node)
    if len(chain.graph.output) != 1 or chain.graph.output[0].name != chain.value:
        raise ModelError(
            f"the ONNX graph gives {[one.name for one in chain.graph.output]}, but its chain of "
            f"nodes ends in {chain.value!r}; export one output, the class scores"
        )
    if names == {"f"}:
        return Imported((shape[0].length,), tuple(chain.parts))
    lengths = {axis.name: axis.length for axis in shape}
    time, channels = chain.known.get("t", 0), chain.known.get("c", 0)
    if not time:  # nothing showed which is which: then as the file has them
        time, channels = lengths["a"], lengths["b"]
    return Imported((time, channels), tuple(chain.parts))


def _take(chain: Chain, node: Any) -> None:  # noqa: ANN401
    folded = chain.constant(node)
    if folded is not None:
        chain.constants[node.output[0]] = folded
        return
    if chain.ungrouped and node.op_type not in ("InstanceNormalization", "Reshape"):
        chain.refuse(node, "works on channels in groups", "only group normalisation may")
    moving = [name for name in node.input if name and name not in chain.constants]
    if chain.ended:
        chain.refuse(node, f"follows the softmax {chain.ended!r}", "end with the softmax")
    if node.op_type not in _READERS:
        chain.refuse(node, "cannot be imported", _CURES.get(node.op_type, CURE))
    if moving != [chain.value]:
        chain.refuse(
            node,
            f"takes {moving}, but the value on its way is {chain.value!r}: the network branches",
            "use a chain of layers without skips or several inputs",
        )
    takers = [n for n in chain.graph.node if chain.value in n.input and n.op_type != "Shape"]
    if len(takers) > 1:
        chain.refuse(
            takers[1], f"takes {chain.value!r}, which {takers[0].op_type} takes too: the "
            "network branches", "use a chain of layers without skips or several inputs",
        )  # fmt: skip
    _READERS[node.op_type](chain, node)
    chain.value = node.output[0]


_READERS: Mapping[str, Callable[[Chain, Any], None]] = {
    "Identity": onnx_axes.nothing,
    "Dropout": onnx_axes.nothing,
    "Transpose": onnx_axes.transpose,
    "Squeeze": onnx_axes.squeeze,
    "Unsqueeze": onnx_axes.unsqueeze,
    "Reshape": onnx_axes.reshape,
    "Flatten": onnx_axes.flatten,
    "Conv": onnx_products.conv,
    "Gemm": onnx_products.gemm,
    "MatMul": onnx_products.matmul,
    "MaxPool": onnx_products.pool,
    "AveragePool": onnx_products.pool,
    "GlobalMaxPool": onnx_products.global_pool,
    "GlobalAveragePool": onnx_products.global_pool,
    "ReduceMean": onnx_products.reduce,
    "ReduceMax": onnx_products.reduce,
    "Relu": onnx_numbers.relu,
    "Clip": onnx_numbers.clip,
    "Softmax": onnx_numbers.softmax,
    "Add": onnx_numbers.arithmetic,
    "Sub": onnx_numbers.arithmetic,
    "Mul": onnx_numbers.arithmetic,
    "Div": onnx_numbers.arithmetic,
    "BatchNormalization": onnx_numbers.batch_normalisation,
    "InstanceNormalization": onnx_numbers.group_normalisation,
    "GroupNormalization": onnx_numbers.group_normalisation,
    "LayerNormalization": onnx_numbers.layer_normalisation,
}
