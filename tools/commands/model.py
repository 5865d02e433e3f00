"""`vitalring model`: networks, their files, and trained models for others to run."""

import argparse
import importlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from vitalring.errors import ConfigError, ModelError, VitalRingError
from vitalring.files import read_file, write_atomic
from vitalring.models import dataset
from vitalring.models.artefact import (
    EXPORT_FILE,
    INITIAL_FILE,
    SHIPPED,
    Artefact,
    load_artefact,
    read_artefact,
    shipped_names,
)
from vitalring.models.catalogue import read_sizing, sized
from vitalring.models.export import export
from vitalring.models.sizing import Sizing
from vitalring.tools.explain import command as explain_command
from vitalring.tools.model_sources import find_trained
from vitalring.tools.model_text import artefact_lines, file_lines, input_text

_NAME = "[a-z][a-z0-9_]{0,63}"
_CALIBRATION_ROWS = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    actions = parser.add_subparsers(dest="action", required=True)

    build = actions.add_parser(
        "build", help="build a network of the project, at any size if it is sizeable"
    )
    build.add_argument("name", help="such as cnn1d_small; `vitalring model list` names all")
    _add_shape(build)
    _add_out(build)

    actions.add_parser("list", help="list the networks that come with the project")

    inspect = actions.add_parser("inspect", help="say all about a network or a model file")
    inspect.add_argument(
        "model", help="name of a network, its .json file or folder, or any .tflite file"
    )

    out = actions.add_parser("export", help="write a trained model for TFLite and ONNX runtimes")
    out.add_argument(
        "source",
        type=Path,
        help="a simulation's folder, a log's folder, or a running service's aggregator.toml",
    )
    out.add_argument(
        "--authority",
        metavar="HEX",
        help="the authority's public key, to check a log with; default: the one in its folder",
    )
    _add_out(out)

    imported = actions.add_parser(
        "import", help="make a trainable network of an ONNX or Keras file"
    )
    imported.add_argument("file", type=Path, help="a .onnx, .keras or .h5 file")
    imported.add_argument("--name", help="of the network; default: that of the file")
    _add_shape(imported)
    imported.add_argument(
        "--train",
        choices=("all", "head"),
        default="all",
        help="train all weights, or the last dense layer on a frozen trunk; default: all",
    )
    imported.add_argument(
        "--calibrate",
        type=Path,
        metavar="DATA",
        help="data set to find the ranges of activations with; default: inputs within 4",
    )
    arithmetic = imported.add_mutually_exclusive_group()
    arithmetic.add_argument(
        "--quantised",
        action="store_true",
        default=True,
        help="train with the arithmetic of the int8 model (the default)",
    )
    arithmetic.add_argument(
        "--float", dest="quantised", action="store_false", help="train in float32"
    )
    _add_out(imported)

    explain = actions.add_parser(
        "explain", help="show what a trained model hangs on, on held-out records"
    )
    explain_command.add_arguments(explain)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    actions = {
        "build": _build,
        "list": _list,
        "inspect": _inspect,
        "export": _export,
        "import": _import,
        "explain": explain_command.run,
    }
    actions[options.action](options)
    return 0


def _add_shape(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input", metavar="TxC", help="shape of a record: time x channels, or the inputs of a row"
    )
    parser.add_argument("--classes", metavar="A,B,...", help="names of the classes, in order")


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where files go")


def _build(options: argparse.Namespace) -> None:
    shape, classes = _shape(options.input), _classes(options.classes)
    registry = _builder("vitalring.models.registry")
    convert = _builder("vitalring.models.convert")
    trace = _builder("vitalring.models.trace")
    network = registry.build(options.name)
    if network.sized is None and shape not in (None, network.layer.in_shape):
        raise ModelError(
            f"{options.name} takes input {network.layer.in_shape} alone, not {shape}; choose a "
            "network that `vitalring model list` shows with names for lengths"
        )
    if network.sized is None and classes and len(classes) != len(network.classes):
        raise ModelError(
            f"{options.name} tells {len(network.classes)} classes apart, but {len(classes)} are "
            "named; name as many, or choose another network"
        )
    with _quietly():
        artefact = convert.build_artefact(network, export=trace.trace(network).to_json())
    sizing = convert.sizing_of(network) if network.sized else None
    if sizing and (shape or classes):
        artefact = sized(
            artefact, sizing, shape or artefact.info.input_shape, classes or artefact.info.classes
        )
        sizing = None
    elif classes:
        artefact = replace(artefact, info=replace(artefact.info, classes=classes))
    _write(artefact, sizing, options.out)


def _list(_options: argparse.Namespace) -> None:
    table = Table("network", "input", "classes", "parameters", "bytes", "int8 bytes")
    for name in shipped_names():
        artefact, sizing = load_artefact(name), read_sizing(SHIPPED, name)
        info = artefact.info
        weights = np.zeros(info.dimension, np.float32)
        table.add_row(
            name,
            input_text(artefact, sizing),
            "any" if sizing else str(len(info.classes)),
            f"{info.dimension:,}" + (f" at {_at(artefact)}" if sizing else ""),
            f"{len(artefact.model):,}",
            f"{len(export(artefact, weights)['model-int8.tflite']):,}",
        )
    Console().print(table)


def _at(artefact: Artefact) -> str:
    shape = "x".join(map(str, artefact.info.input_shape))
    return f"{shape}, {len(artefact.info.classes)}"


