"""Cells on disk: one JSON file each, written whole as soon as the cell is measured.

Rules kept here: a cell's name on disk is a digest of everything that decides its figures, so a
changed setting is another cell; a failure is kept with its reason, and is tried again.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from vitalring.errors import ConfigError
from vitalring.files import read_file, write_atomic

MEASURED, FAILED, DISTURBED, WAITING = "measured", "failed", "disturbed", "waiting"

_MEANING: Final = 1
"""Raised where a cell comes to measure something else by the same settings."""


@dataclass(frozen=True)
class Cell:
    """One run. `request` decides its figures, and nothing else does.

    `place` says where data and interpreters are on this machine.
    """

    kind: str
    name: str
    request: Mapping[str, Any]
    place: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Return the digest of kind and request, 64 hexadecimal digits."""
        whole = {"meaning": _MEANING, "kind": self.kind, "request": self.request}
        text = json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Found:
    """What was measured of a cell, or why it was not."""

    status: str
    reason: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    machine: Mapping[str, str] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Tell whether there is nothing left to measure."""
        return self.status == MEASURED


NOTHING: Final = Found(WAITING, "not run yet")


class Store:
    """The folder of cells."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, cell: Cell) -> Found | None:
        """Return what is known of a cell, None where it was never run. Raises ConfigError."""
        path = self._path(cell)
        if not path.exists():
            return None
        try:
            content = json.loads(read_file(path))
            if content["key"] != cell.key:
                raise ConfigError(f"{path} is of another cell: remove it")
            return Found(**content["found"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is no cell: remove it ({error})") from error

    def save(self, cell: Cell, found: Found) -> None:
        """Keep what was found. Raises StorageError."""
        content = {
            "key": cell.key,
            "kind": cell.kind,
            "name": cell.name,
            "request": cell.request,
            "found": asdict(found),
        }
        text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"
        write_atomic(self._path(cell), text.encode())

    def _path(self, cell: Cell) -> Path:
        return self._folder / f"{cell.kind}-{cell.key[:20]}.json"
