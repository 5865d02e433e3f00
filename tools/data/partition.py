"""Ways to deal rows to devices. Each returns one array of row numbers, rising, for each device.

Every row goes to exactly one device. The same seed gives the same division.
"""

import heapq
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vitalring.errors import ConfigError, DataError

Rows = npt.NDArray[np.int64]


def at_random(n: int, devices: int, generator: np.random.Generator) -> list[Rows]:
    """Deal n rows at random; devices' sizes differ by at most one."""
    _enough(n, devices)
    return [np.sort(rows) for rows in np.array_split(generator.permutation(n), devices)]


def within_people(
    sizes: Sequence[int], devices: int, generator: np.random.Generator
) -> list[list[Rows]]:
    """Deal each person's rows at random to virtual devices of that person alone.

    `sizes` are the people's rows, 1 or more each. A person gets devices in proportion to them
    (Adams' method: each gets one, and the next device goes to whoever's are largest), so every
    device has a row and sizes differ by at most one within a person. Row numbers count within
    the person.

    Raises:
        ConfigError: there are fewer devices than people.
        DataError: there are fewer rows than devices.
    """
    if devices < len(sizes):
        raise ConfigError(
            f"--devices {devices}: {len(sizes)} people have rows to train on; give at least one "
            "device to each"
        )
    _enough(sum(sizes), devices)
    shares = [1] * len(sizes)
    largest = [(-float(size), person) for person, size in enumerate(sizes)]
    heapq.heapify(largest)
    for _ in range(devices - len(sizes)):
        _, person = largest[0]
        shares[person] += 1
        heapq.heapreplace(largest, (-sizes[person] / shares[person], person))
    return [at_random(n, share, generator) for n, share in zip(sizes, shares, strict=True)]


def by_value(values: npt.NDArray[np.int64], min_rows: int) -> tuple[dict[int, Rows], Rows]:
    """Give each value its rows; the second result holds those of values with too few."""
    own, rest = {}, []
    for value in np.unique(values).tolist():
        rows = np.flatnonzero(values == value)
        if len(rows) >= min_rows:
            own[value] = rows
        else:
            rest.append(rows)
    return own, np.sort(np.concatenate(rest)) if rest else np.zeros(0, np.int64)


def dirichlet(
    labels: npt.NDArray[np.int64], devices: int, alpha: float, generator: np.random.Generator
) -> list[Rows]:
    """Deal rows with label skew, as Hsu, Qi and Brown do (arXiv:1909.06335, section 3).

    Device after device draws its own class shares q ~ Dir(alpha · p), p being the classes'
    shares among all rows, and then its rows one by one: a class from q, a row of it without
    replacement. A class that has no row left is taken out of q, which is normalised again. All
    devices have the same number of rows, but for one that division leaves over; the last ones get
    what is left. alpha → 0 gives
    each device one class, alpha → ∞ all devices the shares p. As p sums to 1, alpha is the sum of
    the Dirichlet parameters; where others draw each class's rows over devices from Dir(alpha, ...,
    alpha) (Yurochkin et al., arXiv:1905.12022), devices differ in size and alpha means another
    thing.
    """
    _enough(len(labels), devices)
    if not 0 < alpha <= 1e6:
        raise ConfigError(f"--alpha {alpha:g}: use a number above 0, at most 1000000")
    found, counts = np.unique(labels, return_counts=True)
    stacks = [generator.permutation(np.flatnonzero(labels == label)) for label in found]
    prior = counts / len(labels)
    left = counts.astype(np.int64)
    dealt: list[Rows] = []
    for device in range(devices):
        size = len(labels) // devices + (device < len(labels) % devices)
        q = generator.dirichlet(alpha * prior)
        taken = _draw(q, left, size, generator)
        rows = [
            stack[int(have) - int(take) : int(have)]
            for stack, have, take in zip(stacks, left, taken, strict=True)
        ]
        dealt.append(np.sort(np.concatenate(rows)))
        left = left - taken
    return dealt


def _draw(
    q: npt.NDArray[np.float64], left: Rows, size: int, generator: np.random.Generator
) -> Rows:
    """Return how many rows of each class a device draws.

    To draw many at once, and again what a class could not give, is to draw one by one: a draw
    from an exhausted class is one that the next replaces.
    """
    taken = np.zeros_like(left)
    while (lacking := size - int(taken.sum())) > 0:
        share = np.where(taken < left, q, 0.0)
        if not share.sum() > 0:
            # q has lost all of its mass: what is left is drawn as it comes.
            share = (left - taken).astype(np.float64)
        drawn = generator.multinomial(lacking, share / share.sum())
        taken = np.minimum(taken + drawn, left)
    return taken


def _enough(rows: int, devices: int) -> None:
    if devices < 1:
        raise ConfigError(f"--devices {devices}: give at least 1")
    if rows < devices:
        raise DataError(f"{rows} rows to train on cannot make {devices} devices: ask for fewer")
