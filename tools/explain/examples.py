"""Which held-out records are explained. Rules that need nobody's eye, so that nobody chooses."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]

RULE: Final = (
    "Of the windows of a class that the model gets right, and of those that it gets wrong, the one "
    "with the median probability of what it says is shown"
)


@dataclass(frozen=True)
class Example:
    """A record that stands for `of` ones like it: its row, its class and what the model says."""

    row: int
    label: int
    said: int
    probability: float
    of: int

    @property
    def right(self) -> bool:
        """Tell whether the model is right."""
        return self.label == self.said


def typical(
    y: Labels, probabilities: npt.NDArray[np.float32], classes: int
) -> list[tuple[Example | None, Example | None]]:
    """Return for each class a right and a wrong example: those of median probability (`RULE`).

    y (n,), probabilities (n, classes). The lower one of two in the middle; None where the class
    has no such record.
    """
    said = probabilities.argmax(axis=1)
    sure = probabilities.max(axis=1)

    def middle(rows: Labels) -> Example | None:
        if not len(rows):
            return None
        row = rows[np.argsort(sure[rows], kind="stable")[(len(rows) - 1) // 2]]
        return Example(int(row), int(y[row]), int(said[row]), float(sure[row]), len(rows))

    return [
        (
            middle(np.flatnonzero((y == label) & (said == label))),
            middle(np.flatnonzero((y == label) & (said != label))),
        )
        for label in range(classes)
    ]


def spread(n: int, most: int) -> Labels:
    """Return at most `most` of n places, evenly spread from the first to the last."""
    places = np.linspace(0, max(n - 1, 0), min(n, most)).round().astype(np.int64)
    return np.asarray(np.unique(places), np.int64)
