"""Retained messages larger than the broker's limit, as pieces named by digest (SPEC 3.5).

A retained topic holds one message, so a large object cannot be a row of
frames there. Its topic holds a manifest instead, and each piece is an object
of its own. A first byte tells which of the two a message is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from vitalring.errors import RecordError
from vitalring.protocol import limits
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.schema import Range, Size

WHOLE = b"\x00"
IN_PIECES = b"\x01"


@dataclass(frozen=True)
class Manifest:
    """The pieces of an object, in order."""

    TYPE: ClassVar[str] = "vitalring/manifest/1"
    MAX_BYTES: ClassVar[int] = limits.MAX_RECORD_BYTES

    total_bytes: Annotated[int, Range(1, 2 * limits.MAX_OBJECT_BYTES)]
    digest: Annotated[bytes, Size(32)]
    pieces: Annotated[tuple[Annotated[bytes, Size(32)], ...], Size(1, 1024)]


def split(data: bytes, limit_bytes: int) -> tuple[bytes, tuple[bytes, ...]]:
    """Return the message for a topic, and the pieces to publish first as objects of their own."""
    if len(data) + 1 <= limit_bytes:
        return WHOLE + data, ()
    room = limit_bytes - 1
    pieces = tuple(data[at : at + room] for at in range(0, len(data), room))
    manifest = Manifest(len(data), digest(data), tuple(digest(piece) for piece in pieces))
    return IN_PIECES + encode(manifest), pieces


def whole(message: bytes) -> bytes:
    """Return what a message carries that is no manifest: every piece is one. Raises RecordError."""
    if message[:1] != WHOLE:
        raise RecordError("a message that should be whole does not start with 0")
    return message[1:]


def join(message: bytes, fetch: Callable[[bytes], bytes]) -> bytes:
    """Return the object that a message carries; `fetch` gets a piece by digest.

    `fetch` opens a piece's own message with `whole`: a piece in pieces could ask for itself.

    Raises RecordError for anything but what `split` makes. Memory is bounded
    by the manifest's `total_bytes`, which is checked before a piece is kept.
    """
    if message[:1] != IN_PIECES:
        return whole(message)
    manifest = decode(Manifest, message[1:])
    parts, held = [], 0
    for name in manifest.pieces:
        piece = fetch(name)
        held += len(piece)
        if digest(piece) != name or held > manifest.total_bytes:
            raise RecordError(f"piece {name.hex()} is not what its manifest names")
        parts.append(piece)
    data = b"".join(parts)
    if len(data) != manifest.total_bytes or digest(data) != manifest.digest:
        raise RecordError("the pieces do not make the object of their manifest")
    return data
