"""Windows of a stream of samples, whatever pieces the stream comes in.

Rules kept here: no I/O and no clock; a window is `window` samples in a row of which no two are
further apart than the tolerance, so it never spans a gap or a jump of the sensor's clock; windows
begin at the first sample after a break and then every `stride` samples; how the stream is cut
into blocks changes nothing.
"""

import itertools
from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt

from vitalring.errors import ConfigError

Times = npt.NDArray[np.int64]
"""Microseconds since 1970 UTC, one for each sample: (n,)."""

Signal = npt.NDArray[np.float32]
"""One row for each sample: (n, channels)."""

_RESOLUTION_US = 1000
"""Many sensors stamp whole milliseconds; what that adds to a step is no fault of their rate."""


@dataclass(frozen=True)
class Layout:
    """How windows lie in a stream.

    `gap_us` is the longest step between neighbours, `jump_us` the step from which a gap counts as
    a clock set forward (times alone cannot tell the two), `drift` the share by which a window's
    own rate may differ from `sampling_hz`.
    """

    sampling_hz: float
    channels: int
    window: int
    stride: int
    gap_us: int
    jump_us: int
    drift: float

    def __post_init__(self) -> None:
        """Refuse what no stream could fill. Raises ConfigError."""
        if min(self.channels, self.window, self.stride) < 1 or self.sampling_hz <= 0:
            raise ConfigError(f"windows of {self}: sizes and rate must be positive")
        if self.gap_us < self.period_us:
            raise ConfigError(
                f"a gap of {self.gap_us / 1000:g} ms is shorter than the "
                f"{self.period_us / 1000:g} ms between samples: every sample would be one"
            )

    @property
    def period_us(self) -> float:
        """Microseconds between samples."""
        return 1e6 / self.sampling_hz

    @property
    def longest_ms(self) -> int:
        """Bound on the length of a window in milliseconds, however the rate drifts."""
        return int((self.window + 1) * self.period_us * (1 + self.drift) / 1000) + 3


@dataclass(frozen=True, eq=False)
class Window:
    """A complete window: x float32 (time, channels) of [start_ms, end_ms).

    Windows are numbered from 1 in the order of cutting; a number is never given twice on a device.
    """

    start_ms: int
    end_ms: int
    x: Signal = field(repr=False)
    number: int = 0


@dataclass(frozen=True, eq=False)
class Carry:
    """Where cutting stands between two blocks: the samples of the window begun, at most window - 1.

    `skip` samples are passed over before the next window begins, where windows lie apart.
    """

    times: Times
    values: Signal
    skip: int = 0
    last_us: int | None = None

    @classmethod
    def start(cls, channels: int) -> "Carry":
        """Return the state before the first sample."""
        return cls(np.empty(0, np.int64), np.empty((0, channels), np.float32))


@dataclass(frozen=True)
class Tally:
    """What happened to a block's samples and what came of them."""

    samples: int = 0
    bad_samples: int = 0
    """NaN or infinite; they are left out, which leaves a gap."""
    gaps: int = 0
    jumps_forward: int = 0
    jumps_backward: int = 0
    windows: int = 0
    off_rate: int = 0
    """Windows not kept because their rate is further from nominal than the drift allowed."""

    def as_counts(self) -> dict[str, int]:
        """Return the counts that are not zero by name."""
        counts = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: count for name, count in counts.items() if count}


@dataclass(frozen=True, eq=False)
class Cut:
    """The state after a block, the windows it completed, and what was counted."""

    carry: Carry
    windows: tuple[Window, ...]
    tally: Tally


def cut(layout: Layout, carry: Carry, times: Times, values: Signal) -> Cut:
    """Cut the windows that a block of samples completes.

    `times` (n,) and `values` (n, channels) are the block, n ≥ 0; `carry` is the state that the
    block before left.
    """
    finite = np.isfinite(values).all(axis=1)
    bad = len(values) - int(finite.sum())
    if bad:
        times, values = times[finite], values[finite]
    if not len(times):
        return Cut(carry, (), Tally(bad, bad))
    before = times[0] if carry.last_us is None else carry.last_us
    steps = np.diff(times, prepend=before)
    backward, gap = steps < 0, steps > layout.gap_us
    forward = steps > layout.jump_us
    breaks = np.flatnonzero(backward | gap)
    windows: list[Window] = []
    complete = 0
    bounds = [0, *breaks.tolist(), len(times)]
    for piece, (begin, end) in enumerate(itertools.pairwise(bounds)):
        if piece:
            carry = Carry.start(layout.channels)
        found, carry = _cut_run(layout, carry, times[begin:end], values[begin:end])
        complete += len(found)
        windows.extend(window for window in found if window is not None)
    carry = Carry(carry.times, carry.values, carry.skip, int(times[-1]))
    tally = Tally(
        samples=len(times) + bad,
        bad_samples=bad,
        gaps=int((gap & ~forward).sum()),
        jumps_forward=int(forward.sum()),
        jumps_backward=int(backward.sum()),
        windows=len(windows),
        off_rate=complete - len(windows),
    )
    return Cut(carry, tuple(windows), tally)


def _cut_run(
    layout: Layout, carry: Carry, times: Times, values: Signal
) -> tuple[list[Window | None], Carry]:
    """Cut samples that follow on `carry` without a break; None stands for a window off its rate."""
    times = np.concatenate([carry.times, times])
    values = np.concatenate([carry.values, values])
    found: list[Window | None] = []
    position = carry.skip
    while position + layout.window <= len(times):
        stop = position + layout.window
        found.append(_window(layout, times[position:stop], values[position:stop]))
        position += layout.stride
    # Copies, so that what is kept does not hold the whole block in memory.
    rest = Carry(
        times[position:].copy(), values[position:].copy(), max(0, position - len(times)), None
    )
    return found, rest


def _window(layout: Layout, times: Times, values: Signal) -> Window | None:
    nominal = (layout.window - 1) * layout.period_us
    length = int(times[-1]) - int(times[0])
    if abs(length - nominal) > layout.drift * nominal + _RESOLUTION_US:
        return None
    end_us = int(times[-1]) + layout.period_us
    return Window(int(times[0]) // 1000, int(-(-end_us // 1000)), values.copy())
