"""Weights and inputs that are to break a clip: of all sizes, and such that much cancels."""

import numpy as np

LARGEST = 2.0**14
"""What a device allows a weight to be."""
SLACK = 2.0**-8
"""Share of the clip that SPEC 7.4 has for the norm and the scaling of one record."""


def hostile_weights(blocks, rng):
    """Return weights of `blocks`, each (size, limit): each block of a pattern and size of its own.

    A limit of 0 says that the block is a bias, or a head that starts from zero.
    """
    usual = rng.random() < 0.5
    parts = []
    for size, limit in blocks:
        part = _pattern(size, rng)
        if usual:  # so that much is alive when one block is hostile
            exponent = rng.uniform(-3, 3)
        else:
            exponent = rng.choice([-40, -20, -8, -3, 0, 3, 7, 14, rng.uniform(-60, 14)])
        if limit == 0 and rng.random() < 0.5:
            part = np.abs(part)
        parts.append(part * 2.0**exponent)
    if usual:
        parts[rng.integers(len(parts))] *= 2.0 ** rng.uniform(-30, 14)
    weights = np.clip(np.concatenate(parts), -LARGEST, LARGEST)
    return weights.astype(np.float32)


def hostile_inputs(shape, rng):
    """Return finite inputs (n, ...), each of a pattern and size of its own."""
    rows = []
    for _ in range(shape[0]):
        row = _pattern(int(np.prod(shape[1:])), rng).reshape(shape[1:])
        rows.append(row * 10.0 ** rng.choice([-38, -10, -1, 0, 0, 0, 1, 10, 38]))
    most = np.finfo(np.float32).max
    return np.clip(np.array(rows), -most, most).astype(np.float32)


def _pattern(size, rng):
    """Return `size` numbers, most of about 1."""
    kind = rng.integers(6)
    some = rng.normal(size=size)
    if kind == 0:
        return some
    if kind == 1:
        return np.sign(some)
    if kind == 2:
        return np.full(size, some[0])
    if kind == 3:
        return np.where(rng.random(size) < 4 / size, some * 100, 0.0)
    if kind == 4:  # the second half takes the first away, but for a little
        return np.resize(some[: (size + 1) // 2], size) * np.where(
            np.arange(size) < size // 2, 1.0, -1.0 + rng.choice([0, 1e-3, 1e-6])
        )
    # Whole levels of int8 whose fifth part takes the other four away.
    levels = rng.integers(-31, 32, (4, size // 5)).astype(float)
    return np.concatenate([levels.ravel(), -levels.sum(0), np.zeros(size % 5)])
