"""`vitalring model explain`: what a trained model hangs on, on held-out records."""

import argparse
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress

from vitalring.errors import ConfigError, DataError
from vitalring.files import read_file, write_atomic
from vitalring.models.artefact import Artefact
from vitalring.models.catalogue import find_artefact
from vitalring.models.dataset import DatasetInfo, FeatureSchema, input_shape, load_dataset
from vitalring.protocol.weights import unpack_weights
from vitalring.tools.data.folder import need_free
from vitalring.tools.model_sources import find_trained
from vitalring.tools.simulate.apart import ApartError, run_apart
from vitalring.tools.simulate.layout import SHIPPED_DATA

_Model = tuple[Artefact, npt.NDArray[np.float32], FeatureSchema | None, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.add_argument(
        "model",
        metavar="RUN_OR_MODEL",
        help="output folder of a simulation, a log's folder or an aggregator.toml; or, with "
        "--weights, a network's name, .json file or folder",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        default=SHIPPED_DATA,
        help="data set whose held-out records are explained; default: the one shipped",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        default=Path("vitalring-explain"),
        help="new or empty folder for page, pictures and figures; default: vitalring-explain",
    )
    parser.add_argument(
        "--records",
        type=int,
        metavar="N",
        help="held-out records at most: windows of each class, default 100; rows of a table, "
        "default 2000",
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights.bin of a network")
    parser.add_argument(
        "--features", type=Path, metavar="FILE", help="features.json that goes with the weights"
    )
    parser.add_argument(
        "--patch", type=float, metavar="SECONDS", help="length of what is hidden of a window"
    )
    parser.add_argument(
        "--channels",
        nargs="+",
        default=(),
        metavar="NAME:UNIT",
        help="what the windows' channels are called, instead of what dataset.toml says, as "
        "ECG:mV; mV is drawn on millimetre paper",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    # Other commands on models are not to wait until a drawing library is loaded.
    from vitalring.tools.explain.api import Options, explain  # noqa: PLC0415
    from vitalring.tools.explain.page import render_page  # noqa: PLC0415

    if options.records is not None and options.records < 1:
        raise ConfigError(f"--records {options.records} explains nothing: use 1 or more")
    need_free(options.out)
    folder: Path = options.data.absolute()
    info = load_dataset(folder)
    artefact, weights, features, origin = _find(options, folder, info)
    if artefact.info.classes != info.classes:
        raise DataError(
            f"the model tells {', '.join(artefact.info.classes)} apart, the data set in {folder} "
            f"has {', '.join(info.classes)}: name the data that it was trained for with --data"
        )
    wanted = Options(options.records, options.patch, tuple(options.channels))
    log_file = options.out / "explain.log"
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    try:
        with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
            task = bar.add_task("explaining", total=1.0)
            found = run_apart(
                explain,
                (folder, info, features, artefact, weights, wanted),
                log_file,
                lambda share: bar.update(task, completed=share),
            )
    except ApartError:
        raise  # and says that the log tells more
    except BaseException:
        # The same command with other options must find its folder free.
        log_file.unlink(missing_ok=True)
        with suppress(OSError):
            options.out.rmdir()
        raise
    log_file.unlink(missing_ok=True)
    print(f"{artefact.info.name}, {origin}; held-out records of {info.name}")
    figures: list[dict[str, Any]] = []
    for number, one in enumerate(found, 1):
        name = f"explain-{number}.svg"
        write_atomic(options.out / name, one.svg.encode())
        figures.append({"title": one.title, "text": one.text, "svg": name, **one.figures})
        print(f"{options.out / name}  {one.title}")
    about = {"model": artefact.info.name, "origin": origin, "dataset": info.name}
    table = json.dumps({**about, "explanations": figures}, indent=2, allow_nan=False)
    write_atomic(options.out / "explain.json", f"{table}\n".encode())
    write_atomic(options.out / "explain.html", render_page(about, found).encode())
    print(f"{options.out / 'explain.html'}")
    return 0


def _find(options: argparse.Namespace, folder: Path, info: DatasetInfo) -> _Model:
    """Return the network, its weights, its features and where they are from."""
    features = read_file(options.features) if options.features else b""
    if options.weights is None:
        path = Path(options.model)
        if not path.exists():
            raise ConfigError(
                f"{options.model} is no folder of a run; a network needs its --weights too"
            )
        trained = find_trained(path)
        schema = _schema(trained.features or features)
        return trained.artefact, trained.weights, schema, f"round {trained.round}, {trained.origin}"
    schema = _schema(features)
    shape = input_shape(folder, info, schema)
    artefact = find_artefact(options.model, shape, info.classes)
    weights = unpack_weights(read_file(options.weights), artefact.info.dimension)
    return artefact, weights, schema, f"weights of {options.weights}"


def _schema(features: bytes) -> FeatureSchema | None:
    return FeatureSchema.from_json(features) if features else None
