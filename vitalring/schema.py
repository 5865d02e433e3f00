"""Frozen dataclasses to and from plain mappings, with every field checked.

One checker serves the records on the wire (CBOR) and the configuration files
(TOML). Rules: no unknown key, no missing key without a default, no silent
conversion but whole number to float, no NaN or infinity. Constraints stand in
the annotation: `Annotated[int, Range(0, 10)]`.
"""

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vitalring.errors import VitalRingError

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """Inclusive bounds of a number."""

    low: float
    high: float

    def complaint(self, value: Any) -> str | None:  # noqa: ANN401
        """Say what is wrong with `value`, or None."""
        if self.low <= value <= self.high:
            return None
        return f"is {_shown(value)}, must lie between {self.low:g} and {self.high:g}"


@dataclass(frozen=True)
class Size:
    """Inclusive bounds of a length; `Size(32)` means exactly 32."""

    low: int
    high: int | None = None

    def complaint(self, value: Any) -> str | None:  # noqa: ANN401
        """Say what is wrong with `value`, or None."""
        high = self.low if self.high is None else self.high
        if self.low <= len(value) <= high:
            return None
        wanted = str(self.low) if high == self.low else f"{self.low} to {high}"
        return f"has length {len(value)}, must have {wanted}"


@dataclass(frozen=True)
class Pattern:
    """A regular expression that a string must match as a whole."""

    expression: str

    def complaint(self, value: Any) -> str | None:  # noqa: ANN401
        """Say what is wrong with `value`, or None."""
        if re.fullmatch(self.expression, value, re.ASCII):
            return None
        return f"is {_shown(value)}, must match {self.expression}"


@dataclass(frozen=True)
class OneOf:
    """A closed list of words."""

    words: tuple[str, ...]

    def complaint(self, value: Any) -> str | None:  # noqa: ANN401
        """Say what is wrong with `value`, or None."""
        if value in self.words:
            return None
        return f"is {_shown(value)}, must be one of {', '.join(self.words)}"


def from_plain(cls: type[T], plain: object, error: type[VitalRingError], where: str = "") -> T:
    """Build the dataclass `cls` from a mapping.

    Raises `error`, naming the field as a dotted path below `where`.
    """
    if not isinstance(plain, Mapping):
        raise error(f"{where or cls.__name__} is {_kind(plain)}, must be a table")
    kinds, fields = _shape(cls)  # type: ignore[arg-type]
    unknown = sorted(_key(key) for key in plain if key not in fields)
    if unknown:
        raise error(
            f"{_path(where, unknown[0])} is not known; known here: {', '.join(sorted(fields))}"
        )
    values = {}
    for name, field in fields.items():
        if name in plain:
            values[name] = _value(kinds[name], plain[name], error, _path(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise error(f"{_path(where, name)} is missing")
    return cls(**values)


@dataclass(frozen=True, eq=False)
class _Type:
    """A type as annotations write it, taken apart: `parts` are those that it is made of."""

    hint: Any
    origin: Any
    parts: tuple["_Type", ...] = ()
    rules: tuple[Any, ...] = ()


_RECORD = object()
"""Stands for the origin of a dataclass."""


def _type_of(hint: Any) -> _Type:  # noqa: ANN401
    if dataclasses.is_dataclass(hint):
        return _Type(hint, _RECORD)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        base, *rules = args
        return _Type(hint, origin, (_type_of(base),), tuple(rules))
    used = (arg for arg in args if arg not in (..., types.NoneType))
    return _Type(hint, origin, tuple(_type_of(arg) for arg in used))


@functools.cache
def _shape(cls: type) -> tuple[dict[str, _Type], dict[str, dataclasses.Field[Any]]]:
    """Return the kinds of a dataclass's fields, and the fields that its constructor takes."""
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    hints = typing.get_type_hints(cls, include_extras=True)
    return {name: _type_of(hints[name]) for name in fields}, fields


def to_plain(value: object) -> Any:  # noqa: ANN401
    """Turn a dataclass into mappings, lists and scalars, the inverse of `from_plain`."""
    if type(value) in (bytes, str, int, bool):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return _one_zero(value) if isinstance(value, float) else value


def _one_zero(value: float) -> float:
    # Minus zero equals zero, and equal records have equal bytes.
    return value + 0.0


def _value(kind: _Type, plain: Any, error: type[VitalRingError], where: str) -> Any:  # noqa: ANN401
    origin, parts = kind.origin, kind.parts
    if origin is None:
        return _scalar(kind.hint, plain, error, where)
    if origin is typing.Annotated:
        value = _value(parts[0], plain, error, where)
        for rule in kind.rules:
            complaint = rule.complaint(value) if value is not None else None
            if complaint:
                raise error(f"{where} {complaint}")
        return value
    if origin in (types.UnionType, typing.Union):
        if plain is None:
            return None
        return _value(parts[0], plain, error, where)
    if origin is tuple:
        if not isinstance(plain, list | tuple):
            raise error(f"{where} is {_kind(plain)}, must be a list")
        return tuple(_value(parts[0], p, error, f"{where}[{i}]") for i, p in enumerate(plain))
    if origin in (dict, Mapping):
        return _mapping(parts, plain, error, where)
    if origin is _RECORD:
        return from_plain(kind.hint, plain, error, where)
    return _scalar(kind.hint, plain, error, where)


def _mapping(
    parts: tuple[_Type, ...],
    plain: Any,  # noqa: ANN401
    error: type[VitalRingError],
    where: str,
) -> Any:  # noqa: ANN401
    if not isinstance(plain, Mapping):
        raise error(f"{where} is {_kind(plain)}, must be a table")
    return {
        _value(parts[0], key, error, f"{where} key"): _value(
            parts[1], item, error, _path(where, _key(key))
        )
        for key, item in plain.items()
    }


def _scalar(hint: Any, plain: Any, error: type[VitalRingError], where: str) -> Any:  # noqa: ANN401
    if hint is float and type(plain) in (int, float):
        try:
            value = float(plain)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise error(f"{where} is {_shown(plain)}, must be finite")
        return _one_zero(value)
    if hint is Path and isinstance(plain, str | Path):
        if "\0" in str(plain):
            raise error(f"{where} is {_shown(plain)}, a path has no zero bytes")
        return Path(plain)
    if type(plain) is not hint:
        raise error(f"{where} is {_kind(plain)}, must be {_NAMES.get(hint, str(hint))}")
    return plain


def _path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


_MAX_SHOWN = 100
_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bytes: "bytes",
    bool: "true or false",
    Path: "a path",
}


def _kind(value: object) -> str:
    name = _NAMES.get(type(value), type(value).__name__)
    if isinstance(value, str | int | float | bool):
        return f"{_shown(value)} ({name})"
    return name


def _key(key: object) -> str:
    plain = isinstance(key, str) and key.isprintable() and len(key) <= _MAX_SHOWN
    return str(key) if plain else _shown(key)


def _shown(value: object) -> str:
    """Return a value for a message, which stays short whatever a stranger sent."""
    # Python refuses to print longer integers, and would take quadratic time.
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
