"""Write a data set's folder whole or not at all.

Everything goes to a hidden folder beside the target, which takes the target's name as the last
step. An interrupted run leaves nothing under the final name, and its remains are removed by the
next one.
"""

import csv
import io
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vitalring.errors import ConfigError, DataError, StorageError
from vitalring.models.dataset import devices, load_dataset

PROVENANCE = "PROVENANCE.txt"


def slug(text: str) -> str:
    """Return a device id made of `text`: small letters, digits, '.', '_' and '-'.

    Raises:
        DataError: nothing of it can be used.
    """
    name = re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-.")[:64].rstrip("-.")
    if not name:
        raise DataError(f"no device can be named after {text!r}; name another column")
    return name


def toml(table: Mapping[str, object]) -> str:
    """Write strings, numbers, booleans, lists, and tables of them as TOML."""
    lines, sections = [], []
    for key, value in table.items():
        if isinstance(value, Mapping):
            sections.append(f"\n[{key}]\n")
            sections += [f"{_value(name)} = {_value(inner)}\n" for name, inner in value.items()]
        else:
            lines.append(f"{key} = {_value(value)}\n")
    return "".join(lines + sections)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_value(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    escaped = "".join(
        f"\\u{ord(letter):04x}" if ord(letter) < 32 or letter in '"\\\x7f' else letter
        for letter in str(value)
    )
    return f'"{escaped}"'


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    """Write rows as csv."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def need_free(target: Path) -> None:
    """Refuse a target that holds something. Raises ConfigError."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"{target} exists already and is not empty: name a new folder with --out")


class NewFolder:
    """A context manager: add devices, then `finish`; without it nothing is left.

    `tally` counts each device's rows by class (an index for arrays, the label's cell for tables).
    """

    def __init__(self, target: Path) -> None:
        """Refuse a target that holds something. Raises ConfigError or StorageError."""
        need_free(target)
        target = target.absolute()
        self._target = target
        self.partial = target.with_name(f".{target.name}.partial")
        self.tally: dict[str, Counter[Any]] = {}
        try:
            shutil.rmtree(self.partial, ignore_errors=True)
            (self.partial / "devices").mkdir(parents=True)
        except OSError as error:
            raise StorageError(f"{self.partial} cannot be made: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise StorageError(f"{self._target} cannot be written: {error}") from error

    def arrays(self, device: str, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> None:
        """Write one device's arrays and count its rows; y are class indices."""
        self._new(device)
        np.savez_compressed(self.partial / "devices" / f"{device}.npz", x=x, y=y)
        self.tally[device].update(y.tolist())

    def rows(
        self, device: str, header: Sequence[str], rows: Sequence[Sequence[str]], label: int
    ) -> None:
        """Append rows to a device's table, whose header is written the first time."""
        if device in self.tally:
            header = ()
        else:
            self._new(device)
        self._append(device, header, [csv_text(rows).encode()])
        self.tally[device].update(row[label] for row in rows)

    def table(
        self, device: str, header: Sequence[str], text: Iterable[bytes], labels: Iterable[str]
    ) -> None:
        """Write one device's table, its rows given as csv text."""
        self._new(device)
        self._append(device, header, text)
        self.tally[device].update(labels)

    def _append(self, device: str, header: Sequence[str], text: Iterable[bytes]) -> None:
        with (self.partial / "devices" / f"{device}.csv").open("ab") as file:
            if header:
                file.write(csv_text([header]).encode())
            file.writelines(text)

    def note(self, name: str, text: str) -> None:
        """Write a text file beside `dataset.toml`."""
        (self.partial / name).write_text(text, encoding="utf-8")

    def finish(self, table: Mapping[str, object], head: Iterable[str], provenance: str) -> None:
        """Write `dataset.toml` (its comment lines first) and the provenance; publish the folder.

        Raises:
            DataError: what was written is not a data set, which names the fault.
            StorageError: the folder cannot be written.
        """
        comments = "".join(f"# {line}".rstrip() + "\n" for line in head)
        self.note("dataset.toml", comments + toml(table))
        self.note(PROVENANCE, provenance)
        devices(self.partial, load_dataset(self.partial))
        os.sync()  # a power cut after the rename must not find empty files
        self.partial.replace(self._target)

    def _new(self, device: str) -> None:
        if device in self.tally:
            raise DataError(f"two devices would be named {device!r}; name another column")
        self.tally[device] = Counter()
