"""Layers with hand-written passes, in operations that every TFLite runtime carries.

`tf.GradientTape` makes training signatures that need Flex operations, which the small runtimes do
not have. So each layer here states its own forward pass, its backward pass, and the squared norm
of each example's gradient, found without forming that gradient where that is cheaper (Goodfellow
2015, "Efficient per-example gradient computations"; for convolutions Rochette et al. 2019).

A layer is a record of pure functions. B is the number of examples; `w` is the layer's own slice
of the network's flat float32 weights.

Quantisation is fake: values stay float32 but are rounded to what int8 can hold. Gradients pass
straight through (Bengio et al. 2013) inside the range and are zero outside it. Weights take a
symmetric scale, max|w|/127, one for each filter of a convolution and one for a dense kernel, as
TFLite's int8 operations do. Activations take a fixed range, built in.
Fixed, because a range found from the batch would let one example change the gradient of another,
and then clipping each example would no longer bound what one example can do to the sum.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from vitalring.errors import ModelError

Tensor = Any  # tensorflow ships no types
Tape = Any  # what one pass keeps for the next; its layer alone reads it
Shape = tuple[int, ...]


class Block(NamedTuple):
    """A kernel (..., outputs), at first uniform in [-limit, limit), or a bias, at first 0."""

    shape: Shape
    limit: float

    @property
    def size(self) -> int:
        """How many weights there are."""
        return math.prod(self.shape)


class Backward(NamedTuple):
    """What a backward pass leaves: for the layer below, for the clip, and for `gradient`."""

    delta: Tensor  # (B, *in_shape)
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
    def dimension(self) -> int:
        """How many weights there are."""
        return sum(block.size for block in self.blocks)


def dense(in_shape: Shape, outputs: int, *, relu: bool, bias: bool = True) -> Layer:
    """Return a·W + b, then a relu if asked; weights are W (inputs, outputs), then b if any."""
    (inputs,) = in_shape
    size = inputs * outputs

    def kernel_of(w: Tensor, quantised: bool) -> Tensor:
        kernel = tf.reshape(w[:size], [inputs, outputs])
        return _rounded(kernel, [0, 1]) if quantised else kernel

    def affine(a: Tensor, kernel: Tensor, w: Tensor) -> Tensor:
        z = tf.matmul(a, kernel)
        return z + w[size:] if bias else z

    def forward(a: Tensor, w: Tensor, quantised: bool) -> tuple[Tensor, Tape]:
        kernel = kernel_of(w, quantised)
        z = affine(a, kernel, w)
        return (tf.nn.relu(z) if relu else z), (a, kernel, z)

    def backward(delta: Tensor, tape: Tape) -> Backward:
        a, kernel, z = tape
        delta = _through_relu(delta, z) if relu else delta
        # ‖a ⊗ δ‖², and ‖δ‖² for the bias, without the outer product.
        norm = (tf.reduce_sum(a * a, -1) + float(bias)) * tf.reduce_sum(delta * delta, -1)
        return Backward(tf.matmul(delta, kernel, transpose_b=True), norm, (a, delta))

    def gradient(tape: Tape, k: Tensor) -> Tensor:
        a, delta = tape
        delta = delta * k[:, None]
        kernel = tf.matmul(a, delta, transpose_a=True)
        return _flat(kernel, tf.reduce_sum(delta, 0)) if bias else _flat(kernel)

    def deploy(a: Tensor, w: Tensor, _quantised: bool) -> Tensor:
        z = affine(a, kernel_of(w, False), w)
        return tf.nn.relu(z) if relu else z

    blocks = (Block((inputs, outputs), _he_limit(inputs)), Block((outputs,), 0.0))[: 1 + bias]
    return Layer((inputs,), (outputs,), blocks, forward, backward, gradient, deploy)


def conv1d(in_shape: Shape, filters: int, *, width: int, stride: int) -> Layer:
    """Return a valid convolution over time and its relu, as a product with gathered slices.

    Weights are W (width · channels, filters), one time step of the slice after the other, then b.
    """
    time, channels = in_shape
    steps = (time - width) // stride + 1
    fan_in = width * channels
    size = fan_in * filters
    taken, given = _slice_indices(time, steps, width, stride)

    def forward(a: Tensor, w: Tensor, quantised: bool) -> tuple[Tensor, Tape]:
        kernel = tf.reshape(w[:size], [fan_in, filters])
        kernel = _rounded(kernel, [0]) if quantised else kernel
        slices = tf.reshape(tf.gather(a, taken, axis=1), [-1, steps, fan_in])
        z = tf.matmul(tf.reshape(slices, [-1, fan_in]), kernel)
        z = tf.reshape(z, [-1, steps, filters]) + w[size:]
        return tf.nn.relu(z), (slices, kernel, z)

    def backward(delta: Tensor, tape: Tape) -> Backward:
        slices, kernel, z = tape
        delta = _through_relu(delta, z)
        bias = tf.reduce_sum(delta, 1)
        if size <= steps * steps:
            each = tf.matmul(slices, delta, transpose_a=True)  # (B, fan_in, filters)
            norm = tf.reduce_sum(each * each, [1, 2])
        else:
            each = None  # ‖SᵀΔ‖² = ⟨SSᵀ, ΔΔᵀ⟩, which is the smaller pair here
            norm = tf.reduce_sum(
                tf.matmul(slices, slices, transpose_b=True)
                * tf.matmul(delta, delta, transpose_b=True),
                [1, 2],
            )
        norm = norm + tf.reduce_sum(bias * bias, -1)
        return Backward(to_input(delta, kernel), norm, (slices, delta, bias, each))

    def to_input(delta: Tensor, kernel: Tensor) -> Tensor:
        share = tf.matmul(tf.reshape(delta, [-1, filters]), kernel, transpose_b=True)
        share = tf.reshape(share, [-1, steps * width, channels])
        share = tf.pad(share, [[0, 0], [0, 1], [0, 0]])
        share = tf.reshape(
            tf.gather(share, given, axis=1), [-1, time, len(given) // time, channels]
        )
        return tf.reduce_sum(share, 2)

    def gradient(tape: Tape, k: Tensor) -> Tensor:
        slices, delta, bias, each = tape
        if each is not None:
            kernel = tf.reduce_sum(each * k[:, None, None], 0)
        else:
            kernel = tf.matmul(
                tf.reshape(slices, [-1, fan_in]),
                tf.reshape(delta * k[:, None, None], [-1, filters]),
                transpose_a=True,
            )
        return _flat(kernel, tf.reduce_sum(bias * k[:, None], 0))

    def deploy(a: Tensor, w: Tensor, _quantised: bool) -> Tensor:
        kernel = tf.reshape(w[:size], [1, width, channels, filters])
        z = tf.nn.conv2d(a[:, None, :, :], kernel, [1, 1, stride, 1], "VALID") + w[size:]
        return tf.nn.relu(z)[:, 0]

    blocks = (Block((width, channels, filters), _he_limit(fan_in)), Block((filters,), 0.0))
    return Layer((time, channels), (steps, filters), blocks, forward, backward, gradient, deploy)


def global_average_pool(in_shape: Shape) -> Layer:
    """Return the mean over time."""
    time, channels = in_shape

    def forward(a: Tensor, _w: Tensor, _quantised: bool) -> tuple[Tensor, Tape]:
        return tf.reduce_mean(a, 1), None

    def backward(delta: Tensor, _tape: Tape) -> Backward:
        return Backward(tf.tile(delta[:, None, :] / time, [1, time, 1]), None, None)

    def deploy(a: Tensor, _w: Tensor, _quantised: bool) -> Tensor:
        return tf.reduce_mean(a, 1)

    return Layer((time, channels), (channels,), (), forward, backward, _no_gradient, deploy)


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

    return Layer(shape, shape, (), forward, backward, _no_gradient, deploy)


def chain(*layers: Layer) -> Layer:
    """Return layers one after the other as one.

    Raises:
        ModelError: there is none, or one does not fit on the one before.
    """
    if not layers:
        raise ModelError("a chain needs at least one layer")
    for place, (below, above) in enumerate(pairwise(layers)):
        if below.out_shape != above.in_shape:
            raise ModelError(
                f"layer {place} gives shape {below.out_shape}, but layer {place + 1} takes "
                f"{above.in_shape}; make the two equal"
            )

    def own(w: Tensor) -> list[Tensor]:
        ends = [sum(layer.dimension for layer in layers[: i + 1]) for i in range(len(layers))]
        return [w[end - one.dimension : end] for one, end in zip(layers, ends, strict=True)]

    def forward(a: Tensor, w: Tensor, quantised: bool) -> tuple[Tensor, Tape]:
        tapes = []
        for layer, weights in zip(layers, own(w), strict=True):
            a, tape = layer.forward(a, weights, quantised)
            tapes.append(tape)
        return a, tapes

    def backward(delta: Tensor, tape: Tape) -> Backward:
        passes = []
        for layer, kept in zip(reversed(layers), reversed(tape), strict=True):
            passes.append(layer.backward(delta, kept))
            delta = passes[-1].delta
        norms = [one.squared_norm for one in passes if one.squared_norm is not None]
        tapes = [one.tape for one in reversed(passes)]
        return Backward(delta, tf.add_n(norms) if norms else None, tapes)

    def gradient(tape: Tape, k: Tensor) -> Tensor:
        parts = [layer.gradient(kept, k) for layer, kept in zip(layers, tape, strict=True)]
        parts = [part for part in parts if part is not None]
        return _flat(*parts) if parts else None

    def deploy(a: Tensor, w: Tensor, quantised: bool) -> Tensor:
        for layer, weights in zip(layers, own(w), strict=True):
            a = layer.deploy(a, weights, quantised)
        return a

    blocks = tuple(block for layer in layers for block in layer.blocks)
    shapes = layers[0].in_shape, layers[-1].out_shape
    return Layer(*shapes, blocks, forward, backward, gradient, deploy)


def beside_constants(trunk: Layer, constants: int) -> Layer:
    """Return the first channels led through `trunk`, and the last ones passed around it.

    The last `constants` channels do not change over time; their first sample follows the trunk's
    features.
    """
    time, channels = trunk.in_shape
    features = trunk.out_shape[0]

    def forward(a: Tensor, w: Tensor, quantised: bool) -> tuple[Tensor, Tape]:
        through, tape = trunk.forward(a[:, :, :channels], w, quantised)
        return tf.concat([through, a[:, 0, channels:]], 1), tape

    def backward(delta: Tensor, tape: Tape) -> Backward:
        below = trunk.backward(delta[:, :features], tape)
        around = tf.pad(delta[:, None, features:], [[0, 0], [0, time - 1], [0, 0]])
        return below._replace(delta=tf.concat([below.delta, around], 2))

    def deploy(a: Tensor, w: Tensor, quantised: bool) -> Tensor:
        return tf.concat([trunk.deploy(a[:, :, :channels], w, quantised), a[:, 0, channels:]], 1)

    shapes = (time, channels + constants), (features + constants,)
    return Layer(*shapes, trunk.blocks, forward, backward, trunk.gradient, deploy)


def _he_limit(fan_in: int) -> float:
    """Return the bound of He's uniform initialisation, √(6/fan_in) (He et al. 2015)."""
    return float((6.0 / fan_in) ** 0.5)


