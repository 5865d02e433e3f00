"""A raw recording, played as if its samples arrived now, at real speed or faster.

Rules kept here: after a restart it goes on at exactly the sample after the last that was kept,
with the times it began with; nothing in a recording is executed.
"""

import json
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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


TimesOf = Callable[[int, int], Times]


@dataclass(frozen=True, eq=False)
class _Recording:
    """Raw samples (n, channels) with the factors to multiply them by, and broken lines.

    `times(begin, end)` gives the times of a part: of a long recording all would be much memory.
    """

    signal: npt.NDArray[Any]
    times: TimesOf
    scale: Signal | None = None
    broken: int = 0


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
        self._recording = _load(config.path, stream)
        self._count = len(self._recording.signal)
        self._first_us = int(self._recording.times(0, 1)[0])
        self._sample = int(place.get("sample", 0))
        start_us = place.get("start_us")
        if start_us is None:
            # Times of a recording that has none count from 0.
            own_us = self._first_us or now_us()
            start_us = own_us if config.start_ms is None else config.start_ms * 1000
        self._start_us = int(start_us)
        self._speed = config.speed
        self._monotonic = monotonic
        self._began: float | None = None
        self._from = self._sample

    @property
    def ended(self) -> bool:
        """Whether everything was played."""
        return self._sample >= self._count

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
        start = self._sample
        values = float32(self._recording.signal[start:stop])
        if self._recording.scale is not None:
            with np.errstate(over="ignore"):
                values *= self._recording.scale
        times = self._recording.times(start, stop) - self._first_us + self._start_us
        self._sample = stop
        place = json.dumps({"sample": stop, "start_us": self._start_us}).encode()
        # Lines that cannot be read are counted once, not at every restart.
        broken = self._recording.broken
        counts = {"bad_lines": broken} if broken and start == 0 else {}
        return Block(times, values, place, counts)

    def _due(self) -> int:
        """Return how many samples of the recording should be out by now."""
        if self._speed == 0 or self.ended or self._began is None:
            return self._count
        passed_us = (self._monotonic() - self._began) * self._speed * 1e6
        until = int(self._recording.times(self._from, self._from + 1)[0]) + int(passed_us)
        # Only ahead of where we are: a recording's clock may have been set back.
        ahead = self._recording.times(self._sample, min(self._count, self._sample + MAX_BLOCK))
        late = np.flatnonzero(ahead > until)
        return self._sample + (int(late[0]) if len(late) else len(ahead))

    def close(self) -> None:
        """Nothing is open."""


def _load(path: Path, stream: StreamConfig) -> _Recording:
    try:
        size = path.stat().st_size
        if size > MAX_RECORDING_BYTES:
            raise DataError(f"{path}: {size} bytes, at most {MAX_RECORDING_BYTES} are played")
        if path.suffix == ".npz":
            return _load_npz(path, stream)
        if path.suffix == ".csv":
            return _load_csv(path, stream)
    except _FAULTS as error:
        raise DataError(f"{path}: is not an intact recording ({error}); {_CURE}") from error
    raise DataError(f"{path}: a recording is .npz or .csv")


def _load_npz(path: Path, stream: StreamConfig) -> _Recording:
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
    return _Recording(signal, _evenly(start_ms * 1000, 1e6 / rate), scale)


def _evenly(start_us: int, period_us: float) -> TimesOf:
    def times(begin: int, end: int) -> Times:
        steps: Times = np.rint(np.arange(begin, end) * period_us).astype(np.int64)
        return start_us + steps

    return times


def _load_csv(path: Path, stream: StreamConfig) -> _Recording:
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
        return _Recording(signal, _evenly(0, stream.period_us), broken=broken + rows.broken)
    stamped = np.concatenate(times)
    if not len(stamped):
        raise DataError(f"{path}: no line can be read")
    return _Recording(
        signal[len(signal) - len(stamped) :],
        lambda begin, end: stamped[begin:end],
        broken=broken + rows.broken,
    )
