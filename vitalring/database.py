"""SQLite as every role uses it: durable before it is acknowledged.

Write-ahead log, `synchronous=FULL`, explicit transactions. A full disk or a
file that is not ours becomes a StorageError that names the file; the
transaction is rolled back, so nothing half-done stays behind.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitalring.errors import StorageError

_ADVICE = "free space on its disk or restore it from a backup"


def open_database(path: Path, schema: str, version: int, cure: str = "") -> sqlite3.Connection:
    """Open or create the database at `path`; a new one has mode 0600.

    `schema` runs once, on a new file; `version` guards against a file of
    another layout, and `cure` says what to do with one. Raises StorageError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Whoever made the folder, the file is its owner's alone, and so are those SQLite puts
        # beside it. Never open one that is there: closing it would drop SQLite's locks.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        connection = sqlite3.connect(path, isolation_level=None, timeout=30.0)
    except (sqlite3.Error, OSError) as error:
        raise _cannot(path, "opened", error) from error
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA secure_delete=ON")
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found == 0:
            connection.executescript(f"BEGIN;{schema};PRAGMA user_version={version};COMMIT;")
    # ValueError: a damaged file whose names are not text (UnicodeDecodeError).
    except (sqlite3.Error, ValueError) as error:
        connection.close()
        raise _cannot(path, "opened", error) from error
    if found not in (0, version):
        connection.close()
        advice = f": {cure}" if cure else ""
        raise StorageError(
            f"{path} has layout {found}, this version reads layout {version}{advice}"
        )
    return connection


def is_made(path: Path) -> bool:
    """Tell whether there is a database with its tables: its owner may be about to make them.

    Raises StorageError where it cannot be read.
    """
    if not path.exists():
        return False
    try:
        with contextlib.closing(open_read_only(path)) as beside:
            return bool(beside.execute("PRAGMA user_version").fetchone()[0])
    except sqlite3.Error as error:
        raise _cannot(path, "read", error) from error


def open_read_only(path: Path) -> sqlite3.Connection:
    """Open a database beside the process that owns it, without writing. Raises StorageError."""
    try:
        # As an address, because a folder's name may hold what has a meaning in one: ? # %
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30.0)
    except sqlite3.Error as error:
        raise _cannot(path, "opened", error) from error


@contextmanager
def transaction(
    connection: sqlite3.Connection, *, flushed: bool = True
) -> Iterator[sqlite3.Connection]:
    """Commit everything inside, or nothing. Raises StorageError when the disk fails.

    What is not `flushed` a power cut may undo, whole, as long as nothing later was flushed: for
    what is then merely done again.
    """
    try:
        if not flushed:
            # It is not to be set within a transaction; see `open_database` for what stands else.
            connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            # A full disk may have rolled the transaction back already.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        name = connection.execute("PRAGMA database_list").fetchone()[2]
        raise _cannot(name, "written", error) from error
    finally:
        if not flushed:
            connection.execute("PRAGMA synchronous=FULL")


def _cannot(what: object, do: str, error: Exception) -> StorageError:
    return StorageError(f"{what} cannot be {do} ({error}): {_ADVICE}")
