"""What an imported network is made of, in our order of axes: windows (time, channels).

Kernels are (width, channels, filters), depthwise ones (width, channels), dense ones (inputs,
outputs). Padding is "valid", "same" as TensorFlow pads, or zeros (before, after). Each part says
what it was called in its file, for messages.
"""

from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from vitalring.errors import ModelError

Array = npt.NDArray[np.float32]
Padding = Literal["valid", "same"] | tuple[int, int]


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution over time; `depthwise` has one filter for each channel."""

    called: str
    kernel: Array = field(repr=False)
    bias: Array | None = field(repr=False)
    stride: int
    padding: Padding
    depthwise: bool = False
    relu: bool = False


@dataclass(frozen=True, eq=False)
class Dense:
    """A matrix and a bias."""

    called: str
    kernel: Array = field(repr=False)
    bias: Array | None = field(repr=False)
    relu: bool = False


@dataclass(frozen=True)
class Pool:
    """The largest or mean sample of slices of time; width 0 is all of it."""

    called: str
    largest: bool
    width: int = 0
    stride: int = 1
    padding: Padding = "valid"


@dataclass(frozen=True)
class Flatten:
    """Time and channels in a row; `channels_first` if all of the first channel comes first."""

    called: str
    channels_first: bool = False


@dataclass(frozen=True)
class Relu:
    """Nothing below 0."""

    called: str


@dataclass(frozen=True, eq=False)
class Normalise:
    """(a - mean)/√(variance + epsilon) · scale + shift, for each channel or feature."""

    called: str
    mean: Array = field(repr=False)
    variance: Array = field(repr=False)
    epsilon: float
    scale: Array = field(repr=False)
    shift: Array = field(repr=False)


@dataclass(frozen=True, eq=False)
class GroupNormalise:
    """Mean 0 and variance 1 over time and a group of channels, then scale and shift by channel."""

    called: str
    groups: int
    epsilon: float
    scale: Array = field(repr=False)
    shift: Array = field(repr=False)


Part: TypeAlias = Convolution | Dense | Pool | Flatten | Relu | Normalise | GroupNormalise


@dataclass(frozen=True)
class Imported:
    """A network as its file describes it; its last part gives the logits."""

    input_shape: tuple[int, ...]
    parts: tuple[Part, ...]


def affine(called: str, scale: Array, shift: Array) -> Normalise:
    """Return a · scale + shift."""
    zeros = np.zeros_like(scale)
    return Normalise(called, zeros, np.ones_like(scale), 0.0, scale, shift)


def folded(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Join each normalisation and relu to the product right before it, where there is one.

    Statistics are frozen, so γ/σ · (W·a + b - μ) + β is one product with other weights.
    """
    out: list[Part] = []
    for part in parts:
        last = out[-1] if out else None
        if isinstance(last, Convolution | Dense) and not last.relu:
            if isinstance(part, Relu):
                out[-1] = replace(last, relu=True)
                continue
            if isinstance(part, Normalise):
                factor = part.scale / np.sqrt(part.variance.astype(np.float64) + part.epsilon)
                bias = -part.mean if last.bias is None else last.bias - part.mean
                out[-1] = replace(
                    last,
                    kernel=(last.kernel * factor).astype(np.float32),
                    bias=(bias * factor + part.shift).astype(np.float32),
                )
                continue
        out.append(part)
    return tuple(out)


def refused(file_kind: str, called: str, kind: str, complaint: str, cure: str) -> ModelError:
    """Return the error that names a node or layer, its type, what is wrong and what to do."""
    return ModelError(f"{file_kind} {called!r} of type {kind} {complaint}; {cure}")
