"""A personal head on the device's disk: two files that only their owner reads.

Both directions are here. The result names its head and the global weights that the head belongs
to by digest, so a head whose result is another's, after a power cut between the two files or
under newer weights, counts as none.
"""

import contextlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from vitalring.edge_agent.dpsgd import Weights
from vitalring.edge_agent.personal import Personal, PersonalResult
from vitalring.errors import RecordError, StorageError
from vitalring.protocol.cbor import digest
from vitalring.protocol.weights import pack_weights, unpack_weights
from vitalring.schema import Size, from_plain, to_plain

RESULT_FILE: Final = "personal.json"
HEAD_FILE: Final = "personal-head.bin"


@dataclass(frozen=True)
class _Saved:
    """The JSON beside a head: which head it is (SHA-256), and which weights it belongs to."""

    base: Annotated[str, Size(64)]
    head: Annotated[str, Size(64)]
    result: PersonalResult


def save(folder: Path, personal: Personal) -> None:
    """Keep a head and its result in a device's state folder, for its owner alone.

    Raises StorageError.
    """
    head = pack_weights(personal.head)
    saved = _Saved(personal.base.hex(), digest(head).hex(), personal.result)
    _write_private(folder / HEAD_FILE, head)
    text = json.dumps(to_plain(saved), indent=2) + "\n"
    _write_private(folder / RESULT_FILE, text.encode())


def load_result(folder: Path) -> PersonalResult | None:
    """Return the result of the last personalisation; None before the first. Raises StorageError."""
    saved = _load(folder)
    return saved.result if saved else None


def load_head(folder: Path, weights: Weights) -> Weights | None:
    """Return the personal head to use with the global `weights` (d,), or None for theirs.

    None if it was no better, belongs to other weights or was never made. Raises StorageError.
    """
    saved = _load(folder)
    if saved is None or not saved.result.used:
        return None
    if saved.base != digest(pack_weights(weights)).hex():
        return None
    try:
        content = (folder / HEAD_FILE).read_bytes()
        if digest(content).hex() != saved.head:
            return None
        return unpack_weights(content, len(content) // 4)
    except FileNotFoundError:
        return None
    except (OSError, RecordError) as error:
        raise StorageError(f"{folder / HEAD_FILE} cannot be used: {error}; remove it") from error


def _load(folder: Path) -> _Saved | None:
    path = folder / RESULT_FILE
    try:
        table = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(f"{path} cannot be read: {error}; remove it") from error
    return from_plain(_Saved, table, StorageError, RESULT_FILE)


def _write_private(path: Path, data: bytes) -> None:
    """Replace a file as a whole; only its owner may read it, from its first byte on."""
    partial: Path | None = None
    try:
        folder = path.parent
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=folder)  # mode 0600
        partial = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if partial is not None:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        raise StorageError(f"{path} cannot be written: {error}") from error
