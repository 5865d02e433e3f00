"""Operations with weights as TFLite lays them out.

Source: TensorFlow Lite's "8-bit quantization specification": weights symmetric in steps of
max|w|/127, one scale for each filter of a convolution and one for a dense kernel; biases int32 in
steps of input scale · weight scale.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vitalring.models.flatbuffer import Scalar
from vitalring.models.graph_node import Array, Node, folded


def int8_levels(
    kernel: Array, axes: tuple[int, ...] | None
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float64]]:
    """Round as training does, symmetric, with one scale for all weights along `axes`.

    Returns levels in the kernel's shape, and scales with the axes kept.
    """
    largest = np.abs(kernel).max(axis=axes, keepdims=True)
    scales = np.maximum(largest, 1e-8).astype(np.float64) / 127
    return np.clip(np.rint(kernel / scales), -127, 127).astype(np.int8), scales


@dataclass(frozen=True)
class Form:
    """An operation with weights as TFLite lays it out.

    Weights along the axes `one_scale` share a scale, or all where it is None; scales lie along
    `axis`.
    """

    op: str
    operation: str
    kernel: Array
    bias: Array | None
    one_scale: tuple[int, ...] | None
    axis: int
    options: dict[int, Any] = field(repr=False)


def _conv(node: Node, weights: Array) -> Form:
    kernel, bias = _kernel_and_bias(node, weights)
    options = window_options(node) | _fused(3, node) | {4: Scalar("i", 1), 5: Scalar("i", 1)}
    turned = kernel.transpose(2, 0, 1)[:, None]
    return Form(node.op, "CONV_2D", turned, bias, (1, 2, 3), 0, options)


def _depthwise(node: Node, weights: Array) -> Form:
    """Of an affine operation too: it is a convolution of width 1, whose scales are exact."""
    kernel, bias = _kernel_and_bias(node, weights)
    laid = kernel.reshape(1, 1, -1, kernel.shape[-1])
    one = Scalar("i", 1)
    options = window_options(node) | _fused(4, node) | {3: one, 5: one, 6: one}
    return Form(node.op, "DEPTHWISE_CONV_2D", laid, bias, (0, 1, 2), 3, options)


def _dense(node: Node, weights: Array) -> Form:
    kernel, bias = folded(node, weights)
    return Form(node.op, "FULLY_CONNECTED", kernel.T, bias, None, 0, _fused(0, node))


FORMS: Mapping[str, Callable[[Node, Array], Form]] = {
    "conv": _conv,
    "depthwise": _depthwise,
    "affine": _depthwise,
    "dense": _dense,
}


def _kernel_and_bias(node: Node, weights: Array) -> tuple[Array, Array]:
    """Convolutions need a bias, if only of zeros."""
    kernel, bias = folded(node, weights)
    return kernel, np.zeros(kernel.shape[-1], np.float32) if bias is None else bias


def window_options(node: Node) -> dict[int, Any]:
    """Return padding (0 same, 1 valid) and strides; pools have them in the same places."""
    return {
        0: Scalar("b", 0 if node.same else 1),
        1: Scalar("i", node.stride),
        # Some kernels know equal strides alone; over the one row it makes no difference.
        2: Scalar("i", node.stride),
    }


def _fused(slot: int, node: Node) -> dict[int, Any]:
    return {slot: Scalar("b", int(node.relu))}