def _rounded(kernel: Tensor, axes: list[int]) -> Tensor:
    """Return a kernel rounded to 255 levels, with one scale for all weights along `axes`."""
    largest = tf.reduce_max(tf.abs(kernel), axis=axes, keepdims=True)
    scale = tf.maximum(largest, 1e-8) / 127.0
    return tf.round(kernel / scale) * scale


def _slice_indices(
    time: int, steps: int, width: int, stride: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return which samples the slices take, and which slice places each sample was given to.

    The first is (steps · width,) of samples; the second (time · most,) of places in the first,
    filled up with steps · width where a sample was given to fewer than `most`.
    """
    taken = (stride * np.arange(steps)[:, None] + np.arange(width)).reshape(-1)
    places = [np.flatnonzero(taken == sample) for sample in range(time)]
    most = max(len(place) for place in places)
    given = np.full((time, most), len(taken))
    for sample, place in enumerate(places):
        given[sample, : len(place)] = place
    return taken.astype(np.int32), given.reshape(-1).astype(np.int32)


def _through_relu(delta: Tensor, z: Tensor) -> Tensor:
    return delta * tf.cast(z > 0.0, tf.float32)


def _flat(*parts: Tensor) -> Tensor:
    return tf.concat([tf.reshape(part, [-1]) for part in parts], 0)


def _no_gradient(_tape: Tape, _k: Tensor) -> Tensor:
    return None
