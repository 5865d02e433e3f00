"""Deterministic CBOR (RFC 8949 section 4.2) of records (SPEC 2).

A record is a map with a `type` field, keys sorted, shortest forms, definite
lengths. There is one encoding of a record: `decode` re-encodes what it read
and refuses what differs, so a digest names a value and not one of many
spellings.
"""

import hashlib
from typing import Any, ClassVar, Final, Protocol, TypeVar

import cbor2

from vitalring.errors import RecordError
from vitalring.schema import from_plain, to_plain


class Record(Protocol):
    """A frozen dataclass with a type name and a size limit."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    TYPE: ClassVar[str]
    MAX_BYTES: ClassVar[int]


R = TypeVar("R", bound=Record)

MAX_DEPTH: Final = 16
"""Arrays and maps inside one another; the records of this version need five."""

MAX_ITEMS: Final = 1 << 16
"""Items in all; the records of this version need about 10,000, one for each device."""

_BYTES, _TEXT, _ARRAY, _MAP, _TAG = range(2, 7)


def encode(record: Record) -> bytes:
    """Return the one encoding of `record` (SPEC 2.1)."""
    return cbor2.dumps({"type": record.TYPE, **to_plain(record)}, canonical=True)


def decode(cls: type[R], data: bytes) -> R:
    """Read a record of type `cls`.

    Raises RecordError for anything but the one encoding of such a record.
    """
    # SPEC 2.2.1: size before anything is parsed.
    if len(data) > cls.MAX_BYTES:
        raise RecordError(f"{cls.TYPE} has {len(data)} bytes, at most {cls.MAX_BYTES} are allowed")
    plain = _loads(cls.TYPE, data)
    # SPEC 2.2.2: the type stands inside what is hashed and signed.
    if not isinstance(plain, dict) or plain.pop("type", None) != cls.TYPE:
        raise RecordError(f"the bytes are not a record of type {cls.TYPE}")
    # SPEC 2.2.3: every field, its kind and its bounds.
    record = from_plain(cls, plain, RecordError, cls.TYPE)
    # SPEC 2.2.4: one encoding only.
    if encode(record) != data:
        raise RecordError(f"{cls.TYPE} is not in its deterministic encoding")
    return record


def digest(data: bytes) -> bytes:
    """SHA-256, the name of an object in messages, files and the log (SPEC 2.3)."""
    return hashlib.sha256(data).digest()


def type_of(data: bytes) -> str:
    """Return the type name of an encoded record, for a reader that expects several."""
    plain = _loads("record", data)
    name = plain.get("type") if isinstance(plain, dict) else None
    if not isinstance(name, str):
        raise RecordError("the bytes are not a record: there is no type field")
    return name


def _loads(what: str, data: bytes) -> object:
    _check_items(what, data)
    # A foreign decoder may raise anything on hostile bytes; every such failure means "not CBOR".
    try:
        plain: object = cbor2.loads(data)
    except Exception as error:
        raise RecordError(f"{what} is not CBOR: {type(error).__name__}") from error
    return plain


def _check_items(what: str, data: bytes) -> None:
    """Refuse in one linear pass what no record holds and a general decoder would work on.

    A tag can ask for a decimal number of millions of digits, which takes hours; a length can
    ask for memory that its bytes do not back; keys other than text can collide by design; and
    an empty list is one byte, but eighty in memory.
    """
    position = items = 0
    # Of each open array or map: items still to come, and whether every second one is a key.
    left, keyed = [1], [False]
    while left:
        if left[-1] == 0:
            left.pop()
            keyed.pop()
            continue
        is_key = keyed[-1] and left[-1] % 2 == 0
        left[-1] -= 1
        kind, argument, position = _head(what, data, position)
        items += 1
        if items > MAX_ITEMS:
            raise RecordError(f"{what} holds more than {MAX_ITEMS} items")
        if kind == _TAG:
            raise RecordError(f"{what} holds a CBOR tag, {argument}; records have none")
        if is_key and kind != _TEXT:
            raise RecordError(f"{what} holds a map with a key that is not text")
        if kind in (_BYTES, _TEXT):
            position += argument
        elif kind in (_ARRAY, _MAP):
            left.append(argument * (2 if kind == _MAP else 1))
            keyed.append(kind == _MAP)
            if len(left) > MAX_DEPTH:
                raise RecordError(f"{what} is nested more than {MAX_DEPTH} deep")
            # Every item takes a byte at least.
            if left[-1] > len(data) - position:
                raise RecordError(f"{what} ends early")
    if position != len(data):
        raise RecordError(f"{what} ends at byte {position} of {len(data)}")


def _head(what: str, data: bytes, position: int) -> tuple[int, int, int]:
    """Return major type, argument and the position after the head (RFC 8949 section 3)."""
    if position >= len(data):
        raise RecordError(f"{what} ends early")
    kind, info = data[position] >> 5, data[position] & 31
    position += 1
    if info < 24:
        return kind, info, position
    if info > 27:
        raise RecordError(f"{what} holds an item of indefinite or reserved length")
    end = position + (1 << info - 24)
    return kind, int.from_bytes(data[position:end], "big"), end
