"""A data set on disk: `dataset.toml`, and one file for each device under `devices/`.

Rules kept here:
- nothing in a folder is executed: arrays are read without pickles, and a header that claims more
  than its file holds is refused before anything is allocated;
- a device's numbers are finite, its labels are among the classes, its shape is what it says;
- every complaint is a `DataError` that names the file, the array or row, and the cure.

`x` may be any integer or floating type; integers with a `scale` are the compact form
(x · scale, one factor for each channel). `y` holds indices into `classes`.
"""

import io
import math
import re
import struct
import tokenize
import tomllib
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitalring.errors import DataError

MAX_ARRAY_BYTES = 1 << 30  # of one array of one device, uncompressed
MAX_CLASSES = 1000
MAX_DEVICES = 1_000_000

_KEYS = {"name", "kind", "classes", "sampling_hz", "test_devices", "test_fraction", "scale"}
_TABULAR_KEYS = {"label", "missing", "features"}
_DEVICE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_NPY: Any = np.lib.format  # not typed in numpy 1.26
# What zipfile, its decompressors and the .npy header reader raise on broken files.
_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    IndexError,
    ValueError,
    TypeError,
    SyntaxError,
    MemoryError,
    OverflowError,
    RuntimeError,
    struct.error,
    tokenize.TokenError,
    OSError,
)


@dataclass(frozen=True)
class DatasetInfo:
    """What `dataset.toml` says. Exactly one of `test_devices` and `test_fraction` is set.

    `scale` has one factor for each channel, or is None when `x` is used as it is.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    sampling_hz: float
    test_devices: tuple[str, ...] | None
    test_fraction: float | None
    scale: tuple[float, ...] | None


@dataclass(frozen=True, eq=False)
class Records:
    """One device's rows: x float32 (n, time, channels) or (n, features), y int64 (n), n ≥ 0."""

    device: str
    x: npt.NDArray[np.float32] = field(repr=False)
    y: npt.NDArray[np.int64] = field(repr=False)

    def __len__(self) -> int:
        return len(self.y)


def load_dataset(folder: Path) -> DatasetInfo:
    """Read and check `folder/dataset.toml`.

    Raises:
        DataError: the folder or file is missing, is not TOML, or holds a wrong or unknown key.
    """
    path = folder / "dataset.toml"
    try:
        text = path.read_bytes().decode("utf-8")
        table = tomllib.loads(text)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); a data set is a folder with "
            "dataset.toml and one file for each device under devices/"
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(f"{path}: is not TOML: {error}") from error
    return _info(path, table)


