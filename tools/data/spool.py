"""Rows of many devices one after another in a file, read back by number."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitalring.errors import DataError
from vitalring.tools.data.folder import csv_text

_BLOCK = 4096  # rows read at once

Ints = npt.NDArray[np.int64]
Array = npt.NDArray[Any]


class ArraySpool:
    """Rows of x one after another in a file, in the type in which they came."""

    def __init__(self, room: Path) -> None:
        self._path = room / "x.bin"
        self._dtype: np.dtype[Any] | None = None
        self._shape: tuple[int, ...] = ()
        self._rows = 0

    def add(self, path: Path) -> None:
        """Append a device's x. The file was checked. Raises DataError when it is unlike others."""
        with np.load(path, allow_pickle=False) as archive:
            x = archive["x"]
        if self._dtype is None:
            self._dtype, self._shape = x.dtype, x.shape[1:]
        if (x.dtype, x.shape[1:]) != (self._dtype, self._shape):
            raise DataError(
                f"{path}: array 'x' has rows of {x.shape[1:]} {x.dtype}, other devices of "
                f"{self._shape} {self._dtype}; give all devices one shape and type"
            )
        with self._path.open("ab") as file:
            file.write(np.ascontiguousarray(x).tobytes())
        self._rows += len(x)

    def read(self, rows: Ints) -> Array:
        """Return rows of x in the type in which they were read."""
        if self._dtype is None:
            raise AssertionError("read before anything was added")
        held = np.memmap(self._path, self._dtype, "r", shape=(self._rows, *self._shape))
        taken: Array = np.array(held[rows])
        return taken


class TableSpool:
    """Rows of csv one after another in a file, all in the order of the first table's columns."""

    def __init__(self, room: Path) -> None:
        self._path = room / "rows.csv"
        self.header: list[str] = []
        self._starts: list[int] = [0]

    def add(self, path: Path, by: str | None) -> list[str]:
        """Append a site's rows and return their cells in column `by`. The file was checked."""
        with path.open(encoding="utf-8-sig", newline="") as stream, self._path.open("ab") as spool:
            rows = (row for row in csv.reader(stream, strict=True) if row)
            header = [cell.strip() for cell in next(rows)]
            self.header = self.header or header
            if set(header) != set(self.header):
                odd = sorted(set(header) ^ set(self.header))[0]
                raise DataError(
                    f"{path}: column {odd!r} is not in every table; rows cannot be mixed"
                )
            if by is not None and by not in header:
                raise DataError(f"{path}: has no column {by!r}; it has {', '.join(header)}")
            places = [header.index(column) for column in self.header]
            cells = []
            for row in rows:
                text = csv_text([[row[place] for place in places]]).encode()
                spool.write(text)
                self._starts.append(self._starts[-1] + len(text))
                if by is not None:
                    cells.append(row[header.index(by)].strip())
        return cells

    def read(self, rows: Ints) -> Iterator[bytes]:
        """Yield the text of rows, some at a time."""
        with self._path.open("rb") as spool:
            for first in range(0, len(rows), _BLOCK):
                block = io.BytesIO()
                for row in rows[first : first + _BLOCK].tolist():
                    spool.seek(self._starts[row])
                    block.write(spool.read(self._starts[row + 1] - self._starts[row]))
                yield block.getvalue()
