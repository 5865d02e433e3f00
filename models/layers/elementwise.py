"""Layers without weights that work on each number by itself, or only lay them out anew."""

import math

import tensorflow as tf

from vitalring.models.layers.layer import (
    Backward,
    Layer,
    Shape,
    Tape,
    Tensor,
    no_gradient,
    through_relu,
)


def relu(shape: Shape) -> Layer:
    """Return max(a, 0)."""

    def forward(a: Tensor, _w: Tensor, _quantised: bool) -> tuple[Tensor, Tape]:
        return tf.nn.relu(a), a

    def backward(delta: Tensor, a: Tape) -> Backward:
        return Backward(through_relu(delta, a), None, None)

    def deploy(a: Tensor, _w: Tensor, _quantised: bool) -> Tensor:
        return tf.nn.relu(a)

    return Layer(shape, shape, (), forward, backward, no_gradient, deploy)


def flatten(in_shape: Shape) -> Layer:
    """Return (time, channels) in a row, one time step after the other."""
    length = math.prod(in_shape)

    def forward(a: Tensor, _w: Tensor, _quantised: bool) -> tuple[Tensor, Tape]:
        return tf.reshape(a, [-1, length]), None

    def backward(delta: Tensor, _tape: Tape) -> Backward:
        return Backward(tf.reshape(delta, [-1, *in_shape]), None, None)

    def deploy(a: Tensor, _w: Tensor, _quantised: bool) -> Tensor:
        return tf.reshape(a, [-1, length])

    return Layer(in_shape, (length,), (), forward, backward, no_gradient, deploy)
