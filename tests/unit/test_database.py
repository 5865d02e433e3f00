"""SQLite: all or nothing, and StorageError for whatever the disk does."""

import os
import signal
import sqlite3
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitalring.database import is_made, open_database, open_read_only, transaction
from vitalring.errors import RecordError, StorageError

SCHEMA = "CREATE TABLE things (n INTEGER PRIMARY KEY, content BLOB); CREATE TABLE more (n)"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "test.sqlite"


@pytest.fixture
def db(path):
    connection = open_database(path, SCHEMA, 3)
    yield connection
    connection.close()


def numbers(connection):
    return [n for (n,) in connection.execute("SELECT n FROM things ORDER BY n")]


def put(connection, n, content=b""):
    connection.execute("INSERT INTO things VALUES (?, ?)", (n, content))


def test_a_database_is_made_once_and_waits_for_the_disk(path, db):
    with transaction(db):
        put(db, 1)
    again = open_database(path, SCHEMA, 3)
    assert numbers(again) == [1]
    for connection in (db, again):
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA secure_delete").fetchone() == (1,)
    again.close()
    assert path.parent.stat().st_mode & 0o077 == 0


def test_a_database_is_its_owners_alone_whoever_made_the_folder(tmp_path):
    tmp_path.chmod(0o755)
    before = os.umask(0o022)
    try:
        connection = open_database(tmp_path / "test.sqlite", SCHEMA, 3)
        with transaction(connection):
            put(connection, 1)
        assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o600}
        connection.close()
    finally:
        os.umask(before)


def test_a_transaction_is_kept_or_undone_as_a_whole(db):
    with pytest.raises(RecordError), transaction(db):
        put(db, 1)
        raise RecordError("stop")
    assert numbers(db) == []
    with pytest.raises(StorageError), transaction(db):
        put(db, 1)
        put(db, 1)
    assert numbers(db) == []
    with transaction(db):
        put(db, 1)
    assert numbers(db) == [1]


def test_only_what_is_asked_for_does_not_wait_for_the_disk(db):
    def level():
        return db.execute("PRAGMA synchronous").fetchone()[0]

    full, normal = 2, 1
    with transaction(db):
        assert level() == full
    with transaction(db, flushed=False):
        assert level() == normal
    assert level() == full
    with pytest.raises(KeyError), transaction(db, flushed=False):
        raise KeyError
    assert level() == full


def test_an_interrupt_undoes_a_transaction(db):
    with pytest.raises(KeyboardInterrupt), transaction(db):
        put(db, 1)
        raise KeyboardInterrupt
    assert numbers(db) == []
    assert not db.in_transaction


