"""Deterministic CBOR (RFC 8949 section 4.2) of records (SPEC 2).

A record is a map with a `type` field, keys sorted, shortest forms, definite
lengths. There is one encoding of a record: `decode` re-encodes what it read
and refuses what differs, so a digest names a value and not one of many
spellings.
"""

import hashlib
from typing import Any, ClassVar, Protocol, TypeVar

import cbor2

from vitalring.errors import RecordError
from vitalring.schema import from_plain, to_plain


class Record(Protocol):
    """A frozen dataclass with a type name and a size limit."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    TYPE: ClassVar[str]
    MAX_BYTES: ClassVar[int]


R = TypeVar("R", bound=Record)


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
    # A foreign decoder may raise anything on hostile bytes; every such failure means "not CBOR".
    try:
        plain: object = cbor2.loads(data)
    except Exception as error:
        raise RecordError(f"{what} is not CBOR: {type(error).__name__}") from error
    return plain
