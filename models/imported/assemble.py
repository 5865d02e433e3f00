"""From parts to a trainable network: layers, activation ranges, weights to start from.

Ranges are fixed here, for good: those of training must not depend on the batch. They are taken
from what the network does with given windows, or, where there are none, as the shipped networks
have them, which asks for inputs within ±4.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from vitalring.errors import ModelError
from vitalring.models import layers
from vitalring.models.artefact import Artefact
from vitalring.models.convert import build_artefact
from vitalring.models.imported.parts import (
    Array,
    Convolution,
    Dense,
    Flatten,
    GroupNormalise,
    Imported,
    Normalise,
    Part,
    Pool,
    Relu,
    folded,
)
from vitalring.models.layers import Layer
from vitalring.models.network import Network
from vitalring.models.trace import trace

INPUT_RANGE = 4.0
RANGE = 8.0
MARGIN = 1.25  # of a range, above the largest activation that the given windows caused
PHYSICAL_BATCH = 64


@dataclass(frozen=True)
class Assembled:
    """A network, the weights (dimension,) that it came with, and the ranges that were chosen."""

    network: Network
    weights: Array = field(repr=False)
    ranges: tuple[tuple[str, float], ...]
    """What each range follows, and its limit."""

    def artefact(self) -> Artefact:
        """Return the trainable artefact, which starts from these weights."""
        start = self.weights.astype("<f4").tobytes()
        return build_artefact(self.network, start, trace(self.network).to_json())


@dataclass(frozen=True)
class _Piece:
    """A layer, its own weights, and whether a range follows it and has two sides."""

    layer: Layer
    weights: Array = field(repr=False)
    ranged: bool
    signed: bool


def assemble(
    imported: Imported,
    name: str,
    classes: tuple[str, ...],
    *,
    train: str = "all",
    quantised: bool = True,
    windows: npt.NDArray[np.float32] | None = None,
) -> Assembled:
    """Return the network of an imported file.

    `train` is "all", or "head": then only the last dense layer is trained and all below it stays.
    `windows` (n, *input_shape) are to find activation ranges with.

    Raises:
        ModelError: the parts do not end in one logit for each class, do not fit each other, or
            the windows do not fit the network.
    """
    parts = folded(imported.parts)
    last = parts[-1] if parts else None
    if not isinstance(last, Dense) or last.relu:
        raise ModelError(
            f"{name} ends in {_called(last)}, not in a dense layer that gives one logit for each "
            "class; let it end so, with a softmax or without"
        )
    if last.kernel.shape[1] != len(classes):
        raise ModelError(
            f"{name} has {last.kernel.shape[1]} outputs, but {len(classes)} classes are named: "
            f"{', '.join(classes)}; name one for each output with --classes"
        )
    pieces = _pieces(imported.input_shape, parts)
    limits = _calibrated(imported.input_shape, pieces, windows)
    below = [layers.quantise(imported.input_shape, limits[0], signed=True)]
    ranges = [("the input", limits[0])]
    for part, piece, limit in zip(parts[:-1], pieces[:-1], limits[1:], strict=True):
        below.append(piece.layer)
        if piece.ranged:
            below.append(layers.quantise(piece.layer.out_shape, limit, signed=piece.signed))
            ranges.append((part.called, limit))
    weights = [piece.weights for piece in pieces]
    if train == "head":
        trunk = layers.chain(*below)
        below, weights = [layers.frozen(trunk, np.concatenate(weights[:-1]))], weights[-1:]
    layer = layers.chain(*below, pieces[-1].layer)
    network = Network(name, classes, layer, PHYSICAL_BATCH, quantised)
    return Assembled(network, np.concatenate(weights), tuple(ranges))


def outputs(imported: Imported) -> int:
    """Return how many classes a network tells apart, as `assemble` will ask for."""
    last = imported.parts[-1] if imported.parts else None
    return last.kernel.shape[1] if isinstance(last, Dense) else 2


def _pieces(input_shape: tuple[int, ...], parts: Sequence[Part]) -> list[_Piece]:
    pieces: list[_Piece] = []
    shape, order, signed = input_shape, None, True
    for part in parts:
        try:
            if isinstance(part, Flatten) and part.channels_first:
                # Our flatten goes through time first: number i of ours is number order[i] there.
                order = np.arange(np.prod(shape)).reshape(shape[::-1]).T.reshape(-1)
            moved = _reordered(part, order)
            if isinstance(part, Dense):
                order = None
            piece = _piece(shape, moved, signed)
        except (ModelError, ValueError, IndexError) as error:
            raise ModelError(
                f"{_called(part)} does not fit input shape {shape}: {error}; check the network, "
                "or give its input shape with --input"
            ) from error
        pieces.append(piece)
        shape, signed = piece.layer.out_shape, piece.signed
    return pieces


def _piece(shape: tuple[int, ...], part: Part, signed: bool) -> _Piece:
    """Return a part as a layer on inputs of `shape`, which may be below 0 if `signed`."""
    if isinstance(part, Convolution):
        make = layers.depthwise_conv1d if part.depthwise else layers.conv1d
        filters = () if part.depthwise else (part.kernel.shape[2],)
        if part.kernel.shape[1] != shape[1]:
            raise ModelError(f"its kernel takes {part.kernel.shape[1]} channels")
        layer = make(
            shape,
            *filters,
            width=part.kernel.shape[0],
            stride=part.stride,
            padding=part.padding,
            relu=part.relu,
            bias=part.bias is not None,
        )
        return _Piece(layer, _flat(part.kernel, part.bias), True, not part.relu)
    if isinstance(part, Dense):
        if part.kernel.shape[:1] != shape:
            raise ModelError(f"its kernel takes {part.kernel.shape[0]} inputs")
        bias = part.bias is not None
        layer = layers.dense(shape, part.kernel.shape[1], relu=part.relu, bias=bias)
        return _Piece(layer, _flat(part.kernel, part.bias), True, not part.relu)
    if isinstance(part, GroupNormalise):
        layer = layers.group_norm(shape, part.groups, epsilon=part.epsilon)
        return _Piece(layer, _flat(part.scale - 1, part.shift), True, True)
    if isinstance(part, Normalise):
        layer = layers.channel_affine(shape, part.mean, part.variance, epsilon=part.epsilon)
        return _Piece(layer, _flat(part.scale, part.shift), True, True)
    ranged = isinstance(part, Relu) or _mean(part)
    return _Piece(_plain(shape, part), _flat(), ranged, signed and not isinstance(part, Relu))


def _plain(shape: tuple[int, ...], part: Pool | Flatten | Relu) -> Layer:
    if isinstance(part, Relu):
        return layers.relu(shape)
    if isinstance(part, Flatten):
        return layers.flatten(shape)
    if part.width == 0:
        return (layers.global_max_pool if part.largest else layers.global_average_pool)(shape)
    make = layers.max_pool if part.largest else layers.average_pool
    return make(shape, width=part.width, stride=part.stride, padding=part.padding)


def _mean(part: Part) -> bool:
    """Whether a part takes a mean over all of time, which is smaller than what it is taken of."""
    return isinstance(part, Pool) and not part.largest and part.width == 0


def _reordered(part: Part, order: npt.NDArray[np.int64] | None) -> Part:
    """Return a part that works on features in our order of a flattened window."""
    if order is None:
        return part
    if isinstance(part, Dense):
        return replace(part, kernel=part.kernel[order])
    if isinstance(part, Normalise):
        names = ("mean", "variance", "scale", "shift")
        return replace(part, **{name: getattr(part, name)[order] for name in names})
    return part


def _calibrated(
    input_shape: tuple[int, ...], pieces: list[_Piece], windows: npt.NDArray[np.float32] | None
) -> list[float]:
    """Return the limit of the input's range, then of each piece's but the last, used or not."""
    if windows is None:
        return [INPUT_RANGE] + [RANGE] * (len(pieces) - 1)
    if windows.ndim < 2 or windows.shape[1:] != input_shape or not len(windows):
        raise ModelError(
            f"windows to calibrate with have shape {windows.shape}, the network takes (n, "
            f"{', '.join(map(str, input_shape))}); choose data of this shape"
        )
    a = tf.constant(windows, tf.float32)
    limits = [_limit(a)]
    for piece in pieces[:-1]:
        a, _ = piece.layer.forward(a, tf.constant(piece.weights), False)
        limits.append(_limit(a))
    return limits


def _limit(a: layers.Tensor) -> float:
    """Return a range that all but one in 10,000 of the numbers lie well within, not below 1/16."""
    largest = float(np.quantile(np.abs(np.asarray(a)), 0.9999)) * MARGIN
    if not np.isfinite(largest):
        raise ModelError(
            "the network gives numbers that are not finite for the windows to calibrate with; "
            "check the windows and the network's weights"
        )
    # Two significant bits are enough, and steps are then whole in binary.
    exponent = np.floor(np.log2(max(largest, 1 / 16))) - 2
    return float(np.ceil(max(largest, 1 / 16) / 2**exponent) * 2**exponent)


def _flat(*arrays: Array | None) -> Array:
    parts = [np.reshape(one, -1).astype(np.float32) for one in arrays if one is not None]
    return np.concatenate([np.empty(0, np.float32), *parts])


def _called(part: Part | None) -> str:
    if part is None:
        return "nothing"
    return f"{part.called!r} ({type(part).__name__.lower()})"