def _inspect(options: argparse.Namespace) -> None:
    path = Path(options.model)
    if path.suffix == ".tflite":
        lines = file_lines(path, read_file(path))
    else:
        folder, name = _place(options.model)
        model = Path(str(folder / f"{name}.tflite"))
        lines = artefact_lines(read_artefact(folder, name), read_sizing(folder, name), model)
    for line in lines:
        print(line)


def _place(model: str) -> tuple[Path, str]:
    """Return the folder of a network's files, and its name there."""
    if model in shipped_names():
        return Path(str(SHIPPED)), model
    path = Path(model)
    if path.suffix == ".json" and path.is_file():
        return path.parent, path.stem
    names = sorted(one.stem for one in path.glob("*.tflite") if one.with_suffix(".json").is_file())
    if len(names) == 1:
        return path, names[0]
    raise ModelError(
        f"{model!r} is no network: name one of {', '.join(shipped_names())}, the .json file of "
        "one that was built, or a .tflite file"
    )


def _export(options: argparse.Namespace) -> None:
    key = _key(options.authority) if options.authority else None
    trained = find_trained(options.source, key)
    files = dict(export(trained.artefact, trained.weights))
    if trained.features:
        files["features.json"] = trained.features
    print(f"{trained.artefact.info.name} after round {trained.round}, from the {trained.origin}")
    for name, content in files.items():
        write_atomic(options.out / name, content)
        print(f"{options.out / name}  {len(content):,} bytes")


def _import(options: argparse.Namespace) -> None:
    file: Path = options.file
    readers = {
        ".onnx": ("onnx_graph", "read_onnx"),
        ".keras": ("keras_model", "read_keras"),
        ".h5": ("keras_model", "read_keras"),
    }
    if file.suffix not in readers:
        raise ConfigError(f"{file}: the file must end in {', '.join(readers)}")
    read_file(file)  # says so if it is not there
    name = options.name or re.sub("[^a-z0-9_]", "_", file.stem.lower())
    if re.fullmatch(_NAME, name) is None:
        raise ConfigError(f"{name!r} cannot be a network's name: give one with --name, such as net")
    data = _data(options.calibrate) if options.calibrate else None
    module, function = readers[file.suffix]
    reader = _builder(f"vitalring.models.imported.{module}")
    assembling = _builder("vitalring.models.imported.assemble")
    network = getattr(reader, function)(file, _shape(options.input))
    classes = _classes(options.classes) or (data[0] if data else None)
    if classes is None:
        classes = tuple(f"class_{number}" for number in range(assembling.outputs(network)))
    made = assembling.assemble(
        network,
        name,
        classes,
        train=options.train,
        quantised=options.quantised,
        windows=data[1] if data else None,
    )
    for called, limit in made.ranges:
        print(f"range ±{limit:g} after {called}")
    with _quietly():
        artefact = made.artefact()
    _write(artefact, None, options.out)


def _data(folder: Path) -> tuple[tuple[str, ...], npt.NDArray[np.float32]]:
    """Return a data set's classes, and some training rows of every device that trains."""
    info = dataset.load_dataset(folder)
    train, _ = dataset.devices(folder, info)
    each = -(-_CALIBRATION_ROWS // len(train))
    rows = []
    for name in train:
        x = dataset.load_part(folder, name, info, "train").x
        rows.append(x[np.unique(np.linspace(0, len(x) - 1, min(each, len(x))).astype(int))])
    return info.classes, np.concatenate(rows).astype(np.float32)


def _write(artefact: Artefact, sizing: Sizing | None, folder: Path) -> None:
    convert = _builder("vitalring.models.convert")
    convert.write_artefact(artefact, folder, sizing)
    info = artefact.info
    print(
        f"{info.name}: input {'x'.join(map(str, info.input_shape))}, {len(info.classes)} classes, "
        f"{info.dimension:,} parameters"
    )
    endings = [".json", ".tflite", EXPORT_FILE, INITIAL_FILE, "-sizing.json"]
    for path in (folder / f"{info.name}{ending}" for ending in endings):
        if path.is_file():
            print(f"{path}  {path.stat().st_size:,} bytes")
    print(f"train it with --model {folder / f'{info.name}.json'}")


def _builder(module: str) -> ModuleType:
    """Load a module that needs TensorFlow. Raises ModelError with the cure.

    At its start TensorFlow calls a missing graphics card an error; what goes wrong later is shown.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        with _quietly():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"building and importing networks needs {error.name}, which is not installed here: "
            "pip install 'vitalring[models]' under Python 3.11"
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what TensorFlow writes to standard error to ourselves, unless it fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except VitalRingError:
            raise
        except BaseException:
            said.seek(0)
            os.write(kept, said.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    if re.fullmatch(r"[1-9][0-9]{0,7}(x[1-9][0-9]{0,7})?", text) is None:
        raise ConfigError(f"--input {text}: write time x channels as 128x6, or inputs as 265")
    return tuple(int(length) for length in text.split("x"))


def _classes(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names: Sequence[str] = [name.strip() for name in text.split(",")]
    if len(names) < 2 or not all(names) or len(set(names)) != len(names):
        raise ConfigError(f"--classes {text}: name two or more different classes, as N,S,V")
    return tuple(names)


def _key(text: str) -> bytes:
    if re.fullmatch("[0-9a-f]{64}", text) is None:
        raise ConfigError("--authority: a public key is 64 hexadecimal digits")
    return bytes.fromhex(text)
