"""What a model looks at in windows: single typical records, and averages by class."""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from vitalring.aggregator.evaluate import HeldOut
from vitalring.models.artefact import Artefact
from vitalring.tools.explain.channels import Channel
from vitalring.tools.explain.examples import Example, spread, typical
from vitalring.tools.explain.occlusion import (
    DONORS,
    Array,
    Classes,
    Importance,
    Patch,
    Predict,
    Progress,
    Real,
    likeness,
    occlude,
    varying_channels,
)

MAX_CLASSES: Final = 12
"""Most classes that are explained."""
CHECKED: Final = 64
"""Records on which the maps are held against those of random weights."""


@dataclass(frozen=True, eq=False)
class ShownExample:
    """An example with its window x (time, channels) and what it hangs on.

    The class that the model says is explained, right or wrong: `patches` (time, channels) and
    `channels` (channels,) are as in `Importance`.
    """

    example: Example
    device: str
    x: Array = field(repr=False)
    patches: Real = field(repr=False)
    channels: Real = field(repr=False)


@dataclass(frozen=True, eq=False)
class ClassAverage:
    """What a class hangs on over `rows` of its records: mean, lower and upper quartile of each.

    x (time, channels) is the mean window; `patches` (3, time, channels), `channels` (3, channels).
    """

    label: int
    rows: int
    devices: int
    x: Array = field(repr=False)
    patches: Real = field(repr=False)
    channels: Real = field(repr=False)


@dataclass(frozen=True, eq=False)
class WindowFindings:
    """All that is shown of windows. `examples` has a right and a wrong one for each class.

    Of more than `MAX_CLASSES` classes those with most windows are explained; `held_out` counts the
    classes that have any. `rows` counts all held-out windows, from which the examples are;
    `likeness` is the mean rank correlation with the maps of random weights, or None.
    """

    classes: tuple[str, ...]
    channels: tuple[Channel, ...]
    searched: tuple[int, ...]
    sampling_hz: float
    patch: Patch
    rows: int
    held_out: int
    examples: tuple[tuple[ShownExample | None, ShownExample | None], ...]
    averages: tuple[ClassAverage, ...]
    likeness: float | None
    donors: int

    @property
    def time(self) -> int:
        """Samples in a window."""
        return len(self.averages[0].x)


def explain_windows(
    predict: Predict,
    random: Predict,
    rows: HeldOut,
    classes: tuple[str, ...],
    channels: tuple[Channel, ...],
    sampling_hz: float,
    patch: Patch,
    most: int,
    progress: Progress = lambda _: None,
) -> WindowFindings:
    """Occlude the examples of each class, and at most `most` of its records for the averages.

    `random` is the same network with random weights. Raises what the two raise.
    """
    searched = varying_channels(rows.x)
    donors = rows.x[_donors(rows.y)]
    counts = np.bincount(rows.y, minlength=len(classes))
    kept = np.sort(np.argsort(-counts, kind="stable")[:MAX_CLASSES])
    pairs = [
        pair if label in kept else (None, None)
        for label, pair in enumerate(typical(rows.y, predict(rows.x), len(classes)))
    ]
    shown = [example for pair in pairs for example in pair if example]
    chosen = _chosen(rows.y, kept, most)
    picked = np.array([*(example.row for example in shown), *chosen], np.int64)
    # An example explains what the model says, an average what the records are.
    explained = np.array([*(example.said for example in shown), *rows.y[chosen]], np.int64)

    def importance(of: Predict, part: slice, report: Progress) -> Importance:
        x, target = rows.x[picked[part]], explained[part]
        return occlude(of, x, target, patch, searched, donors, report)

    checked = spread(len(chosen), CHECKED) + len(shown)
    share = len(picked) / (len(picked) + len(checked))
    found = importance(predict, slice(None), lambda done: progress(share * done))
    alike = occlude(
        random,
        rows.x[picked[checked]],
        explained[checked],
        patch,
        searched,
        donors,
        lambda done: progress(share + (1 - share) * done),
    )
    maps = [maps.reshape(len(checked), -1) for maps in (found.patches[checked], alike.patches)]
    by_row = {
        example: ShownExample(
            example,
            rows.devices[rows.owner[example.row]],
            rows.x[example.row],
            found.patches[place],
            found.channels[place],
        )
        for place, example in enumerate(shown)
    }
    averages = [
        _average(rows, picked, found, label, np.flatnonzero(rows.y[chosen] == label) + len(shown))
        for label in np.unique(rows.y[chosen])
    ]
    return WindowFindings(
        classes,
        channels,
        searched,
        sampling_hz,
        patch,
        len(rows.y),
        int((counts > 0).sum()),
        tuple(
            (by_row[right] if right else None, by_row[wrong] if wrong else None)
            for right, wrong in pairs
        ),
        tuple(averages),
        likeness(*maps),
        len(donors),
    )


def shuffled_weights(artefact: Artefact, weights: Array, seed: int) -> Array:
    """Return the weights (d,) with each block's in random order: as large as before, but unlearned.

    The weights of a frozen trunk are part of the model, not of these.
    """
    generator = np.random.default_rng(seed)
    ends = np.cumsum([size for size, _ in artefact.info.blocks])[:-1]
    blocks = [generator.permutation(block) for block in np.split(weights, ends)]
    return np.concatenate(blocks)


def _donors(y: Classes) -> Classes:
    """Return about `DONORS` rows, as many of each class."""
    classes = np.unique(y)
    of_each = _chosen(y, classes, max(1, DONORS // len(classes)))
    return of_each[spread(len(of_each), DONORS)]


def _chosen(y: Classes, classes: Classes, most: int) -> Classes:
    """Return at most `most` rows of each of these classes, evenly spread over the held-out ones."""
    parts = [np.flatnonzero(y == label) for label in classes]
    return np.concatenate([part[spread(len(part), most)] for part in parts])


def _average(
    rows: HeldOut, picked: Classes, found: Importance, label: int, places: Classes
) -> ClassAverage:
    of = picked[places]
    return ClassAverage(
        int(label),
        len(places),
        len(np.unique(rows.owner[of])),
        rows.x[of].mean(axis=0),
        _summary(found.patches[places]),
        _summary(found.channels[places]),
    )


def _summary(values: npt.NDArray[np.float64]) -> Real:
    """Return mean, lower and upper quartile over the first axis."""
    return np.stack([values.mean(axis=0), *np.quantile(values, (0.25, 0.75), axis=0)])
