"""Fake quantisation: values stay float32 but are rounded to what int8 can hold.

Gradients pass straight through (Bengio et al. 2013) inside the range and are zero outside it.
Weights take a symmetric scale, max|w|/127, one for each filter of a convolution and one for a
dense kernel, as TFLite's int8 operations do. Activations take a fixed range, built in.
Fixed, because a range found from the batch would let one example change the gradient of another,
and then clipping each example would no longer bound what one example can do to the sum.
"""

import tensorflow as tf

from vitalring.models.layers.layer import Backward, Layer, Shape, Tape, Tensor, no_gradient


def quantise(shape: Shape, limit: float, *, signed: bool) -> Layer:
    """Return rounding to the int8 levels of a fixed range.

    The levels are limit/128 apart from -limit to limit when `signed`, else limit/255 apart from
    0 to limit, as after a relu. The identity when the network is not quantised.
    """
    step = limit / 128 if signed else limit / 255
    low, high = (-limit, limit - step) if signed else (0.0, limit)

    def forward(a: Tensor, _w: Tensor, quantised: bool) -> tuple[Tensor, Tape]:
        if not quantised:
            return a, None
        inside = tf.cast((a >= low) & (a <= high), tf.float32)
        return tf.round(tf.clip_by_value(a, low, high) / step) * step, inside

    def backward(delta: Tensor, inside: Tape) -> Backward:
        return Backward(delta if inside is None else delta * inside, None, None)

    def deploy(a: Tensor, _w: Tensor, quantised: bool) -> Tensor:
        if not quantised:
            return a
        return tf.quantization.fake_quant_with_min_max_args(a, low, high, num_bits=8)

    return Layer(shape, shape, (), forward, backward, no_gradient, deploy)


def rounded(kernel: Tensor, axes: list[int]) -> Tensor:
    """Return a kernel rounded to 255 levels, with one scale for all weights along `axes`."""
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(kernel), axis=axes, keepdims=True))
    scale = tf.maximum(largest, 1e-8) / 127.0
    return tf.round(kernel / scale) * scale
