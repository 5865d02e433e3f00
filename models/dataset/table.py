"""A site's table as it was read: cells as text, each different text once."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from vitalring.models.dataset.lots import Lots, table_lots
from vitalring.models.dataset.records import Rows, read_only

MISSING = ""
"""How an unknown cell reads, whatever marked it in the file."""

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


@dataclass(frozen=True, eq=False)
class Column:
    """A column's cells: row i holds texts[codes[i]]; `codes` is int32 (n).

    `category` is true where numbers are codes, to be counted as other texts are.
    """

    texts: tuple[str, ...] = field(repr=False)
    codes: npt.NDArray[np.int32] = field(repr=False)
    category: bool = False

    def counts(self) -> npt.NDArray[np.int64]:
        """Return how many rows hold each text."""
        return np.bincount(self.codes, minlength=len(self.texts)).astype(np.int64)

    def first(self, code: int) -> int:
        """Return the first row that holds a text."""
        return int(np.argmax(self.codes == code))


@dataclass(frozen=True, eq=False)
class Table:
    """One site's rows before encoding: the columns that are features, and labels y int64 (n).

    `file` and `lines` (n), the line on which each row begins, are for messages. `group` is as in
    `Records`.
    """

    device: str
    file: str
    cells: Mapping[str, Column] = field(repr=False)
    y: npt.NDArray[np.int64] = field(repr=False)
    lines: npt.NDArray[np.int64] = field(repr=False)
    group: Lots | None = field(default=None, repr=False)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the features' columns, in the file's order."""
        return tuple(self.cells)

    def __len__(self) -> int:
        return len(self.y)

    def lots(self) -> Lots:
        """Return the number (n) by which a split draws each row: its group's, or its own.

        A row's own is of its label and the cells that are features, whatever their order.
        """
        if self.group is not None:
            return self.group
        cells = {name: (column.texts, column.codes) for name, column in self.cells.items()}
        return table_lots(cells, self.y)

    def take(self, rows: Rows) -> "Table":
        """Return these rows."""
        cells = {
            name: replace(column, codes=read_only(column.codes[rows]))
            for name, column in self.cells.items()
        }
        group = None if self.group is None else read_only(self.group[rows])
        y, lines = read_only(self.y[rows]), read_only(self.lines[rows])
        return Table(self.device, self.file, cells, y, lines, group)


def number_of(text: str) -> float | None:
    """Return the decimal number that a cell holds, or None for any other text.

    Words such as "nan" are no numbers. The number may be infinite where the text's exponent is
    beyond float64.
    """
    return float(text) if _NUMBER.fullmatch(text) else None
