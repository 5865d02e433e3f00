"""A Keras file as parts. Needs TensorFlow.

A `.keras` or `.h5` file can hold Python code (a Lambda layer), which loading it would run. So the
file's own description is read first, and a layer that cannot be imported is refused before
anything is loaded.
"""

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import tensorflow as tf

from vitalring.errors import ModelError
from vitalring.models.imported.parts import (
    Array,
    Convolution,
    Dense,
    Flatten,
    GroupNormalise,
    Imported,
    Normalise,
    Padding,
    Part,
    Pool,
    Relu,
    affine,
    refused,
)

_CURE = (
    "use Dense, Conv1D, SeparableConv1D, DepthwiseConv1D, pooling of one dimension, Flatten, "
    "BatchNormalization, GroupNormalization, relu and a softmax at the end"
)
_CURES = {
    **dict.fromkeys(
        ("LSTM", "GRU", "SimpleRNN", "Bidirectional", "RNN", "ConvLSTM1D", "TimeDistributed"),
        "recurrent layers have no trainable form here: use Conv1D over time instead",
    ),
    **dict.fromkeys(
        ("MultiHeadAttention", "Attention", "AdditiveAttention", "Embedding"),
        "attention has no trainable form here: use Conv1D over time instead",
    ),
    **dict.fromkeys(
        ("Conv2D", "Conv3D", "MaxPooling2D", "AveragePooling2D", "DepthwiseConv2D"),
        "two-dimensional layers cannot be imported: use those of one dimension",
    ),
    **dict.fromkeys(
        ("Add", "Concatenate", "Multiply", "Average", "Maximum", "Subtract"),
        "networks that branch cannot be imported: use a chain of layers",
    ),
    "Lambda": "it holds Python code, which is not run: use the layer that it stands for",
}
_CONTAINERS = ("Sequential", "Functional", "Model")


def read_keras(path: Path, input_shape: tuple[int, ...] | None = None) -> Imported:
    """Return the network of a `.keras` or `.h5` file.

    `input_shape` is (time, channels) or (features,) where the file leaves a length open.

    Raises:
        ModelError: the file cannot be read, or a layer has no trainable form here; the message
            names the layer, its class and the cure.
    """
    _check_description(path)
    try:
        model = tf.keras.models.load_model(str(path), compile=False)
    except Exception as error:  # Keras raises errors of many kinds
        raise ModelError(f"{path} cannot be loaded by Keras: {error}") from error
    reader = _Reader()
    chain = _chain(model)
    shape = _input_shape(chain[0].input_shape, input_shape)
    for layer in chain:
        reader.read(layer)
    return Imported(shape, tuple(reader.parts))


