"""All rows of a data set in one place on disk, with what is held out kept apart.

What trains, validates and tests is decided by the data set itself (`vitalring.models.dataset`),
before any row is dealt to another device. Where rows belong to persons (`group`), no person of
the test rows has rows that train or validate, and no person of the validation rows has rows that
train: such rows are dropped and counted.

Memory holds a few numbers for each row, and one device at a time.
"""

import shutil
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitalring.errors import DataError
from vitalring.models.dataset import DatasetInfo, devices, holds_tables, load_device
from vitalring.models.dataset.complaints import refuse, strictly
from vitalring.models.dataset.csv_file import read_table
from vitalring.models.dataset.split import Divisible, divide
from vitalring.tools.data.folder import NewFolder
from vitalring.tools.data.source import Used, fingerprint
from vitalring.tools.data.spool import Array, ArraySpool, Ints, TableSpool

TRAIN, VALIDATION, TEST = range(3)
_DROPPED = -1
_PARTS = {TRAIN, VALIDATION, TEST, _DROPPED}


@dataclass(frozen=True, eq=False)
class Pool:
    """Every row of a data set.

    Arrays have one number for each row: its source device (an index into `names`), its part, its
    label (an index into the classes), and its value in the column asked for (an index into
    `values`). `table` is the source's `dataset.toml` but for what it holds out.
    """

    info: DatasetInfo
    table: dict[str, object]
    names: tuple[str, ...]
    device: Ints = field(repr=False)
    part: Ints = field(repr=False)
    label: Ints = field(repr=False)
    value: Ints = field(repr=False)
    values: tuple[str, ...]
    spool: ArraySpool | TableSpool
    room: Path
    used: tuple[Used, ...]
    dropped: int
    """Rows of persons who are held out elsewhere."""

    def rows(self, part: int, device: int | None = None) -> Ints:
        """Return the numbers of a part's rows, of one source device or of all."""
        if device is None:
            return np.flatnonzero(self.part == part)
        # A source device's rows stand together.
        first, end = np.searchsorted(self.device, [device, device + 1]).tolist()
        found: Ints = first + np.flatnonzero(self.part[first:end] == part)
        return found

    def write(
        self,
        folder: NewFolder,
        name: str,
        rows: Ints,
        change: Callable[[Array], Array] | None = None,
    ) -> None:
        """Write rows as one device; `change` is applied to x, where x is an array."""
        labels = self.label[rows]
        if isinstance(self.spool, TableSpool):
            names = [self.info.classes[label] for label in labels.tolist()]
            folder.table(name, self.spool.header, self.spool.read(rows), names)
            return
        x = self.spool.read(rows)
        small = np.uint8 if len(self.info.classes) <= 256 else np.uint16
        folder.arrays(name, x if change is None else change(x), labels.astype(small))

    @property
    def keys(self) -> Sequence[Any]:
        """What a folder's tally counts for this data set's classes."""
        is_table = isinstance(self.spool, TableSpool)
        return self.info.classes if is_table else range(len(self.info.classes))

    def close(self) -> None:
        """Remove the rows from the disk."""
        shutil.rmtree(self.room)

    def write_held_out(self, folder: NewFolder) -> dict[str, list[str]]:
        """Write the rows that do not train; return the keys of `dataset.toml` that name them.

        Rows stay with their source device. One that only tests keeps its name.

        Raises:
            DataError: no row tests.
        """
        keys: dict[str, list[str]] = {}
        for part, key, ending in (
            (TEST, "test_devices", "held-out"),
            (VALIDATION, "validation_devices", "validation"),
        ):
            names = []
            for device, source in enumerate(self.names):
                rows = self.rows(part, device)
                if len(rows):
                    alone = not any(len(self.rows(other, device)) for other in _PARTS - {part})
                    names.append(source if alone else f"{source[:50]}-{ending}")
                    self.write(folder, names[-1], rows)
            if names:
                keys[key] = names
        if "test_devices" not in keys:
            raise DataError("no row is held out to test on: hold out more rows or devices")
        return keys


def pool_of_folder(folder: Path, info: DatasetInfo, room: Path, by: str | None = None) -> Pool:
    """Read a data set's folder; `room` is a new folder for the rows.

    Raises:
        DataError: a file is broken, or devices are unlike each other.
    """
    train, test = devices(folder, info)
    names = sorted({*train, *test, *info.validation_devices})
    table = tomllib.loads((folder / "dataset.toml").read_text(encoding="utf-8-sig"))
    is_table = holds_tables(folder, info)
    paths = [folder / "devices" / f"{name}{'.csv' if is_table else '.npz'}" for name in names]
    used = tuple(
        fingerprint(path, f"{folder.name}/{path.relative_to(folder).as_posix()}")
        for path in (folder / "dataset.toml", *paths)
    )
    return _pool(info, table, names, paths, used, room, by)


def pool_of_table(
    path: Path, info: DatasetInfo, table: dict[str, object], room: Path, by: str | None = None
) -> Pool:
    """Read one csv file. Raises DataError."""
    return _pool(info, table, [info.name], [path], (fingerprint(path, path.name),), room, by)


def _pool(
    info: DatasetInfo,
    table: dict[str, object],
    names: list[str],
    paths: list[Path],
    used: tuple[Used, ...],
    room: Path,
    by: str | None,
) -> Pool:
    room.mkdir()
    is_table = paths[0].suffix == ".csv"
    if by is not None and not is_table:
        raise DataError(f"column {by!r} cannot be read: {paths[0]} holds arrays; use tables")
    tables, arrays = TableSpool(room), ArraySpool(room)
    columns: dict[str, list[Any]] = {"device": [], "part": [], "label": [], "group": []}
    codes: dict[str, int] = {}
    values: list[int] = []
    for number, (name, path) in enumerate(zip(names, paths, strict=True)):
        if is_table:
            records: Any = strictly(read_table(path, name, info, refuse))
            cells = tables.add(path, by)
            values += [codes.setdefault(cell, len(codes)) for cell in cells]
        else:
            records = load_device(path.parent.parent, name, info)
            arrays.add(path)
        n = len(records)
        columns["device"].append(np.full(n, number))
        columns["part"].append(_parts(records, info))
        columns["label"].append(np.array(records.y))
        if records.group is not None:
            columns["group"].append(np.array(records.group))
    part = np.concatenate(columns["part"])
    dropped = _keep_apart(part, columns["group"])
    return Pool(
        info,
        {
            key: value
            for key, value in table.items()
            if not key.startswith(("test_", "validation_"))
        },
        tuple(names),
        np.concatenate(columns["device"]),
        part,
        np.concatenate(columns["label"]),
        np.array(values, dtype=np.int64),
        tuple(codes),
        tables if is_table else arrays,
        room,
        used,
        dropped,
    )


def _parts(records: Divisible, info: DatasetInfo) -> Ints:
    parts = np.full(len(records), TRAIN, dtype=np.int64)
    divided = divide(records, info)
    parts[divided.validation] = VALIDATION
    parts[divided.test] = TEST
    return parts


def _keep_apart(part: Ints, groups: list[npt.NDArray[np.uint64]]) -> int:
    """Drop rows of persons who are held out elsewhere; return how many."""
    if not groups:
        return 0
    group = np.concatenate(groups)
    for held_out, others in ((TEST, (TRAIN, VALIDATION)), (VALIDATION, (TRAIN,))):
        wrong = np.isin(part, others) & np.isin(group, group[part == held_out])
        part[wrong] = _DROPPED
    return int((part == _DROPPED).sum())
