"""Convolutions over time, as products with slices of the signal."""

import tensorflow as tf

from vitalring.models.layers.layer import (
    Backward,
    Block,
    Layer,
    Shape,
    Tape,
    Tensor,
    flat,
    squared_norm,
    through_relu,
)
from vitalring.models.layers.quantisation import rounded
from vitalring.models.layers.slices import Padding, Slices, slices_of


def conv1d(
    in_shape: Shape,
    filters: int,
    *,
    width: int,
    stride: int = 1,
    padding: Padding = "valid",
    relu: bool = True,
    bias: bool = True,
) -> Layer:
    """Return a convolution of (time, channels) and a relu if asked.

    Weights are W (width · channels, filters), one time step of the slice after the other, then b.
    """
    time, channels = in_shape
    cut = slices_of(time, width, stride, padding)
    steps = cut.steps
    inputs = width * channels
    size = inputs * filters

    def forward(a: Tensor, w: Tensor, quantised: bool) -> tuple[Tensor, Tape]:
        kernel = tf.reshape(w[:size], [inputs, filters])
        kernel = rounded(kernel, [0]) if quantised else kernel
        slices = tf.reshape(cut.gather(cut.pad(a)), [-1, steps, inputs])
        z = tf.matmul(tf.reshape(slices, [-1, inputs]), kernel)
        z = tf.reshape(z, [-1, steps, filters])
        z = z + w[size:] if bias else z
        return (tf.nn.relu(z) if relu else z), (slices, kernel, z)

    def backward(delta: Tensor, tape: Tape) -> Backward:
        slices, kernel, z = tape
        delta = through_relu(delta, z) if relu else delta
        # ‖SᵀΔ‖² = ⟨SSᵀ, ΔΔᵀ⟩ would often be cheaper, but its terms cancel: with hostile weights
        # rounding leaves a norm that is far too small, or the root of a negative number.
        each = tf.matmul(slices, delta, transpose_a=True)  # (B, inputs, filters)
        by_bias = tf.reduce_sum(delta, 1)
        norm = squared_norm(each)
        norm = norm + squared_norm(by_bias) if bias else norm
        share = tf.matmul(tf.reshape(delta, [-1, filters]), kernel, transpose_b=True)
        share = tf.reshape(share, [-1, steps, width, channels])
        below = cut.back([share[:, :, j] for j in range(width)])
        return Backward(below, norm, (each, by_bias))

    def gradient(tape: Tape, k: Tensor) -> Tensor:
        each, by_bias = tape
        kernel = tf.reduce_sum(each * k[:, None, None], 0)
        return flat(kernel, tf.reduce_sum(by_bias * k[:, None], 0)) if bias else flat(kernel)

    def deploy(a: Tensor, w: Tensor, _quantised: bool) -> Tensor:
        kernel = tf.reshape(w[:size], [1, width, channels, filters])
        padded, rule = _deployed(cut, padding, a)
        z = tf.nn.conv2d(padded[:, None], kernel, [1, 1, stride, 1], rule)
        z = z + w[size:] if bias else z
        return (tf.nn.relu(z) if relu else z)[:, 0]

    blocks = (Block((width, channels, filters)), Block((filters,)))[: 1 + bias]
    return Layer((time, channels), (steps, filters), blocks, forward, backward, gradient, deploy)


def depthwise_conv1d(
    in_shape: Shape,
    *,
    width: int,
    stride: int = 1,
    padding: Padding = "valid",
    relu: bool = True,
    bias: bool = True,
) -> Layer:
    """Return a convolution of each channel with a filter of its own, and a relu if asked.

    Weights are W (width, channels), then b. With a `conv1d` of width 1 after it this is the
    separable convolution of MobileNet (Howard et al. 2017).
    """
    time, channels = in_shape
    cut = slices_of(time, width, stride, padding)
    size = width * channels

    def forward(a: Tensor, w: Tensor, quantised: bool) -> tuple[Tensor, Tape]:
        kernel = tf.reshape(w[:size], [width, channels])
        kernel = rounded(kernel, [0]) if quantised else kernel
        taps = cut.taps(cut.pad(a))
        z = w[size:] if bias else 0.0
        for j, tap in enumerate(taps):
            z = z + tap * kernel[j]
        return (tf.nn.relu(z) if relu else z), (taps, kernel, z)

    def backward(delta: Tensor, tape: Tape) -> Backward:
        taps, kernel, z = tape
        delta = through_relu(delta, z) if relu else delta
        each = [tf.reduce_sum(tap * delta, 1) for tap in taps]  # width times (B, channels)
        each = [*each, tf.reduce_sum(delta, 1)] if bias else each
        stacked = tf.stack(each, 1)
        below = cut.back([delta * kernel[j] for j in range(width)])
        return Backward(below, squared_norm(stacked), stacked)

    def gradient(each: Tape, k: Tensor) -> Tensor:
        return flat(tf.reduce_sum(each * k[:, None, None], 0))

    def deploy(a: Tensor, w: Tensor, _quantised: bool) -> Tensor:
        kernel = tf.reshape(w[:size], [1, width, channels, 1])
        padded, rule = _deployed(cut, padding, a)
        # The operation wants equal strides; with one row the first of them has no meaning.
        z = tf.nn.depthwise_conv2d(padded[:, None], kernel, [1, stride, stride, 1], rule)
        z = z + w[size:] if bias else z
        return (tf.nn.relu(z) if relu else z)[:, 0]

    blocks = (Block((width, channels)), Block((channels,)))[: 1 + bias]
    return Layer(
        (time, channels), (cut.steps, channels), blocks, forward, backward, gradient, deploy
    )


def _deployed(cut: Slices, padding: Padding, a: Tensor) -> tuple[Tensor, str]:
    """Return the signal and TensorFlow's name of the padding that is still to be done."""
    return (a, "SAME") if padding == "same" else (cut.pad(a), "VALID")
