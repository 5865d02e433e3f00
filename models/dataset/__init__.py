"""A data set on disk: `dataset.toml`, and one file for each device under `devices/`.

Windows come as .npz (arrays x and y), tables as .csv with a header, or as .npz where they are
ready for a network. Every complaint is a `DataError` that names the file, the array or row, and
the cure.
"""

from vitalring.models.dataset.balance import oversample
from vitalring.models.dataset.check import Checked, DeviceSummary, check_dataset
from vitalring.models.dataset.features import FeatureSchema
from vitalring.models.dataset.folder import devices, require_test
from vitalring.models.dataset.info import DatasetInfo, load_dataset
from vitalring.models.dataset.load import (
    encode,
    holds_tables,
    input_shape,
    load_device,
    load_part,
    load_table,
)
from vitalring.models.dataset.records import Records, pooled
from vitalring.models.dataset.split import Parts, refuse_by_place, split
from vitalring.models.dataset.table import Column, Table

__all__ = [
    "Checked",
    "Column",
    "DatasetInfo",
    "DeviceSummary",
    "FeatureSchema",
    "Parts",
    "Records",
    "Table",
    "check_dataset",
    "devices",
    "encode",
    "holds_tables",
    "input_shape",
    "load_dataset",
    "load_device",
    "load_part",
    "load_table",
    "oversample",
    "pooled",
    "refuse_by_place",
    "require_test",
    "split",
]
