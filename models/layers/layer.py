"""What a layer is: a record of pure functions, in operations that every TFLite runtime carries.

`tf.GradientTape` makes training signatures that need Flex operations, which the small runtimes do
not have. So each layer states its own forward pass, its backward pass, and the squared norm of
each example's gradient. The clip stands on that norm for whatever weights a server sends, so it is
a sum of squares, in which nothing cancels: of the example's gradient itself, but for dense layers
(Goodfellow 2015, "Efficient per-example gradient computations").

B is the number of examples; `w` is the layer's own slice of the network's flat float32 weights.
Lengths are Python integers, or scalar tensors while a network of any size is traced; what a layer
computes of them is the same for both.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

Tensor = Any  # tensorflow ships no types
Tape = Any  # what one pass keeps for the next; its layer alone reads it
Size = Any  # int, or a scalar integer tensor
Shape = tuple[Size, ...]


class Block(NamedTuple):
    """A run of weights: a kernel (..., outputs), or one number for each output."""

    shape: Shape

    @property
    def size(self) -> Size:
        """How many weights there are."""
        return math.prod(self.shape)


class Backward(NamedTuple):
    """What a backward pass leaves: for the layer below, for the clip, and for `gradient`."""

    delta: Tensor  # (B, *in_shape); None where nothing below is trained
    squared_norm: Tensor  # (B,); None where the layer has no weights
    tape: Tape


@dataclass(frozen=True)
class Layer:
    """One layer; shapes leave the batch out.

    forward(a, w, quantised) -> (B, *out_shape), tape
    backward(delta, tape) -> Backward, for delta (B, *out_shape) = dloss_b/doutput_b
    gradient(tape, k) -> Σ_b k_b · gradient of example b, flat; None where there are no weights
    deploy(a, w, quantised) -> the forward pass in an inference model's operations; quantised here
        means that activation ranges are marked for the converter, and weights are left to it
    """

    in_shape: Shape
    out_shape: Shape
    blocks: tuple[Block, ...]
    forward: Callable[[Tensor, Tensor, bool], tuple[Tensor, Tape]]
    backward: Callable[[Tensor, Tape], Backward]
    gradient: Callable[[Tape, Tensor], Tensor]
    deploy: Callable[[Tensor, Tensor, bool], Tensor]

    @property
    def dimension(self) -> Size:
        """How many weights there are."""
        return sum(block.size for block in self.blocks)


def through_relu(delta: Tensor, z: Tensor) -> Tensor:
    """Return a gradient led back through relu(z)."""
    return delta * tf.cast(z > 0.0, tf.float32)


def squared_norm(each: Tensor) -> Tensor:
    """Return Σ of squares of each example's numbers (B, ...).

    One axis after the other: in sums of that length rounding stays far below the clip's slack.
    """
    squares = each * each
    for _ in range(len(each.shape) - 1):
        squares = tf.reduce_sum(squares, -1)
    return squares


def flat(*parts: Tensor) -> Tensor:
    """Return all numbers of some tensors in a row."""
    return tf.concat([tf.reshape(part, [-1]) for part in parts], 0)


def no_gradient(_tape: Tape, _k: Tensor) -> Tensor:
    """Stand for the gradient of a layer without weights."""
    return None
