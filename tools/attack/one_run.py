"""Lower bounds on epsilon from one training with many canaries.

Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023
(arXiv:2305.08846). Of m canaries each is trained on or not by a fair coin of its own. The auditor
guesses r of the coins from what it sees and is right on v. Under (epsilon, delta)-differential
privacy v is hardly larger than of r answers by randomised response (Theorem 5.2 and its code in
appendix D); the largest epsilon that the guesses contradict is a lower bound.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from vitalring.errors import ConfigError

Floats = npt.NDArray[np.float64]
Truth = npt.NDArray[np.bool_]

SHARES: Final = (0.02, 0.05, 0.1, 0.2, 0.5)
"""Of the canaries, what is guessed: too few prove little, too many are guessed by luck."""

_MOST_EPSILON: Final = 100.0


@dataclass(frozen=True)
class Bound:
    """What an audit found: `epsilon` is a lower bound, `right` of `guesses` were right."""

    epsilon: float
    guesses: int
    right: int


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Return how likely so many right guesses, or more, are at most under (epsilon, delta)-DP.

    Raises ConfigError for counts or a guarantee that cannot be.
    """
    from scipy import stats  # noqa: PLC0415 - takes seconds to load

    if not (0 <= right <= guesses <= canaries and epsilon >= 0.0 and 0.0 <= delta <= 1.0):
        raise ConfigError(
            f"{right} of {guesses} guesses on {canaries} canaries at ({epsilon:g}, {delta:g}) "
            "cannot be"
        )
    chance = 1.0 / (1.0 + math.exp(-epsilon))
    # 1. Randomised response is right on so many.
    beta = float(stats.binom.sf(right - 1, guesses, chance))
    # 2. What delta adds: max over i of P[right > W >= right - i] / i.
    below = np.cumsum(stats.binom.pmf(np.arange(right - 1, -1, -1), guesses, chance))
    alpha = float(np.max(below / np.arange(1, right + 1), initial=0.0))
    return min(1.0, beta + 2.0 * canaries * delta * alpha)


def lower_bound(canaries: int, guesses: int, right: int, delta: float, risk: float) -> float:
    """Return the epsilon that so many right guesses contradict, wrongly with chance `risk`.

    0 where they contradict none; rounded down at the fourth decimal. Raises ConfigError.
    """
    if not 0.0 < risk < 1.0:
        raise ConfigError(f"a risk of {risk:g} is none: choose between 0 and 1")
    low, high = 0, round(_MOST_EPSILON * 10_000)
    if p_value(canaries, guesses, right, 0.0, delta) >= risk:
        return 0.0
    # Invariant: `low` is contradicted; p grows with epsilon.
    while high - low > 1:
        middle = (low + high) // 2
        if p_value(canaries, guesses, right, middle / 10_000, delta) < risk:
            low = middle
        else:
            high = middle
    return low / 10_000


def best_bound(scores: Floats, included: Truth, delta: float, risk: float = 0.05) -> Bound:
    """Guess that the canaries of the highest scores (m,) are in and those of the lowest are not.

    Of several numbers of guesses the best bound counts, at a risk that is divided among them.
    """
    order, best = np.argsort(scores, kind="stable"), Bound(0.0, 0, 0)
    for share in SHARES:
        each = max(1, round(share * len(scores) / 2.0))
        right = int(included[order[-each:]].sum() + np.sum(~included[order[:each]]))
        found = lower_bound(len(scores), 2 * each, right, delta, risk / len(SHARES))
        if found > best.epsilon or not best.guesses:
            best = Bound(found, 2 * each, right)
    return best
