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
from vitalring.models.artefact import EXPORT_FILE, INITIAL_FILE, SIZING_FILE, Artefact, ArtefactInfo
from vitalring.models.layers import Tensor
from vitalring.models.network import Network, signatures
from vitalring.models.sizing import AXES, CLASSES, Sizing

_PROBES = ((1009, 1013, 1019), (1021, 1031, 1033))  # no layer has such a length of its own


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


def build_artefact(network: Network, initial: bytes = b"", export: bytes = b"") -> Artefact:
    """Return the training artefact of a network: its signatures, and what it says of itself.

    `initial` (little-endian float32) and `export` (an export table) become companions, if given.
    """
    model = to_tflite(signatures(network))
    info = ArtefactInfo(
        name=network.name,
        classes=network.classes,
        input_shape=network.layer.in_shape,
        physical_batch=network.physical_batch,
        dimension=network.layer.dimension,
        blocks=network.first_blocks,
        head=network.head,
        sha256=sha256(model).hexdigest(),
        initial=sha256(initial).hexdigest() if initial else "",
        export=sha256(export).hexdigest() if export else "",
    )
    return Artefact(info, model, tuple(each for each in (initial, export) if each))


def sizing_of(network: Network) -> Sizing:
    """Return how the weights of a sizeable network follow from its lengths.

    Found by building it at two sizes: a length that differs must be one of those given.

    Raises:
        ModelError: the network is not sizeable, or a block has a length of another kind.
    """
    if network.sized is None:
        raise ModelError(f"{network.name} has one size; it needs no sizing")
    axes = AXES[len(network.layer.in_shape)]
    sizes = [dict(zip((*axes, CLASSES), primes, strict=False)) for primes in _PROBES]
    probes = [
        network.sized(tuple(size[axis] for axis in axes), size[CLASSES]).blocks for size in sizes
    ]
    names = {tuple(size[name] for size in sizes): name for name in sizes[0]}
    blocks = []
    for one, other in zip(*probes, strict=True):
        lengths = []
        for pair in zip(one.shape, other.shape, strict=True):
            if pair[0] != pair[1] and pair not in names:
                raise ModelError(
                    f"{network.name}: a length of a block is {pair[0]} at {sizes[0]} and "
                    f"{pair[1]} at {sizes[1]}; only these lengths themselves may vary"
                )
            lengths.append(names.get(pair, str(pair[0])))
        blocks.append(tuple(lengths))
    return Sizing(axes, tuple(blocks))


def write_artefact(artefact: Artefact, folder: Path, sizing: Sizing | None = None) -> None:
    """Write `<name>.tflite`, `<name>.json`, and its companions and sizing if it has them."""
    folder.mkdir(parents=True, exist_ok=True)
    info, files = artefact.info, {".tflite": artefact.model, ".json": artefact.info.to_json()}
    if info.initial:
        files[INITIAL_FILE] = artefact.companion(info.initial)
    if info.export:
        files[EXPORT_FILE] = artefact.companion(info.export)
    if sizing:
        files[SIZING_FILE] = sizing.to_json()
    for ending, content in files.items():
        (folder / f"{info.name}{ending}").write_bytes(content)


def _refusal(text: str) -> str:
    found = re.search(r"(?:TF Select|Flex|Custom) ops: ([^\n]*)", text)
    if not found:
        return f"the network cannot be converted to TFLite: {text}"
    return (
        f"the network needs Flex operations, which TFLite runtimes on devices do not carry: "
        f"{found[1].strip()}. Write the pass by hand from built-in operations, as the layers of "
        "vitalring.models.layers do, instead of tf.GradientTape"
    )
