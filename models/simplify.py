"""Fewer operations that mean the same: what follows on a product is joined to it."""

from dataclasses import replace

import numpy as np

from vitalring.models.graph_node import WEIGHTED, Node, constant


def simplified(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """Join biases, scales, shifts and relus to the operation before them, where it has no other."""
    takers = [0] * (len(nodes) + 1)
    for node in nodes:
        for source in node.inputs:
            takers[source] += 1
    out: list[Node] = []
    new = [0]  # where each old value is now
    for node in nodes:
        source = node.inputs[0]
        moved = replace(node, inputs=tuple(new[one] for one in node.inputs))
        last = out[-1] if out and new[source] == len(out) and takers[source] == 1 else None
        joined = _joined(last, moved) if last else None
        if joined:
            out[-1] = joined
        else:
            out.append(_as_affine(moved) or moved)
        new.append(len(out))
    return tuple(out)


def _as_affine(node: Node) -> Node | None:
    """Return a multiplication or sum with one number for each channel as an affine operation."""
    if node.op not in ("add", "multiply") or not node.weights or len(node.weights[0].shape) != 1:
        return None
    one = node.weights[0]
    if node.op == "multiply":
        pair = one, constant(np.zeros(one.shape))
    else:
        pair = constant(np.ones(one.shape)), one
    return Node("affine", node.inputs, pair)


def _joined(last: Node, node: Node) -> Node | None:
    """Return both as one operation, or None where they cannot be."""
    if last.op not in WEIGHTED or last.relu:
        return None
    if node.op == "relu":
        return replace(last, relu=True)
    if node.op not in ("add", "multiply") or not node.weights or len(node.weights[0].shape) != 1:
        return None
    one, weights = node.weights[0], last.weights
    zeros = constant(np.zeros(one.shape))
    if node.op == "add" and len(weights) == 1:
        return replace(last, weights=(*weights, one))
    if node.op == "add" and len(weights) > 1 and weights[-1] == zeros:
        return replace(last, weights=(*weights[:-1], one))
    if len(weights) == 1:
        weights = (*weights, zeros)
    pair = (one, zeros) if node.op == "multiply" else (constant(np.ones(one.shape)), one)
    return replace(last, weights=(*weights, *pair))
