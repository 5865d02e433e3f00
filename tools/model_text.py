"""What there is to say of a network or a model file, as lines of text."""

import hashlib
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path

from vitalring.errors import ModelError, VitalRingError
from vitalring.models.artefact import EXPORT_FILE, Artefact, initial_weights
from vitalring.models.export import export, export_graph
from vitalring.models.graph_node import Node
from vitalring.models.inference_graph import InferenceGraph
from vitalring.models.sizing import Sizing
from vitalring.models.tflite_model import TensorInfo, read_signatures
from vitalring.tools.model_check import Check, check_model


def shape_text(shape: tuple[int | str, ...]) -> str:
    """Return a shape as --input takes it."""
    return "x".join(str(length) for length in shape)


def input_text(artefact: Artefact, sizing: Sizing | None) -> str:
    """Return what a network takes: lengths, or names where any will do."""
    return " x ".join(sizing.axes) if sizing else shape_text(artefact.info.input_shape)


def artefact_lines(artefact: Artefact, sizing: Sizing | None, path: Path) -> Iterator[str]:
    """Say all about an artefact whose training model lies at `path`."""
    info = artefact.info
    yield _line("name", info.name)
    yield _line("input", input_text(artefact, sizing))
    yield _line("classes", f"{len(info.classes)}: {', '.join(info.classes)}")
    if sizing:
        yield _line("size", "any; what follows is at its reference size")
    yield _line("parameters", f"{info.dimension:,}, the last {info.head:,} of them the head")
    yield _line("batch", f"up to {info.physical_batch} records at once")
    yield _line("digest", artefact.digest.hex())
    yield _line("start", f"given weights {info.initial}" if info.initial else "from a study's seed")
    yield _line("training model", f"{len(artefact.model):,} bytes, SHA-256 {info.sha256}")
    yield from _signatures(artefact.model)
    window = (info.physical_batch, *info.input_shape)
    scores = (info.physical_batch, len(info.classes))
    shapes = {"w": (info.dimension,), "x": window, "y": scores}
    yield from _check(path, shapes)
    yield from _layers(artefact)
    yield from _exports(artefact)


def file_lines(path: Path, model: bytes) -> Iterator[str]:
    """Say all about a TFLite file."""
    yield _line("file", f"{path}, {len(model):,} bytes")
    yield _line("digest", hashlib.sha256(model).hexdigest())
    yield from _signatures(model)
    yield from _check(path, {})


def graph_rows(graph: InferenceGraph) -> list[tuple[str, str, str, str]]:
    """Return for each operation: what it is, its result's shape, its weights, its int8 range."""
    rows: list[tuple[str, str, str, str]] = []
    shapes = graph.shapes()
    for place, node in enumerate(graph.nodes):
        places = [
            f"{weight.start}..{weight.start + weight.size - 1}"
            for weight in node.weights
            if weight.start >= 0
        ]
        fixed = sum(weight.size for weight in node.weights if weight.start < 0)
        if fixed and node.op != "range":
            places.append(f"{fixed} constants")
        shape = shape_text(shapes[place + 1])
        if node.op == "range" and rows:
            name, gives, places_of, _ = rows[-1]
            rows[-1] = (name, gives, places_of, f"{node.low:g}..{node.high:g}")
        elif node.op == "range":
            rows.append(("input", shape, "", f"{node.low:g}..{node.high:g}"))
        else:
            rows.append((_operation_text(node), shape, " ".join(places), ""))
    return rows


def _operation_text(node: Node) -> str:
    words = [node.op.replace("_", " ")]
    if node.op in ("conv", "depthwise", "max_pool", "average_pool"):
        words.append(f"width {node.width} stride {node.stride}")
        words += ["same"] if node.same else []
    return " ".join([*words, "relu"] if node.relu else words)


def _layers(artefact: Artefact) -> Iterator[str]:
    try:
        graph = export_graph(artefact)
    except ModelError:
        sizes = [size for size, _ in artefact.info.blocks]
        starts = accumulate(sizes, initial=0)
        for start, (size, limit) in zip(starts, artefact.info.blocks, strict=False):
            yield _line("weights", f"{start}..{start + size - 1}, at first within ±{limit:g}")
        return
    yield "layers"
    rows = [("", "gives", "weights", "int8 range"), *graph_rows(graph)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"  {'  '.join(cells)}".rstrip()


def _exports(artefact: Artefact) -> Iterator[str]:
    if not artefact.info.export:
        yield _line("exports", f"none: there is no {artefact.info.name}{EXPORT_FILE}")
        return
    try:
        files = export(artefact, initial_weights(artefact, b""))
    except VitalRingError as error:
        yield _line("exports", f"none: {error}")
        return
    sizes = (f"{name} {len(content):,} bytes" for name, content in files.items())
    yield _line("exports", ", ".join(sizes))


def _signatures(model: bytes) -> Iterator[str]:
    for one in read_signatures(model):
        given, made = (", ".join(map(_tensor, side)) for side in (one.inputs, one.outputs))
        yield _line(one.name, f"({given}) -> {made}")
        yield _line("", _counts(one.operations))


def _tensor(tensor: TensorInfo) -> str:
    shape = shape_text(tuple("?" if n < 0 else n for n in tensor.shape)) or "1"
    kind = "" if tensor.kind == "float32" else f" {tensor.kind}"
    if tensor.quant:
        low = (-128 - tensor.quant.zero) * tensor.quant.scale
        kind += f" from {low:g} in steps of {tensor.quant.scale:g}"
    return f"{tensor.name} {shape}{kind}"


def _counts(operations: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in operations.items())


def _check(path: Path, shapes: dict[str, tuple[int, ...]]) -> Iterator[str]:
    try:
        check: Check = check_model(path, shapes)
    except VitalRingError as error:
        yield _line("runtime", f"FAILED: {error}")
        return
    ran = (f"{run.signature} in {run.seconds * 1000:.2f} ms" for run in check.runs)
    yield _line("runtime", f"{check.runtime} runs {', '.join(ran)}")


def _line(name: str, text: str) -> str:
    return f"{name:<15} {text}".rstrip()
