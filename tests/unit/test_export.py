"""The log as a folder: exactly what the log names, whole or not at all."""

import sqlite3
import threading

import pytest
from federation_fixture import Parties, small_federation

from vitalring.errors import StorageError
from vitalring.gateway import export, log, store
from vitalring.gateway.export import export_log
from vitalring.protocol import tiles, trust
from vitalring.protocol.cbor import digest


@pytest.fixture(scope="module")
def federation():
    return small_federation()


@pytest.fixture
def parties(federation, tmp_path):
    made = Parties(federation, tmp_path / "state")
    made.run_round([0, 1, 2, 3, 4])
    yield made
    made.close_databases()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "out" / "log"


def files_of(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_the_folder_holds_what_the_log_names_and_nothing_else(federation, parties, folder):
    export_log(parties.db, federation.files, folder)
    files = files_of(folder)
    assert files.pop("authority") == federation.authority_key.hex().encode() + b"\n"
    assert files.pop("checkpoint") == log.latest_checkpoint(parties.db)
    receipts = trust.open_receipts(files.pop("receipts/1"), federation.study.federation)
    assert len(receipts.digests) == 5
    size = log.size(parties.db)
    for tile in tiles.tiles(size):
        assert files.pop(tile.path) == log.tile_bytes(parties.db, tile)
    # 4 study records, artefact and its text, plan, report, model, weights before and after.
    assert len(files) == 4 + 2 + 3 + 2
    for name, content in files.items():
        assert name == f"objects/{digest(content).hex()}"


def test_an_encrypted_sum_stays_in_the_database(federation, parties, folder):
    parties.begin(parties.propose())
    parties.submit([0, 1, 2, 3])
    parties.close()
    sums = [
        content
        for (content,) in parties.db.execute("SELECT content FROM objects")
        if b"vitalring/encrypted-sum" in content
    ]
    assert len(sums) == 1
    export_log(parties.db, federation.files, folder)
    assert sums[0] not in files_of(folder).values()


def test_an_export_replaces_an_earlier_one(federation, parties, folder):
    export_log(parties.db, federation.files, folder)
    first = files_of(folder)
    parties.run_round([0, 1, 2, 3])
    export_log(parties.db, federation.files, folder)
    second = files_of(folder)
    # Partial tiles of the smaller log would be superfluous in the larger one.
    assert set(first) - set(second) == {tile.path for tile in tiles.tiles(12)}
    assert [p.name for p in folder.parent.iterdir()] == ["log"]


def test_exporting_twice_gives_the_same_bytes(federation, parties, folder):
    export_log(parties.db, federation.files, folder)
    first = files_of(folder)
    export_log(parties.db, federation.files, folder)
    assert files_of(folder) == first


class Crash(BaseException):
    """A power cut: nothing after it runs but what the next process does."""


def writes_until_crash(monkeypatch, count):
    """Let the `count`-th file written, or the rename after the last, crash."""
    real, left = export._write, [count]

    def write(path, content):
        if not left[0]:
            raise Crash
        left[0] -= 1
        real(path, content)

    monkeypatch.setattr(export, "_write", write)


@pytest.mark.parametrize("count", [0, 1, 5, 12])
def test_a_crash_while_writing_leaves_the_old_folder(
    federation, parties, folder, monkeypatch, count
):
    export_log(parties.db, federation.files, folder)
    before = files_of(folder)
    parties.run_round([0, 1, 2, 3])
    with monkeypatch.context() as patched:
        writes_until_crash(patched, count)
        with pytest.raises(Crash):
            export_log(parties.db, federation.files, folder)
    assert files_of(folder) == before
    # The database is not left inside a transaction, and the next call succeeds.
    parties.run_round([0, 1, 2, 3])
    export_log(parties.db, federation.files, folder)
    assert "receipts/3" in files_of(folder)


def test_a_crash_between_both_renames_is_mended(federation, parties, folder):
    export_log(parties.db, federation.files, folder)
    before = files_of(folder)
    folder.rename(folder.with_name(".log.old"))
    (folder.with_name(".log.partial") / "objects").mkdir(parents=True)
    other = small_federation()
    # An export that fails puts the old folder back all the same.
    with pytest.raises(StorageError, match="no checkpoint"):
        export_log(store.open_store(folder.parent.parent / "empty"), other.files, folder)
    assert files_of(folder) == before
    export_log(parties.db, federation.files, folder)
    assert [p.name for p in folder.parent.iterdir()] == ["log"]


def test_a_folder_of_something_else_is_not_replaced(federation, parties, folder):
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(StorageError, match="something else"):
        export_log(parties.db, federation.files, folder)
    assert files_of(folder) == {"thesis.txt": b"years of work"}


def test_an_empty_folder_is_filled(federation, parties, folder):
    folder.mkdir(parents=True)
    export_log(parties.db, federation.files, folder)
    assert (folder / "checkpoint").is_file()


def test_a_disk_that_refuses(federation, parties, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be written"):
        export_log(parties.db, federation.files, tmp_path / "file" / "log")


def test_an_object_that_is_gone_is_named(federation, parties, folder):
    name = digest(federation.files.records["roster"])
    parties.db.execute("DELETE FROM objects WHERE digest = ?", (name,))
    with pytest.raises(StorageError, match=name.hex()):
        export_log(parties.db, federation.files, folder)
    assert not folder.exists()
    assert not list(folder.parent.iterdir())


def test_a_gateway_at_work_is_read_at_one_moment(federation, parties, folder, monkeypatch):
    """Another connection goes on while the folder is written; the folder stays of one piece."""
    path = parties.db.execute("PRAGMA database_list").fetchone()[2]
    reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    real, started, grown = export._write, threading.Event(), threading.Event()

    def write(file, content):
        real(file, content)
        started.set()
        assert grown.wait(60)

    monkeypatch.setattr(export, "_write", write)
    size = log.size(parties.db)
    worker = threading.Thread(target=export_log, args=(reader, federation.files, folder))
    worker.start()
    assert started.wait(60)
    parties.run_round([0, 1, 2, 3])
    grown.set()
    worker.join(60)
    reader.close()
    assert log.size(parties.db) > size
    files = files_of(folder)
    assert int(files["checkpoint"].split(b"\n")[1]) == size
    assert {name for name in files if name.startswith("tile/")} == {
        tile.path for tile in tiles.tiles(size)
    }
    assert "receipts/2" not in files
