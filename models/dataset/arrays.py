"""A device's arrays: `devices/<id>.npz` with x and y.

Rules kept here:
- nothing in a file is executed: arrays are read without pickles, and a header that claims more
  than its file holds is refused before anything is allocated;
- a device's numbers are finite, its labels are among the classes, its shape is what it says;
- every complaint names the file, the array or row, and the cure.

`x` may be any integer or floating type; integers with a `scale` are the compact form
(x · scale, one factor for each channel). `y` holds indices into `classes`.
"""

import io
import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from vitalring.errors import DataError
from vitalring.models.dataset.complaints import Complain
from vitalring.models.dataset.info import DatasetInfo
from vitalring.models.dataset.records import Records

MAX_ARRAY_BYTES = 1 << 30  # of one array of one device, uncompressed

_CURE = "write it with numpy.savez_compressed(path, x=x, y=y)"
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


def read_records(
    path: Path, device_id: str, info: DatasetInfo, complain: Complain
) -> Records | None:
    """Read x and y of a device; both are read-only."""
    for key, value in (("group", info.group), ("features", info.features)):
        if value is not None:
            complain(f"{path}: arrays have no columns, so {key} cannot be; use csv, or remove it")
            return None
    arrays = _read_npz(path, complain)
    if arrays is None:
        return None
    y = _labels(path, arrays["y"], len(info.classes), complain)
    x = _windows(path, arrays["x"], len(arrays["y"]) if arrays["y"].ndim else 0, info, complain)
    if x is None or y is None:
        return None
    x.flags.writeable = False
    y.flags.writeable = False
    return Records(device_id, x, y)


def row_shape(path: Path, complain: Complain) -> tuple[int, ...] | None:
    """Return the shape of one row of x, from the array's header alone."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("x.npy") as stream:
            shape, _, _ = _header(path, "x", stream)
    except (*_FAULTS, DataError) as error:
        complain(f"{path}: is not an intact .npz file with an array 'x' ({error}); {_CURE}")
        return None
    return tuple(shape[1:])


def _read_npz(path: Path, complain: Complain) -> dict[str, npt.NDArray[Any]] | None:
    """Read the arrays x and y of an .npz file and refuse any other member."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {entry.filename: entry for entry in archive.infolist()}
            wrong = [
                *(f"array {name!r} is missing" for name in "xy" if f"{name}.npy" not in members),
                *(f"unknown member {name!r}" for name in sorted(set(members) - {"x.npy", "y.npy"})),
            ]
            for message in wrong:
                complain(f"{path}: {message}; {_CURE}")
            if wrong:
                return None
            return {name: _read_npy(path, name, archive, members[f"{name}.npy"]) for name in "xy"}
    except FileNotFoundError:
        complain(f"{path}: does not exist; {_CURE}")
    except DataError as error:
        complain(str(error))
    except _FAULTS as error:
        complain(f"{path}: is not an intact .npz file ({error}); {_CURE}")
    return None


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
    shape, fortran, dtype = _header(path, name, buffer)
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


def _header(path: Path, name: str, stream: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    """Return shape, Fortran order and type."""
    version = _NPY.read_magic(stream)
    if version == (1, 0):
        found = _NPY.read_array_header_1_0(stream)
    elif version == (2, 0):
        found = _NPY.read_array_header_2_0(stream)
    else:
        raise DataError(f"{path}: array {name!r} has .npy version {version}; save it with numpy")
    shape, fortran, dtype = found
    return shape, fortran, dtype


def _labels(
    path: Path, y: npt.NDArray[Any], classes: int, complain: Complain
) -> npt.NDArray[np.int64] | None:
    if y.ndim != 1:
        complain(f"{path}: array 'y' has shape {y.shape}; it must be one label a row, (n,)")
        return None
    if y.dtype.kind not in "iu":
        complain(
            f"{path}: array 'y' has type {y.dtype}; use integers, the index of each row's class"
        )
        return None
    if not len(y):
        complain(f"{path}: array 'y' holds no row; remove the file or give it rows")
        return None
    wrong = np.flatnonzero((y < 0) | (y >= classes))
    if len(wrong):
        complain(
            f"{path}: array 'y', row {wrong[0]}: label {y[wrong[0]]} is outside the {classes} "
            f"classes of dataset.toml ({len(wrong)} such rows); use 0 to {classes - 1}"
        )
        return None
    return y.astype(np.int64)


def _windows(
    path: Path, x: npt.NDArray[Any], rows: int, info: DatasetInfo, complain: Complain
) -> npt.NDArray[np.float32] | None:
    scale = info.scale
    if x.ndim not in (2, 3) or 0 in x.shape[1:]:
        complain(
            f"{path}: array 'x' has shape {x.shape}; it is (n, time, channels) or (n, inputs), "
            "each ≥ 1"
        )
        return None
    if info.kind == "tabular" and x.ndim == 3:
        complain(
            f"{path}: array 'x' has shape {x.shape}, but tables are (n, inputs); write "
            'kind = "windows" in dataset.toml'
        )
        return None
    sound = True
    if len(x) != rows:
        complain(
            f"{path}: array 'x' has {len(x)} rows but array 'y' has {rows}; write them together"
        )
        sound = False
    if scale is not None and x.shape[-1] != len(scale):
        complain(
            f"{path}: array 'x' has {x.shape[-1]} channels, but scale in dataset.toml has "
            f"{len(scale)} factors; give one for each channel"
        )
        return None
    for key, names in (("channels", info.channels), ("inputs", info.inputs)):
        if names and x.shape[-1] != len(names):
            complain(
                f"{path}: array 'x' has {x.shape[-1]} {key}, but {key} in dataset.toml has "
                f"{len(names)} names; give one for each"
            )
            return None
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.array(x, dtype=np.float32, order="C")
        if scale is not None:
            values *= np.asarray(scale, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, x.ndim))))
    if len(bad):
        complain(
            f"{path}: array 'x', row {bad[0]}: holds NaN, infinity or a number beyond float32; "
            f"drop the {len(bad)} such rows or fill the gaps"
        )
        return None
    return values if sound else None
