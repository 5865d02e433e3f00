"""A data set on disk: `dataset.toml`, and one file for each device under `devices/`.

Windows come as .npz (arrays x and y), tables as .csv with a header, or as .npz where they are
ready for a network. Every complaint is a `DataError` that names the file, the array or row, and
the cure.
"""

from vitalring.models.dataset.features import FeatureSchema
from vitalring.models.dataset.folder import devices
from vitalring.models.dataset.info import DatasetInfo, load_dataset
from vitalring.models.dataset.load import input_shape, load_device
from vitalring.models.dataset.records import Records
from vitalring.models.dataset.split import Parts, split

__all__ = [
    "DatasetInfo",
    "FeatureSchema",
    "Parts",
    "Records",
    "devices",
    "input_shape",
    "load_dataset",
    "load_device",
    "split",
]
