"""Normalisation that never mixes examples: batch statistics would break the clip's argument."""

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from vitalring.errors import ModelError
from vitalring.models.layers.layer import (
    Backward,
    Block,
    Layer,
    Shape,
    Tape,
    Tensor,
    squared_norm,
)


def group_norm(in_shape: Shape, groups: int, *, epsilon: float = 1e-5) -> Layer:
    """Return group normalisation (Wu and He 2018), x̂ · (1 + s) + b.

    x̂ has mean 0 and variance 1 over the time and the channels of each group of one example.
    Weights are s (channels,), then b (channels,). Its output is not bounded by its input's
    range, so a `quantise` layer must follow it in a quantised network.

    Raises:
        ModelError: the channels do not make that many equal groups.
    """
    time, channels = in_shape
    if groups < 1 or channels % groups:
        raise ModelError(f"{channels} channels do not make {groups} equal groups")
    grouped = [-1, time, groups, channels // groups]

    def mean(a: Tensor) -> Tensor:
        """Return each group's mean, in every place of the group."""
        means = tf.reduce_mean(tf.reshape(a, grouped), [1, 3], keepdims=True)
        return tf.reshape(tf.tile(means, [1, 1, 1, channels // groups]), [-1, 1, channels])

    def normalised(a: Tensor) -> tuple[Tensor, Tensor]:
        centred = a - mean(a)
        inverse = tf.math.rsqrt(mean(centred * centred) + epsilon)
        return centred * inverse, inverse

    def forward(a: Tensor, w: Tensor, _quantised: bool) -> tuple[Tensor, Tape]:
        unit, inverse = normalised(a)
        return unit + unit * w[:channels] + w[channels:], (unit, inverse, w[:channels])

    def backward(delta: Tensor, tape: Tape) -> Backward:
        unit, inverse, scale = tape
        each = tf.concat([tf.reduce_sum(delta * unit, 1), tf.reduce_sum(delta, 1)], 1)
        inner = delta + delta * scale
        below = inverse * (inner - mean(inner) - unit * mean(inner * unit))
        return Backward(below, squared_norm(each), each)

    def gradient(each: Tape, k: Tensor) -> Tensor:
        return tf.reduce_sum(each * k[:, None], 0)

    def deploy(a: Tensor, w: Tensor, quantised: bool) -> Tensor:
        return forward(a, w, quantised)[0]

    blocks = (Block((channels,)), Block((channels,)))
    return Layer(in_shape, in_shape, blocks, forward, backward, gradient, deploy)


def channel_affine(
    shape: Shape,
    mean: npt.NDArray[np.float32],
    variance: npt.NDArray[np.float32],
    *,
    epsilon: float,
) -> Layer:
    """Return a batch normalisation whose statistics are frozen: (a - mean)/σ · γ + β.

    The last axis of `shape` is that of the channels; σ = √(variance + epsilon). Weights are γ
    (channels,), then β (channels,). It comes with weights of its own (γ = 0 would pass nothing).

    Raises:
        ModelError: the statistics do not fit or are not those of anything.
    """
    channels = shape[-1]
    if mean.shape != (channels,) or variance.shape != (channels,):
        raise ModelError(
            f"statistics have shapes {mean.shape} and {variance.shape}; {channels} channels need "
            f"({channels},) each"
        )
    spread = variance.astype(np.float64) + epsilon
    if not (np.isfinite(mean).all() and np.isfinite(spread).all() and (spread > 0).all()):
        raise ModelError("statistics are not finite, or a variance is not above 0")
    factor = (1 / np.sqrt(spread)).astype(np.float32)
    offset = (-mean / np.sqrt(spread)).astype(np.float32)

    def forward(a: Tensor, w: Tensor, _quantised: bool) -> tuple[Tensor, Tape]:
        unit = a * factor + offset
        return unit * w[:channels] + w[channels:], (unit, w[:channels])

    def backward(delta: Tensor, tape: Tape) -> Backward:
        unit, scale = tape
        each = tf.concat([over_time(delta * unit), over_time(delta)], 1)
        return Backward(delta * (scale * factor), squared_norm(each), each)

    def over_time(a: Tensor) -> Tensor:
        return tf.reduce_sum(a, 1) if len(shape) > 1 else a

    def gradient(each: Tape, k: Tensor) -> Tensor:
        return tf.reduce_sum(each * k[:, None], 0)

    def deploy(a: Tensor, w: Tensor, quantised: bool) -> Tensor:
        return forward(a, w, quantised)[0]

    blocks = (Block((channels,)), Block((channels,)))
    return Layer(shape, shape, blocks, forward, backward, gradient, deploy)
