"""Membership by likelihood ratios: how usual what a model says of a record is with it and without.

Carlini et al., "Membership Inference Attacks From First Principles", S&P 2022 (arXiv:2112.03570):
shadow models, trained like the target on other halves of the records, tell how sure of a record a
model is that had it in training, and one that had not. Both are taken for Gaussian in the logit
of the confidence; the score is the logarithm of their ratio. Several looks at a record (the models
of many rounds) are one vector with one covariance.

A few dozen shadows say well where a record lies but not how much its membership moves it. So the
second score takes that shift from all records that are about as difficult; it is the better one
with few shadows, the first with hundreds.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitalring.errors import ConfigError

Floats = npt.NDArray[np.float64]
Truth = npt.NDArray[np.bool_]

DIFFICULTIES = 5
"""Equal parts of the records, by their mean confidence, within which the shift is one."""

_RIDGE = 1e-6
_LEAST = 1e-7
"""A float32 softmax gives zeros and ones; their logarithm must stay a number."""


def confidence(probabilities: npt.NDArray[np.float32], y: npt.NDArray[np.int64]) -> Floats:
    """Return log p/(1 - p) (n,) of the right class, from probabilities (n, classes)."""
    p = probabilities.astype(np.float64)
    right = p[np.arange(len(y)), y]
    logit: Floats = np.log(np.maximum(right, _LEAST)) - np.log(
        np.maximum(p.sum(axis=1) - right, _LEAST)
    )
    return logit


@dataclass(frozen=True)
class Scores:
    """Logarithms of likelihood ratios (records,), higher for members."""

    by_record: Floats
    """Each record's own Gaussians, as in the paper; 0 where no shadow had it, or all had."""
    by_difficulty: Floats
    """Each record's own mean, and the shift that records of its difficulty have in common."""


def score(looks: Floats, shadows: Floats, members: Truth) -> Scores:
    """Return the scores of one study's looks (k, records).

    shadows (s, k, records) are the same looks of studies whose members (s, records) are known.

    Raises:
        ConfigError: there are fewer than 4 shadows, or no record that some had and some not.
    """
    count, records = members.shape
    inside = members[:, None, :]
    had = members.sum(axis=0)
    usable = (had > 0) & (had < count)
    if count < 4 or not usable.any():
        raise ConfigError(f"{count} shadow studies tell nothing: use 4 or more")
    mean_in = np.where(inside, shadows, 0.0).sum(axis=0) / np.maximum(had, 1)
    mean_out = np.where(inside, 0.0, shadows).sum(axis=0) / np.maximum(count - had, 1)
    shift = np.where(usable, mean_in - mean_out, 0.0)
    spread = shadows - np.where(inside, mean_in, mean_out)
    own = (_inverse(spread, count) @ shift) * (looks - (mean_in + mean_out) / 2.0)
    mean, share = shadows.mean(axis=0), had / count
    rank = np.argsort(np.argsort(mean.mean(axis=0), kind="stable"), kind="stable")
    common = np.zeros(records)
    parts = max(1, min(DIFFICULTIES, records // 50))
    for part in range(parts):
        some = rank * parts // records == part
        if not (some & usable).any():
            continue
        # One shift for all: a record's mean without it follows from how many shadows had it.
        one = shift[:, some & usable].mean(axis=1, keepdims=True)
        middle = mean[:, some] + one * (0.5 - share[some])
        ratio = (_inverse(spread[:, :, some], count) @ one) * (looks[:, some] - middle)
        common[some] = ratio.sum(axis=0)
    return Scores(own.sum(axis=0), common)


def _inverse(spread: Floats, count: int) -> Floats:
    """Return the inverse covariance (k, k) of deviations (s, k, records) from two means each."""
    k, records = spread.shape[1], spread.shape[2]
    flat = spread.transpose(1, 0, 2).reshape(k, -1)
    covariance = flat @ flat.T / max(1, (count - 2) * records)
    inverse: Floats = np.linalg.inv(covariance + _RIDGE * np.eye(k))
    return inverse
