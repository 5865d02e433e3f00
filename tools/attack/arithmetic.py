"""The arithmetic of source inference: guesses, their success, baselines and links.

Source inference: Hu et al., "Source Inference Attacks in Federated Learning", ICDM 2021
(arXiv:2109.05659). For a record, the attacker takes the client model with the least loss on it.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

_LEAST_PROBABILITY: Final = 1e-7
"""A float32 softmax gives zeros; their logarithm must stay a number."""


def losses_of(probabilities: npt.NDArray[np.float32], y: Places) -> Floats:
    """Return the cross-entropy (n,) of class probabilities (n, classes) at labels y (n,)."""
    chosen = probabilities[np.arange(len(y)), y].astype(np.float64)
    losses: Floats = -np.log(np.maximum(chosen, _LEAST_PROBABILITY))
    return losses


def least_loss(losses: Floats, generator: np.random.Generator) -> Places:
    """Return for each record the row of `losses` (models, records) with the least loss.

    Ties are broken at random: models that are all the same tell nothing, and the first of them
    must not pass for an answer.
    """
    tied = losses == losses.min(axis=0)
    lots = generator.random(losses.shape)
    guesses: Places = np.where(tied, lots, -1.0).argmax(axis=0)
    return guesses


def success(guesses: Places, truth: Places) -> float:
    """Return the share of guesses that are right."""
    return float(np.mean(guesses == truth))


def baselines(truth: Places, devices: int) -> tuple[float, float]:
    """Return what is right without any model: a guess at random, and always the largest device."""
    counts = np.bincount(truth, minlength=devices)
    return 1.0 / devices, float(counts.max() / counts.sum())


def by_label(truth: Places, labels: Places, devices: int) -> float:
    """Return what is right for who knows how many records of each class each device has.

    It takes for every record the device that has most of its class. With label skew this is
    what a class alone gives away, and no noise for single records hides it.
    """
    most = [
        int(np.bincount(truth[labels == label], minlength=devices).max())
        for label in np.unique(labels)
    ]
    return sum(most) / len(truth)


def match(cost: Floats) -> Places:
    """Return for each row of `cost` (n, m) its column in the cheapest assignment.

    Of more rows than columns those left over take the column that is cheapest for them. Adding
    a constant to a row or a column of others changes nothing: a slot whose model is good at
    everything is not taken for everybody's.
    """
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - takes seconds to load

    rows, assigned = linear_sum_assignment(cost)
    columns: Places = cost.argmin(axis=1).astype(np.int64)
    columns[rows] = assigned
    return columns


def link_directions(before: Floats, after: Floats) -> Places:
    """Return for each update of `after` (n, d) the one of `before` (n, d) most like it.

    Likeness is the cosine without the mean update, which all devices share.
    """
    return match(-_directions(after) @ _directions(before).T)


def nearest(known: Floats, owners: Places, asked: Floats) -> Places:
    """Return for each row of `asked` (n, f) the owner of the nearest row of `known` (k, f)."""
    squares = (known**2).sum(axis=1)[None, :] - 2.0 * asked @ known.T
    found: Places = owners[squares.argmin(axis=1)]
    return found


def _directions(updates: Floats) -> Floats:
    centred = updates - updates.mean(axis=0)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    directed: Floats = centred / np.maximum(lengths, 1e-30)
    return directed
