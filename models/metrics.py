"""How good predictions are. The confusion matrix counts rows of true, columns of predicted class.

With classes as unequal as heartbeats, accuracy flatters; macro-F1 gives each class one vote.
"""

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int64]


def confusion_matrix(y: Labels, predicted: Labels, classes: int) -> Counts:
    """Return counts (classes, classes) of true against predicted labels, both (n,)."""
    flat = np.bincount(y * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def accuracy(confusion: Counts) -> float:
    """Return the share of right predictions; 0 when there are none at all."""
    return float(np.trace(confusion) / max(confusion.sum(), 1))


def recall(confusion: Counts) -> npt.NDArray[np.float64]:
    """Return each class's share of found examples (classes,); 0 for a class without examples."""
    share: npt.NDArray[np.float64] = np.diag(confusion) / np.maximum(confusion.sum(axis=1), 1)
    return share


def f1(confusion: Counts) -> npt.NDArray[np.float64]:
    """Return each class's F1 (classes,), 2·hits / (true + predicted); 0 when it never occurs."""
    both = confusion.sum(axis=0) + confusion.sum(axis=1)
    score: npt.NDArray[np.float64] = 2 * np.diag(confusion) / np.maximum(both, 1)
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
