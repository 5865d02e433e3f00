"""A site's table: `devices/<id>.csv`, UTF-8 with a header.

Cells are separated by commas and may be quoted (RFC 4180); blanks around a cell do not count, nor
do empty lines. The label's cell is one of the data set's classes. Columns may stand in any order.
"""

import csv
import itertools
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vitalring.models.dataset.complaints import Complain, shown
from vitalring.models.dataset.features import MAX_COLUMNS, MAX_NAME
from vitalring.models.dataset.info import DatasetInfo
from vitalring.models.dataset.lots import group_lots
from vitalring.models.dataset.table import MISSING, Column, Table

MAX_CSV_BYTES = 1 << 29
MAX_ROWS = (1 << 24) - 1
_MAX_COMPLAINTS = 20  # of one kind in one file; what follows is counted
_CHUNK = 4096  # rows


def read_table(path: Path, device_id: str, info: DatasetInfo, complain: Complain) -> Table | None:
    """Read and check a csv file."""
    if info.label is None:
        complain(
            f"{path}: dataset.toml does not say which column is the label; write "
            'label = "..." there'
        )
        return None
    if info.inputs:
        complain(
            f"{path}: its header names the columns, so inputs in dataset.toml has no use; remove it"
        )
        return None
    try:
        size = path.stat().st_size
        if size > MAX_CSV_BYTES:
            complain(
                f"{path}: has {size} bytes, more than {MAX_CSV_BYTES}; split the site, or leave "
                "out columns"
            )
            return None
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return _Reader(path, device_id, info, complain).table(csv.reader(stream, strict=True))
    except FileNotFoundError:
        complain(f"{path}: does not exist; write one csv file with a header for each device")
    except UnicodeDecodeError:
        complain(f"{path}: {_undecodable(path)}; save the file as UTF-8")
    except OSError as error:
        complain(f"{path}: cannot be read ({error.strerror}); check the file and its rights")
    return None


class _Rows(Protocol):
    """What `csv.reader` gives."""

    line_num: int

    def __iter__(self) -> Iterator[list[str]]: ...

    def __next__(self) -> list[str]: ...


class _Codes(dict[str, int]):
    """Gives each different text of a column a number, as it comes."""

    def __init__(self, missing: frozenset[str]) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.codes = array("i")
        self._missing = missing

    def __missing__(self, cell: str) -> int:
        text = cell.strip()
        if text in self._missing:
            text = MISSING
        if text == cell:
            code = len(self.texts)
            self.texts.append(text)
        else:
            code = self[text]
        self[cell] = code
        return code

    def column(self, *, category: bool) -> Column:
        codes = np.frombuffer(self.codes, np.int32) if self.codes else np.zeros(0, np.int32)
        codes.flags.writeable = False
        return Column(tuple(self.texts), codes, category)


