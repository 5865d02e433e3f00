"""The records of a device whose data set, or one of each kind of data, lies on its disk."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitalring.errors import DataError
from vitalring.models.dataset import (
    FeatureSchema,
    Records,
    holds_tables,
    load_dataset,
    load_part,
    load_table,
    refuse_by_place,
    split,
)
from vitalring.models.dataset.statistics import Question, count
from vitalring.protocol.limbs import to_limbs
from vitalring.protocol.trust import Study

ReadObject = Callable[[bytes], bytes]
"""Returns the public object with a digest. Raises TransportError where nobody has it."""


class DataSetRecords:
    """One device's part of a data set, as the features of a study encode it.

    What a study encodes is kept until another study asks. Raises DataError at once where the
    data set cannot be read, or says another class than the device's owner.
    """

    def __init__(
        self, folder: Path, device: str, read_object: ReadObject, data_class: str = ""
    ) -> None:
        self._folder = folder
        self._device = device
        self._read_object = read_object
        self._info = load_dataset(folder)
        said = self._info.data_class
        if data_class and said and data_class != said:
            raise DataError(
                f"{folder / 'dataset.toml'} says data_class {said}, the device's configuration "
                f"{data_class}: one of the two is wrong"
            )
        self._data_class = data_class or said
        self._loaded: tuple[bytes, Records] | None = None
        # What a study's features encode can be read only then; all else is tried at once.
        if not holds_tables(folder, self._info):
            self._loaded = (b"", load_part(folder, device, self._info, "train"))

    @property
    def data_classes(self) -> tuple[str, ...]:
        """The kind of the records, as the owner or the data set says; "" where neither does."""
        return (self._data_class,)

    def records(self, study: Study) -> Records:
        """Return this device's training rows.

        Raises DataError, for unit `record` also where a row more would move others to another part.
        """
        if study.plan.privacy.unit == "record":
            refuse_by_place(self._folder, self._info)
        model = study.plan.model
        if tuple(model.classes) != self._info.classes:
            raise DataError(
                f"study {study.plan.study} tells {', '.join(model.classes)} apart, the data set "
                f"in {self._folder} has {', '.join(self._info.classes)}"
            )
        if self._loaded is None or self._loaded[0] != model.features:
            features = None
            if model.features:
                features = FeatureSchema.from_json(self._read_object(model.features))
            rows = load_part(self._folder, self._device, self._info, "train", features)
            self._loaded = (model.features, rows)
        return self._loaded[1]

    def answer(self, study: Study) -> npt.NDArray[np.uint64]:
        """Return what a study of statistics asks of this device's training rows."""
        if not holds_tables(self._folder, self._info):
            raise DataError(f"the data set in {self._folder} has no table to take statistics of")
        question = Question.from_json(self._read_object(study.plan.model.info))
        table = load_table(self._folder, self._device, self._info)
        return to_limbs(count(question, split(table, self._info).train), question.widths)


class StreamRecords:
    """Data sets of several kinds on one device; a study's class chooses one (SPEC 7.19)."""

    def __init__(self, streams: Mapping[str, DataSetRecords]) -> None:
        self._streams = streams

    @property
    def data_classes(self) -> tuple[str, ...]:
        """The kinds of records that there are."""
        return tuple(self._streams)

    def records(self, study: Study) -> Records:
        """Return the training rows of the study's class. Raises DataError."""
        return self._of(study).records(study)

    def answer(self, study: Study) -> npt.NDArray[np.uint64]:
        """Return what a study of statistics asks of the rows of its class. Raises DataError."""
        return self._of(study).answer(study)

    def _of(self, study: Study) -> DataSetRecords:
        plan = study.plan
        if plan.data_class not in self._streams:
            raise DataError(
                f"study {plan.study} is about {plan.data_class or 'no class of data'}, this "
                f"device has {', '.join(self._streams)}"
            )
        return self._streams[plan.data_class]
