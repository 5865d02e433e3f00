"""Occlusion: hide a part of a window and see what the model then says (Zeiler and Fergus 2014).

Two ways to hide, for two questions:
- a patch that slides over one channel is replaced by a straight line, from the mean of the samples
  just before it to the mean of those just after. The level stays; what went on there is gone.
- a whole channel is replaced by that of other records, one after the other, and the drops are
  averaged (Štrumbelj and Kononenko 2014). Its level is gone as well; channels that are constant
  over a window can only be hidden so. No average record is made up, which might be like one class
  and unlike another.

What counts is the drop of the explained class's log-odds, ln(p / (1 - p)): probabilities near 0 or
1 hardly move even where the evidence changes a lot. Above 0 what was hidden spoke for the class,
below 0 against it. Nothing is asked of a model but its probabilities.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from vitalring.errors import ConfigError

Array = npt.NDArray[np.float32]
Real = npt.NDArray[np.float64]
Classes = npt.NDArray[np.int64]
Predict = Callable[[Array], Array]
"""From rows (n, ...) to class probabilities (n, classes)."""
Progress = Callable[[float], None]

PATCHES: Final = 12
"""Patches that would cover a window side by side, where no length is given."""
DONORS: Final = 12
"""Records that lend their channels, as many of each class; of many classes one each at most."""
OVERLAP: Final = 3
"""How many patches cover each sample."""
FLOOR: Final = 1e-9
"""Least probability that counts, so that log-odds stay within ±21."""


@dataclass(frozen=True)
class Patch:
    """Lengths in samples; `width` is `OVERLAP` times `stride`, so each sample counts alike."""

    stride: int

    @property
    def width(self) -> int:
        """How many samples are hidden at once."""
        return OVERLAP * self.stride

    def starts(self, time: int) -> range:
        """Return where patches begin; those at the edges reach beyond the window."""
        return range(self.stride - self.width, time, self.stride)


def patch_for(time: int, sampling_hz: float, seconds: float | None = None) -> Patch:
    """Return the patch for windows of `time` samples, about `seconds` long or a twelfth of them.

    Raises ConfigError for a length that is no part of the window.
    """
    if seconds is not None and not 0 < seconds * sampling_hz <= time:
        raise ConfigError(
            f"a patch of {seconds:g} s cannot be hidden in windows of {time / sampling_hz:g} s; "
            "choose a shorter one, above 0"
        )
    wanted = time / PATCHES if seconds is None else seconds * sampling_hz
    return Patch(max(1, round(wanted / OVERLAP)))


@dataclass(frozen=True, eq=False)
class Importance:
    """Drops of log-odds, for n windows (time, channels) and one explained class each.

    patches: (n, time, channels), at each sample the mean over the patches that cover it; 0 in
        channels that were not searched
    channels: (n, channels), whole channels
    """

    patches: Real = field(repr=False)
    channels: Real = field(repr=False)


def occlude(
    predict: Predict,
    x: Array,
    explained: Classes,
    patch: Patch,
    searched: Sequence[int],
    donors: Array,
    progress: Progress = lambda _: None,
) -> Importance:
    """Return how much the class `explained` (n,) of windows x (n, time, channels) hangs on what.

    `searched` are the channels that patches slide over; `donors` (m, time, channels), m ≥ 1, are
    the windows whose channels replace whole ones. Raises what `predict` raises.
    """
    n, time, channels = x.shape
    before = log_odds(predict(x), explained)

    def drop(hidden: Array) -> Real:
        return before - log_odds(predict(hidden), explained)

    starts = patch.starts(time)
    total, done = len(starts) * len(searched) + channels * len(donors), 0
    patches, whole = np.zeros((n, time, channels)), np.zeros((n, channels))
    for channel in searched:
        for start in starts:
            span = slice(max(start, 0), start + patch.width)
            drops = drop(without_patch(x, channel, span, patch.stride))
            patches[:, span, channel] += drops[:, None] / OVERLAP
            progress((done := done + 1) / total)
    for channel in range(channels):
        hidden = x.copy()
        for donor in donors:
            hidden[:, :, channel] = donor[:, channel]
            whole[:, channel] += drop(hidden) / len(donors)
            progress((done := done + 1) / total)
    return Importance(patches, whole)


def without_patch(x: Array, channel: int, span: slice, margin: int) -> Array:
    """Return windows with a straight line in place of a span of one channel.

    Its ends are the means of `margin` samples on either side, or both that of the one side there
    is; a span without sides becomes the channel's mean.
    """
    line = x[:, :, channel].astype(np.float64)
    first, end = span.start, min(span.stop, line.shape[1])
    before, after = line[:, max(first - margin, 0) : first], line[:, end : end + margin]
    sides = [side.mean(axis=1) for side in (before, after) if side.shape[1]]
    left, right = (sides[0], sides[-1]) if sides else (line.mean(axis=1),) * 2
    share = np.arange(1, end - first + 1) / (end - first + 1)
    hidden = x.copy()
    hidden[:, first:end, channel] = left[:, None] + (right - left)[:, None] * share
    return hidden


def log_odds(probabilities: Array, classes: Classes) -> Real:
    """Return ln(p / (1 - p)) of one class (n,) for each row of probabilities (n, classes).

    1 - p is the sum of the other classes, which float32 keeps where p itself is rounded to 1.
    """
    rest = probabilities.astype(np.float64)
    rows = np.arange(len(rest))
    chosen = rest[rows, classes]
    rest[rows, classes] = 0.0
    return np.asarray(
        np.log(np.maximum(chosen, FLOOR)) - np.log(np.maximum(rest.sum(axis=1), FLOOR)), np.float64
    )


def varying_channels(x: Array) -> tuple[int, ...]:
    """Return the channels that are not constant over every window."""
    varies = (x != x[:, :1]).any(axis=(0, 1))
    return tuple(int(channel) for channel in np.flatnonzero(varies))


def likeness(first: Real, second: Real) -> float | None:
    """Return the mean rank correlation of two importances (n, places), window by window.

    Near 0 for a model and one with random weights, if the method shows the model and not just the
    signal (Adebayo et al. 2018). None where every window is without ranks.
    """
    found = []
    for one, other in zip(_ranks(first), _ranks(second), strict=True):
        spread = one.std() * other.std()
        if spread > 0:
            found.append(float(((one - one.mean()) * (other - other.mean())).mean() / spread))
    return float(np.mean(found)) if found else None


def _ranks(rows: Real) -> list[Real]:
    """Return each row's ranks; equal values share the mean of theirs (Spearman)."""
    ranked = []
    for row in rows:
        _, place, counts = np.unique(row, return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)
        ranked.append((ends - (counts - 1) / 2.0)[place.reshape(-1)])
    return ranked
