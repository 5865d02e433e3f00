"""Residues by Python's integers: a second way, for tests to check the first one by."""

from math import prod

import numpy as np


def integers(rows: np.ndarray, primes) -> np.ndarray:
    """Return residues (primes, degree) as integers modulo their product."""
    q = prod(primes)
    weights = [q // p * pow(q // p, -1, p) for p in primes]
    return sum(row.astype(object) * w for row, w in zip(rows, weights, strict=True)) % q


def centred(values: np.ndarray, modulus: int) -> np.ndarray:
    return (values + modulus // 2) % modulus - modulus // 2
