"""One device's rows, ready for a network."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from vitalring.models.dataset.lots import Lots, array_lots

A = TypeVar("A", bound=npt.NDArray[Any])
Rows = slice | npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Records:
    """One device's rows: x float32 (n, time, channels) or (n, inputs), y int64 (n), n ≥ 0.

    `group` (n) has one number for each group, such as a patient, whose rows stay together in a
    split; it is None where the data set names no such column. `row_lots` (n) are the lots of rows
    that were text before they were encoded, and None for others.
    """

    device: str
    x: npt.NDArray[np.float32] = field(repr=False)
    y: npt.NDArray[np.int64] = field(repr=False)
    group: Lots | None = field(default=None, repr=False)
    row_lots: Lots | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.y)

    def lots(self) -> Lots:
        """Return the number (n) by which a split draws each row: its group's, or its own."""
        if self.group is not None:
            return self.group
        return array_lots(self.x, self.y) if self.row_lots is None else self.row_lots

    def take(self, rows: Rows) -> "Records":
        """Return these rows, read-only; a slice copies nothing."""
        group, lots = (
            None if each is None else read_only(each[rows]) for each in (self.group, self.row_lots)
        )
        return Records(self.device, read_only(self.x[rows]), read_only(self.y[rows]), group, lots)


def read_only(array: A) -> A:
    """Return the array after forbidding writes to it."""
    array.flags.writeable = False
    return array


def pooled(name: str, parts: Sequence[Records]) -> Records:
    """Return the rows of all parts as one device's, without their groups."""
    return Records(name, np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]))
