"""Dense layers."""

import tensorflow as tf

from vitalring.models.layers.layer import (
    Backward,
    Block,
    Layer,
    Shape,
    Size,
    Tape,
    Tensor,
    flat,
    squared_norm,
    through_relu,
)
from vitalring.models.layers.quantisation import rounded

_TINY = 1e-30  # for a gradient of zeros


def dense(in_shape: Shape, outputs: Size, *, relu: bool, bias: bool = True) -> Layer:
    """Return a·W + b, then a relu if asked; weights are W (inputs, outputs), then b if any."""
    (inputs,) = in_shape
    size = inputs * outputs

    def kernel_of(w: Tensor, quantised: bool) -> Tensor:
        kernel = tf.reshape(w[:size], [inputs, outputs])
        return rounded(kernel, [0, 1]) if quantised else kernel

    def affine(a: Tensor, kernel: Tensor, w: Tensor) -> Tensor:
        z = tf.matmul(a, kernel)
        return z + w[size:] if bias else z

    def forward(a: Tensor, w: Tensor, quantised: bool) -> tuple[Tensor, Tape]:
        kernel = kernel_of(w, quantised)
        z = affine(a, kernel, w)
        return (tf.nn.relu(z) if relu else z), (a, kernel, z)

    def backward(delta: Tensor, tape: Tape) -> Backward:
        a, kernel, z = tape
        delta = through_relu(delta, z) if relu else delta
        # ‖a ⊗ δ‖², and ‖δ‖² for the bias, without the outer product. The size of δ goes over to a
        # first: squares of a and of δ by themselves could be infinite and 0 where a ⊗ δ is neither.
        size = tf.maximum(tf.reduce_max(tf.abs(delta), -1, keepdims=True), _TINY)
        unit, sized = delta / size, a * size
        norm = squared_norm(sized)
        norm = (norm + squared_norm(size) if bias else norm) * squared_norm(unit)
        below = tf.matmul(delta, kernel, transpose_b=True)
        return Backward(below, norm, (sized, size, unit))

    def gradient(tape: Tape, k: Tensor) -> Tensor:
        sized, size, unit = tape
        kernel = tf.matmul(sized * k[:, None], unit, transpose_a=True)
        by_bias = tf.reduce_sum(unit * (size * k[:, None]), 0)
        return flat(kernel, by_bias) if bias else flat(kernel)

    def deploy(a: Tensor, w: Tensor, _quantised: bool) -> Tensor:
        z = affine(a, kernel_of(w, False), w)
        return tf.nn.relu(z) if relu else z

    blocks = (Block((inputs, outputs)), Block((outputs,)))[: 1 + bias]
    return Layer((inputs,), (outputs,), blocks, forward, backward, gradient, deploy)
