"""What correlated noise would bring: the error of prefix sums under matrix factorisations.

A study adds up the updates of its rounds, so what counts is the noise on sums of the first t
rounds, A·z with A lower triangular of ones. A factorisation A = B·C releases C·g + noise and
multiplies by B: the noise is calibrated to the sensitivity of C·g and arrives as B·noise
(Denisov et al., "Improved Differential Privacy for SGD via Optimal Private Linear Operators on
Adaptive Streams", 2022). C = 1 is independent noise. Of a record that is in rounds s, s+b, s+2b
and so on, C of no negative entry moves by ‖Σ C[:, s+kb]‖ at most (Choquette-Choo et al.,
"Amplified Banded Matrix Factorization", 2023).

The factor here is the square root of A, with Toeplitz entries binom(2k, k)/4^k (Fichtenberger et
al. 2023), cut off after b bands where a record comes every b rounds.
"""

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

EVERY = (1, 2, 4, 10, 25)
"""A record takes part in every so many rounds."""


def prefix_errors(rounds: int) -> list[dict[str, float]]:
    """Return root mean square errors of prefix sums, relative to independent noise at each round.

    Each round divides by the records that are in it, so of a record in every b-th round the noise
    weighs b times as much: the reference is always independent noise with all records in every
    round. `bands` 0 is the whole root.
    """
    reference = _error(np.eye(rounds), rounds, 1)
    found = [
        {"every": 1, "bands": 0, "error": _error(_root(rounds, rounds), rounds, 1) / reference}
    ]
    for every in (each for each in EVERY if each <= rounds):
        error = every * _error(_root(rounds, every), rounds, every) / reference
        found.append({"every": every, "bands": every, "error": error})
    return found


def _root(rounds: int, bands: int) -> Matrix:
    """Return the square root of A (rounds, rounds), its first diagonals alone."""
    entries = np.zeros(rounds)
    entries[0] = 1.0
    for k in range(1, bands):
        entries[k] = entries[k - 1] * (2 * k - 1) / (2 * k)
    place = np.subtract.outer(np.arange(rounds), np.arange(rounds))
    root: Matrix = np.where(place >= 0, entries[np.maximum(place, 0)], 0.0)
    return root


def _error(c: Matrix, rounds: int, every: int) -> float:
    """Return sensitivity times the root mean square row length of A·C⁻¹."""
    sums = np.tril(np.ones((rounds, rounds)))
    b = np.linalg.solve(c.T, sums.T).T
    moved = max(float(np.linalg.norm(c[:, start::every].sum(axis=1))) for start in range(every))
    return moved * float(np.sqrt(np.square(b).sum(axis=1).mean()))
