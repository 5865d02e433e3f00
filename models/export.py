"""A trained model as files that others run: TFLite float, TFLite int8, ONNX. No TensorFlow here.

An artefact's export table says what the network computes (`inference_graph`); the writers make
each format of it and the weights. A device makes its int8 model so, from the artefact that it was
given and verified weights. The tests compare the outcome with the training graph, and with what
TensorFlow's converter makes of the same weights.
"""

from collections.abc import Mapping
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from vitalring.errors import ModelError
from vitalring.models.artefact import Artefact
from vitalring.models.inference_graph import InferenceGraph, ranges_after, resized
from vitalring.models.sizing import Sizing
from vitalring.models.write_onnx import write_onnx
from vitalring.models.write_tflite import write_tflite

Weights = npt.NDArray[np.float32]


def export(artefact: Artefact, weights: Weights) -> Mapping[str, bytes]:
    """Return `model.tflite`, `model-int8.tflite` and `model.onnx` with these weights.

    Each takes windows (the ONNX one any number, the others one at a time) and gives class
    probabilities; the int8 model's input and output are int8, with scales in the file.

    Raises:
        ModelError: the artefact has no export table, or the weights do not fit.
    """
    graph = export_graph(artefact)
    check_weights(graph, weights)
    return {
        "model.tflite": write_tflite(graph, weights, int8=False),
        "model-int8.tflite": int8_model(artefact, weights),
        "model.onnx": write_onnx(graph, weights),
    }


def int8_model(artefact: Artefact, weights: Weights) -> bytes:
    """Return the int8 model with weights (dimension,), from the artefact's companions alone.

    Raises:
        ModelError: the artefact has no export table, the network no range for its input, or the
            weights do not fit.
    """
    graph = export_graph(artefact)
    check_weights(graph, weights)
    if 0 not in ranges_after(graph):
        raise ModelError(
            f"{graph.name} does not begin with a quantise layer, so there is no int8 input; put "
            "one first and build the artefact again"
        )
    return write_tflite(graph, weights, int8=True)


def export_graph(artefact: Artefact) -> InferenceGraph:
    """Return what the artefact's export table says, checked against the artefact.

    Raises:
        ModelError: there is none, or it is of another network.
    """
    info = artefact.info
    if not info.export:
        raise ModelError(f"artefact {info.name!r} names no export table; build it again")
    graph = InferenceGraph.from_json(artefact.companion(info.export))
    stated = (info.input_shape, len(info.classes), info.dimension)
    found = (graph.input_shape, graph.classes, graph.dimension)
    if stated != found:
        raise ModelError(
            f"artefact {info.name!r}: its export table is for input, classes and parameters "
            f"{found}, not {stated}; build the artefact again"
        )
    return graph


def export_table_at(
    reference: Artefact, sizing: Sizing, input_shape: tuple[int, ...], classes: int
) -> bytes:
    """Return the export table of a sizeable network for another size than its reference.

    Raises:
        ModelError: the network does not fit the size, or is not as its sizing says.
    """
    sizes = (size for size, _ in reference.info.blocks)
    starts = [0, *accumulate(sizes)][:-1]
    shapes = sizing.shapes(reference.info.name, input_shape, classes)
    blocks = dict(zip(starts, shapes, strict=True))
    return resized(export_graph(reference), blocks, input_shape, classes).to_json()


def check_weights(graph: InferenceGraph, weights: Weights) -> None:
    """Raise ModelError unless the weights are (dimension,) float32 and finite."""
    if weights.shape != (graph.dimension,) or weights.dtype != np.float32:
        raise ModelError(
            f"weights have shape {weights.shape} and type {weights.dtype}; {graph.name} has "
            f"({graph.dimension},) of float32"
        )
    if not np.isfinite(weights).all():
        raise ModelError("weights hold a value that is not finite; take those of another round")
