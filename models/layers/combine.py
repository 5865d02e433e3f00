"""Layers made of layers."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from vitalring.errors import ModelError
from vitalring.models.layers.layer import (
    Backward,
    Layer,
    Shape,
    Tape,
    Tensor,
    flat,
    no_gradient,
)


def chain(*layers: Layer) -> Layer:
    """Return layers one after the other as one.

    Raises:
        ModelError: there is none, or one does not fit on the one before.
    """
    if not layers:
        raise ModelError("a chain needs at least one layer")
    for place, (below, above) in enumerate(pairwise(layers)):
        if not _fits(below.out_shape, above.in_shape):
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
        norms, tapes = [], []
        for layer, kept in zip(reversed(layers), reversed(tape), strict=True):
            if delta is None and layer.blocks:
                raise ModelError("a layer above one with weights is frozen; freeze both")
            below = Backward(None, None, None) if delta is None else layer.backward(delta, kept)
            delta = below.delta
            norms += [] if below.squared_norm is None else [below.squared_norm]
            tapes.append(below.tape)
        return Backward(delta, tf.add_n(norms) if norms else None, tapes[::-1])

    def gradient(tape: Tape, k: Tensor) -> Tensor:
        parts = [
            layer.gradient(kept, k)
            for layer, kept in zip(layers, tape, strict=True)
            if layer.blocks
        ]
        return flat(*parts) if parts else None

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
        if below.delta is None:
            return below
        around = tf.pad(delta[:, None, features:], [[0, 0], [0, time - 1], [0, 0]])
        return below._replace(delta=tf.concat([below.delta, around], 2))

    def deploy(a: Tensor, w: Tensor, quantised: bool) -> Tensor:
        return tf.concat([trunk.deploy(a[:, :, :channels], w, quantised), a[:, 0, channels:]], 1)

    shapes = (time, channels + constants), (features + constants,)
    return Layer(*shapes, trunk.blocks, forward, backward, trunk.gradient, deploy)


def frozen(layer: Layer, weights: npt.NDArray[np.float32]) -> Layer:
    """Return a layer whose weights (dimension,) are constants, for a trunk that others trained.

    Nothing below it is trained either: it hands no gradient down.

    Raises:
        ModelError: the weights do not fit the layer.
    """
    if weights.shape != (layer.dimension,):
        raise ModelError(
            f"frozen weights have shape {weights.shape}; the layer has ({layer.dimension},)"
        )

    def forward(a: Tensor, _w: Tensor, quantised: bool) -> tuple[Tensor, Tape]:
        return layer.forward(a, tf.constant(weights), quantised)[0], None

    def backward(_delta: Tensor, _tape: Tape) -> Backward:
        return Backward(None, None, None)

    def deploy(a: Tensor, _w: Tensor, quantised: bool) -> Tensor:
        return layer.deploy(a, tf.constant(weights), quantised)

    shapes = layer.in_shape, layer.out_shape
    return Layer(*shapes, (), forward, backward, no_gradient, deploy)


def _fits(given: Shape, taken: Shape) -> bool:
    """Compare shapes; lengths that are known while a model runs alone are trusted."""
    return len(given) == len(taken) and all(
        one == other
        for one, other in zip(given, taken, strict=True)
        if isinstance(one, int) and isinstance(other, int)
    )
