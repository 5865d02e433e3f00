"""The data that cells run on: a data set's folder, or a smaller copy of it for the quick form."""

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitalring.errors import DataError
from vitalring.files import write_atomic
from vitalring.models.dataset import (
    devices,
    holds_tables,
    load_dataset,
    load_table,
    refuse_by_place,
    split,
)
from vitalring.models.dataset.statistics import agreed
from vitalring.tools.bench.papers.store import Cell


@dataclass(frozen=True)
class Prepared:
    """A folder to run on, the digest of its content, and the features of its tables, if any."""

    folder: Path
    digest: str
    features: Path | None

    @property
    def place(self) -> dict[str, str]:
        """Return where data and features are, as a cell's child is told."""
        features = {"features": str(self.features)} if self.features else {}
        return {"data": str(self.folder), **features}


def prepare(source: Path, rows: int, room: Path) -> Prepared:
    """Return the data to run on; with `rows`, a copy in `room` with so many rows of each device.

    The sites' features are those that a study of statistics would agree on: it opens the same
    sums. They are kept in `room`. Raises DataError or ConfigError.
    """
    load_dataset(source)  # a folder that is none is said so before anything is copied
    digest = folder_digest(source)
    folder = source.absolute()
    if rows:
        folder = room / f"{digest[:16]}-{rows}"
        if not folder.exists():
            _copy(source, rows, folder)
        digest = folder_digest(folder)
    features = None
    info = load_dataset(folder)
    if holds_tables(folder, info) and info.features is None:
        features = room / f"{digest[:16]}-features.json"
        if not features.exists():
            names, _ = devices(folder, info)
            tables = [split(load_table(folder, name, info), info).train for name in names]
            write_atomic(features, agreed(info, tables).to_json())
    return Prepared(folder, digest, features)


def refuse_unfit(cells: Iterable[Cell]) -> None:
    """Refuse data that a study among the cells would refuse, before any is trained.

    Raises:
        DataError: a study of unit `record` would train on rows held out by their place.
    """
    for cell in cells:
        settings = cell.request.get("settings")
        if settings is not None and settings["study"]["unit"] == "record":
            folder = Path(cell.place["data"])
            refuse_by_place(folder, load_dataset(folder))


def folder_digest(folder: Path) -> str:
    """Return the SHA-256 of what a data set's folder says and holds, as hexadecimal digits.

    Raises DataError for what is no file.
    """
    total = hashlib.sha256()
    for path in [folder / "dataset.toml", *sorted((folder / "devices").iterdir())]:
        if not path.is_file():
            raise DataError(f"{path}: is no file; remove it from the data set")
        content = path.read_bytes()
        total.update(f"{path.name} {len(content)}\n".encode() + content)
    return total.hexdigest()


def _copy(source: Path, rows: int, target: Path) -> None:
    """Copy a data set with at most `rows` rows of each device, drawn at random, in their order."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "devices").mkdir(parents=True)
    shutil.copy(source / "dataset.toml", partial)
    generator = np.random.default_rng(0)
    for path in sorted((source / "devices").iterdir()):
        copy = partial / "devices" / path.name
        if path.suffix == ".csv":
            head, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = _some(len(lines), rows, generator)
            copy.write_text("".join([head, *(lines[n] for n in kept)]), encoding="utf-8")
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                kept = _some(len(arrays["y"]), rows, generator)
                np.savez(copy, **{name: arrays[name][kept] for name in arrays.files})
        else:
            raise DataError(f"{path}: is neither .csv nor .npz; remove it from the data set")
    partial.rename(target)


def _some(count: int, most: int, generator: np.random.Generator) -> list[int]:
    chosen: list[int] = np.sort(generator.choice(count, min(count, most), replace=False)).tolist()
    return chosen
