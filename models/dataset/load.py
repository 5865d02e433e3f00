"""A device's file, whatever its format."""

from pathlib import Path

from vitalring.models.dataset import arrays
from vitalring.models.dataset.complaints import refuse, strictly
from vitalring.models.dataset.features import FeatureSchema
from vitalring.models.dataset.folder import device_file, list_devices
from vitalring.models.dataset.info import DatasetInfo
from vitalring.models.dataset.records import Records


def load_device(
    folder: Path,
    device_id: str,
    info: DatasetInfo,
    features: FeatureSchema | None = None,  # noqa: ARG001
) -> Records:
    """Read and check a device's file; the arrays are read-only.

    A table is encoded by `features`, or by those that `dataset.toml` declares.

    Raises:
        DataError: the file is missing or corrupt; an array is missing, mis-shaped, of a wrong
            type, not finite, or labelled outside the classes; or a table lacks its features.
    """
    path = device_file(folder, device_id, info)
    return strictly(arrays.read_records(path, device_id, info, refuse))


def input_shape(
    folder: Path,
    info: DatasetInfo,
    features: FeatureSchema | None = None,  # noqa: ARG001
) -> tuple[int, ...]:
    """Return the shape of one row: (time, channels) or (inputs,).

    Raises:
        DataError: there is no device, or the first one's file is not intact.
    """
    first = strictly(list_devices(folder, info, refuse))[0]
    return strictly(arrays.row_shape(device_file(folder, first, info), refuse))
