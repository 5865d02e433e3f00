"""The folder that importers write, and the files that they read."""

import gzip
import hashlib
import io
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitalring.errors import ConfigError, DataError, StorageError
from vitalring.models.dataset import devices, load_dataset, load_device
from vitalring.models.dataset.info import DEVICE_ID
from vitalring.tools.data.folder import NewFolder, slug, toml
from vitalring.tools.data.origins import UCI_HAR
from vitalring.tools.data.source import Source

TABLE = {
    "name": "small",
    "kind": "windows",
    "classes": ["a", "b"],
    "sampling_hz": 50,
    "test_devices": ["two"],
}
X, Y = np.zeros((3, 4, 1), np.int16), np.array([0, 1, 1], np.uint8)


def write(target, names=("one", "two"), table=TABLE):
    with NewFolder(target) as folder:
        for name in names:
            folder.arrays(name, X, Y)
        folder.finish(table, ["a comment"], "made by hand\n")


def test_a_folder_appears_whole(tmp_path):
    write(tmp_path / "out")
    info = load_dataset(tmp_path / "out")
    assert devices(tmp_path / "out", info) == (("one",), ("two",))
    assert load_device(tmp_path / "out", "one", info).y.tolist() == [0, 1, 1]
    assert (tmp_path / "out" / "dataset.toml").read_text().startswith("# a comment\nname")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interrupted_run_leaves_nothing_and_is_no_hindrance(tmp_path):
    with pytest.raises(KeyboardInterrupt), NewFolder(tmp_path / "out") as folder:
        folder.arrays("one", X, Y)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    # What a kill leaves behind is not under the final name, and does not get into the next run.
    NewFolder(tmp_path / "out").arrays("stray", X, Y)
    assert not (tmp_path / "out").exists()
    write(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out" / "devices").iterdir()) == [
        "one.npz",
        "two.npz",
    ]


def test_a_folder_that_is_no_data_set_is_not_published(tmp_path):
    with pytest.raises(DataError, match="leave some to train"):
        write(tmp_path / "out", names=["two"])
    with pytest.raises(DataError, match="two devices would be named 'one'"):
        write(tmp_path / "out", names=["one", "one"])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused_and_untouched(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        write(tmp_path)
    with pytest.raises(ConfigError):
        write(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert (tmp_path / "empty" / "dataset.toml").exists()


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write(tmp_path / "file" / "out")


values = st.recursive(
    st.text() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(
    plain=st.dictionaries(st.from_regex(r"\A[a-z_]{1,8}\Z"), values, max_size=4),
    section=st.dictionaries(st.text(), values | st.dictionaries(st.text(), values, max_size=3)),
)
def test_toml_is_read_back(plain, section):
    table = {**plain, "section": section}
    assert tomllib.loads(toml(table)) == table


@given(st.text(max_size=100))
def test_slugs_are_device_ids(text):
    try:
        name = slug(text)
    except DataError:
        return
    assert DEVICE_ID.fullmatch(name)
    assert slug(name) == name


def packed(entries):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return data.getvalue()


def test_members_are_found_in_folders_zips_and_zips_in_zips(tmp_path):
    inner = packed({"Top/train/y.txt": b"5\n", "__MACOSX/Top/train/y.txt": b"junk"})
    (tmp_path / "plain.zip").write_bytes(inner)
    (tmp_path / "outer.zip").write_bytes(packed({"Top.zip": inner, "Top.names": b""}))
    (tmp_path / "folder" / "Top" / "train").mkdir(parents=True)
    (tmp_path / "folder" / "Top" / "train" / "y.txt").write_bytes(b"5\n")
    for path in ("plain.zip", "outer.zip", "folder"):
        with Source(tmp_path / path) as source:
            name = source.need("train/y.txt", UCI_HAR)
            with source.text(name) as file:
                assert file.read() == "5\n"
            assert source.find("rain/y.txt") is None  # whole components only
            with pytest.raises(DataError, match=r"archive\.ics\.uci\.edu/dataset/240"):
                source.need("train/X.txt", UCI_HAR)
            (used,) = source.used
    assert used.sha256 == hashlib.sha256(b"5\n").hexdigest()


def test_two_members_that_fit_are_refused(tmp_path):
    (tmp_path / "two.zip").write_bytes(packed({"a/y.txt": b"1", "b/y.txt": b"2"}))
    with Source(tmp_path / "two.zip") as source, pytest.raises(DataError, match="both"):
        source.find("y.txt")


def test_gzip_is_unpacked_and_broken_files_are_data_errors(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"1,2\n"))
    with Source(tmp_path / "a.csv.gz") as source, source.text("a.csv.gz") as file:
        assert file.read() == "1,2\n"
    broken = gzip.compress(b"1,2\n" * 1000)[:-9]
    (tmp_path / "b.csv.gz").write_bytes(broken)
    with (
        Source(tmp_path / "b.csv.gz") as source,
        pytest.raises(DataError, match="not intact"),
        source.text("b.csv.gz") as file,
    ):
        file.read()
    with (
        Source(tmp_path / "a.csv.gz") as source,
        pytest.raises(DataError, match="not intact"),
        source.open("a.csv.gz"),
    ):
        raise EOFError
    (tmp_path / "c.npz").write_bytes(b"PK\3\4 not a zip")
    with Source(tmp_path / "c.npz") as source, pytest.raises(DataError, match=r"c\.npz"):
        source.arrays("c.npz")
    with pytest.raises(DataError, match="does not exist"):
        Source(Path(tmp_path / "nothing"))


@given(data=st.binary(max_size=200), cut=st.integers(0, 400))
def test_any_bytes_under_a_zips_name_are_read_or_refused(tmp_path_factory, data, cut):
    path = tmp_path_factory.mktemp("zip") / "a.zip"
    path.write_bytes((packed({"y.txt": b"5\n" * 50}) + data)[cut:])
    try:
        with Source(path) as source:
            for name in source.names:
                with source.open(name) as file:
                    file.read()
    except DataError:
        pass
