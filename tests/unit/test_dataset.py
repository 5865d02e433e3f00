import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitalring.errors import DataError
from vitalring.models.dataset import DatasetInfo, devices, load_dataset, load_device, split

TOML = """
name = "study"
kind = "windows"
classes = ["N", "S", "V"]
sampling_hz = 360
test_devices = ["b"]
"""


def write(folder: Path, toml: str = TOML, **arrays: np.ndarray) -> Path:
    (folder / "devices").mkdir(parents=True, exist_ok=True)
    (folder / "dataset.toml").write_text(toml)
    x = arrays.get("x", np.arange(48, dtype=np.int16).reshape(4, 6, 2))
    y = arrays.get("y", np.array([0, 1, 2, 0]))
    for name in ("a", "b"):
        np.savez_compressed(folder / "devices" / f"{name}.npz", x=x, y=y)
    return folder


def test_reads_what_was_written(tmp_path: Path) -> None:
    folder = write(tmp_path)
    info = load_dataset(folder)
    assert info == DatasetInfo("study", "windows", ("N", "S", "V"), 360.0, ("b",), None, None)
    assert devices(folder, info) == (("a",), ("b",))
    records = load_device(folder, "a", info)
    assert records.x.dtype == np.float32
    assert records.y.dtype == np.int64
    np.testing.assert_array_equal(records.x, np.arange(48).reshape(4, 6, 2))
    np.testing.assert_array_equal(records.y, [0, 1, 2, 0])
    with pytest.raises(ValueError, match="read-only"):
        records.x[0] = 0
    assert [len(part) for part in split(records, info)] == [4, 0, 0]
    assert [len(part) for part in split(load_device(folder, "b", info), info)] == [0, 0, 4]


def test_scale_turns_integers_into_units(tmp_path: Path) -> None:
    folder = write(tmp_path, TOML + "scale = [0.5, -2]\n")
    x = load_device(folder, "a", load_dataset(folder)).x
    np.testing.assert_allclose(x[0, 1], [2 * 0.5, 3 * -2.0])


def test_fortran_order_and_big_endian_are_read(tmp_path: Path) -> None:
    x = np.asfortranarray(np.arange(48, dtype=">f8").reshape(4, 6, 2))
    folder = write(tmp_path, x=x)
    np.testing.assert_array_equal(load_device(folder, "a", load_dataset(folder)).x, x)


@pytest.mark.parametrize(("fraction", "held_out"), [(0.2, 1), (0.5, 2), (0.99, 3)])
def test_fraction_holds_out_the_last_rows(tmp_path: Path, fraction: float, held_out: int) -> None:
    toml = TOML.replace('test_devices = ["b"]', f"test_fraction = {fraction}")
    folder = write(tmp_path, toml)
    info = load_dataset(folder)
    assert devices(folder, info) == (("a", "b"), ("a", "b"))
    parts = split(load_device(folder, "a", info), info)
    assert [len(part) for part in parts] == [4 - held_out, 0, held_out]
    np.testing.assert_array_equal(np.concatenate([part.y for part in parts]), [0, 1, 2, 0])


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ('kind = "windows"', 'kind = "tabular"', "it belongs to windows data"),
        ('kind = "windows"', "", "kind is None"),
        ('kind = "windows"', 'kind = "images"', "kind is 'images'"),
        ("sampling_hz", "sampling_rate", "unknown key 'sampling_rate'"),
        ("sampling_hz = 360", 'sampling_hz = 360\nlabel = "y"', "belongs to tabular"),
        ("sampling_hz = 360", "sampling_hz = 0", "sampling_hz is 0"),
        ("sampling_hz = 360", "sampling_hz = nan", "sampling_hz is nan"),
        ("sampling_hz = 360", "sampling_hz = true", "sampling_hz is True"),
        ('name = "study"', 'name = ""', "name is ''"),
        ('["N", "S", "V"]', '["N"]', "classes is"),
        ('["N", "S", "V"]', '["N", "N"]', "classes is"),
        ('["N", "S", "V"]', "3", "classes is 3"),
        ('test_devices = ["b"]', "", "not neither"),
        ('test_devices = ["b"]', 'test_devices = ["b"]\ntest_fraction = 0.1', "not both"),
        ('test_devices = ["b"]', 'test_devices = ["../b"]', "test_devices is"),
        ('test_devices = ["b"]', 'test_devices = [""]', r"or [] where nothing is tested on"),
        ('["b"]', '["b"]\nvalidation_devices = []', "validation_devices is []"),
        ('test_devices = ["b"]', "test_fraction = 1", "test_fraction is 1"),
        ('["b"]', '["b"]\nscale = [1, 0]', "scale is"),
        ('["b"]', '["b"]\nscale = []', "scale is"),
        ('["b"]', '["b"]\nscale = 2', "scale is"),
        ('["b"]', '["b"]\nchannels = "ECG"', "channels is 'ECG'"),
        ('["b"]', '["b"]\nchannels = []', "channels is []"),
        ('["b"]', '["b"]\nchannels = ["a", "a"]', "write different names"),
        ('["b"]', '["b"]\nchannels = ["a", ""]', "channels is ['a', '']"),
        ('["b"]', '["b"]\nchannels = ["a", 2]', "channels is ['a', 2]"),
        ('["b"]', '["b"]\nchannels = ["a", "b"]\nunits = ["mV", 1]', "units is ['mV', 1]"),
        ('["b"]', '["b"]\nchannels = ["a", "b"]\nunits = ["mV"]', "one unit for each channel"),
        ('["b"]', '["b"]\nunits = ["mV", "s"]', "units has 2 texts, channels has 0"),
        ('["b"]', '["b"]\ninputs = ["a", "b"]', "it belongs to tabular data"),
        ('["b"]', '["b"', "is not TOML"),
    ],
)
def test_dataset_toml_is_refused(tmp_path: Path, old: str, new: str, names: str) -> None:
    assert old in TOML
    folder = write(tmp_path, TOML.replace(old, new))
    with pytest.raises(DataError) as caught:
        load_dataset(folder)
    assert names in str(caught.value)
    assert str(folder / "dataset.toml") in str(caught.value)