def _check_description(path: Path) -> None:
    """Refuse layers by the file's own text, before Keras makes objects of it."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                text = archive.read("config.json")
        else:
            import h5py  # type: ignore[import-not-found] # noqa: PLC0415 - comes with TensorFlow

            with h5py.File(path, "r") as file:
                text = file.attrs["model_config"]
        described = json.loads(text)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"{path} is no Keras model with its layers ({error}); save it with model.save()"
        ) from error
    _check_layers(described, outermost=True)


def _check_layers(described: Any, *, outermost: bool) -> None:  # noqa: ANN401
    name, config = described.get("class_name"), described.get("config")
    if name not in _CONTAINERS or not isinstance(config, dict) or not outermost:
        called = config.get("name", "?") if isinstance(config, dict) else "?"
        if name in _CONTAINERS:
            raise refused(
                "Keras layer", called, name, "is a model inside a model", "put its layers in a row"
            )
        if name not in _READERS:
            raise refused(
                "Keras layer", called, str(name), "cannot be imported", _CURES.get(name, _CURE)
            )
        return
    for layer in config.get("layers", []):
        _check_layers(layer, outermost=False)


def _chain(model: Any) -> list[Any]:  # noqa: ANN401
    """Return the layers in order, each of which takes what the one before gave."""
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ModelError(
            f"the Keras model has {len(model.inputs)} inputs and {len(model.outputs)} outputs; a "
            "network of one input and one output can be imported"
        )
    chain = [layer for layer in model.layers if type(layer).__name__ != "InputLayer"]
    value = model.inputs[0]
    for layer in chain:
        if len(layer._inbound_nodes) > 1 or layer.input is not value:
            raise refused(
                "Keras layer",
                layer.name,
                type(layer).__name__,
                "does not follow on the layer before it",
                "networks that branch or share layers cannot be imported: use a chain of layers",
            )
        value = layer.output
    if value is not model.outputs[0]:
        raise ModelError("the Keras model's output is not its last layer's; end with that layer")
    return chain


def _input_shape(found: tuple[int | None, ...], wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    lengths = found[1:]
    if len(lengths) not in (1, 2):
        raise ModelError(
            f"the Keras model takes inputs of shape {found}; (batch, time, channels) or (batch, "
            "features) can be imported"
        )
    if wanted is not None and len(wanted) == len(lengths):
        lengths = tuple(w if f is None else f for f, w in zip(lengths, wanted, strict=True))
    if None in lengths:
        raise ModelError(
            f"the Keras model leaves lengths of its input open: {found}; give its shape with "
            "--input, such as 128x6"
        )
    return tuple(int(length) for length in lengths if length is not None)


class _Reader:
    """Goes through the layers and collects parts."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.ended = ""
        self.zeros: tuple[int, int] | None = None  # padding on its way to a convolution

    def read(self, layer: Any) -> None:  # noqa: ANN401
        if self.ended:
            self.refuse(layer, f"follows the softmax {self.ended!r}", "end with the softmax")
        if self.zeros and type(layer).__name__ != "Conv1D":
            self.refuse(layer, "follows a ZeroPadding1D", "pad right before a Conv1D")
        if getattr(layer, "data_format", "channels_last") != "channels_last":
            self.refuse(layer, "has channels first", "build the model with channels last")
        _READERS[type(layer).__name__](self, layer)

    def nothing(self, _layer: Any) -> None:  # noqa: ANN401
        """Stand for a layer that does nothing when a network is used."""

    def convolution(self, layer: Any) -> None:  # noqa: ANN401
        self._plain_windows(layer)
        kernel, bias = _pair(layer, layer.kernel)
        padding = self._padding(layer)
        if layer.groups != 1:
            self.refuse(layer, f"has {layer.groups} groups", "use one, or DepthwiseConv1D")
        stride = layer.strides[0]
        self.parts.append(Convolution(layer.name, kernel, bias, stride, padding))
        self._activation(layer)

    def depthwise(self, layer: Any) -> None:  # noqa: ANN401
        self._plain_windows(layer)
        kernel, bias = _pair(layer, layer.depthwise_kernel)
        self._one_filter(layer)
        padding = self._padding(layer)
        stride = layer.strides[0]
        self.parts.append(
            Convolution(layer.name, kernel[:, :, 0], bias, stride, padding, depthwise=True)
        )
        self._activation(layer)

    def separable(self, layer: Any) -> None:  # noqa: ANN401
        self._plain_windows(layer)
        self._one_filter(layer)
        across, bias = _pair(layer, layer.pointwise_kernel)
        each = layer.depthwise_kernel.numpy()[:, :, 0]
        padding, stride = self._padding(layer), layer.strides[0]
        self.parts.append(Convolution(layer.name, each, None, stride, padding, depthwise=True))
        self.parts.append(Convolution(layer.name, across, bias, 1, "valid"))
        self._activation(layer)

    def dense(self, layer: Any) -> None:  # noqa: ANN401
        kernel, bias = _pair(layer, layer.kernel)
        if len(layer.input_shape) == 3:  # the same product at every sample
            self.parts.append(Convolution(layer.name, kernel[None], bias, 1, "valid"))
        else:
            self.parts.append(Dense(layer.name, kernel, bias))
        self._activation(layer)

    def pool(self, layer: Any) -> None:  # noqa: ANN401
        largest = type(layer).__name__ == "MaxPooling1D"
        width, stride = layer.pool_size, layer.strides
        width, stride = (n[0] if isinstance(n, tuple | list) else n for n in (width, stride))
        padding: Padding = "same" if layer.padding == "same" else "valid"
        self.parts.append(Pool(layer.name, largest, int(width), int(stride), padding))

    def global_pool(self, layer: Any) -> None:  # noqa: ANN401
        if layer.keepdims:
            self.refuse(layer, "keeps the axis of time", "set keepdims to False")
        self.parts.append(Pool(layer.name, type(layer).__name__ == "GlobalMaxPooling1D"))

    def flatten(self, layer: Any) -> None:  # noqa: ANN401
        if len(layer.input_shape) == 3:
            self.parts.append(Flatten(layer.name))

    def zero_padding(self, layer: Any) -> None:  # noqa: ANN401
        before, after = layer.padding
        self.zeros = (int(before), int(after))

    def relu(self, layer: Any) -> None:  # noqa: ANN401
        if layer.max_value is not None or layer.negative_slope or layer.threshold:
            self.refuse(layer, "is no plain relu", "use one")
        self.parts.append(Relu(layer.name))

    def activation(self, layer: Any) -> None:  # noqa: ANN401
        self._activation(layer)

    def softmax(self, layer: Any) -> None:  # noqa: ANN401
        if layer.axis != -1 or len(layer.input_shape) != 2:
            self.refuse(layer, "is not over the classes", "put it at the end, over the classes")
        self.ended = layer.name

    def batch_normalisation(self, layer: Any) -> None:  # noqa: ANN401
        axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]
        if axis % len(layer.input_shape) != len(layer.input_shape) - 1:
            self.refuse(layer, f"normalises axis {axis}", "normalise the last axis")
        mean, variance = layer.moving_mean.numpy(), layer.moving_variance.numpy()
        scale, shift = _scale_and_shift(layer, len(mean))
        self.parts.append(Normalise(layer.name, mean, variance, float(layer.epsilon), scale, shift))

    def group_normalisation(self, layer: Any) -> None:  # noqa: ANN401
        channels = layer.input_shape[-1]
        if len(layer.input_shape) != 3 or layer.axis % 3 != 2:
            self.refuse(layer, f"normalises axis {layer.axis}", "use it on (time, channels)")
        groups = channels if layer.groups == -1 else layer.groups
        scale, shift = _scale_and_shift(layer, channels)
        self.parts.append(
            GroupNormalise(layer.name, int(groups), float(layer.epsilon), scale, shift)
        )

    def layer_normalisation(self, layer: Any) -> None:  # noqa: ANN401
        """Read one over time and channels together: a group normalisation of one group."""
        axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
        if len(layer.input_shape) != 3 or sorted(a % 3 for a in axes) != [1, 2]:
            self.refuse(layer, f"normalises axes {axes}", "use GroupNormalization, or axis=[1, 2]")
        pair = []
        for values, number in ((layer.gamma, 1.0), (layer.beta, 0.0)):
            own = np.full((1, layer.input_shape[-1]), number) if values is None else values.numpy()
            if not (own == own[:1]).all():
                self.refuse(layer, "scales each sample apart", "use GroupNormalization")
            pair.append(own[0].astype(np.float32))
        self.parts.append(GroupNormalise(layer.name, 1, float(layer.epsilon), *pair))

    def rescaling(self, layer: Any) -> None:  # noqa: ANN401
        channels = layer.input_shape[-1]
        pair = (
            np.broadcast_to(np.float32(one), (channels,)) for one in (layer.scale, layer.offset)
        )
        self.parts.append(affine(layer.name, *pair))

    # -- what they share

    def refuse(self, layer: Any, complaint: str, cure: str) -> NoReturn:  # noqa: ANN401
        raise refused("Keras layer", layer.name, type(layer).__name__, complaint, cure)

    def _activation(self, layer: Any) -> None:  # noqa: ANN401
        name = getattr(layer.activation, "__name__", str(layer.activation))
        if name == "relu":
            self.parts.append(Relu(layer.name))
        elif name == "softmax":
            if len(layer.output_shape) != 2:
                self.refuse(layer, "has a softmax inside", "put it at the end, over the classes")
            self.ended = layer.name
        elif name != "linear":
            self.refuse(
                layer,
                f"has the activation {name}",
                "use relu inside, and one output for each class with softmax at the end",
            )

    def _padding(self, layer: Any) -> Padding:  # noqa: ANN401
        zeros, self.zeros = self.zeros, None
        if layer.padding == "causal":
            return (layer.kernel_size[0] - 1 + sum((zeros or (0, 0))[:1]), (zeros or (0, 0))[1])
        if zeros and layer.padding == "same":
            self.refuse(layer, "pads what is padded already", "pad once")
        if zeros:
            return zeros
        return "same" if layer.padding == "same" else "valid"

    def _plain_windows(self, layer: Any) -> None:  # noqa: ANN401
        if any(n != 1 for n in layer.dilation_rate):
            self.refuse(layer, "is dilated", "use a stride, or more layers, instead")

    def _one_filter(self, layer: Any) -> None:  # noqa: ANN401
        if layer.depth_multiplier != 1:
            self.refuse(layer, f"has depth multiplier {layer.depth_multiplier}", "use 1")


