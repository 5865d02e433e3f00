"""A raw recording, played as if its samples arrived now, at real speed or faster.

Rules kept here: after a restart it goes on at exactly the sample after the last that was kept,
with the times it began with; nothing in a recording is executed.
"""

import json
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vitalring.edge_agent.sensing.config import ReplayConfig, StreamConfig
from vitalring.edge_agent.sensing.cutting import Signal, Times
from vitalring.edge_agent.sensing.samples import MAX_BLOCK, Block, LineReader, float32
from vitalring.errors import DataError

MAX_RECORDING_BYTES = 1 << 30
_RATE_TOLERANCE = 0.01
_ARRAYS = {"signal", "rate", "scale", "start_ms"}
_CURE = "write it with numpy.savez_compressed(path, signal=signal, rate=rate)"
_FAULTS = (
    OSError, ValueError, EOFError, KeyError, TypeError, MemoryError, OverflowError, RuntimeError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class Replay:
    """A recording that is being played."""

    def __init__(
        self,
        config: ReplayConfig,
        stream: StreamConfig,
        position: bytes,
        now_us: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the recording and go to `position`. Raises DataError where it cannot be used."""
        place = json.loads(position) if position else {}
        self._times, self._signal, self._scale, self._bad = _load(config.path, stream)
        self._sample = int(place.get("sample", 0))
        start_us = place.get("start_us")
        if start_us is None:
            first = int(self._times[0])
            start_us = first if config.start_ms is None else config.start_ms * 1000
            # Times of a recording that has none count from 0.
            start_us = now_us() if config.start_ms is None and first == 0 else start_us
        self._start_us = int(start_us)
        self._speed = config.speed
        self._monotonic = monotonic
        self._began: float | None = None
        self._from = self._sample

    @property
    def ended(self) -> bool:
        """Whether everything was played."""
        return self._sample >= len(self._times)

    def read(self, timeout_s: float) -> Block | None:
        """Return the samples that are due, at most a block."""
        if self._began is None:
            self._began = self._monotonic()
        deadline = self._monotonic() + timeout_s
        while (due := self._due()) <= self._sample:
            left = deadline - self._monotonic()
            if left <= 0 or self.ended:
                return None
            time.sleep(min(left, 0.02))
        stop = min(due, self._sample + MAX_BLOCK)
        part = slice(self._sample, stop)
        values = float32(self._signal[part])
        if self._scale is not None:
            with np.errstate(over="ignore"):
                values *= self._scale
        self._sample = stop
        place = json.dumps({"sample": stop, "start_us": self._start_us}).encode()
        bad, self._bad = self._bad, 0
        # Lines that cannot be read are counted once, not at every restart.
        counts = {"bad_lines": bad} if bad and part.start == 0 else {}
        return Block(self._times[part] - self._times[0] + self._start_us, values, place, counts)

    def _due(self) -> int:
        """Return how many samples of the recording should be out by now."""
        if self._speed == 0 or self.ended or self._began is None:
            return len(self._times)
        passed_us = (self._monotonic() - self._began) * self._speed * 1e6
        until = int(self._times[self._from]) + int(passed_us)
        # Only ahead of where we are: a recording's clock may have been set back.
        ahead = self._times[self._sample : self._sample + MAX_BLOCK]
        late = np.flatnonzero(ahead > until)
        return self._sample + (int(late[0]) if len(late) else len(ahead))

    def close(self) -> None:
        """Nothing is open."""


def _load(path: Path, stream: StreamConfig) -> tuple[Times, Any, Signal | None, int]:
    """Return times (n,), signal (n, channels), its scale, and the number of broken lines."""
    try:
        size = path.stat().st_size
        if size > MAX_RECORDING_BYTES:
            raise DataError(f"{path}: {size} bytes, at most {MAX_RECORDING_BYTES} are played")
        if path.suffix == ".npz":
            return *_load_npz(path, stream), 0
        if path.suffix == ".csv":
            return _load_csv(path, stream)
    except _FAULTS as error:
        raise DataError(f"{path}: is not an intact recording ({error}); {_CURE}") from error
    raise DataError(f"{path}: a recording is .npz or .csv")


def _load_npz(path: Path, stream: StreamConfig) -> tuple[Times, Any, Signal | None]:
    with zipfile.ZipFile(path) as archive:
        total = sum(entry.file_size for entry in archive.infolist())
    if total > MAX_RECORDING_BYTES:
        raise DataError(f"{path}: {total} bytes unpacked, at most {MAX_RECORDING_BYTES} are played")
    with np.load(path, allow_pickle=False) as file:
        unknown = sorted(set(file.files) - _ARRAYS)
        if unknown or not {"signal", "rate"} <= set(file.files):
            raise DataError(
                f"{path}: holds {', '.join(file.files)[:200]}; needed are signal (n, channels) and "
                f"rate, allowed are scale and start_ms; {_CURE}"
            )
        signal, rate = file["signal"], float(file["rate"])
        scale = float32(file["scale"]) if "scale" in file.files else None
        start_ms = int(file["start_ms"]) if "start_ms" in file.files else 0
    if signal.ndim != 2 or signal.shape[1] != stream.channels or not len(signal):
        raise DataError(
            f"{path}: signal has shape {signal.shape}, must be (n, {stream.channels}) "
            "as the configuration's channels say"
        )
    if signal.dtype.kind not in "iuf":
        raise DataError(f"{path}: signal has type {signal.dtype}, must be numbers")
    if not abs(rate / stream.sampling_hz - 1) <= _RATE_TOLERANCE:
        raise DataError(f"{path}: rate is {rate:g} Hz, sampling_hz says {stream.sampling_hz:g}")
    if scale is not None and scale.shape not in ((), (stream.channels,)):
        raise DataError(f"{path}: scale has shape {scale.shape}, must be ({stream.channels},)")
    steps = np.arange(len(signal), dtype=np.float64) * (1e6 / rate)
    return start_ms * 1000 + np.rint(steps).astype(np.int64), signal, scale


def _load_csv(path: Path, stream: StreamConfig) -> tuple[Times, Any, Signal | None, int]:
    reader = LineReader(stream.channels, at_start=True)
    times: list[Times] = []
    values: list[Signal] = []
    broken = 0
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            rows = reader.feed(data)
            times += [rows.times] if rows.times is not None else []
            values.append(rows.values)
            broken += rows.broken
    rows = reader.feed(b"\n")
    times += [rows.times] if rows.times is not None else []
    signal = np.concatenate([*values, rows.values])
    if not len(signal):
        raise DataError(f"{path}: no line is time_ms,ch1,... of {stream.channels} channels")
    if not reader.timed:
        steps = np.arange(len(signal), dtype=np.float64) * stream.period_us
        return np.rint(steps).astype(np.int64), signal, None, broken + rows.broken
    stamped = np.concatenate(times)
    return stamped, signal[len(signal) - len(stamped) :], None, broken + rows.broken
