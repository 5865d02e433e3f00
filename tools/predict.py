"""`vitalring agent predict`: predict windows with the model that a device has in use."""

import argparse
import itertools
import json
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from vitalring.config import load_config
from vitalring.edge_agent import model_in_use
from vitalring.edge_agent.config import AgentConfig
from vitalring.edge_agent.inference import Int8Model
from vitalring.edge_agent.model_in_use import Loaded, ModelInUse, in_words
from vitalring.edge_agent.results import refusal, result
from vitalring.edge_agent.sensing.config import SensingConfig
from vitalring.edge_agent.sensing.records import newest_windows
from vitalring.errors import ConfigError, DataError
from vitalring.models.dataset import FeatureSchema, load_dataset, load_device

STANDARD_INPUT = "-"
_LATENCIES_KEPT = 100_000
_NEWEST = 1000
"""Of a live sensor, where no limit is given."""
_LINE_BYTES = 2**24


@dataclass(frozen=True, eq=False)
class _Window:
    """A window x to predict, which it is, and its label where somebody said."""

    place: dict[str, int]
    x: npt.NDArray[np.float32]
    label: int | None


class _Tally:
    """What is summed up at the end."""

    def __init__(self) -> None:
        self.predicted = self.refused = self.labelled = self.right = 0
        self.latencies_s: deque[float] = deque(maxlen=_LATENCIES_KEPT)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.add_argument("--config", type=Path, required=True, help="agent.toml of the device")
    parser.add_argument(
        "--input",
        metavar="FILE",
        help="windows instead of the device's own data or its sensor's newest windows: an .npz "
        "file with x, and y if you like; or - for standard input with one window a line, as JSON "
        "lists of numbers",
    )
    parser.add_argument("--limit", type=int, help="predict so many windows at most")
    parser.add_argument("--json", action="store_true", help="one JSON text a line")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"--limit {options.limit} predicts nothing: use 1 or more")
    config = load_config(AgentConfig, options.config)
    loaded = model_in_use.load(config.state_dir)
    if loaded is None:
        raise ConfigError(
            f"{config.state_dir} has no verified model yet: the agent keeps one as soon as it has "
            "verified the plan of a second round, or a study's final model"
        )
    about = loaded.about
    model = Int8Model(loaded.int8, about.input_shape, len(about.classes))
    tally = _Tally()
    if not options.json:
        print(f"{'window':>14}  {'class':<20} {'probability':>11} {'ms':>8}")
    windows = _windows(options.input, config, loaded, options.limit or _NEWEST)
    for window in itertools.islice(windows, options.limit):
        _predict(window, model, about, tally, options.json)
    if not tally.predicted + tally.refused:
        raise DataError("there was no window to predict")
    summary = _summary(about, tally)
    if options.json:
        print(json.dumps({"summary": summary}, ensure_ascii=False))
    else:
        print(_in_lines(summary))
    return 0


def _predict(
    window: _Window, model: Int8Model, about: ModelInUse, tally: _Tally, as_json: bool
) -> None:
    name = next(iter(window.place.values()))
    try:
        prediction = model.predict(window.x)
    except DataError as error:
        tally.refused += 1
        print(refusal(window.place, str(error)) if as_json else f"{name:>14}  refused: {error}")
        return
    tally.predicted += 1
    tally.latencies_s.append(prediction.latency_s)
    if window.label is not None:
        tally.labelled += 1
        tally.right += window.label == prediction.label
    if as_json:
        line = result(window.place, prediction, about)
    else:
        probability = float(prediction.probabilities[prediction.label])
        line = (
            f"{name:>14}  {about.classes[prediction.label]:<20} {probability:>11.3f} "
            f"{prediction.latency_s * 1000:>8.3f}"
        )
    # At once: whoever feeds a window through a pipe may wait for its line.
    print(line, flush=True)


def _windows(
    source: str | None, config: AgentConfig, loaded: Loaded, newest: int
) -> Iterator[_Window]:
    if source is None:
        if config.sensing is not None:
            return _of_sensor(config.sensing, config.state_dir, newest)
        return _of_device(config, loaded)
    if source == STANDARD_INPUT:
        return _of_lines(sys.stdin)
    return _of_file(Path(source), len(loaded.about.classes))


