"""Which of a device's rows train, validate and test.

Whole devices are held out by `test_devices` and `validation_devices`; rows of the other devices
by `test_fraction` and `validation_fraction`:
- of windows the last rows of the file, so that neighbours in time are not on both sides;
- of tables those whose lot is drawn. A row's lot is a number in [0, 1): SHA-256 of its group's
  text, so that a patient's rows are on one side at every site; where no group is named, the
  device's own sequence of SHAKE-256, by the row's place in the file. Lots below `test_fraction`
  test, the next `validation_fraction` validate, the others train. Rows that are added later
  change nothing for the rows before them.
"""

import hashlib
import math
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from vitalring.models.dataset.info import DatasetInfo
from vitalring.models.dataset.records import Rows

_GROUP_LABEL = b"vitalring split of groups 1\0"
_ROW_LABEL = b"vitalring split of rows 1\0"


class Splittable(Protocol):
    """Records or a table."""

    @property
    def device(self) -> str: ...  # noqa: D102

    @property
    def group(self) -> npt.NDArray[np.uint64] | None: ...  # noqa: D102

    def __len__(self) -> int: ...

    def take(self: "S", rows: Rows) -> "S": ...  # noqa: D102


S = TypeVar("S", bound=Splittable)


class Parts(NamedTuple, Generic[S]):
    """A device's rows by their use; any of the three may be empty."""

    train: S
    validation: S
    test: S


def split(records: S, info: DatasetInfo) -> Parts[S]:
    """Divide a device's rows, as the module says.

    Of rows without groups at least one stays to train on. A device whose every group is drawn
    has none.
    """
    n = len(records)
    nothing, everything = slice(0, 0), slice(0, n)
    train, validation, test = _rows(records, info)
    if info.test_devices is not None and records.device in info.test_devices:
        train, validation, test = nothing, nothing, everything
    elif records.device in info.validation_devices:
        train, validation, test = nothing, everything, nothing
    return Parts(records.take(train), records.take(validation), records.take(test))


def group_number(text: str) -> int:
    """Return a group's number in [0, 2^64)."""
    return int.from_bytes(hashlib.sha256(_GROUP_LABEL + text.encode()).digest()[:8], "little")


def _rows(records: Splittable, info: DatasetInfo) -> tuple[Rows, Rows, Rows]:
    n = len(records)
    test, validation = info.test_fraction or 0.0, info.validation_fraction
    if info.kind == "windows":
        tested = min(math.ceil(test * n), max(n - 1, 0))
        validated = min(math.ceil(validation * n), max(n - 1, 0) - tested)
        first, second = n - tested - validated, n - tested
        return slice(0, first), slice(first, second), slice(second, n)
    if not test and not validation:
        return slice(0, n), slice(0, 0), slice(0, 0)
    lots = _row_lots(records.device, n) if records.group is None else records.group
    share = lots.astype(np.float64) / 2.0**64
    trains = share >= test + validation
    if records.group is None and n and not trains.any():
        trains[int(lots.argmax())] = True
    rows = (trains, ~trains & (share >= test), ~trains & (share < test))
    first_, second_, third = (np.flatnonzero(chosen) for chosen in rows)
    return first_, second_, third


def _row_lots(device: str, n: int) -> npt.NDArray[np.uint64]:
    stream = hashlib.shake_256(_ROW_LABEL + device.encode()).digest(8 * n)
    return np.frombuffer(stream, "<u8").astype(np.uint64)
