"""ONNX nodes that work on each number: relu, sums and products with constants, normalisation."""

from dataclasses import replace
from typing import Any

import numpy as np

from vitalring.models.imported.onnx_chain import CURE, Chain, called, settings_of
from vitalring.models.imported.parts import (
    Array,
    Convolution,
    Dense,
    GroupNormalise,
    Normalise,
    Relu,
    affine,
)


def relu(chain: Chain, node: Any) -> None:  # noqa: ANN401
    """Read Relu."""
    chain.parts.append(Relu(called(node)))


def clip(chain: Chain, node: Any) -> None:  # noqa: ANN401
    """Read Clip from 0 on, which is a relu."""
    settings = settings_of(node)
    bounds = [settings.get("min"), settings.get("max")]
    for place in (1, 2):
        if len(node.input) > place and node.input[place]:
            bounds[place - 1] = float(chain.constants[node.input[place]])
    if bounds[0] != 0 or (bounds[1] is not None and bounds[1] < 3e38):
        chain.refuse(node, f"cuts off at {bounds[0]} and {bounds[1]}", "use a plain relu")
    relu(chain, node)


def softmax(chain: Chain, node: Any) -> None:  # noqa: ANN401
    """Read the Softmax over the classes, which ends the network."""
    axis = settings_of(node).get("axis", -1) % len(chain.axes)
    if [one.name for one in chain.axes] != ["n", "f"] or axis != 1:
        chain.refuse(node, "is not over the classes", "put it at the end, over the classes")
    chain.ended = called(node)


def arithmetic(chain: Chain, node: Any) -> None:  # noqa: ANN401
    """Read a sum or product with one number for each channel."""
    place = 0 if node.input[0] in chain.constants else 1
    if place == 0 and node.op_type in ("Sub", "Div"):
        chain.refuse(node, "takes the value from a constant", "scale and shift it instead")
    values = chain.constants[node.input[place]].astype(np.float32)
    numbers = _by_channel(chain, node, values)
    last = chain.parts[-1] if chain.parts else None
    if node.op_type in ("Add", "Sub"):
        shift = numbers if node.op_type == "Add" else -numbers
        if isinstance(last, Convolution | Dense) and last.bias is None:
            chain.parts[-1] = replace(last, bias=shift)
            return
        part = affine(called(node), np.ones_like(numbers), shift)
        if isinstance(last, GroupNormalise):
            chain.parts[-1] = replace(last, shift=last.shift + shift)
            return
    else:
        scale = numbers if node.op_type == "Mul" else 1 / numbers
        if isinstance(last, GroupNormalise):
            chain.parts[-1] = replace(last, scale=last.scale * scale, shift=last.shift * scale)
            return
        part = affine(called(node), scale, np.zeros_like(numbers))
    chain.parts.append(part)


def _by_channel(chain: Chain, node: Any, values: Array) -> Array:  # noqa: ANN401
    """Return the numbers of a constant that differs along the channels alone."""
    shape = (1,) * (len(chain.axes) - values.ndim) + values.shape
    long = [place for place, length in enumerate(shape) if length > 1]
    cure = "give one number for each channel"
    if len(shape) > len(chain.axes) or len(long) > 1:
        chain.refuse(node, f"has a constant of shape {values.shape}", cure)
    if long and chain.axes[long[0]].name != "f" and not chain.named(long[0], "c"):
        chain.refuse(node, "differs along another axis than the channels", cure)
    names = [axis.name for axis in chain.axes]
    place = next((i for i, name in enumerate(names) if name in ("c", "f")), None)
    if place is None:
        chain.refuse(node, "comes before anything shows which axis is time", "convolve first")
    return np.broadcast_to(values.reshape(-1), (chain.axes[place].length,)).copy()


def batch_normalisation(chain: Chain, node: Any) -> None:  # noqa: ANN401
    """Read BatchNormalization; its statistics are frozen."""
    if not (chain.named(1, "c") or chain.axes[1].name == "f"):
        chain.refuse(node, f"works on axes {[axis.name for axis in chain.axes]}", CURE)
    scale, shift, mean, variance = (chain.weights(node, place) for place in range(1, 5))
    epsilon = float(settings_of(node).get("epsilon", 1e-5))
    chain.parts.append(Normalise(called(node), mean, variance, epsilon, scale, shift))


def group_normalisation(chain: Chain, node: Any) -> None:  # noqa: ANN401
    """Read InstanceNormalization, of channels or groups of them, or GroupNormalization."""
    epsilon = float(settings_of(node).get("epsilon", 1e-5))
    scale, shift = chain.weights(node, 1), chain.weights(node, 2)
    axes = chain.ungrouped or chain.axes
    if axes is chain.axes and not chain.named(1, "c"):
        chain.refuse(node, f"works on axes {[axis.name for axis in chain.axes]}", CURE)
    channels = axes[1].length
    groups = int(settings_of(node).get("num_groups", chain.axes[1].length))
    if len(scale) == groups != channels:  # one scale for each group
        scale, shift = (np.repeat(a, channels // groups) for a in (scale, shift))
    chain.parts.append(GroupNormalise(called(node), groups, epsilon, scale, shift))


def layer_normalisation(chain: Chain, node: Any) -> None:  # noqa: ANN401
    """Over time and channels together it is a group normalisation of one group."""
    axis = settings_of(node).get("axis", -1) % len(chain.axes)
    scale = chain.weights(node, 1)
    shift = chain.weights(node, 2) if len(node.input) > 2 else np.zeros_like(scale)
    names = [one.name for one in chain.axes]
    whole = axis == 1 and len(names) == 3 and chain.named(1, "t" if names[1] in "at" else "c")
    if not whole:
        chain.refuse(
            node,
            f"normalises {names[axis:]} of {names}",
            "normalise time and channels together, or by groups of channels",
        )
    place = [one.name for one in chain.axes].index("c") - 1
    pair: list[Array] = []
    for values in (scale, shift):
        by_channel = np.broadcast_to(values, [one.length for one in chain.axes[1:]])
        first = by_channel.take(0, 1 - place)
        if not np.array_equal(by_channel, np.broadcast_to(
            np.expand_dims(first, 1 - place), by_channel.shape
        )):  # fmt: skip
            chain.refuse(node, "scales each sample apart", "scale each channel alone")
        pair.append(np.asarray(first))
    epsilon = float(settings_of(node).get("epsilon", 1e-5))
    chain.parts.append(GroupNormalise(called(node), 1, epsilon, *pair))
