"""Labels by a rule on a signal: above or below a threshold for a time.

No I/O and no clock. A run of samples that meet the condition, without a gap, gives the label from
its first sample on once it has lasted long enough, and goes on giving it while it lasts.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from vitalring.edge_agent.sensing.cutting import Signal, Times


@dataclass(frozen=True)
class Threshold:
    """The condition: channel `channel` is above `above` and below `below`, those that are given."""

    channel: int
    above: float | None
    below: float | None
    for_us: int


@dataclass(frozen=True)
class Hold:
    """Since when a condition has been met without a break, and the time of the last sample."""

    since_us: int | None = None
    last_us: int | None = None


@dataclass(frozen=True)
class Span:
    """The condition held in [start_us, end_us). A longer span of equal start replaces it."""

    start_us: int
    end_us: int


def follow(
    rule: Threshold, hold: Hold, times: Times, values: Signal, *, gap_us: int, period_us: float
) -> tuple[Hold, tuple[Span, ...]]:
    """Return the state after a block, and every span that is long enough by now.

    `times` (n,), `values` (n, channels) in the units of the source. NaN meets no condition.
    """
    if not len(times):
        return hold, ()
    signal = values[:, rule.channel]
    with np.errstate(invalid="ignore"):
        met = np.isfinite(signal)
        if rule.above is not None:
            met &= signal > rule.above
        if rule.below is not None:
            met &= signal < rule.below
    before = times[0] if hold.last_us is None else hold.last_us
    steps = np.diff(times, prepend=before)
    broken = (steps < 0) | (steps > gap_us)
    spans: list[Span] = []
    since = hold.since_us
    # Where a run of equal state begins: nothing happens within one.
    changes = np.flatnonzero(broken | np.diff(met, prepend=since is not None))
    bounds = [0, *changes.tolist(), len(times)]
    for begin, end in itertools.pairwise(bounds):
        if begin == end:
            continue
        if broken[begin]:
            since = None
        if not met[begin]:
            since = None
            continue
        since = int(times[begin]) if since is None else since
        last = int(times[end - 1] + period_us)
        if last - since >= rule.for_us:
            spans.append(Span(since, last))
    return Hold(since, int(times[-1])), tuple(spans)
