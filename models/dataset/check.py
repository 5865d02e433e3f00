"""Everything that is wrong with a data set's folder, and what it holds.

`check_dataset` reads every file, as training would, and goes on after a complaint. It sees all
devices at once, so it belongs where a whole folder does: a hospital's own, or a simulation's.
"""

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from vitalring.errors import DataError
from vitalring.models.dataset import arrays
from vitalring.models.dataset.complaints import Complain, shown
from vitalring.models.dataset.csv_file import read_table
from vitalring.models.dataset.features import FeatureSchema, Number, columns_fit
from vitalring.models.dataset.folder import device_file, list_devices
from vitalring.models.dataset.info import DatasetInfo, read_info
from vitalring.models.dataset.records import Records
from vitalring.models.dataset.split import CURE_OF_PLACE, by_place, split
from vitalring.models.dataset.statistics import answer, count, countable, question_of
from vitalring.models.dataset.table import MISSING, Column, Table, number_of

_FEW = 0.1  # a column with fewer texts than this among its numbers is worth a note
_IDENTIFIERS = 0.5  # and so is one with more different texts than this, of at least
_ENOUGH = 50  # rows
_NARROW = 2.0**-8  # as is a column of numbers that spread less, counted in steps of 2^-16

H = TypeVar("H", bound=Hashable)
S = TypeVar("S", Records, Table)


@dataclass(frozen=True)
class DeviceSummary:
    """What one device holds; `classes` counts its rows by class, the others by use."""

    device: str
    rows: int
    classes: tuple[int, ...]
    train: int
    validation: int
    test: int


@dataclass(frozen=True)
class Checked:
    """What a folder holds. Only with no complaint can it be trained on.

    `shape` is that of one row for a network; `features` the declared ones, or those that all
    devices together would agree on, None for arrays.
    """

    info: DatasetInfo | None
    complaints: tuple[str, ...]
    notes: tuple[str, ...] = ()
    devices: tuple[DeviceSummary, ...] = ()
    shape: tuple[int, ...] | None = None
    features: FeatureSchema | None = None

    @property
    def good(self) -> bool:
        """Whether there is nothing to complain about."""
        return not self.complaints


def check_dataset(folder: Path) -> Checked:
    """Read a whole data set and say all that is wrong with it. Raises nothing for its content."""
    complaints: list[str] = []
    info = read_info(folder, complaints.append)
    if info is None:
        return Checked(None, tuple(complaints))
    seen = _Seen(info, complaints.append)
    for name in list_devices(folder, info, complaints.append):
        path = device_file(folder, name, info)
        if path.suffix == ".csv":
            table = read_table(path, name, info, complaints.append)
            if table is not None:
                seen.table(table)
        else:
            records = arrays.read_records(path, name, info, complaints.append)
            if records is not None:
                seen.records(path, records)
    shape, features = seen.together(folder)
    if seen.summaries and not complaints:
        seen.held_out(folder / "dataset.toml")
    notes = (
        *_held_out_notes(info),
        *seen.notes.values(),
        *_class_notes(info, seen.summaries),
        *_number_notes(features if info.features is None else None),
    )
    if complaints:
        shape = features = None
    return Checked(info, tuple(complaints), notes, tuple(seen.summaries), shape, features)


