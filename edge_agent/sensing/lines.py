"""Samples as lines of text from a serial port, a pipe or a growing file.

Rules kept here: a line that cannot be read is counted and stops nothing; a port that vanishes is
an error that has the runner open it again, for ever; a file goes on at the byte after the last
line that was kept.
"""

import json
import os
import select
import stat
import termios
import time
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vitalring.edge_agent.sensing.config import LinesConfig, StreamConfig
from vitalring.edge_agent.sensing.samples import MAX_BLOCK, Block, LineReader, Rows, Stamper
from vitalring.errors import ConfigError, DataError, TransportError

_CHUNK = 1 << 14


def open_lines(
    config: LinesConfig, stream: StreamConfig, position: bytes, now_us: Callable[[], int]
) -> "Lines | GrowingFile":
    """Open a port, pipe or file of lines. Raises TransportError where it is not there."""
    try:
        mode = config.path.stat().st_mode
    except OSError as error:
        raise TransportError(f"{config.path} cannot be read: {error.strerror}") from error
    if stat.S_ISREG(mode):
        return GrowingFile(config.path, stream, position, now_us)
    return Lines(config, stream, now_us)


class Lines:
    """A serial port or a pipe."""

    ended = False

    def __init__(
        self, config: LinesConfig, stream: StreamConfig, now_us: Callable[[], int]
    ) -> None:
        self._path = config.path
        self._now_us = now_us
        self._reader = LineReader(stream.channels, at_start=True)
        self._stamper = Stamper(stream.period_us)
        self._fault: TransportError | None = None
        self._descriptor = _open(config)

    def read(self, timeout_s: float) -> Block | None:
        """Collect lines for the time given, or until there are enough."""
        if self._fault is not None:
            raise self._fault
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        rows: list[Rows] = []
        while sum(len(each.values) for each in rows) < MAX_BLOCK:
            left = deadline - time.monotonic()
            if not poll.poll(max(0.0, left) * 1000):
                break
            try:
                rows.append(self._reader.feed(self._receive()))
            except TransportError as error:
                # What came before the end of the port is handed out first.
                self._fault = error
            if left <= 0 or self._fault:
                break
        if not any(len(each.values) or each.broken for each in rows):
            if self._fault is not None:
                raise self._fault
            return None
        return self._block(rows)

    def _receive(self) -> bytes:
        try:
            data = os.read(self._descriptor, _CHUNK)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise TransportError(f"{self._path} is gone: {error.strerror}") from error
        if not data:
            raise TransportError(f"{self._path} was hung up")
        return data

    def _block(self, rows: list[Rows]) -> Block:
        values = np.concatenate([each.values for each in rows])
        stamped = [each.times for each in rows if each.times is not None]
        if self._reader.timed:
            times = np.concatenate(stamped)
            # As in the reader: broken lines from before it was known that there are times.
            values = values[len(values) - len(times) :]
        else:
            times = self._stamper.stamp(len(values), self._now_us())
        broken = sum(each.broken for each in rows)
        return Block(times, values, b"", {"bad_lines": broken} if broken else {})

    def close(self) -> None:
        """Close the port."""
        os.close(self._descriptor)


def _open(config: LinesConfig) -> int:
    path = config.path
    try:
        mode = path.stat().st_mode
        # Holding a pipe open for writing too keeps it from ending with each of its writers.
        access = os.O_RDWR if stat.S_ISFIFO(mode) else os.O_RDONLY
        descriptor = os.open(path, access | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise TransportError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        _set_up(descriptor, config)
    except termios.error as error:
        os.close(descriptor)
        raise TransportError(f"{path} cannot be set up: {error}") from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _set_up(descriptor: int, config: LinesConfig) -> None:
    """Make a serial port pass bytes as they are, at the baud rate asked for.

    What it received before is dropped: nobody knows when that was, or at which rate.
    """
    if not os.isatty(descriptor):
        if config.baud is not None:
            raise ConfigError(f"{config.path} is no serial port: leave out baud")
        return
    tty.setraw(descriptor)
    attributes: list[Any] = termios.tcgetattr(descriptor)
    attributes[2] |= termios.CLOCAL | termios.CREAD
    if config.baud is not None:
        speed = getattr(termios, f"B{config.baud}", None)
        if speed is None:
            raise ConfigError(f"baud {config.baud} is not a rate of serial ports, such as 115200")
        attributes[4] = attributes[5] = speed
    termios.tcsetattr(descriptor, termios.TCSANOW, attributes)


class GrowingFile:
    """A file that somebody appends lines to; a new file in its place is read from its start."""

    ended = False

    def __init__(
        self, path: Path, stream: StreamConfig, position: bytes, now_us: Callable[[], int]
    ) -> None:
        self._path = path
        self._channels = stream.channels
        self._period_us = stream.period_us
        self._now_us = now_us
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise TransportError(f"{path} cannot be opened: {error.strerror}") from error
        self._inode = os.fstat(self._file.fileno()).st_ino
        place = json.loads(position) if position else {}
        self._reread = bool(place) and not self._is_same(place)
        self._byte = 0 if self._reread else place.get("byte", 0)
        self._sample = 0 if self._reread else place.get("sample", 0)
        self._start_us = now_us() if self._reread else place.get("start_us", now_us())
        self._reader = LineReader(self._channels, at_start=self._byte == 0)
        self._file.seek(self._byte)

    def _is_same(self, place: dict[str, int]) -> bool:
        size = os.fstat(self._file.fileno()).st_size
        return place["inode"] == self._inode and place["byte"] <= size

    def read(self, timeout_s: float) -> Block | None:
        """Return the lines that were added, at most a block."""
        data = self._file.read(_CHUNK)
        if not data:
            self._check_replaced()
            time.sleep(timeout_s)
            return None
        before = self._reader.consumed
        rows = self._reader.feed(data)
        self._byte += self._reader.consumed - before
        times = rows.times
        if times is None:
            numbers = self._sample + np.arange(len(rows.values))
            times = self._start_us + np.rint(numbers * self._period_us).astype(np.int64)
            self._sample += len(rows.values)
        counts = {"bad_lines": rows.broken, "source_restarts": int(self._reread)}
        self._reread = False
        return Block(times, rows.values, self._position(), counts)

    def _position(self) -> bytes:
        place = {
            "byte": self._byte,
            "sample": self._sample,
            "start_us": self._start_us,
            "inode": self._inode,
        }
        return json.dumps(place).encode()

    def _check_replaced(self) -> None:
        try:
            now = self._path.stat()
        except OSError as error:
            raise TransportError(f"{self._path} is gone: {error.strerror}") from error
        if now.st_ino != self._inode or now.st_size < self._byte:
            raise DataError(f"{self._path} was replaced or cut; it is read from its start")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
