"""Readers of a data set say what is wrong through a function, `complain`.

A reader that is given `refuse` stops at the first complaint; one that is given a list's `append`
goes on and finds the others. A reader that complained returns None.
"""

import reprlib
from collections.abc import Callable
from typing import NoReturn, TypeVar

from vitalring.errors import DataError

Complain = Callable[[str], None]

T = TypeVar("T")

_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = _shortened.maxlong = 80


def refuse(message: str) -> NoReturn:
    """Raise a complaint as a DataError."""
    raise DataError(message)


def strictly(found: T | None) -> T:
    """Return what a reader found that was given `refuse`."""
    if found is None:
        raise AssertionError("a reader that finds nothing complains")
    return found


def shown(value: object) -> str:
    """Return a value for a message, which stays short and printable whatever the file holds."""
    return _shortened.repr(value)
