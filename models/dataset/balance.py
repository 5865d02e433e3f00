"""Minority oversampling (paper B, preprocessing): every class as often as the most common one."""

import numpy as np
import numpy.typing as npt


def oversample(
    y: npt.NDArray[np.int64], classes: int, generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Return indices into y, shuffled, that name every row, and rows of rarer classes again.

    Every class that y (n,) has comes as often as the most common one: its rows are repeated whole
    as often as they fit, and the rest is drawn without replacement. Use it on training rows only.
    """
    counts = np.bincount(y, minlength=classes)
    most = int(counts.max(initial=0))
    parts = [np.zeros(0, np.int64)]
    for label in np.flatnonzero(counts):
        rows = np.flatnonzero(y == label)
        whole, rest = divmod(most, len(rows))
        parts += [np.tile(rows, whole), generator.permutation(rows)[:rest]]
    return generator.permutation(np.concatenate(parts))
