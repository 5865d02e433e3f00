"""`vitalring bench inference`: trained models as a device runs them, beside their training graphs.

Accuracy on held-out rows, size, time of one row, and memory, in this interpreter's TFLite runtime
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
from vitalring.errors import DataError
from vitalring.files import write_atomic
from vitalring.models.artefact import Artefact
from vitalring.models.dataset import FeatureSchema, input_shape, load_dataset
from vitalring.models.export import export
from vitalring.models.metrics import accuracy, confusion_matrix, macro_f1
from vitalring.tools.bench.inference_text import inference_facts, inference_tables
from vitalring.tools.measuring.child import require_modules, run_child
from vitalring.tools.measuring.table import markdown, print_tables
from vitalring.tools.model_sources import find_trained

# So few that they are next to nothing in the memory of the process that is measured.
_TIMED_ROWS = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.add_argument(
        "--run",
        dest="runs",
        nargs=2,
        type=Path,
        metavar=("RUN", "DATA"),
        action="append",
        required=True,
        help="a trained model (output folder of a simulation, a log's folder or an "
        "aggregator.toml) and the data set on whose held-out rows it is measured; may be repeated",
    )
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
    pythons = [sys.executable, *options.python]
    for python in pythons:
        require_modules(python, ["vitalring", "numpy"])
    networks = [_measure_run(source, data, pythons) for source, data in options.runs]
    # Where the files lie is one machine's business.
    command = "vitalring bench inference" + " --run RUN DATA" * len(networks)
    command += " --python PYTHON" * len(options.python)
    result = {"command": command, "networks": networks}
    facts, tables = inference_facts(result), inference_tables(result)
    print_tables(facts, tables, Console())
    if options.out is not None:
        text = markdown("Inference", command, facts, tables)
        write_atomic(options.out / "inference.md", text.encode())
        content = json.dumps(result, indent=2) + "\n"
        write_atomic(options.out / "inference.json", content.encode())
    return 0


def _measure_run(source: Path, data: Path, pythons: list[str]) -> dict[str, Any]:
    trained = find_trained(source)
    artefact = trained.artefact
    features = FeatureSchema.from_json(trained.features) if trained.features else None
    info = load_dataset(data)
    shape = input_shape(data, info, features)
    if (artefact.info.input_shape, artefact.info.classes) != (shape, info.classes):
        raise DataError(
            f"{data} has rows of shape {shape} and classes {', '.join(info.classes)}, the model in "
            f"{source} takes {artefact.info.input_shape} and tells "
            f"{', '.join(artefact.info.classes)}; name the data that it was trained for"
        )
    rows = final_rows(data, features)
    return {
        "round": trained.round,
        "origin": trained.origin,
        "dataset": info.name,
        "devices": len(rows.devices),
        **measure_inference(artefact, trained.weights, rows.x, rows.y, pythons),
    }


def measure_inference(
    artefact: Artefact,
    weights: npt.NDArray[np.float32],
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.int64],
    pythons: list[str],
) -> dict[str, Any]:
    """Return accuracy, size, time and memory of the exported models on rows x (n, ...), y (n,).

    Each interpreter measures in a process of its own. Raises ConfigError where one cannot.
    """
    files = export(artefact, weights)
    models = {
        "training": artefact.model,
        "float": files["model.tflite"],
        "int8": files["model-int8.tflite"],
    }
    runtimes = []
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder) / "arrays.npz"
        np.savez(
            arrays,
            x=x,
            timed=x[:: -(-len(x) // _TIMED_ROWS)],
            weights=weights,
            info=_bytes(artefact.info.to_json()),
            **{name: _bytes(model) for name, model in models.items()},
        )
        request = {"arrays": str(arrays), "classes": len(artefact.info.classes)}
        for python in pythons:
            found = run_child("inference_process", request, python=python)
            reference = np.asarray(found["models"]["training"]["labels"])
            for model in found["models"].values():
                labels = np.asarray(model.pop("labels"))
                model.update(_scores(y, labels, reference, artefact))
            runtimes.append(found)
    return {
        "model": artefact.info.name,
        "parameters": artefact.info.dimension,
        "rows": len(y),
        "bytes": {name: len(model) for name, model in models.items()},
        "runtimes": runtimes,
    }


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
