"""`vitalring bench inference`: a trained model as a device runs it, beside its training graph.

Accuracy on held-out rows, size, and the time of one window, in this interpreter's TFLite runtime
and in that of any other interpreter.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from vitalring.aggregator.evaluate import final_rows
from vitalring.errors import ConfigError
from vitalring.files import read_file, write_atomic
from vitalring.models.artefact import Artefact
from vitalring.models.catalogue import find_artefact
from vitalring.models.dataset import FeatureSchema, input_shape, load_dataset
from vitalring.models.export import export
from vitalring.models.metrics import accuracy, confusion_matrix, macro_f1
from vitalring.protocol.weights import unpack_weights
from vitalring.tools.bench.child import require_modules, run_child
from vitalring.tools.bench.machine import in_words
from vitalring.tools.bench.table import Table, markdown, print_tables

_MODELS = ("training", "float", "int8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--model", required=True, help="name or artefact of the network")
    parser.add_argument(
        "--weights",
        type=Path,
        required=True,
        help="trained weights: simulate's weights.bin",
    )
    parser.add_argument("--features", type=Path, help="agreed feature schema of a table, as JSON")
    parser.add_argument(
        "--python",
        metavar="PYTHON",
        action="append",
        default=[],
        help="another interpreter with vitalring and another TFLite runtime; may be repeated",
    )
    parser.add_argument("--out", type=Path, help="folder for the results as JSON and Markdown")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    features = None
    if options.features is not None:
        features = FeatureSchema.from_json(read_file(options.features))
    info = load_dataset(options.data)
    artefact = find_artefact(options.model, input_shape(options.data, info, features), info.classes)
    weights = unpack_weights(read_file(options.weights), artefact.info.dimension)
    rows = final_rows(options.data, features)
    result = measure_inference(artefact, weights, rows.x, rows.y, [sys.executable, *options.python])
    result |= {"dataset": info.name, "devices": len(rows.devices)}
    facts, tables = inference_facts(result), inference_tables(result)
    print_tables(facts, tables, Console())
    if options.out is not None:
        # Where the files lie is one machine's business.
        command = f"vitalring bench inference --data DATA --model {artefact.info.name} --weights W"
        text = markdown("Inference", command, facts, tables)
        content = json.dumps({"command": command, **result}, indent=2) + "\n"
        write_atomic(options.out / "inference.md", text.encode())
        write_atomic(options.out / "inference.json", content.encode())
    return 0


def measure_inference(
    artefact: Artefact,
    weights: npt.NDArray[np.float32],
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.int64],
    pythons: list[str],
) -> dict[str, Any]:
    """Return accuracy, size and time of the exported models on held-out rows x (n, ...), y (n,).

    Each interpreter measures in a process of its own. Raises ConfigError where one cannot.
    """
    files = export(artefact, weights)
    runtimes = []
    for python in pythons:
        require_modules(python, ["vitalring", "numpy"])
        with tempfile.TemporaryDirectory() as folder:
            arrays = Path(folder) / "arrays.npz"
            np.savez(
                arrays,
                x=x,
                weights=weights,
                info=_bytes(artefact.info.to_json()),
                training=_bytes(artefact.model),
                float=_bytes(files["model.tflite"]),
                int8=_bytes(files["model-int8.tflite"]),
            )
            found = run_child("inference_process", {"arrays": str(arrays)}, python=python)
        reference = np.asarray(found["models"]["training"]["labels"])
        for model in found["models"].values():
            labels = np.asarray(model.pop("labels"))
            model.update(_scores(y, labels, reference, artefact))
        runtimes.append(found)
    return {
        "model": artefact.info.name,
        "windows": len(y),
        "windows_bytes": x.nbytes,
        "runtimes": runtimes,
    }


def inference_facts(result: dict[str, Any]) -> list[str]:
    """Return what was measured, and on what."""
    facts = [
        f"{result['model']} on {result['windows']:,} held-out rows of {result['devices']} devices "
        f"of {result['dataset']}."
    ]
    for found in result["runtimes"]:
        facts.append(f"{found['runtime']}: {in_words(found['machine'])}")
        facts.append(
            f"{found['runtime']}: a process with the int8 model alone peaks at "
            f"{found['peak_bytes'] / 1e6:.0f} MB, {result['windows_bytes'] / 1e6:.0f} MB of them "
            "the rows."
        )
    return facts


def inference_tables(result: dict[str, Any]) -> list[Table]:
    """Return one table for each runtime."""
    return [_table(found) for found in result["runtimes"]]


def _table(found: dict[str, Any]) -> Table:
    best = found["models"]["training"]["accuracy"]
    rows = []
    for name in _MODELS:
        model = found["models"][name]
        rows.append(
            (
                name,
                f"{model['accuracy']:.4f}",
                f"{100 * (model['accuracy'] - best):+.2f}",
                f"{model['macro_f1']:.4f}",
                f"{model['agreement']:.4f}",
                f"{model['bytes'] / 1000:.1f}",
                f"{model['seconds']['median'] * 1000:.3f}",
                f"{model['seconds']['high'] * 1000:.3f}",
            )
        )
    titles = ("Model", "Accuracy", "Points", "Macro-F1", "Agrees", "kB", "ms", "95 % ms")
    notes = (
        "training: the graph that devices train; float and int8: model.tflite and "
        "model-int8.tflite.",
        "Points: accuracy less that of the training graph, in percent. Agrees: share of rows with "
        "the training graph's class.",
        "ms: median time of one window on one thread, once warm, and the time that 95 % stay "
        "below; the training graph's is that of a batch.",
    )
    return Table(f"Inference of one window, {found['runtime']}", titles, tuple(rows), notes)


def check_close(result: dict[str, Any], points: float = 1.0) -> None:
    """Raise ConfigError where an int8 model is more than `points` percent less accurate."""
    for found in result["runtimes"]:
        models = found["models"]
        lost = 100 * (models["training"]["accuracy"] - models["int8"]["accuracy"])
        if lost > points:
            raise ConfigError(
                f"{found['runtime']}: the int8 model loses {lost:.2f} points of accuracy, more "
                f"than {points:g}; widen the ranges of the network's quantise layers"
            )


def _bytes(data: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)


def _scores(
    y: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    reference: npt.NDArray[np.int64],
    artefact: Artefact,
) -> dict[str, float]:
    confusion = confusion_matrix(y, labels, len(artefact.info.classes))
    return {
        "accuracy": accuracy(confusion),
        "macro_f1": macro_f1(confusion),
        "agreement": float(np.mean(labels == reference)),
    }
