"""The records of a device whose data set lies on its disk."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitalring.errors import DataError
from vitalring.models.dataset import Records, load_dataset, load_device, split
from vitalring.protocol.trust import Study


class DataSetRecords:
    """One device's part of a data set. Raises DataError at once where it cannot be read."""

    def __init__(self, folder: Path, device: str) -> None:
        self._folder = folder
        info = load_dataset(folder)
        self._records = split(load_device(folder, device, info), info).train

    def records(self, study: Study) -> Records:  # noqa: ARG002
        """Return this device's training rows."""
        return self._records

    def answer(self, study: Study) -> npt.NDArray[np.uint64]:
        """Refuse: windows have no statistics to agree on."""
        raise DataError(
            f"study {study.plan.study} asks for statistics of a table; {self._folder} has none"
        )