def _of_device(config: AgentConfig, loaded: Loaded) -> Iterator[_Window]:
    """Yield all rows of the device's data set, those it trains on among them."""
    folder, device = config.data_set
    info = load_dataset(folder)
    if info.classes != loaded.about.classes:
        raise DataError(
            f"the model tells {', '.join(loaded.about.classes)} apart, the data set in "
            f"{folder} has {', '.join(info.classes)}: use --input"
        )
    features = FeatureSchema.from_json(loaded.features) if loaded.features else None
    records = load_device(folder, device, info, features)
    for number, (x, y) in enumerate(zip(records.x, records.y, strict=True)):
        yield _Window({"window": number}, x, int(y))


def _of_sensor(sensing: SensingConfig, state_dir: Path, newest: int) -> Iterator[_Window]:
    """Yield the newest windows that a live sensor left in the device's buffer."""
    for window in newest_windows(sensing, state_dir, newest):
        yield _Window({"start_ms": window.start_ms}, window.x, None)


def _of_file(path: Path, classes: int) -> Iterator[_Window]:
    cure = "write it with numpy.savez(path, x=x), x of shape (windows, ...)"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            x = np.asarray(arrays["x"])
            y = np.asarray(arrays["y"]) if "y" in arrays else None
    # What the reader raises on a file that is none.
    except (OSError, ValueError, KeyError, EOFError, TypeError) as error:
        raise DataError(f"{path} cannot be read as .npz ({error}); {cure}") from error
    except Exception as error:  # zipfile and zlib have errors of their own
        raise DataError(f"{path} is not an intact .npz file ({error}); {cure}") from error
    if x.dtype.kind not in "iuf" or x.ndim < 2:
        raise DataError(f"{path}: x has shape {x.shape} and type {x.dtype}; {cure}")
    if y is not None and (
        y.shape != (len(x),) or y.dtype.kind not in "iu" or not ((y >= 0) & (y < classes)).all()
    ):
        raise DataError(
            f"{path}: y has shape {y.shape} and type {y.dtype}; it must be {len(x)} integers "
            f"below {classes}, or left out"
        )
    for number in range(len(x)):
        label = None if y is None else int(y[number])
        yield _Window({"window": number}, x[number].astype(np.float32), label)


def _of_lines(stream: TextIO) -> Iterator[_Window]:
    """Yield windows as they arrive: JSON lists, or objects with `x` and `start_ms`."""
    number = 0
    while line := stream.readline(_LINE_BYTES):
        number += 1
        if not line.strip():
            continue
        try:
            table = json.loads(line)
            place = {"window": number - 1}
            if isinstance(table, dict):
                place = {"start_ms": int(table["start_ms"])} if "start_ms" in table else place
                table = table["x"]
            x = np.asarray(table, np.float32)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise DataError(
                f"line {number} of standard input is no window ({error}); write one window a line "
                'as JSON, such as [[0.1], [0.2]] or {"start_ms": 0, "x": [[0.1], [0.2]]}'
            ) from error
        yield _Window(place, x, None)


def _summary(about: ModelInUse, tally: _Tally) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "study": about.study,
        "round": about.round,
        "head": about.head,
        "model": about.int8,
        "verification": in_words(about),
        "windows": tally.predicted,
        "refused": tally.refused,
    }
    if tally.labelled:
        summary |= {"labelled": tally.labelled, "accuracy": tally.right / tally.labelled}
    if tally.latencies_s:
        low, high = np.percentile(np.asarray(tally.latencies_s) * 1000, [50, 95])
        summary |= {"latency_ms_median": float(low), "latency_ms_95": float(high)}
    peak = _peak_bytes()
    return summary | ({} if peak is None else {"peak_memory_bytes": peak})


def _in_lines(summary: dict[str, Any]) -> str:
    lines = [
        "",
        f"model     study {summary['study']} after round {summary['round']}, "
        f"{summary['head']} head, SHA-256 {summary['model'][:12]}…",
        f"verified  {summary['verification']}",
        f"windows   {summary['windows']} predicted, {summary['refused']} refused",
    ]
    if "accuracy" in summary:
        lines.append(f"labels    {summary['accuracy']:.3f} of {summary['labelled']} predicted so")
    if "latency_ms_median" in summary:
        lines.append(
            f"latency   median {summary['latency_ms_median']:.3f} ms, "
            f"95 % below {summary['latency_ms_95']:.3f} ms"
        )
    if "peak_memory_bytes" in summary:
        lines.append(f"memory    peak {summary['peak_memory_bytes'] / 1e6:.1f} MB")
    return "\n".join(lines)


def _peak_bytes() -> int | None:
    """Return the most memory this process has held (VmHWM of proc(5)); None without Linux."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return next((int(kibibytes) * 1024 for kibibytes in found), None)
