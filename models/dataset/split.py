"""Which of a device's rows train, validate and test.

Whole devices are held out by `test_devices` and `validation_devices`; rows of the other devices
by `test_fraction` and `validation_fraction`:
- of tables those whose lot is drawn (`lots`): the hash of the row's group, so that a patient's rows
  are on one side at every site, or, where no group is named, of the row's own content. Lots below
  `test_fraction` test, the next `validation_fraction` validate, the others train. One row more or
  less, anywhere, changes nothing for any other;
- of windows the last rows of the file, so that neighbours in time are not on both sides. One row
  more or less moves the border between them, so the rows that train are no function of each row
  alone, and no study of unit `record` may use such a data set (`refuse_by_place`, SPEC 7.2). Lots
  by content would mend that and put windows that overlap on both sides.
"""

import math
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from vitalring.errors import DataError
from vitalring.models.dataset.info import DatasetInfo
from vitalring.models.dataset.lots import Lots
from vitalring.models.dataset.records import Rows

_NOTHING, _EVERYTHING = slice(0, 0), slice(None)


class Divisible(Protocol):
    """Rows of a device that can be told apart by place and by lot."""

    @property
    def device(self) -> str: ...  # noqa: D102

    def __len__(self) -> int: ...

    def lots(self) -> Lots: ...  # noqa: D102


class Splittable(Divisible, Protocol):
    """Records or a table."""

    def take(self: "S", rows: Rows) -> "S": ...  # noqa: D102


S = TypeVar("S", bound=Splittable)
P = TypeVar("P")


class Parts(NamedTuple, Generic[P]):
    """A device's rows by their use; any of the three may be empty."""

    train: P
    validation: P
    test: P


def split(records: S, info: DatasetInfo) -> Parts[S]:
    """Divide a device's rows, as the module says.

    A device whose every group, or row of a table, is drawn has none to train on. Of windows at
    least one stays.
    """
    return Parts(*(records.take(rows) for rows in divide(records, info)))


def divide(records: Divisible, info: DatasetInfo) -> Parts[Rows]:
    """Return which rows `split` takes for each part."""
    if info.test_devices is not None and records.device in info.test_devices:
        return Parts(_NOTHING, _NOTHING, _EVERYTHING)
    if records.device in info.validation_devices:
        return Parts(_NOTHING, _EVERYTHING, _NOTHING)
    test, validation = info.test_fraction or 0.0, info.validation_fraction
    if not test and not validation:
        return Parts(_EVERYTHING, _NOTHING, _NOTHING)
    if info.kind == "windows":
        return _by_place(len(records), test, validation)
    share = records.lots().astype(np.float64) / 2.0**64
    tests = share < test
    trains = share >= test + validation
    return Parts(*(np.flatnonzero(rows) for rows in (trains, ~trains & ~tests, tests)))


def by_place(info: DatasetInfo) -> tuple[str, ...]:
    """Return the keys of `dataset.toml` that hold rows out by their place in the file."""
    if info.kind != "windows":
        return ()
    keys = {"test_fraction": info.test_fraction, "validation_fraction": info.validation_fraction}
    return tuple(key for key, share in keys.items() if share)


def refuse_by_place(folder: Path, info: DatasetInfo) -> None:
    """Refuse a data set whose held-out rows break a guarantee of unit `record`.

    Raises:
        DataError: it holds windows out by their place.
    """
    if keys := by_place(info):
        raise DataError(
            f"{folder / 'dataset.toml'}: {' and '.join(keys)} of windows {CURE_OF_PLACE}, or train "
            "with unit device"
        )


CURE_OF_PLACE = (
    "moves its border with every window more or less, so a guarantee of unit record would not "
    "hold: hold out whole devices with test_devices and validation_devices (rows held out go into "
    "a file of their own; test_devices = [] in a device's own folder, which only trains)"
)


def _by_place(n: int, test: float, validation: float) -> Parts[Rows]:
    tested = min(math.ceil(test * n), max(n - 1, 0))
    validated = min(math.ceil(validation * n), max(n - 1, 0) - tested)
    first, second = n - tested - validated, n - tested
    return Parts(slice(0, first), slice(first, second), slice(second, n))