def devices(folder: Path, info: DatasetInfo) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the ids that train and the ids that test, each sorted.

    With `test_devices` the two are disjoint; with `test_fraction` every device is in both, and
    `split` divides its rows.

    Raises:
        DataError: there is no device, a file is not a device's, or a test device has no file.
    """
    room = folder / "devices"
    try:
        entries = sorted(room.iterdir())
    except OSError as error:
        raise DataError(
            f"{room}: cannot be listed ({error.strerror}); put one .npz file for each device there"
        ) from error
    found: list[str] = []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.suffix == ".csv":
            raise DataError(f"{entry}: CSV files come later; save x and y with numpy.savez")
        if entry.suffix != ".npz" or not _DEVICE_ID.fullmatch(entry.stem):
            raise DataError(
                f"{entry}: is not a device's file; name it <id>.npz, the id of at most 64 "
                "letters, digits, '.', '_' and '-'"
            )
        found.append(entry.stem)
    found.sort()
    if not found:
        raise DataError(f"{room}: holds no device; put one .npz file for each device there")
    if len(found) > MAX_DEVICES:
        raise DataError(f"{room}: holds {len(found)} devices, more than {MAX_DEVICES}")
    if info.test_devices is None:
        return tuple(found), tuple(found)
    missing = sorted(set(info.test_devices) - set(found))
    if missing:
        raise DataError(
            f"{folder / 'dataset.toml'}: test_devices names {missing[0]!r}, but "
            f"{room / (missing[0] + '.npz')} does not exist"
        )
    train = tuple(name for name in found if name not in set(info.test_devices))
    if not train:
        raise DataError(
            f"{folder / 'dataset.toml'}: test_devices names every device; leave some to train"
        )
    return train, tuple(sorted(info.test_devices))


def load_device(folder: Path, device_id: str, info: DatasetInfo) -> Records:
    """Read and check `folder/devices/<device_id>.npz`; the arrays are read-only.

    Raises:
        DataError: the file is missing or corrupt, or an array is missing, mis-shaped, of a wrong
            type, not finite, or labelled outside the classes.
    """
    if not _DEVICE_ID.fullmatch(device_id):
        raise DataError(f"device id {device_id!r} is not allowed: letters, digits, '.', '_', '-'")
    path = folder / "devices" / f"{device_id}.npz"
    arrays = _read_npz(path, ("x", "y"))
    y = _labels(path, arrays["y"], len(info.classes))
    x = _windows(path, arrays["x"], len(y), info.scale)
    x.flags.writeable = False
    y.flags.writeable = False
    return Records(device_id, x, y)


def split(records: Records, info: DatasetInfo) -> tuple[Records, Records]:
    """Return a device's training rows and its held-out rows.

    With `test_devices` one of the two is empty. With `test_fraction` the last rows of the file
    are held out, so that neighbours in time are not on both sides: ⌈fraction · n⌉ of them, and
    at least one row stays to train on.
    """
    n = len(records)
    if info.test_devices is not None:
        held_out = n if records.device in info.test_devices else 0
    else:
        held_out = min(math.ceil((info.test_fraction or 0.0) * n), n - 1)
    cut = n - held_out
    return (
        Records(records.device, records.x[:cut], records.y[:cut]),
        Records(records.device, records.x[cut:], records.y[cut:]),
    )


def _info(path: Path, table: Mapping[str, Any]) -> DatasetInfo:
    """Check the keys of `dataset.toml` one by one."""
    kind = table.get("kind")
    # 1. The kind decides which other keys there may be.
    if kind == "tabular":
        raise DataError(f'{path}: kind "tabular" comes later; use kind = "windows"')
    if kind != "windows":
        raise DataError(f'{path}: kind is {kind!r}; write kind = "windows"')
    # 2. No key is ignored: a misspelt one would silently change the study.
    unknown = sorted(set(table) - _KEYS)
    if unknown:
        hint = " (it belongs to tabular data)" if unknown[0] in _TABULAR_KEYS else ""
        raise DataError(
            f"{path}: unknown key {unknown[0]!r}{hint}; allowed: {', '.join(sorted(_KEYS))}"
        )
    # 3. Name.
    name = table.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= 100 or not name.isprintable():
        raise DataError(f'{path}: name is {name!r}; write name = "..." of 1 to 100 characters')
    # 4. Classes.
    classes = table.get("classes")
    if (
        not isinstance(classes, list)
        or not all(isinstance(label, str) and label for label in classes)
        or len(set(classes)) != len(classes)
        or not 2 <= len(classes) <= MAX_CLASSES
    ):
        raise DataError(
            f"{path}: classes is {classes!r}; write 2 to {MAX_CLASSES} different names, "
            'such as classes = ["N", "S", "V"]'
        )
    # 5. Sampling rate.
    rate = _number(table.get("sampling_hz"))
    if rate is None or rate <= 0:
        raise DataError(
            f"{path}: sampling_hz is {table.get('sampling_hz')!r}; write the rate in samples a "
            "second, such as sampling_hz = 360"
        )
    # 6. What is held out.
    devices_, fraction = _held_out(path, table)
    # 7. Scale.
    return DatasetInfo(name, kind, tuple(classes), rate, devices_, fraction, _scale(path, table))


def _held_out(path: Path, table: Mapping[str, Any]) -> tuple[tuple[str, ...] | None, float | None]:
    names, fraction = table.get("test_devices"), table.get("test_fraction")
    if (names is None) == (fraction is None):
        raise DataError(
            f"{path}: write either test_devices (whole devices held out) or test_fraction "
            "(rows held out on each device), not "
            f"{'both' if names is not None else 'neither'}"
        )
    if names is None:
        share = _number(fraction)
        if share is None or not 0 < share < 1:
            raise DataError(f"{path}: test_fraction is {fraction!r}; write a number in (0, 1)")
        return None, share
    if (
        not isinstance(names, list)
        or not names
        or not all(isinstance(name, str) and _DEVICE_ID.fullmatch(name) for name in names)
        or len(set(names)) != len(names)
    ):
        raise DataError(
            f'{path}: test_devices is {names!r}; write different device ids, such as ["r100"]'
        )
    return tuple(names), None


def _scale(path: Path, table: Mapping[str, Any]) -> tuple[float, ...] | None:
    scale = table.get("scale")
    if scale is None:
        return None
    factors = [_number(factor) for factor in scale] if isinstance(scale, list) else []
    checked = tuple(factor for factor in factors if factor)
    if not factors or len(checked) != len(factors):
        raise DataError(
            f"{path}: scale is {scale!r}; write one factor other than 0 for each channel of x"
        )
    return checked


def _number(value: object) -> float | None:
    """Return a finite TOML number as a float, and None for anything else, booleans included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _read_npz(path: Path, names: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    """Read the named arrays of an .npz file and refuse any other member."""
    cure = "write it with numpy.savez_compressed(path, x=x, y=y)"
    try:
        with zipfile.ZipFile(path) as archive:
            members = {entry.filename: entry for entry in archive.infolist()}
            for name in names:
                if f"{name}.npy" not in members:
                    raise DataError(f"{path}: array {name!r} is missing; {cure}")
            extra = sorted(set(members) - {f"{name}.npy" for name in names})
            if extra:
                raise DataError(f"{path}: unknown member {extra[0]!r}; {cure}")
            return {name: _read_npy(path, name, archive, members[f"{name}.npy"]) for name in names}
    except FileNotFoundError as error:
        raise DataError(f"{path}: does not exist; {cure}") from error
    except _FAULTS as error:
        raise DataError(f"{path}: is not an intact .npz file ({error}); {cure}") from error


def _read_npy(
    path: Path, name: str, archive: zipfile.ZipFile, entry: zipfile.ZipInfo
) -> npt.NDArray[Any]:
    """Read one array; its header must account for exactly the bytes that follow it."""
    if entry.file_size > MAX_ARRAY_BYTES:
        raise DataError(
            f"{path}: array {name!r} says it has {entry.file_size} bytes, more than "
            f"{MAX_ARRAY_BYTES}; split the device or shorten its windows"
        )
    with archive.open(entry) as stream:
        data = stream.read(entry.file_size)
    buffer = io.BytesIO(data)
    version = _NPY.read_magic(buffer)
    if version == (1, 0):
        shape, fortran, dtype = _NPY.read_array_header_1_0(buffer)
    elif version == (2, 0):
        shape, fortran, dtype = _NPY.read_array_header_2_0(buffer)
    else:
        raise DataError(f"{path}: array {name!r} has .npy version {version}; save it with numpy")
    if dtype.kind not in "iuf":
        raise DataError(
            f"{path}: array {name!r} has type {dtype}; use integers or floating-point numbers"
        )
    size = math.prod(shape) * dtype.itemsize
    held = len(data) - buffer.tell()
    if size != held or any(length < 0 for length in shape):
        raise DataError(
            f"{path}: array {name!r} has shape {shape} of {dtype}, {size} bytes, but {held} bytes "
            "follow its header; write the file again"
        )
    flat = np.frombuffer(data, dtype, offset=buffer.tell())
    return flat.reshape(shape, order="F" if fortran else "C")


def _labels(path: Path, y: npt.NDArray[Any], classes: int) -> npt.NDArray[np.int64]:
    if y.ndim != 1:
        raise DataError(f"{path}: array 'y' has shape {y.shape}; it must be one label a row, (n,)")
    if y.dtype.kind not in "iu":
        raise DataError(
            f"{path}: array 'y' has type {y.dtype}; use integers, the index of each row's class"
        )
    if not len(y):
        raise DataError(f"{path}: array 'y' holds no row; remove the file or give it rows")
    wrong = np.flatnonzero((y < 0) | (y >= classes))
    if len(wrong):
        raise DataError(
            f"{path}: array 'y', row {wrong[0]}: label {y[wrong[0]]} is outside the {classes} "
            f"classes of dataset.toml; use 0 to {classes - 1}"
        )
    return y.astype(np.int64)


def _windows(
    path: Path, x: npt.NDArray[Any], rows: int, scale: tuple[float, ...] | None
) -> npt.NDArray[np.float32]:
    if x.ndim != 3 or 0 in x.shape[1:]:
        raise DataError(
            f"{path}: array 'x' has shape {x.shape}; windows are (n, time, channels), each ≥ 1"
        )
    if len(x) != rows:
        raise DataError(f"{path}: array 'x' has {len(x)} rows but array 'y' has {rows}")
    if scale is not None and x.shape[2] != len(scale):
        raise DataError(
            f"{path}: array 'x' has {x.shape[2]} channels, but scale in dataset.toml has "
            f"{len(scale)} factors; give one for each channel"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.array(x, dtype=np.float32, order="C")
        if scale is not None:
            values *= np.asarray(scale, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=(1, 2)))
    if len(bad):
        raise DataError(
            f"{path}: array 'x', row {bad[0]}: holds NaN, infinity or a number beyond float32; "
            f"drop the {len(bad)} such rows or fill the gaps"
        )
    return values
