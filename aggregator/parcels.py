"""Large messages on their way: manifests whose pieces come one by one (SPEC 3.5).

Nothing waits for a piece: whoever sends a manifest without its pieces keeps nobody from
hearing others.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from vitalring.errors import RecordError
from vitalring.protocol import blobs
from vitalring.protocol.cbor import decode, digest


@dataclass
class _Parcel:
    message: bytes
    manifest: blobs.Manifest
    parts: list[bytes] = field(default_factory=list)

    @property
    def next(self) -> bytes:
        return self.manifest.pieces[len(self.parts)]


class Parcels:
    """What came of messages in pieces, the newest of each topic; one piece of each is awaited."""

    def __init__(self, watch: Callable[[bytes], None], unwatch: Callable[[bytes], None]) -> None:
        self._watch, self._unwatch = watch, unwatch
        self._coming: dict[str, _Parcel] = {}

    def take(self, topic: str, message: bytes, most_bytes: int) -> bytes | None:
        """Return the content of a retained message, None while pieces of it are awaited.

        No bytes are the content of a topic that was cleared. Raises RecordError for what is no
        message, or one of more than `most_bytes`.
        """
        self._drop(topic)
        if message[:1] != blobs.IN_PIECES:
            content = blobs.whole(message) if message else b""
            _check_size(len(content), most_bytes)
            return content
        manifest = decode(blobs.Manifest, message[1:])
        _check_size(manifest.total_bytes, most_bytes)
        self._coming[topic] = _Parcel(message, manifest)
        self._watch(manifest.pieces[0])
        return None

    def piece(self, name: bytes, message: bytes) -> list[tuple[str, bytes]]:
        """Take a piece; return topics and contents of what it completes. Raises RecordError."""
        complete = []
        for topic, parcel in list(self._coming.items()):
            if parcel.next != name or not message:
                continue
            part = blobs.whole(message)
            held = sum(map(len, parcel.parts)) + len(part)
            if digest(part) != name or held > parcel.manifest.total_bytes:
                raise RecordError(f"piece {name.hex()} is not what its manifest names")
            self._unwatch(name)
            parcel.parts.append(part)
            if len(parcel.parts) < len(parcel.manifest.pieces):
                self._watch(parcel.next)
                continue
            del self._coming[topic]
            found = dict(zip(parcel.manifest.pieces, parcel.parts, strict=True))
            complete.append((topic, blobs.join(parcel.message, found.__getitem__)))
        return complete

    def _drop(self, topic: str) -> None:
        parcel = self._coming.pop(topic, None)
        if parcel is not None:
            self._unwatch(parcel.next)


def _check_size(size: int, most_bytes: int) -> None:
    if size > most_bytes:
        raise RecordError(f"{size} bytes, where at most {most_bytes} are expected")
