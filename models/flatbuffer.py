"""FlatBuffers, as much as a TFLite model needs: tables, vectors and text, written and read.

Source: "FlatBuffer Internals" of the FlatBuffers documentation. Everything is little-endian. A
buffer begins with the offset of its root table and a four-byte identifier. A table begins with the
distance back to its vtable, which lists where in the table each field lies, 0 for its default. A
field is a scalar, or the distance forward to a table, to a vector (length, then items), or to text
(a vector of bytes with a zero behind). Scalars lie at multiples of their size.

A reader must not trust offsets: every read is held against the end of the buffer.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vitalring.errors import ModelError

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Scalar:
    """A number in a table; `kind` is its letter in `struct`: b B ? i I f q."""

    kind: str
    value: float


@dataclass(frozen=True)
class Table:
    """A table to write: fields by their place in the schema; a field left out is its default."""

    fields: "Mapping[int, Field]"


@dataclass(frozen=True)
class Bytes:
    """A vector of bytes whose first one lies at a multiple of `align`."""

    data: bytes
    align: int


Reference: TypeAlias = "Table | Bytes | Array | str | list[Table]"
Field: TypeAlias = "Scalar | Reference"


def write(root: Table, identifier: bytes) -> bytes:
    """Return the buffer of a tree of tables."""
    writer = _Writer(identifier)
    struct.pack_into("<I", writer.out, 0, writer.table(root))
    return bytes(writer.out)


class _Writer:
    """The buffer so far, and where its vtables are: tables of one form share theirs."""

    def __init__(self, identifier: bytes) -> None:
        self.out = bytearray(struct.pack("<I4s", 0, identifier))
        self._vtables: dict[bytes, int] = {}

    def table(self, table: Table) -> int:
        """Append a table and all that it leads to; return its position."""
        out = self.out
        slots = max(table.fields, default=-1) + 1
        places = [0] * slots
        inline = bytearray(4)
        later = []
        largest = 4
        # Largest first: then no field but the first needs padding.
        for slot, value in sorted(table.fields.items(), key=lambda item: -_size(item[1])):
            size = _size(value)
            largest = max(largest, size)
            inline += bytes(-len(inline) % size)
            places[slot] = len(inline)
            if isinstance(value, Scalar):
                inline += struct.pack(f"<{value.kind}", value.value)
            else:
                later.append((slot, value))
                inline += bytes(4)
        vtable = struct.pack(f"<{2 + slots}H", 4 + 2 * slots, len(inline), *places)
        if vtable not in self._vtables:
            out += bytes(len(out) % 2)
            self._vtables[vtable] = len(out)
            out += vtable
        out += bytes(-len(out) % largest)
        position = len(out)
        struct.pack_into("<i", inline, 0, position - self._vtables[vtable])
        out += inline
        for slot, value in later:
            place = position + places[slot]
            struct.pack_into("<I", out, place, self._reference(value) - place)
        return position

    def _reference(self, value: "Reference") -> int:
        """Append what a field leads to; return its position."""
        if isinstance(value, Table):
            return self.table(value)
        if isinstance(value, str):
            return self._vector(len(value.encode()), value.encode() + b"\0", 1)
        if isinstance(value, Bytes):
            return self._vector(len(value.data), value.data, value.align)
        if isinstance(value, np.ndarray):
            data = value.astype(value.dtype.newbyteorder("<")).tobytes()
            return self._vector(value.size, data, value.itemsize)
        position = self._vector(len(value), bytes(4 * len(value)), 4)
        for place, item in enumerate(value, 1):
            at = position + 4 * place
            struct.pack_into("<I", self.out, at, self.table(item) - at)
        return position

    def _vector(self, length: int, data: bytes, align: int) -> int:
        self.out += bytes(-(len(self.out) + 4) % max(align, 4))
        position = len(self.out)
        self.out += struct.pack("<I", length) + data
        return position


def _size(value: "Field") -> int:
    return struct.calcsize(value.kind) if isinstance(value, Scalar) else 4


@dataclass(frozen=True)
class View:
    """A table in a buffer. Every method raises ModelError where the buffer is malformed."""

    data: bytes = field(repr=False)
    position: int

    def scalar(self, slot: int, kind: str, default: float = 0) -> Any:  # noqa: ANN401
        """Return a number."""
        place = self._place(slot)
        return default if place is None else _unpack(self.data, f"<{kind}", place)

    def table(self, slot: int) -> "View | None":
        """Return a table, or None if it is left out."""
        place = self._place(slot)
        return None if place is None else View(self.data, _follow(self.data, place))

    def tables(self, slot: int) -> "list[View]":
        """Return a vector of tables; one that is left out is empty."""
        offset, length = self._vector(slot)
        _require(self.data, offset, 4 * length)
        return [View(self.data, _follow(self.data, offset + 4 * i)) for i in range(length)]

    def array(self, slot: int, dtype: str) -> Array:
        """Return a vector of numbers of a little-endian numpy type; one left out is empty."""
        offset, length = self._vector(slot)
        _require(self.data, offset, np.dtype(dtype).itemsize * length)
        return np.frombuffer(self.data, dtype, length, offset) if length else np.empty(0, dtype)

    def text(self, slot: int) -> str:
        """Return text; what is not UTF-8 is shown as question marks."""
        return self.array(slot, "u1").tobytes().decode(errors="replace")

    def _vector(self, slot: int) -> tuple[int, int]:
        place = self._place(slot)
        if place is None:
            return 0, 0
        start = _follow(self.data, place)
        return start + 4, _unpack(self.data, "<I", start)

    def _place(self, slot: int) -> int | None:
        vtable = self.position - _unpack(self.data, "<i", self.position)
        size = _unpack(self.data, "<H", vtable)
        if 4 + 2 * slot + 2 > size:
            return None
        place = _unpack(self.data, "<H", vtable + 4 + 2 * slot)
        return self.position + place if place else None


def read(data: bytes, identifier: bytes) -> View:
    """Return the root table of a buffer.

    Raises:
        ModelError: it is too short, or of another kind.
    """
    if len(data) < 8 or data[4:8] != identifier:
        raise ModelError(f"not a buffer of kind {identifier.decode()}; choose another file")
    return View(data, _unpack(data, "<I", 0))


def _follow(data: bytes, place: int) -> int:
    return place + int(_unpack(data, "<I", place))


def _unpack(data: bytes, kind: str, position: int) -> Any:  # noqa: ANN401
    _require(data, position, struct.calcsize(kind))
    return struct.unpack_from(kind, data, position)[0]


def _require(data: bytes, position: int, size: int) -> None:
    if position < 0 or position + size > len(data):
        raise ModelError("the buffer is damaged: it points outside itself; fetch the file again")
