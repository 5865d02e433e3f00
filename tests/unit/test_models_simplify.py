"""Joined operations mean what they meant one by one."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.models.graph_node import Array, Node, constant
from vitalring.models.simplify import simplified

RNG = np.random.default_rng(3)
KERNEL = constant(RNG.normal(size=(4, 3)))
DENSE = Node("dense", (0,), (KERNEL,))


def run(nodes: tuple[Node, ...], x: Array) -> Array:
    """Compute a graph of the operations used here, weights and pairs one after another."""
    values = [x]
    nothing = np.empty(0, np.float32)
    for node in nodes:
        given_, own = [values[k] for k in node.inputs], [w.of(nothing) for w in node.weights]
        y = given_[0]
        if node.op == "dense":
            y = y @ own.pop(0)
            y = y + own.pop(0) if own else y
        if node.op in ("dense", "affine"):
            for scale, shift in zip(own[::2], own[1::2], strict=True):
                y = y * scale + shift
        elif node.op in ("add", "multiply"):
            other = own[0] if own else given_[1]
            y = y + other if node.op == "add" else y * other
        if node.relu or node.op == "relu":
            y = np.maximum(y, 0)
        values.append(y)
    return values[-1]


steps = st.lists(st.sampled_from(["add", "multiply", "relu", "dense", "twice"]), max_size=8)


@given(steps=steps, seed=st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_fewer_operations_give_the_same_numbers(steps: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    nodes = [DENSE]
    for op in steps:
        last = len(nodes)
        if op == "twice":  # its input is taken by another operation too
            nodes += [
                Node("relu", (last,)),
                Node("add", (last + 1, last)),
            ]
        elif op == "dense":
            nodes.append(Node("dense", (last,), (constant(rng.normal(size=(3, 3))),)))
        else:
            weights = () if op == "relu" else (constant(rng.normal(size=3)),)
            nodes.append(Node(op, (last,), weights))
    x = rng.normal(size=(5, 4)).astype(np.float32)
    found = simplified(tuple(nodes))
    assert len(found) <= len(nodes)
    np.testing.assert_allclose(run(found, x), run(tuple(nodes), x), rtol=1e-3, atol=1e-3)


def test_bias_scale_and_relu_are_joined_to_their_product() -> None:
    bias, scale = constant([1.0, 2.0, 3.0]), constant([2.0, 2.0, 2.0])
    nodes = (
        DENSE,
        Node("add", (1,), (bias,)),
        Node("multiply", (2,), (scale,)),
        Node("relu", (3,)),
    )
    (joined,) = simplified(nodes)
    assert (joined.op, joined.relu) == ("dense", True)
    assert joined.weights == (KERNEL, bias, scale, constant(np.zeros(3)))


def test_what_another_operation_takes_too_is_left_alone() -> None:
    nodes = (DENSE, Node("relu", (1,)), Node("add", (2, 1)))
    assert simplified(nodes) == nodes


def test_a_number_for_each_channel_alone_is_an_affine_operation() -> None:
    ones = constant([1.0, 1.0, 1.0, 1.0])
    (found,) = simplified((Node("multiply", (0,), (constant([2.0, 3.0, 4.0, 5.0]),)),))
    assert found == Node("affine", (0,), (constant([2.0, 3.0, 4.0, 5.0]), constant(np.zeros(4))))
    (found,) = simplified((Node("add", (0,), (ones,)),))
    assert found == Node("affine", (0,), (ones, ones))
