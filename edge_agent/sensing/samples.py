"""What sources of samples have in common: blocks, lines of text, and stamps for lines without time.

Rules kept here: a source hands out samples in the order of its own; each block says where the
source goes on after it; what is confirmed to whoever sent it is confirmed after it is on the disk.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from vitalring.edge_agent.sensing.cutting import Signal, Times

MAX_LINE_BYTES = 4096
MAX_BLOCK = 1024
"""Samples in a block of a source that chooses them itself; bounds what queues hold."""

_MAX_TIME_MS = float(1 << 53) / 1000.0


@dataclass(frozen=True, eq=False)
class Block:
    """Samples that came together: times (n,), values (n, channels), n ≥ 0.

    `position` is what the source is opened with to go on after this block. `counts` are what went
    wrong on the way. `confirm` tells the sender that the block is kept.
    """

    times: Times
    values: Signal = field(repr=False)
    position: bytes
    counts: dict[str, int] = field(default_factory=dict)
    confirm: tuple[Callable[[], None], ...] = ()


class Source(Protocol):
    """A source that is open. `read` and `close` are called by one thread."""

    @property
    def ended(self) -> bool:
        """Nothing will come any more."""

    def read(self, timeout_s: float) -> Block | None:
        """Return what came, or None when nothing did in the time.

        Raises TransportError, DataError or OSError when the source is gone.
        """

    def close(self) -> None:
        """Let go of the port, file or connection."""


def join(blocks: Sequence[Block]) -> Block:
    """Return one block for several that follow one another."""
    counts: dict[str, int] = {}
    for block in blocks:
        for name, count in block.counts.items():
            counts[name] = counts.get(name, 0) + count
    return Block(
        np.concatenate([block.times for block in blocks]),
        np.concatenate([block.values for block in blocks]),
        blocks[-1].position,
        counts,
        tuple(each for block in blocks for each in block.confirm),
    )


def empty_times() -> Times:
    """Return the times of no samples."""
    return np.empty(0, np.int64)


def float32(values: object) -> Signal:
    """Return numbers as float32; what is beyond it becomes infinite, which the cutter counts."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(values, np.float64).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Rows:
    """Lines as they were read. With times: (n,) and values of the good lines alone.

    Without times there is a row for a broken line too, of NaN: it took its place in the stream.
    """

    times: Times | None
    values: Signal
    broken: int


class LineReader:
    """Turns bytes into samples, a line `time_ms,ch1,...` or `ch1,...` each.

    Whether the stream has times is settled by its first good line. Empty lines and one line of
    words at the very start, a header, are passed over.
    """

    def __init__(self, channels: int, *, at_start: bool) -> None:
        self._channels = channels
        self._timed: bool | None = None
        self._may_be_header = at_start
        self._rest = b""
        self._overlong = False
        self.consumed = 0
        """Bytes of whole lines so far: where a reader of the same file would go on."""

    @property
    def timed(self) -> bool:
        """Whether lines carry times, as far as is known."""
        return bool(self._timed)

    def feed(self, data: bytes) -> Rows:
        """Return the samples of the lines that `data` completes."""
        *lines, rest = (self._rest + data).split(b"\n")
        self.consumed += sum(len(line) + 1 for line in lines)
        broken = 0
        times: list[float] = []
        values: list[list[float]] = []
        for line in lines:
            if self._overlong:
                # The end of a line whose start was given up, and counted, before.
                self._overlong = False
                continue
            if not line.strip():
                continue
            row = self._row(line)
            header, self._may_be_header = self._may_be_header, False
            if row is None and header and not any(_number(cell) for cell in line.split(b",")):
                continue
            if row is None:
                broken += 1
                if not self._timed:
                    values.append([math.nan] * self._channels)
                continue
            if self._timed:
                times.append(row[0])
            values.append(row[-self._channels :])
        if len(rest) > MAX_LINE_BYTES:
            broken += not self._overlong
            self.consumed += len(rest)
            rest, self._overlong = b"", True
        self._rest = rest
        signal = float32(values).reshape(-1, self._channels)
        if not self._timed:
            return Rows(None, signal, broken)
        # Broken lines before the first good one, when it was not known that there are times.
        signal = signal[len(signal) - len(times) :]
        return Rows(np.rint(np.asarray(times) * 1000.0).astype(np.int64), signal, broken)

    def _row(self, line: bytes) -> list[float] | None:
        cells = line.split(b",")
        timed = len(cells) == self._channels + 1
        if (not timed and len(cells) != self._channels) or self._timed not in (None, timed):
            return None
        try:
            row = [float(cell) for cell in cells]
        except ValueError:
            return None
        if timed and not 0 <= row[0] <= _MAX_TIME_MS:
            return None
        self._timed = timed
        return row


def _number(cell: bytes) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


class Stamper:
    """Times for samples that arrive without any, at a nominal rate and by the device's clock.

    Between arrivals samples lie evenly, a little faster or slower so that a sensor whose rate is
    off by less than `SLEW` is followed without a break. Further than `RESET_US` from the clock the
    stamps start anew, which the cutter sees as a gap or a jump.
    """

    SLEW = 0.02
    RESET_US = 2_000_000
    _SETTLING_US = 10_000_000

    def __init__(self, period_us: float) -> None:
        self._period_us = period_us
        self._next_us: float | None = None

    def stamp(self, count: int, now_us: int) -> Times:
        """Return times (count,) for samples of which the last came just now."""
        length = (count - 1) * self._period_us
        if self._next_us is None or abs(now_us - length - self._next_us) > self.RESET_US:
            self._next_us = now_us - length
        error = now_us - length - self._next_us
        slew = max(-self.SLEW, min(self.SLEW, error / self._SETTLING_US))
        step = self._period_us * (1 + slew)
        times: Times = np.rint(self._next_us + step * np.arange(count)).astype(np.int64)
        self._next_us += step * count
        return times