def test_a_process_killed_inside_a_transaction_leaves_what_was_committed(path):
    program = f"""
import os, signal
from pathlib import Path
from vitalring.database import open_database, open_read_only, transaction
db = open_database(Path({str(path)!r}), {SCHEMA!r}, 3)
with transaction(db):
    db.execute("INSERT INTO things VALUES (1, NULL)")
with transaction(db):
    db.executemany("INSERT INTO things VALUES (?, zeroblob(9999))", [(n,) for n in range(2, 999)])
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, cwd=path.parents[1])
    assert done.returncode == -signal.SIGKILL
    db = open_database(path, SCHEMA, 3)
    assert numbers(db) == [1]
    db.close()


def test_a_process_killed_while_the_file_is_made_leaves_no_half_layout(path):
    path.parent.mkdir()
    half = sqlite3.connect(path, isolation_level=None)
    half.executescript("PRAGMA journal_mode=WAL; BEGIN; CREATE TABLE things (n)")
    half.close()
    db = open_database(path, SCHEMA, 3)
    assert numbers(db) == []
    db.close()


def test_a_full_disk_is_named_and_leaves_no_half(db):
    with transaction(db):
        put(db, 1, bytes(1000))
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages + 3}")
    wanted = r"test.sqlite cannot be written \(.*full\): free space"
    with pytest.raises(StorageError, match=wanted), transaction(db):
        for n in range(2, 100):
            put(db, n, bytes(4000))
    assert numbers(db) == [1]
    assert not db.in_transaction
    db.execute("PRAGMA max_page_count = 100000")
    with transaction(db):
        put(db, 2, bytes(100_000))
    assert numbers(db) == [1, 2]


def test_another_layout_is_refused_and_left_alone(path, db):
    for version in (2, 4):
        with pytest.raises(
            StorageError, match=f"has layout 3, this version reads layout {version}"
        ):
            open_database(path, "CREATE TABLE other (n)", version)
    assert numbers(db) == []


def test_places_that_cannot_hold_a_database(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises(StorageError, match="plain/below/x cannot be opened"):
        open_database(tmp_path / "plain" / "below" / "x", SCHEMA, 1)
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="folder cannot be opened"):
        open_database(tmp_path / "folder", SCHEMA, 1)


def test_a_refused_file_is_closed_again(tmp_path, monkeypatch):
    opened = []

    class Watched(sqlite3.Connection):
        closed = False

        def close(self):
            super().close()
            self.closed = True

    connect = sqlite3.connect

    def watch(*args, **options):
        opened.append(connect(*args, factory=Watched, **options))
        return opened[-1]

    good, bad = tmp_path / "good", tmp_path / "bad"
    open_database(good, SCHEMA, 1).close()
    bad.write_bytes(b"not a database at all, but long enough to be looked at" * 100)
    monkeypatch.setattr(sqlite3, "connect", watch)
    for path in (good, bad):
        with pytest.raises(StorageError):
            open_database(path, SCHEMA, 2)
    with pytest.raises(StorageError, match="syntax error"):
        open_database(tmp_path / "new", "CREATE NONSENSE", 1)
    assert [connection.closed for connection in opened] == [True] * 3


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_file_opens_or_is_a_storage_error(tmp_path, data):
    path = tmp_path / "damaged"
    pristine = tmp_path / "pristine"
    if not pristine.exists():
        db = open_database(pristine, SCHEMA, 3)
        with transaction(db):
            put(db, 1, bytes(9000))
        db.close()
    content = bytearray(pristine.read_bytes())
    # The header and the table of names, where damage shows at opening, come first.
    most = data.draw(st.sampled_from([100, 4096, len(content)]))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, most - 1))] = data.draw(st.integers(0, 255))
    for leftover in tmp_path.glob("damaged*"):
        leftover.unlink()
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), 5000, 50]))])
    try:
        db = open_database(path, SCHEMA, 3)
    except StorageError as error:
        assert str(path) in str(error)
        return
    db.close()


def test_damaged_names_of_tables_are_a_storage_error(path):
    open_database(path, SCHEMA, 3).close()
    content = path.read_bytes()
    os.truncate(path, 0)
    path.write_bytes(
        content.replace(b"CREATE TABLE things", b"CREATE TABLE \xff\xfe\xfd\xfc\xfb\xfa")
    )
    try:
        db = open_database(path, SCHEMA, 3)
    except StorageError:
        return
    db.close()


def test_a_database_is_read_beside_its_owner_whatever_its_folder_is_called(tmp_path):
    path = tmp_path / "50% #1?" / "test.sqlite"
    db = open_database(path, SCHEMA, 1)
    with transaction(db):
        put(db, 7)
    beside = open_read_only(path)
    assert numbers(beside) == [7]
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        put(beside, 8)
    beside.close()
    db.close()


def test_a_database_is_made_once_its_tables_are_there(tmp_path):
    path = tmp_path / "test.sqlite"
    assert not is_made(path)
    path.touch()  # as far as its owner came when somebody asked
    assert not is_made(path)
    open_database(path, SCHEMA, 1).close()
    assert is_made(path)
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageError, match=r"test\.sqlite"):
        is_made(path)