class _Reader:
    """Reads one file, and remembers whether all was right."""

    def __init__(self, path: Path, device: str, info: DatasetInfo, complain: Complain) -> None:
        self._path = path
        self._device = device
        self._info = info
        self._complain = complain
        self._sound = True
        self._ragged = 0

    def table(self, reader: _Rows) -> Table | None:
        """Return the table, or None after a complaint."""
        try:
            header: list[str] = next(reader, [])
            places = self._header(header)
            if places is None:
                return None
            columns = {name: self._codes(name) for name in places}
            lines = array("q")
            for rows in _chunks(self._rows(reader, len(header), lines)):
                cells = list(zip(*rows, strict=True))
                for name, codes in columns.items():
                    codes.codes.extend(map(codes.__getitem__, cells[places[name]]))
                if len(lines) > MAX_ROWS:
                    self._say(f"has more than {MAX_ROWS} rows; split the site")
                    return None
        except csv.Error as error:
            self._say(f"line {reader.line_num}: is not csv ({error}); write the file again")
            return None
        if self._ragged > _MAX_COMPLAINTS:
            self._say(f"{self._ragged} rows in all have another number of cells than the header")
        if not lines and not self._ragged:
            self._say("holds no row; remove the file or give it rows")
        found = {
            name: codes.column(category=name in self._info.categories)
            for name, codes in columns.items()
        }
        return self._finish(found, lines)

    def _say(self, message: str) -> None:
        self._sound = False
        self._complain(f"{self._path}: {message}")

    def _codes(self, name: str) -> _Codes:
        plain = name == self._info.label
        return _Codes(frozenset() if plain else frozenset(self._info.missing))

    def _header(self, cells: list[str]) -> dict[str, int] | None:
        """Return the place of each column to read, or None where rows cannot be read at all."""
        names = [cell.strip() for cell in cells]
        if not names:
            self._say("line 1: has no header; write the columns' names there")
            return None
        if len(names) == 1 and any(other in names[0] for other in ";\t|"):
            self._say(f"line 1: header is {shown(names[0])}; separate columns by commas")
            return None
        if len(names) > MAX_COLUMNS:
            self._say(f"line 1: has {len(names)} columns, more than {MAX_COLUMNS}; leave some out")
            return None
        for name in sorted({name for name in names if names.count(name) > 1}):
            self._say(f"line 1: column {shown(name)} stands there twice; rename or remove one")
        for place, name in enumerate(names, 1):
            if not 0 < len(name) <= MAX_NAME or not name.isprintable():
                self._say(
                    f"line 1: column {place} is named {shown(name)}; give it a name of 1 to "
                    f"{MAX_NAME} printable characters"
                )
        for role, column in (("label", self._info.label), ("group", self._info.group)):
            if column is not None and column not in names:
                self._say(
                    f"line 1: column {shown(column)} is missing; dataset.toml names it as {role}: "
                    f"add it, or correct {role} there"
                )
        places = {name: place for place, name in enumerate(names) if name not in self._info.ignore}
        if not set(places) - {self._info.label, self._info.group}:
            self._say("line 1: no column is a feature; add some, or take them out of ignore")
        return places

    def _rows(self, reader: _Rows, width: int, lines: "array[int]") -> Iterator[list[str]]:
        """Give the rows that have a cell for each column, and note where each begins."""
        begins = reader.line_num + 1
        for row in reader:
            if len(row) == width:
                lines.append(begins)
                yield row
            elif row:
                self._ragged += 1
                if self._ragged <= _MAX_COMPLAINTS:
                    self._say(
                        f"line {begins}: has {len(row)} cells, but the header has {width}; give "
                        "each column one, and quote cells that hold a comma"
                    )
            begins = reader.line_num + 1

    def _finish(self, columns: dict[str, Column], lines: "array[int]") -> Table | None:
        info = self._info
        starts = np.array(lines, np.int64)
        label = columns.pop(info.label or "", None)
        y = None if label is None else self._labels(label, starts)
        grouped = columns.pop(info.group, None) if info.group else None
        if grouped is not None and MISSING in grouped.texts:
            code = grouped.texts.index(MISSING)
            self._say(
                f"line {starts[grouped.first(code)]}: group {shown(info.group)} is unknown "
                f"({grouped.counts()[code]} such rows); give each row its group, or leave it out"
            )
        if not self._sound or y is None:
            return None
        group = None
        if grouped is not None:
            group = group_lots(grouped.texts)[grouped.codes]
        return Table(self._device, str(self._path), columns, y, starts, group)

    def _labels(self, label: Column, lines: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
        classes = {name: place for place, name in enumerate(self._info.classes)}
        wrong = [code for code, text in enumerate(label.texts) if text not in classes]
        counts = label.counts()
        for code in wrong[:_MAX_COMPLAINTS]:
            self._say(
                f"line {lines[label.first(code)]}: label {shown(label.texts[code])} is none of "
                f"the classes {shown(list(self._info.classes))} of dataset.toml ({counts[code]} "
                "such rows); correct the rows, or add the class"
            )
        if len(wrong) > _MAX_COMPLAINTS:
            self._say(f"{len(wrong)} different labels in all are none of the classes")
        if wrong:
            return None
        numbers = np.array([classes[text] for text in label.texts], np.int64)
        return numbers[label.codes]


def _chunks(rows: Iterator[list[str]]) -> Iterator[list[list[str]]]:
    while chunk := list(itertools.islice(rows, _CHUNK)):
        yield chunk


def _undecodable(path: Path) -> str:
    """Say where a file is not UTF-8."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"line {number}, byte {error.start + 1}: is not UTF-8"
    return "is not UTF-8"