def test_missing_folder_and_missing_devices_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.toml: cannot be read"):
        load_dataset(tmp_path / "nowhere")
    folder = write(tmp_path)
    info = load_dataset(folder)
    with pytest.raises(DataError, match=r"c\.npz: does not exist"):
        load_device(folder, "c", info)
    with pytest.raises(DataError, match="not allowed"):
        load_device(folder, "../a", info)
    (folder / "devices" / "b.npz").unlink()
    with pytest.raises(DataError, match="test_devices names 'b'"):
        devices(folder, info)
    (folder / "devices" / "a.npz").rename(folder / "devices" / "b.npz")
    with pytest.raises(DataError, match="leave some to train"):
        devices(folder, info)


@pytest.mark.parametrize(
    ("name", "match"), [("c.csv", "windows do not come as csv"), ("c.txt", "not a device's file")]
)
def test_stray_files_are_named(tmp_path: Path, name: str, match: str) -> None:
    folder = write(tmp_path)
    (folder / "devices" / name).write_text("x,y\n")
    (folder / "devices" / ".DS_Store").write_text("")
    with pytest.raises(DataError, match=match):
        devices(folder, load_dataset(folder))


def nan_in_row_2() -> np.ndarray:
    x = np.zeros((4, 6, 2))
    x[2, 3, 1] = np.nan
    return x


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"x": nan_in_row_2()}, "array 'x', row 2: holds NaN"),
        ({"x": np.full((4, 6, 2), 1e39)}, "array 'x', row 0: .* beyond float32"),
        ({"x": np.zeros(4)}, r"array 'x' has shape \(4,\)"),
        ({"x": np.zeros((4, 6, 2, 1))}, r"array 'x' has shape \(4, 6, 2, 1\)"),
        ({"x": np.zeros((4, 0, 2))}, r"array 'x' has shape \(4, 0, 2\)"),
        ({"x": np.zeros((5, 6, 2))}, "'x' has 5 rows but array 'y' has 4"),
        ({"x": np.zeros((4, 6, 2), dtype="S3")}, r"array 'x' has type \|S3"),
        ({"x": np.zeros((4, 6, 2), dtype=bool)}, "array 'x' has type bool"),
        ({"x": np.zeros((4, 6, 2), dtype=complex)}, "array 'x' has type complex128"),
        ({"x": np.full((4, 6, 2), None)}, "array 'x' has type object"),
        ({"y": np.array([0, 1, 3, 0])}, "array 'y', row 2: label 3 is outside the 3 classes"),
        ({"y": np.array([0, -1, 2, 0])}, "array 'y', row 1: label -1"),
        ({"y": np.array([0.0, 1, 2, 0])}, "array 'y' has type float64"),
        ({"y": np.zeros((4, 1), int)}, r"array 'y' has shape \(4, 1\)"),
        ({"x": np.zeros((0, 6, 2)), "y": np.zeros(0, int)}, "array 'y' holds no row"),
    ],
)
def test_arrays_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], match: str) -> None:
    folder = write(tmp_path, **arrays)
    with pytest.raises(DataError, match=match) as caught:
        load_device(folder, "a", load_dataset(folder))
    assert str(folder / "devices" / "a.npz") in str(caught.value)