_READERS: Mapping[str, Callable[[_Reader, Any], None]] = {
    "InputLayer": _Reader.nothing,
    "Dropout": _Reader.nothing,
    "SpatialDropout1D": _Reader.nothing,
    "GaussianNoise": _Reader.nothing,
    "GaussianDropout": _Reader.nothing,
    "Conv1D": _Reader.convolution,
    "DepthwiseConv1D": _Reader.depthwise,
    "SeparableConv1D": _Reader.separable,
    "Dense": _Reader.dense,
    "MaxPooling1D": _Reader.pool,
    "AveragePooling1D": _Reader.pool,
    "GlobalMaxPooling1D": _Reader.global_pool,
    "GlobalAveragePooling1D": _Reader.global_pool,
    "Flatten": _Reader.flatten,
    "ZeroPadding1D": _Reader.zero_padding,
    "ReLU": _Reader.relu,
    "Activation": _Reader.activation,
    "Softmax": _Reader.softmax,
    "BatchNormalization": _Reader.batch_normalisation,
    "GroupNormalization": _Reader.group_normalisation,
    "LayerNormalization": _Reader.layer_normalisation,
    "Rescaling": _Reader.rescaling,
}


def _pair(layer: Any, kernel: Any) -> tuple[Array, Array | None]:  # noqa: ANN401
    bias = layer.bias.numpy() if layer.use_bias else None
    return kernel.numpy(), bias


def _scale_and_shift(layer: Any, channels: int) -> tuple[Array, Array]:  # noqa: ANN401
    scale = np.ones(channels) if layer.gamma is None else layer.gamma.numpy()
    shift = np.zeros(channels) if layer.beta is None else layer.beta.numpy()
    return scale.astype(np.float32), shift.astype(np.float32)