@dataclass(eq=False)
class _Seen:
    """What the devices have shown so far."""

    info: DatasetInfo
    complain: Complain
    summaries: list[DeviceSummary] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    totals: dict[str, list[int]] = field(default_factory=dict)

    def records(self, path: Path, records: Records) -> None:
        self._summary(records)
        self.shapes[str(path)] = records.x.shape[1:]

    def table(self, table: Table) -> None:
        train = self._summary(table)
        self.columns[table.file] = table.columns
        if self.info.features is not None:
            self.info.features.fits(table, self.complain)
            return
        self._note(table)
        complaints: list[str] = []
        countable(table, complaints.append)
        for message in complaints:
            self.complain(message)
        if complaints:
            return
        question = question_of(self.info, table.columns)
        numbers = count(question, train)
        each = len(numbers) // len(question.columns)
        for place, column in enumerate(question.columns):
            own = numbers[place * each : (place + 1) * each]
            total = self.totals.setdefault(column, [0] * each)
            self.totals[column] = [a + b for a, b in zip(total, own, strict=True)]

    def together(self, folder: Path) -> tuple[tuple[int, ...] | None, FeatureSchema | None]:
        """Compare the devices; return the shape of a row and the features."""
        if self.shapes:
            usual = _usual(self.shapes)
            for path, shape in self.shapes.items():
                if shape != usual:
                    self.complain(
                        f"{path}: array 'x' has rows of shape {shape}, but other devices have "
                        f"{usual}; cut all devices' rows alike"
                    )
            return usual, None
        if not self.columns:
            return None, None
        if self.info.features is not None:
            return (self.info.features.inputs,), self.info.features
        columns = _usual({file: tuple(sorted(names)) for file, names in self.columns.items()})
        for file, names in self.columns.items():
            columns_fit(columns, file, names, self.complain)
        if any(set(names) != set(columns) for names in self.columns.values()):
            return None, None
        question = question_of(self.info, columns)
        nothing = [0] * (len(question.widths) // len(question.columns))
        sums = [n for column in question.columns for n in self.totals.get(column, nothing)]
        try:
            features = answer(question, sums)
        except DataError as error:
            self.complain(f"{folder / 'dataset.toml'}: {error}")
            return None, None
        return (features.inputs,), features

    def held_out(self, toml: Path) -> None:
        """Complain where a whole part is empty."""
        for part, cure in (
            ("train", "hold out fewer rows, groups or devices"),
            ("test", "raise test_fraction, or name test_devices"),
        ):
            if part == "test" and self.info.test_devices == ():
                continue  # meant so
            if not any(getattr(device, part) for device in self.summaries):
                self.complain(f"{toml}: no row of any device is left to {part} on; {cure}")

    def _summary(self, rows: S) -> S:
        """Note what a device holds; return its rows for training."""
        parts = split(rows, self.info)
        classes = np.bincount(rows.y, minlength=len(self.info.classes))
        lengths = (len(part) for part in parts)
        counts = tuple(int(n) for n in classes)
        self.summaries.append(DeviceSummary(rows.device, len(rows), counts, *lengths))
        return parts.train

    def _note(self, table: Table) -> None:
        for name, column in table.cells.items():
            note = None if column.category else _column_note(name, column, table)
            if note:
                self.notes.setdefault(name, note)


def _held_out_notes(info: DatasetInfo) -> list[str]:
    if info.test_devices == ():
        return ["test_devices is empty: devices can train on this folder, and nobody evaluate"]
    keys = by_place(info)
    return [f"{' and '.join(keys)} of windows {CURE_OF_PLACE}"] if keys else []


def _usual(found: Mapping[str, H]) -> H:
    """Return what most files have, the first of equals."""
    return Counter(found.values()).most_common(1)[0][0]


def _column_note(name: str, column: Column, table: Table) -> str | None:
    """Say what looks unintended about a column, or None."""
    cells = [
        (code, rows)
        for code, rows in enumerate(column.counts().tolist())
        if rows and column.texts[code] != MISSING
    ]
    texts = [(code, rows) for code, rows in cells if number_of(column.texts[code]) is None]
    known, textual = sum(rows for _, rows in cells), sum(rows for _, rows in texts)
    if not textual:
        return None
    where = f"{table.file}: column {shown(name)}"
    if textual < _FEW * known:
        code = texts[0][0]
        return (
            f"{where} is a category, for {textual} of its {known} cells are texts, such as "
            f"{shown(column.texts[code])} on line {table.lines[column.first(code)]}; if they mark "
            "unknown cells, add them to missing; if numbers are codes here, add the column to "
            "categories"
        )
    if known >= _ENOUGH and len(cells) > _IDENTIFIERS * known:
        return (
            f"{where} has {len(cells)} different texts in {known} cells; if it names people or "
            "rows, add it to ignore, or name it as group"
        )
    return None


def _class_notes(info: DatasetInfo, devices: list[DeviceSummary]) -> list[str]:
    if not devices:
        return []
    rows = np.sum([device.classes for device in devices], axis=0)
    return [
        f"no device has a row of class {shown(name)}; it cannot be learnt"
        for name, n in zip(info.classes, rows, strict=True)
        if not n
    ]


def _number_notes(features: FeatureSchema | None) -> list[str]:
    return [
        f"column {shown(feature.column)} spreads by {feature.std:.2g} only, and numbers are "
        "counted in steps of 2^-16; write it in a smaller unit, or ignore it if all are equal"
        for feature in (features.features if features else ())
        if isinstance(feature, Number) and feature.std < _NARROW
    ]
