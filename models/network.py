"""A network's loss, its clipped gradient, and the signatures that a device runs.

Signatures are stateless: weights go in as a flat float32 vector and nothing is kept between
calls. So no call can leave weights of another round behind.

A sizeable network has a function for its layer in place of fixed lengths. Its signatures are
traced once with unknown lengths: those of the input are read from x, and the number of classes
from the length of w, which grows by the same number of weights for each class.

DP-SGD's clip (Abadi et al. 2016): gradient_sum = Σ_b mask_b · min(1, clip/‖g_b‖) · g_b, in which an
example whose ‖g_b‖ is no number, or beyond 10¹⁸, weighs 0. Masked rows are replaced by zeros before
the forward pass, for NaN · 0 is NaN.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import tensorflow as tf

from vitalring.models.layers import Layer, Shape, Size, Tensor
from vitalring.models.sizing import first_limits

LONGEST: Final = 1e18
"""Norm of a gradient that is clipped. Squares of longer ones soon leave float32."""


@dataclass(frozen=True)
class Network:
    """An architecture: `layer` gives logits (B, classes).

    Arrays go in `physical_batch` rows at a time. `quantised`: the forward pass is that of int8.
    `sized(in_shape, classes)` gives the layer for other lengths, if the network is sizeable.
    """

    name: str
    classes: tuple[str, ...]
    layer: Layer
    physical_batch: int
    quantised: bool = True
    sized: Callable[[Shape, Size], Layer] | None = None

    @property
    def first_blocks(self) -> tuple[tuple[int, float], ...]:
        """Size of each run of weights, and the bound that they are at first uniform within."""
        limits = first_limits([block.shape for block in self.layer.blocks])
        return tuple(
            (block.size, limit) for block, limit in zip(self.layer.blocks, limits, strict=True)
        )

    @property
    def head(self) -> int:
        """How many weights, from the last kernel on, make the last dense layer."""
        blocks = self.layer.blocks
        last = max(place for place, block in enumerate(blocks) if len(block.shape) > 1)
        return sum(block.size for block in blocks[last:])


def log_softmax(logits: Tensor) -> Tensor:
    """Return log-probabilities (B, classes), stable for large logits."""
    shifted = logits - tf.reduce_max(logits, -1, keepdims=True)
    return shifted - tf.math.log(tf.reduce_sum(tf.exp(shifted), -1, keepdims=True))


def clipped_gradient_sum(
    network: Network, w: Tensor, x: Tensor, y: Tensor, mask: Tensor, clip: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return Σ of clipped gradients (d,), Σ of losses (), and norms before clipping (B,).

    w (d,), x (B, *input), y one-hot (B, classes), mask 0/1 (B,), clip (): all float32.
    The loss is the cross-entropy of each example. One whose norm is no number, or beyond LONGEST,
    weighs 0; if its gradient is not finite, neither is the sum.
    """
    keep = mask > 0.0
    x = tf.where(tf.reshape(keep, [-1] + [1] * len(network.layer.in_shape)), x, 0.0)
    logits, cache = network.layer.forward(x, w, network.quantised)
    log_probs = log_softmax(logits)
    below = network.layer.backward(tf.exp(log_probs) - y, cache)
    norms = tf.sqrt(below.squared_norm)
    # NaN compares false, where minimum and maximum would make a weight of 1 of it. Infinity may
    # come as the largest number, or as the root of that: some runtimes' operations are bounded.
    known = keep & (below.squared_norm >= 0.0) & (below.squared_norm <= LONGEST**2)
    weight = tf.where(known, tf.minimum(1.0, clip / tf.maximum(norms, 1e-12)), 0.0)
    losses = tf.reduce_sum(-tf.reduce_sum(y * log_probs, -1) * tf.cast(keep, tf.float32))
    return network.layer.gradient(below.tape, weight), losses, norms


def probabilities(network: Network, w: Tensor, x: Tensor) -> Tensor:
    """Return the class probabilities (B, classes)."""
    logits, _ = network.layer.forward(x, w, network.quantised)
    return tf.exp(log_softmax(logits))


def signatures(network: Network) -> dict[str, Tensor]:
    """Return the concrete functions `grads` and `infer` at the physical batch size.

    grads(w, x, y, mask, clip) -> grad_sum (d,), loss_sum (), norms (B,)
    infer(w, x) -> probs (B, classes)
    """

    def grads(w: Tensor, x: Tensor, y: Tensor, mask: Tensor, clip: Tensor) -> dict[str, Tensor]:
        fitted = _fitted(network, w, x)
        grad_sum, loss_sum, norms = clipped_gradient_sum(fitted, w, x, y, mask, clip)
        return {"grad_sum": grad_sum, "loss_sum": loss_sum, "norms": norms}

    def infer(w: Tensor, x: Tensor) -> dict[str, Tensor]:
        return {"probs": probabilities(_fitted(network, w, x), w, x)}

    batch, fixed = network.physical_batch, network.sized is None
    shape = network.layer.in_shape
    w = _spec("w", network.layer.dimension if fixed else None)
    x = _spec("x", batch, *(shape if fixed else [None] * len(shape)))
    y = _spec("y", batch, len(network.classes) if fixed else None)
    return {
        "grads": _concrete(grads, w, x, y, _spec("mask", batch), _spec("clip")),
        "infer": _concrete(infer, w, x),
    }


def _fitted(network: Network, w: Tensor, x: Tensor) -> Network:
    """Return the network at the lengths that w and x have while a model runs."""
    if network.sized is None:
        return network
    shape = tuple(tf.shape(x)[axis + 1] for axis in range(len(network.layer.in_shape)))
    none, one = (network.sized(shape, classes).dimension for classes in (0, 1))
    return replace(network, layer=network.sized(shape, (tf.size(w) - none) // (one - none)))


def _spec(name: str, *shape: int | None) -> Tensor:
    return tf.TensorSpec(shape, tf.float32, name=name)


def _concrete(function: Callable[..., dict[str, Tensor]], *specs: Tensor) -> Tensor:
    return tf.function(function, input_signature=specs).get_concrete_function()
