"""ONNX nodes with kernels, and pools."""

from typing import Any

import numpy as np

from vitalring.models.imported.onnx_chain import CURE, ONE, Axis, Chain, called, settings_of
from vitalring.models.imported.parts import Array, Convolution, Dense, Pool


def conv(chain: Chain, node: Any) -> None:  # noqa: ANN401
    """Read Conv over time, with one group or one for each channel."""
    at = chain.time(node)
    settings = settings_of(node)
    kernel = chain.weights(node, 1)
    spatial = kernel.shape[2:]
    width = spatial[at]
    if np.prod(spatial) != width:
        chain.refuse(
            node,
            f"has a kernel of {' x '.join(map(str, spatial))}",
            "two-dimensional convolutions cannot be imported: use one-dimensional ones",
        )
    if any(n != 1 for n in settings.get("dilations", [])):
        chain.refuse(node, "is dilated", "use a stride, or more layers, instead")
    group, channels = settings.get("group", 1), chain.axes[1].length
    turned = kernel.reshape(kernel.shape[0], kernel.shape[1], width).transpose(2, 1, 0)
    if group not in (1, channels) or (group > 1 and kernel.shape[0] != channels):
        chain.refuse(node, f"has {group} groups", "use one group, or one filter for each channel")
    depthwise = group > 1
    stride, padding = chain.windows(node, at, width)
    bias = chain.weights(node, 2) if len(node.input) > 2 and node.input[2] else None
    chain.parts.append(
        Convolution(
            called(node),
            turned[:, 0] if depthwise else turned,
            bias,
            stride,
            padding,
            depthwise,
        )
    )
    chain.shorten(at, width, stride, padding)
    chain.axes[1] = Axis("c", kernel.shape[0])


def gemm(chain: Chain, node: Any) -> None:  # noqa: ANN401
    """Read Gemm as a dense layer."""
    settings = settings_of(node)
    if settings.get("transA") or settings.get("alpha", 1.0) != 1.0:
        chain.refuse(node, "turns or scales its input", "export the layer as it is")
    kernel = chain.weights(node, 1)
    kernel = kernel.T if settings.get("transB") else kernel
    bias = None
    if len(node.input) > 2 and node.input[2]:
        bias = chain.weights(node, 2).reshape(-1) * np.float32(settings.get("beta", 1.0))
        bias = np.broadcast_to(bias, kernel.shape[1:])
    _dense(chain, node, kernel, bias)


def matmul(chain: Chain, node: Any) -> None:  # noqa: ANN401
    """Read MatMul as a dense layer without a bias, which may follow."""
    if node.input[0] in chain.constants:
        chain.refuse(node, "multiplies from the left", "put the weights on the right")
    _dense(chain, node, chain.weights(node, 1), None)


def _dense(chain: Chain, node: Any, kernel: Array, bias: Array | None) -> None:  # noqa: ANN401
    if kernel.ndim != 2 or chain.axes[-1].length != kernel.shape[0]:
        chain.refuse(
            node, f"has weights {kernel.shape} for {[axis.length for axis in chain.axes]}", CURE
        )
    if len(chain.axes) == 3 and chain.named(2, "c"):
        # The same product at every sample is a convolution of width 1.
        chain.parts.append(Convolution(called(node), kernel[None], bias, 1, "valid"))
        chain.axes[2] = Axis("c", kernel.shape[1])
        return
    if [axis.name for axis in chain.axes] != ["n", "f"]:
        chain.refuse(node, f"works on axes {[axis.name for axis in chain.axes]}", "flatten first")
    chain.parts.append(Dense(called(node), kernel, bias))
    chain.axes[1] = Axis("f", kernel.shape[1])


def pool(chain: Chain, node: Any) -> None:  # noqa: ANN401
    """Read MaxPool and AveragePool."""
    at = chain.time(node)
    settings = settings_of(node)
    width = settings["kernel_shape"][at]
    largest = node.op_type == "MaxPool"
    if np.prod(settings["kernel_shape"]) != width:
        chain.refuse(
            node,
            f"takes {' x '.join(map(str, settings['kernel_shape']))}",
            "only pools over time can be imported",
        )
    if settings.get("ceil_mode") or any(n != 1 for n in settings.get("dilations", [])):
        chain.refuse(node, "has ceil_mode or dilations", "use a plain pool")
    stride, padding = chain.windows(node, at, width)
    if not largest and padding not in ("valid", "same"):
        chain.refuse(node, f"pads by {padding}", "use no padding, or same")
    if not largest and padding == "same" and settings.get("count_include_pad"):
        chain.refuse(node, "counts its padding", "set count_include_pad to 0")
    chain.parts.append(Pool(called(node), largest, width, stride, padding))
    chain.shorten(at, width, stride, padding)


def global_pool(chain: Chain, node: Any) -> None:  # noqa: ANN401
    """Read GlobalMaxPool and GlobalAveragePool."""
    at = chain.time(node)
    chain.parts.append(Pool(called(node), node.op_type == "GlobalMaxPool"))
    chain.axes[2 + at] = Axis(ONE, 1)


def reduce(chain: Chain, node: Any) -> None:  # noqa: ANN401
    """Read ReduceMean and ReduceMax over time."""
    axes = {axis % len(chain.axes) for axis in chain.given_axes(node)}
    long = {axis for axis in axes if chain.axes[axis].name != ONE}
    if len(long) != 1 or not chain.named(min(long), "t"):
        chain.refuse(node, "takes a mean over something else than time", "pool over time")
    chain.parts.append(Pool(called(node), node.op_type == "ReduceMax"))
    keep = settings_of(node).get("keepdims", 1)
    chain.axes = [
        Axis(ONE, 1) if place in axes else axis
        for place, axis in enumerate(chain.axes)
        if keep or place not in axes
    ]
    chain.settle()