def test_scale_of_another_length_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, TOML + "scale = [1, 1, 1]\n")
    with pytest.raises(DataError, match=r"has 2 channels, but scale .* has 3"):
        load_device(folder, "a", load_dataset(folder))


def test_channels_have_names_and_units(tmp_path: Path) -> None:
    named = TOML + 'channels = ["ECG", "steps"]\nunits = ["mV", ""]\n'
    folder = write(tmp_path, named)
    info = load_dataset(folder)
    assert (info.channels, info.units) == (("ECG", "steps"), ("mV", ""))
    assert load_device(folder, "a", info).x.shape == (4, 6, 2)
    write(tmp_path, named, x=np.zeros((4, 6, 3)))
    with pytest.raises(DataError, match=r"a\.npz: .* has 3 channels, but channels .* has 2 names"):
        load_device(folder, "a", info)


def test_missing_and_extra_arrays_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path)
    info = load_dataset(folder)
    np.savez(folder / "devices" / "a.npz", x=np.zeros((1, 2, 3)))
    with pytest.raises(DataError, match="array 'y' is missing"):
        load_device(folder, "a", info)
    np.savez(folder / "devices" / "a.npz", x=np.zeros((1, 2, 3)), y=np.zeros(1, int), z=[1])
    with pytest.raises(DataError, match=r"unknown member 'z\.npy'"):
        load_device(folder, "a", info)


def test_a_header_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 216, 4)}
    )
    with zipfile.ZipFile(folder / "devices" / "a.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue())
        archive.writestr("y.npy", header.getvalue())
    with pytest.raises(DataError, match="0 bytes follow its header"):
        load_device(folder, "a", load_dataset(folder))


def npz_bytes() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.ones((3, 5, 2), np.int16), y=np.array([0, 1, 2]))
    return buffer.getvalue()


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_npz_is_read_or_named_but_never_crashes(
    tmp_path: Path, data: st.DataObject
) -> None:
    raw = bytearray(npz_bytes())
    edits = st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=4)
    for position, value in data.draw(edits):
        raw[position] = value
    raw = raw[: data.draw(st.integers(0, len(raw)) | st.just(len(raw)))]
    folder = write(tmp_path)
    path = folder / "devices" / "a.npz"
    path.write_bytes(raw)
    try:
        records = load_device(folder, "a", load_dataset(folder))
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert records.x.ndim == 3
        assert np.isfinite(records.x).all()
        assert ((records.y >= 0) & (records.y < 3)).all()


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(header=st.binary(max_size=80) | st.text(max_size=80).map(lambda text: text.encode()))
def test_a_damaged_array_header_is_named(tmp_path: Path, header: bytes) -> None:
    folder = write(tmp_path)
    framed = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(folder / "devices" / "a.npz", "w") as archive:
        archive.writestr("x.npy", framed)
        archive.writestr("y.npy", framed)
    with pytest.raises(DataError):
        load_device(folder, "a", load_dataset(folder))


toml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


def as_toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(as_toml(item) for item in value) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(letter):08x}" for letter in value) + '"'
    return '""' if value is None else str(value)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    key=st.sampled_from(
        ["name", "kind", "classes", "sampling_hz", "test_devices", "scale", "channels", "units"]
    ),
    value=toml_values,
)
def test_any_value_of_any_key_is_used_or_named(tmp_path: Path, key: str, value: object) -> None:
    lines = [line for line in TOML.splitlines() if not line.startswith(key)]
    (tmp_path / "dataset.toml").write_text("\n".join([*lines, f"{key} = {as_toml(value)}"]))
    try:
        info = load_dataset(tmp_path)
    except DataError as error:
        assert str(tmp_path / "dataset.toml") in str(error)
    else:
        assert info.kind == "windows"
