"""Pools: fewer time steps, or none, without weights."""

import tensorflow as tf

from vitalring.models.layers.layer import Backward, Layer, Shape, Tape, Tensor, no_gradient
from vitalring.models.layers.slices import Padding, slices_of

_LOWEST = -3e38  # no activation is lower, so a sample beyond the ends is never the largest


def max_pool(
    in_shape: Shape, *, width: int, stride: int | None = None, padding: Padding = "valid"
) -> Layer:
    """Return the largest sample of each slice; stride is the width where none is given.

    Of equal samples the first one takes the gradient, as in TensorFlow.
    """
    time, channels = in_shape
    cut = slices_of(time, width, stride or width, padding)

    def forward(a: Tensor, _w: Tensor, _quantised: bool) -> tuple[Tensor, Tape]:
        taps = cut.taps(cut.pad(a, _LOWEST))
        largest = taps[0]
        for tap in taps[1:]:
            largest = tf.maximum(largest, tap)
        return largest, (taps, largest)

    def backward(delta: Tensor, tape: Tape) -> Backward:
        taps, largest = tape
        shares = []
        for tap in taps:
            shares.append(delta * tf.cast(tf.equal(tap, largest), tf.float32))
            delta = delta - shares[-1]
        return Backward(cut.back(shares), None, None)

    def deploy(a: Tensor, _w: Tensor, _quantised: bool) -> Tensor:
        padded, rule = (a, "SAME") if padding == "same" else (cut.pad(a, _LOWEST), "VALID")
        return tf.nn.max_pool2d(padded[:, None], [1, width], [1, cut.stride], rule)[:, 0]

    shapes = (time, channels), (cut.steps, channels)
    return Layer(*shapes, (), forward, backward, no_gradient, deploy)


def average_pool(
    in_shape: Shape, *, width: int, stride: int | None = None, padding: Padding = "valid"
) -> Layer:
    """Return the mean of each slice; samples beyond the ends do not count."""
    time, channels = in_shape
    cut = slices_of(time, width, stride or width, padding)

    def counts() -> Tensor:
        if not cut.padded:
            return float(width)
        return tf.add_n(cut.taps(cut.pad(tf.ones([1, time, 1]))))

    def forward(a: Tensor, _w: Tensor, _quantised: bool) -> tuple[Tensor, Tape]:
        return tf.add_n(cut.taps(cut.pad(a))) / counts(), None

    def backward(delta: Tensor, _tape: Tape) -> Backward:
        return Backward(cut.back([delta / counts()] * width), None, None)

    def deploy(a: Tensor, w: Tensor, quantised: bool) -> Tensor:
        if cut.padded and padding != "same":
            return forward(a, w, quantised)[0]
        rule = "SAME" if padding == "same" else "VALID"
        return tf.nn.avg_pool2d(a[:, None], [1, width], [1, cut.stride], rule)[:, 0]

    shapes = (time, channels), (cut.steps, channels)
    return Layer(*shapes, (), forward, backward, no_gradient, deploy)


def global_average_pool(in_shape: Shape) -> Layer:
    """Return the mean over time."""
    time, channels = in_shape

    def forward(a: Tensor, _w: Tensor, _quantised: bool) -> tuple[Tensor, Tape]:
        return tf.reduce_mean(a, 1), None

    def backward(delta: Tensor, _tape: Tape) -> Backward:
        share = delta[:, None, :] / tf.cast(time, tf.float32)
        return Backward(tf.tile(share, [1, time, 1]), None, None)

    def deploy(a: Tensor, _w: Tensor, _quantised: bool) -> Tensor:
        return tf.reduce_mean(a, 1)

    return Layer((time, channels), (channels,), (), forward, backward, no_gradient, deploy)


def global_max_pool(in_shape: Shape) -> Layer:
    """Return the largest sample of each channel; equal samples share the gradient."""
    time, channels = in_shape

    def forward(a: Tensor, _w: Tensor, _quantised: bool) -> tuple[Tensor, Tape]:
        largest = tf.reduce_max(a, 1)
        return largest, (a, largest)

    def backward(delta: Tensor, tape: Tape) -> Backward:
        a, largest = tape
        hits = tf.cast(tf.equal(a, largest[:, None, :]), tf.float32)
        share = delta / tf.reduce_sum(hits, 1)
        return Backward(hits * share[:, None, :], None, None)

    def deploy(a: Tensor, _w: Tensor, _quantised: bool) -> Tensor:
        return tf.reduce_max(a, 1)

    return Layer((time, channels), (channels,), (), forward, backward, no_gradient, deploy)
