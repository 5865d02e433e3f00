"""What the papers report, and arithmetic on what is measured beside it."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from vitalring.errors import ConfigError
from vitalring.models import metrics

WITHIN: Final = 0.005
"""Training has converged where it is this near its best: half a point."""


class RowA(NamedTuple):
    """A row of paper A's Table 1; what it does not give is a dash."""

    name: str
    accuracy: float
    privacy: str
    communication: str
    computation: str


TABLE_A: Final = {
    "centralised": RowA("centralised", 95.4, "low", "low", "high"),
    "plain": RowA("plain FL", 91.7, "moderate", "medium", "high"),
    "all": RowA("all mechanisms", 89.6, "high", "high", "medium"),
    "dp": RowA("DP-FL", 88.5, "–", "–", "–"),
    "he": RowA("HE-FL", 89.0, "–", "–", "low"),
    "smpc": RowA("SMPC-FL", 90.2, "–", "–", "low"),
}
"""Paper A, Table 1: accuracy in per cent, then its words for privacy, communication and
efficiency of computation."""

TABLE_B: Final[Mapping[str, Mapping[str, str]]] = {
    "centralised": {
        "network": "dense 128-64-32",
        "accuracy": "87.1 ± 0.5",
        "precision": "86.7",
        "recall": "88.0",
        "f1": "87.3",
        "convergence": "40 epochs",
        "time": "5 h",
        "update": "–",
    },
    "federated": {
        "network": "dense 128-64-32",
        "accuracy": "85.3 ± 0.6",
        "precision": "84.9",
        "recall": "85.5",
        "f1": "85.2",
        "convergence": "50 epochs",
        "time": "7 h",
        "update": "1.2 s",
        "privacy": "epsilon 1",
    },
}
"""Paper B, Table I; its federated column has Gaussian noise at epsilon 1."""

FIGURE_B: Final = ((0.1, 78.5), (0.5, 83.2), (1.0, 85.3), (2.0, 86.8), (5.0, 86.8))
"""Paper B, Figure 2: accuracy in per cent by epsilon; from 2 on it says `up to 86.8`."""

LEDGER_B: Final = {
    "latency": "1.2 s",
    "rate": "50 a minute",
    "transactions": "1,500",
    "disk": "30 MB",
}
"""Paper B, Table II: Hyperledger Fabric with PBFT, over 10 epochs."""


class Scores(NamedTuple):
    """Shares; precision, recall and F1 are plain means over the classes."""

    accuracy: float
    precision: float
    recall: float
    f1: float


def scores_of(confusion: Sequence[Sequence[int]]) -> Scores:
    """Return the scores of a confusion matrix: rows of true, columns of predicted class."""
    counts = np.asarray(confusion, np.int64)
    return Scores(
        metrics.accuracy(counts),
        float(metrics.precision(counts).mean()),
        float(metrics.recall(counts).mean()),
        metrics.macro_f1(counts),
    )


def convergence(curve: Sequence[float]) -> int:
    """Return the first round (from 1) whose score is within `WITHIN` of the best one.

    Raises ConfigError for an empty curve.
    """
    if not curve:
        raise ConfigError("there is no round to look for convergence in")
    best = max(curve)
    # A hair of rounding must not count as a point.
    return next(n for n, value in enumerate(curve, 1) if value >= best - WITHIN - 1e-12)
