"""The log as a folder that any web server can serve and anybody can check (SPEC 8.14, 8.15).

What is in the folder follows from the log alone: the signed checkpoint, its tiles, and the
objects that its entries name. Encrypted sums are not among them.
"""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitalring.errors import StorageError
from vitalring.gateway import log, rounds, store
from vitalring.protocol import tiles, trust
from vitalring.protocol.cbor import decode, digest, type_of
from vitalring.protocol.records import LoggedObject


def export_log(db: sqlite3.Connection, files: trust.StudyFiles, folder: Path) -> None:
    """Write the log of `db` into `folder`, whole or not at all.

    An earlier export there is replaced; a crash leaves it or the new one, or, between two
    renames, both beside it under hidden names, which the next call clears up. The gateway
    may be at work meanwhile. Raises StorageError.
    """
    folder = folder.absolute()
    partial, old = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "old"))
    try:
        # What a crash may have left. Only an export of ours is ever removed.
        if old.exists() and not folder.exists():
            old.rename(folder)
        _require_export(folder)
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
        with _snapshot(db):
            for path, content in _contents(db, files):
                _write(partial / path, content)
        # A name must not reach the disk before what it names.
        for directory, _, _ in os.walk(partial):
            _sync(Path(directory))
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        _sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _contents(db: sqlite3.Connection, files: trust.StudyFiles) -> Iterator[tuple[str, bytes]]:
    """Every file of the folder by path. Raises StorageError where the database lacks one."""
    note, size = log.latest_checkpoint(db), log.size(db)
    if note is None:
        raise StorageError("the log has no checkpoint yet: start the gateway once")
    yield "authority", files.study.federation.authority_key.hex().encode() + b"\n"
    yield "checkpoint", note
    for tile in tiles.tiles(size):
        yield tile.path, log.tile_bytes(db, tile)
    for name in sorted(_object_names(db, files, size)):
        content = store.get_object(db, name)
        if content is None:
            raise StorageError(
                f"object {name.hex()}, which the log names, is gone from the database: "
                "restore it from a backup"
            )
        yield f"objects/{name.hex()}", content
    for number, receipts in rounds.recent_receipts(db, -1):
        yield f"receipts/{number}", receipts


def _object_names(db: sqlite3.Connection, files: trust.StudyFiles, size: int) -> set[bytes]:
    """Digests of all records in the log and of the objects that those name."""
    study = files.study
    names = {digest(content) for content in files.objects.values()}
    for first in range(0, size, tiles.TILE_WIDTH):
        for entry in log.entries(db, first, first + tiles.TILE_WIDTH):
            if type_of(entry) != LoggedObject.TYPE:
                continue
            logged = decode(LoggedObject, entry)
            names.add(logged.digest)
            record = store.get_object(db, logged.digest)
            if record is None:
                continue  # named by `_contents`
            if logged.kind == "round-plan":
                names.add(trust.peek_round_plan(record, study.federation).weights)
            elif logged.kind == "global-model":
                names.add(trust.open_model(record, study.federation, study.plan).weights)
    return names


def _require_export(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / "checkpoint").is_file():
        raise StorageError(f"{folder} holds something else than a log: choose another folder")


@contextmanager
def _snapshot(db: sqlite3.Connection) -> Iterator[None]:
    """Read one state of the database, while another connection may write on."""
    try:
        db.execute("BEGIN")
        try:
            yield
        finally:
            db.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise StorageError(f"the gateway's database cannot be read: {error}") from error


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
