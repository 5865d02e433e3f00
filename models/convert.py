"""From a network to TFLite and ONNX. Needs TensorFlow: `pip install vitalring[models]`.

`python -m vitalring.models.build FOLDER` builds what the project ships.
"""

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path

import tensorflow as tf

from vitalring.errors import ModelError
from vitalring.models.artefact import Artefact, ArtefactInfo
from vitalring.models.layers import Tensor
from vitalring.models.network import Network, signatures


def to_tflite(
    functions: Mapping[str, Tensor], calibration: Callable[[], Iterator[list[Tensor]]] | None = None
) -> bytes:
    """Return a TFLite model with one signature for each concrete function.

    With `calibration`, which yields inputs of the only function, everything becomes int8.

    Raises:
        ModelError: an operation is not built into TFLite; the message names all of them.
    """
    with tempfile.TemporaryDirectory() as folder:
        module = tf.Module()
        for name, function in functions.items():
            setattr(module, f"_{name}", function)
        tf.saved_model.save(module, folder, signatures=dict(functions))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, list(functions))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if calibration is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = calibration
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.int8
        try:
            model: bytes = converter.convert()
        except Exception as error:  # the converter's own class is not public
            raise ModelError(_refusal(str(error))) from error
    return model


def build_artefact(
    network: Network, companions: tuple[bytes, ...] = (), *, initial: str = "", export: str = ""
) -> Artefact:
    """Return the training artefact of a network: its signatures, and what it says of itself.

    `initial` and `export` are SHA-256, in hex, of companions of these kinds, or "".
    """
    model = to_tflite(signatures(network))
    info = ArtefactInfo(
        name=network.name,
        classes=network.classes,
        input_shape=network.layer.in_shape,
        physical_batch=network.physical_batch,
        dimension=network.layer.dimension,
        blocks=tuple((block.size, block.limit) for block in network.layer.blocks),
        head=network.head,
        sha256=sha256(model).hexdigest(),
        initial=initial,
        export=export,
    )
    return Artefact(info, model, companions)


def write_artefact(artefact: Artefact, folder: Path) -> None:
    """Write `<name>.tflite` and `<name>.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{artefact.info.name}.tflite").write_bytes(artefact.model)
    (folder / f"{artefact.info.name}.json").write_bytes(artefact.info.to_json())


def _refusal(text: str) -> str:
    found = re.search(r"(?:TF Select|Flex|Custom) ops: ([^\n]*)", text)
    if not found:
        return f"the network cannot be converted to TFLite: {text}"
    return (
        f"the network needs Flex operations, which TFLite runtimes on devices do not carry: "
        f"{found[1].strip()}. Write the pass by hand from built-in operations, as the layers of "
        "vitalring.models.layers do, instead of tf.GradientTape"
    )
