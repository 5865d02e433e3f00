"""Files that are whole or absent, and secrets that only their owner reads."""

import os
import stat

import pytest

from vitalring.errors import ConfigError, StorageError
from vitalring.files import read_file, read_secret, write_atomic, write_secret


@pytest.fixture
def broken_fsync(monkeypatch):
    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "file"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    write_atomic(path, b"for few", 0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path, broken_fsync):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(
        StorageError, match=r"file cannot be written: .*No space left.*; free space"
    ):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_in_the_way_is_a_storage_error(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(StorageError, match="file cannot be written"):
        write_atomic(tmp_path / "file", b"new")
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be written"):
        write_atomic(tmp_path / "plain" / "below", b"new")


def test_a_secret_is_its_owners_alone_and_is_never_overwritten(tmp_path):
    path = tmp_path / "keys" / "key"
    write_secret(path, b"k" * 32)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert read_secret(path, 32) == b"k" * 32
    with pytest.raises(ConfigError, match="exists already and is not overwritten"):
        write_secret(path, b"n" * 32)
    assert path.read_bytes() == b"k" * 32


def test_a_full_disk_leaves_no_half_secret_in_the_way(tmp_path, monkeypatch):
    path = tmp_path / "key"
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space")))
        with pytest.raises(StorageError, match="No space"):
            write_secret(path, b"k" * 32)
    assert not path.exists()
    write_secret(path, b"k" * 32)
    assert read_secret(path, 32) == b"k" * 32


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o610, 0o666])
def test_a_secret_that_others_can_touch_is_refused_with_the_cure(tmp_path, mode):
    path = tmp_path / "key"
    write_secret(path, bytes(32))
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"run: chmod 600 {path}"):
        read_secret(path, 32)


def test_a_key_of_another_size_is_refused_without_showing_it(tmp_path):
    path = tmp_path / "key"
    write_secret(path, b"hidden")
    with pytest.raises(ConfigError, match="key has 6 bytes, a key of this kind has 32") as caught:
        read_secret(path, 32)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("read", [read_file, lambda path: read_secret(path, 32)])
def test_what_is_not_there_is_named(tmp_path, read):
    with pytest.raises(ConfigError, match=r"absent cannot be read: No such file"):
        read(tmp_path / "absent")
    (tmp_path / "folder").mkdir(mode=0o700)
    with pytest.raises(ConfigError, match="folder cannot be read: Is a directory"):
        read(tmp_path / "folder")
