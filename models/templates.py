"""Inference models with placeholder weights, and where the weights lie in them. Needs TensorFlow.

The places are found, not computed: placeholder weights are random, so their bytes occur once.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import sha256
from itertools import permutations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from vitalring.errors import ModelError
from vitalring.models.convert import to_tflite
from vitalring.models.export import FORMATS, FloatSlot, Int8Slot, Template
from vitalring.models.layers import Tensor
from vitalring.models.network import Network

LOGIT_RANGE = 16.0  # of the int8 logits; e^-16 is nothing beside int8 probabilities
ONNX_OPSET = 13

Weights = npt.NDArray[np.float32]


def inference(network: Network, weights: Weights, *, quantised: bool, batch: int | None) -> Tensor:
    """Return the function x (batch, *input) -> probs, with the weights built in."""

    def infer(x: Tensor) -> dict[str, Tensor]:
        logits = network.layer.deploy(x, tf.constant(weights), quantised)
        if quantised:
            step = LOGIT_RANGE / 128
            logits = tf.quantization.fake_quant_with_min_max_args(
                logits, -LOGIT_RANGE, LOGIT_RANGE - step
            )
        return {"probs": tf.nn.softmax(logits)}

    spec = tf.TensorSpec((batch, *network.layer.in_shape), tf.float32, name="x")
    return tf.function(infer, input_signature=[spec])


def float_model(network: Network, weights: Weights) -> bytes:
    """Return TFLite: one window in float32, its class probabilities out."""
    function = inference(network, weights, quantised=False, batch=1)
    return to_tflite({"infer": function.get_concrete_function()})


def int8_model(network: Network, weights: Weights) -> bytes:
    """Return TFLite in int8 alone: one window in, its class probabilities out.

    Weights are rounded by the converter. Activation ranges are the network's own; the converter
    insists on windows to calibrate with, but finds every range already marked.
    """
    rng = np.random.default_rng(0)

    def windows() -> Iterator[list[npt.NDArray[np.float32]]]:
        for _ in range(4):
            yield [rng.normal(size=(1, *network.layer.in_shape)).astype(np.float32)]

    function = inference(network, weights, quantised=True, batch=1)
    return to_tflite({"infer": function.get_concrete_function()}, windows)


def onnx_model(network: Network, weights: Weights) -> bytes:
    """Return ONNX: any number of windows in float32, their class probabilities out."""
    import tf2onnx  # noqa: PLC0415

    function = inference(network, weights, quantised=False, batch=None)
    proto, _ = tf2onnx.convert.from_function(function, function.input_signature, opset=ONNX_OPSET)
    model: bytes = proto.SerializeToString(deterministic=True)
    return model


def build_templates(network: Network) -> dict[str, Template]:
    """Return the templates of a network by kind, as in `export.FORMATS`."""
    weights = _placeholder(network)
    dimension = network.layer.dimension
    models = {
        "float": float_model(network, weights),
        "int8": int8_model(network, weights),
        "onnx": onnx_model(network, weights),
    }
    return {
        kind: Template(
            network.name,
            dimension,
            model,
            _int8_slots(network, model)
            if kind == "int8"
            else _float_slots(network, model, weights),
        )
        for kind, model in models.items()
    }


def write_templates(network: Network, folder: Path) -> None:
    """Write the templates and `<name>-export.json`."""
    table: dict[str, object] = {"dimension": network.layer.dimension}
    for kind, template in build_templates(network).items():
        (folder / (network.name + FORMATS[kind])).write_bytes(template.model)
        table[kind] = {
            "sha256": sha256(template.model).hexdigest(),
            "slots": [asdict(slot) for slot in template.slots],
        }
    path = folder / f"{network.name}-export.json"
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def _placeholder(network: Network) -> Weights:
    rng = np.random.default_rng(20)
    parts = [
        rng.uniform(-1, 1, block.size) * (block.limit or 0.1) for block in network.layer.blocks
    ]
    weights: Weights = np.concatenate(parts).astype(np.float32)
    return weights


def _float_slots(network: Network, model: bytes, weights: Weights) -> tuple[FloatSlot, ...]:
    """Find every block, in whatever order of axes the format keeps it."""
    slots = []
    start = 0
    for block in network.layer.blocks:
        own = weights[start : start + block.size].reshape(block.shape)
        orders = list(permutations(range(own.ndim)))
        order = max(orders, key=lambda order: model.count(own.transpose(order).tobytes()))
        offset = _place(network, model, own.transpose(order).tobytes())
        slots.append(FloatSlot(offset, start, block.shape, order))
        start += block.size
    return tuple(slots)


def _int8_slots(network: Network, model: bytes) -> tuple[Int8Slot, ...]:
    """Find every kernel with its bias and the scales of both; layers keep their order."""
    loaded = tf.lite.Interpreter(
        model_content=model,
        experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    loaded.allocate_tensors()
    scales = {
        tensor["index"]: tensor["quantization_parameters"]["scales"]
        for tensor in loaded.get_tensor_details()
    }
    operations = [
        operation["inputs"]
        for operation in loaded._get_ops_details()  # the one way to operations in TF 2.15
        if operation["op_name"] in {"CONV_2D", "FULLY_CONNECTED"}
    ]

    def place(array: npt.NDArray[np.generic]) -> int:
        return _place(network, model, array.tobytes())

    slots = []
    start = 0
    for source, kernel, bias in operations:
        levels = loaded.get_tensor(kernel)
        outputs = len(levels)
        slots.append(
            Int8Slot(
                start=start,
                inputs=levels.size // outputs,
                outputs=outputs,
                scales=len(scales[kernel]),
                input_scale=float(scales[source][0]),
                kernel=place(levels),
                kernel_scales=place(scales[kernel]),
                bias=place(loaded.get_tensor(bias)) if bias >= 0 else None,
                bias_scales=place(scales[bias]) if bias >= 0 else None,
            )
        )
        start += levels.size + (outputs if bias >= 0 else 0)
    return tuple(slots)


def _place(network: Network, model: bytes, data: bytes) -> int:
    """Return the one offset of `data` in the model."""
    if model.count(data) != 1:
        raise ModelError(
            f"{network.name}: {len(data)} bytes of placeholder weights occur {model.count(data)} "
            "times in the built model, not once; give the layer weights or a bias"
        )
    return model.index(data)
