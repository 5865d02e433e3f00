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
    through_relu,
)
from vitalring.models.layers.quantisation import rounded


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
        # ‖a ⊗ δ‖², and ‖δ‖² for the bias, without the outer product.
        norm = (tf.reduce_sum(a * a, -1) + float(bias)) * tf.reduce_sum(delta * delta, -1)
        return Backward(tf.matmul(delta, kernel, transpose_b=True), norm, (a, delta))

    def gradient(tape: Tape, k: Tensor) -> Tensor:
        a, delta = tape
        delta = delta * k[:, None]
        kernel = tf.matmul(a, delta, transpose_a=True)
        return flat(kernel, tf.reduce_sum(delta, 0)) if bias else flat(kernel)

    def deploy(a: Tensor, w: Tensor, _quantised: bool) -> Tensor:
        z = affine(a, kernel_of(w, False), w)
        return tf.nn.relu(z) if relu else z

    blocks = (Block((inputs, outputs)), Block((outputs,)))[: 1 + bias]
    return Layer((inputs,), (outputs,), blocks, forward, backward, gradient, deploy)
