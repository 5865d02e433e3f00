"""A device's file, whatever its format."""

from pathlib import Path
from typing import Literal

from vitalring.errors import DataError
from vitalring.models.dataset import arrays
from vitalring.models.dataset.complaints import refuse, strictly
from vitalring.models.dataset.csv_file import read_table
from vitalring.models.dataset.features import FeatureSchema
from vitalring.models.dataset.folder import device_file, list_devices
from vitalring.models.dataset.info import DatasetInfo
from vitalring.models.dataset.records import Records
from vitalring.models.dataset.split import split
from vitalring.models.dataset.table import Table


def holds_tables(folder: Path, info: DatasetInfo) -> bool:
    """Tell whether the devices' files are csv, which need features; arrays are used as they are.

    Raises:
        DataError: there is no device, or a file is not a device's.
    """
    first = list_devices(folder, info, refuse)[0]
    return device_file(folder, first, info).suffix == ".csv"


def load_device(
    folder: Path, device_id: str, info: DatasetInfo, features: FeatureSchema | None = None
) -> Records:
    """Read and check a device's file; the arrays are read-only.

    A table is encoded by `features`, or by those that `dataset.toml` declares.

    Raises:
        DataError: the file is missing or corrupt; an array is missing, mis-shaped, of a wrong
            type, not finite, or labelled outside the classes; or a table does not fit the
            features, or there are none.
    """
    path = device_file(folder, device_id, info)
    if path.suffix == ".csv":
        schema = _schema(path, info, features)
        return encode(load_table(folder, device_id, info), schema)
    if features is not None:
        raise DataError(f"{path}: arrays are used as they are, without features; use csv for them")
    return strictly(arrays.read_records(path, device_id, info, refuse))


def load_part(
    folder: Path,
    device_id: str,
    info: DatasetInfo,
    part: Literal["train", "validation", "test"],
    features: FeatureSchema | None = None,
) -> Records:
    """Return one part of a device's rows, as `split` divides what `load_device` returns.

    Of a table no other row is encoded, which saves most of the memory. Raises DataError.
    """
    path = device_file(folder, device_id, info)
    if path.suffix == ".csv":
        schema = _schema(path, info, features)
        table: Table = getattr(split(load_table(folder, device_id, info), info), part)
        return encode(table, schema)
    records: Records = getattr(split(load_device(folder, device_id, info, features), info), part)
    return records


def load_table(folder: Path, device_id: str, info: DatasetInfo) -> Table:
    """Read and check a device's csv file, its cells as text.

    Raises:
        DataError: the file is missing, is not csv, or has a row or label that cannot be.
    """
    path = device_file(folder, device_id, info)
    if path.suffix != ".csv":
        raise DataError(f"{path}: is no table with columns; use csv for tables")
    return strictly(read_table(path, device_id, info, refuse))


def encode(table: Table, features: FeatureSchema) -> Records:
    """Return a table's rows as a network takes them. Raises DataError."""
    lots = table.lots() if table.group is None else None
    return Records(table.device, features.encode(table), table.y, table.group, lots)


def input_shape(
    folder: Path, info: DatasetInfo, features: FeatureSchema | None = None
) -> tuple[int, ...]:
    """Return the shape of one row: (time, channels) or (inputs,).

    Raises:
        DataError: there is no device, the first one's file is not intact, or it is a table
            without features.
    """
    first = list_devices(folder, info, refuse)[0]
    path = device_file(folder, first, info)
    if path.suffix == ".csv":
        return (_schema(path, info, features).inputs,)
    return strictly(arrays.row_shape(path, refuse))


def _schema(path: Path, info: DatasetInfo, features: FeatureSchema | None) -> FeatureSchema:
    schema = features or info.features
    if schema is None:
        raise DataError(
            f"{path}: it is not known what the columns become; declare [features] in "
            "dataset.toml, or let the sites agree on them in a study of statistics"
        )
    return schema
