"""How good predictions are. The confusion matrix counts rows of true, columns of predicted class.

With classes as unequal as heartbeats, accuracy flatters; macro-F1 gives each class one vote.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float64]

UNDEFINED: Final = float("nan")


def confusion_matrix(y: Labels, predicted: Labels, classes: int) -> Counts:
    """Return counts (classes, classes) of true against predicted labels, both (n,)."""
    flat = np.bincount(y * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def accuracy(confusion: Counts) -> float:
    """Return the share of right predictions; 0 when there are none at all."""
    return float(np.trace(confusion) / max(confusion.sum(), 1))


def recall(confusion: Counts) -> Shares:
    """Return each class's share of found examples (classes,); 0 for a class without examples."""
    share: Shares = np.diag(confusion) / np.maximum(confusion.sum(axis=1), 1)
    return share


def precision(confusion: Counts) -> Shares:
    """Return each class's share of right ones among its predictions (classes,); 0 without any."""
    share: Shares = np.diag(confusion) / np.maximum(confusion.sum(axis=0), 1)
    return share


def balanced_accuracy(confusion: Counts) -> float:
    """Return the mean recall of the classes that have examples; 0 when there are none at all."""
    present = confusion.sum(axis=1) > 0
    return float(recall(confusion)[present].mean()) if present.any() else 0.0


def f1(confusion: Counts) -> Shares:
    """Return each class's F1 (classes,), 2·hits / (true + predicted); 0 when it never occurs."""
    both = confusion.sum(axis=0) + confusion.sum(axis=1)
    score: Shares = 2 * np.diag(confusion) / np.maximum(both, 1)
    return score


def macro_f1(confusion: Counts) -> float:
    """Return the plain mean of the classes' F1."""
    return float(f1(confusion).mean())


def log_loss(y: Labels, probabilities: npt.NDArray[np.float32]) -> float:
    """Return the mean of -ln p(true class), in nats; p counts as at least 1e-7.

    So does a p that is not a number: a poisoned model is a bad one, not the end of a study.
    """
    chosen = probabilities[np.arange(len(y)), y].astype(np.float64)
    return float(-np.log(np.fmax(chosen, 1e-7)).mean()) if len(y) else 0.0


def auroc(y: Labels, probabilities: npt.NDArray[np.float32]) -> float:
    """Return the area under the ROC curve of labels (n,) and probabilities (n, classes).

    The chance that a row of a class gets a higher probability for it than a row of the others
    (Hanley and McNeil 1982); a tie counts half. For two classes the second's; for more the
    plain mean of each class against the rest, over the classes that have rows. NaN where every
    row is of one class.
    """
    return RankedScores(y, probabilities).auroc(np.ones(len(y)))


class RankedScores:
    """Probabilities sorted once, so that `auroc` of weighted rows costs no more than a sum."""

    def __init__(self, y: Labels, probabilities: npt.NDArray[np.float32]) -> None:
        # A probability that is no number ranks below all others.
        scores = np.nan_to_num(probabilities, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        classes = scores.shape[1]
        self._ranked = [_Ranked(y == k, scores[:, k]) for k in _compared(classes)]

    def auroc(self, weights: Shares) -> float:
        """Return `auroc` with row i counted `weights[i]` times, weights (n,) of at least 0."""
        areas = [ranked.area(weights) for ranked in self._ranked]
        known = [area for area in areas if area is not None]
        return float(np.mean(known)) if known else UNDEFINED


def _compared(classes: int) -> range:
    return range(1, 2) if classes == 2 else range(classes)


class _Ranked:
    """One class against the rest: where each positive's score falls among the negatives'."""

    def __init__(self, positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.float32]) -> None:
        negatives = np.flatnonzero(~positive)
        self._negatives = negatives[np.argsort(scores[negatives], kind="stable")]
        self._positives = np.flatnonzero(positive)
        ladder = scores[self._negatives]
        self._below = np.searchsorted(ladder, scores[self._positives], "left")
        self._up_to = np.searchsorted(ladder, scores[self._positives], "right")

    def area(self, weights: Shares) -> float | None:
        """Return the weighted share of pairs that are in order, ties half; None without pairs."""
        steps = np.concatenate([[0.0], np.cumsum(weights[self._negatives])])
        positive = weights[self._positives]
        pairs = positive.sum() * steps[-1]
        if pairs <= 0:
            return None
        return float(positive @ (steps[self._below] + steps[self._up_to]) / (2.0 * pairs))
