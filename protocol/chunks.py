"""Frames for payloads above the broker's limit (SPEC 3.6, 3.7).

frame = "VRC1" | transfer id (16) | index (u32) | count (u32) | total (u64) | SHA-256 (32) | data

Integers are big-endian. Every payload is framed, a short one too. All frames of a transfer
but the last carry the same number of data bytes, so a frame fixes its transfer's layout and
two frames of one transfer cannot disagree.

The uplink is written by anonymous senders, so the reassembler charges what it really holds,
never what a header claims, and evicts the oldest transfer first. A sender whose transfer was
evicted sees no receipt and submits again.
"""

import hashlib
import struct
from collections import OrderedDict
from dataclasses import dataclass, field

from vitalring.errors import ConfigError, Reason, RefusedError
from vitalring.protocol.limits import MAX_UPDATE_BYTES

MAGIC = b"VRC1"
TRANSFER_ID_BYTES = 16
_HEADER = struct.Struct(">4s16sIIQ32s")
HEADER_BYTES = _HEADER.size
PART_OVERHEAD_BYTES = 256
"""Charged for each held frame besides its data, so that tiny frames cannot fill the memory."""


@dataclass(frozen=True)
class ChunkLimits:
    """What a reassembler may hold.

    `max_total_bytes` covers data and `PART_OVERHEAD_BYTES` for each frame.
    """

    max_transfer_bytes: int = MAX_UPDATE_BYTES + 2**20
    max_open_transfers: int = 256
    max_total_bytes: int = 128 * 2**20
    max_age_s: float = 600.0

    def __post_init__(self) -> None:
        """Refuse limits under which no transfer could ever complete."""
        for name, least in (("max_transfer_bytes", 0), ("max_open_transfers", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}: use at least {least}")
        if not self.max_age_s > 0:
            raise ConfigError(f"max_age_s is {self.max_age_s}: use more than 0 seconds")
        if self.max_total_bytes < self.max_transfer_bytes + PART_OVERHEAD_BYTES:
            raise ConfigError(
                f"max_total_bytes is {self.max_total_bytes}: use more than max_transfer_bytes "
                f"({self.max_transfer_bytes}) and {PART_OVERHEAD_BYTES} for each frame"
            )


def split(payload: bytes, limit_bytes: int, transfer_id: bytes) -> tuple[bytes, ...]:
    """Return `payload` as frames of at most `limit_bytes` each (SPEC 3.6).

    `transfer_id` is 16 random bytes, drawn anew for every submission: whoever knew it could
    spoil the transfer, and a repeated one would link two submissions.

    Raises:
        ConfigError: when no frame of `limit_bytes` can carry data, or the id is no 16 bytes.
    """
    if len(transfer_id) != TRANSFER_ID_BYTES:
        raise ConfigError(f"transfer id has {len(transfer_id)} bytes: use 16 random bytes")
    room = limit_bytes - HEADER_BYTES
    if room < 1:
        raise ConfigError(f"a limit of {limit_bytes} bytes leaves no room after {HEADER_BYTES}")
    count = max(1, -(-len(payload) // room))
    if count >= 2**32:
        raise ConfigError(f"{len(payload)} bytes need {count} frames of {limit_bytes}: raise it")
    digest = hashlib.sha256(payload).digest()
    return tuple(
        _HEADER.pack(MAGIC, transfer_id, index, count, len(payload), digest)
        + payload[index * room : (index + 1) * room]
        for index in range(count)
    )


@dataclass(frozen=True)
class _Layout:
    """What every frame of one transfer must say alike."""

    count: int
    total: int
    digest: bytes
    stride: int


@dataclass
class _Transfer:
    layout: _Layout
    opened_at: float
    parts: dict[int, bytes] = field(default_factory=dict)
    cost: int = 0


class Reassembler:
    """Puts frames together again, within explicit limits (SPEC 3.7)."""

    def __init__(self, limits: ChunkLimits) -> None:
        self._limits = limits
        self._transfers: OrderedDict[bytes, _Transfer] = OrderedDict()
        self._held_bytes = 0
        self._evicted = 0

    @property
    def open_transfers(self) -> int:
        """Number of transfers that still lack frames."""
        return len(self._transfers)

    @property
    def held_bytes(self) -> int:
        """Bytes charged for the frames held now; never above `max_total_bytes`."""
        return self._held_bytes

    @property
    def evicted(self) -> int:
        """Number of transfers given up so far for age or for want of room."""
        return self._evicted

    def add(self, frame: bytes, now: float) -> bytes | None:
        """Take one frame; return the payload once its transfer is complete, else None.

        `now` is a time in seconds from any steady origin. A frame that came before is ignored.

        Raises:
            RefusedError: `OVERSIZED` above a limit; `BAD_CHUNK` for a frame that is malformed,
                contradicts its transfer, or completes a payload with another digest. A frame
                that contradicts leaves its transfer open: it must not be able to end it.
        """
        self.expire(now)
        transfer_id, index, layout, data = self._read(frame)
        if layout.count == 1:
            return _verified(data, layout)
        known = self._transfers.get(transfer_id)
        transfer = known or _Transfer(layout, now)
        if transfer.layout != layout:
            raise RefusedError(
                Reason.BAD_CHUNK, "frame disagrees with earlier frames of its transfer"
            )
        held = transfer.parts.get(index)
        if held is not None:
            if held != data:
                raise RefusedError(
                    Reason.BAD_CHUNK, f"frame {index} came twice with different data"
                )
            return None
        cost = len(data) + PART_OVERHEAD_BYTES
        if known is None:
            self._make_room_for_transfer()
            self._transfers[transfer_id] = transfer
        transfer.parts[index] = data
        transfer.cost += cost
        self._held_bytes += cost
        if len(transfer.parts) == layout.count:
            self._drop(transfer_id)
            return _verified(b"".join(transfer.parts[i] for i in range(layout.count)), layout)
        self._make_room_for_bytes(keep=transfer_id)
        return None

    def expire(self, now: float) -> None:
        """Give up transfers older than `max_age_s`; `add` does this too."""
        while self._transfers:
            transfer_id, transfer = next(iter(self._transfers.items()))
            if now - transfer.opened_at <= self._limits.max_age_s:
                return
            self._evict(transfer_id)

    def _read(self, frame: bytes) -> tuple[bytes, int, _Layout, bytes]:
        """Return (transfer id, index, layout, data) of a well-formed frame."""
        # 1. A whole header of this version.
        if len(frame) < HEADER_BYTES:
            raise RefusedError(
                Reason.BAD_CHUNK, f"{len(frame)} bytes are no frame of {HEADER_BYTES}+"
            )
        magic, transfer_id, index, count, total, digest = _HEADER.unpack_from(frame)
        if magic != MAGIC:
            raise RefusedError(
                Reason.BAD_CHUNK, f"frame starts with {magic.hex()}, not {MAGIC.hex()}"
            )
        # 2. A payload that may be held.
        if total > self._limits.max_transfer_bytes:
            raise RefusedError(
                Reason.OVERSIZED,
                f"payload of {total} bytes, allowed are {self._limits.max_transfer_bytes}",
            )
        if total + count * PART_OVERHEAD_BYTES > self._limits.max_total_bytes:
            raise RefusedError(
                Reason.OVERSIZED, f"{count} frames for {total} bytes; send larger ones"
            )
        # 3. An index within the transfer.
        if index >= count:
            raise RefusedError(Reason.BAD_CHUNK, f"frame {index} of {count}")
        # 4. The one layout: `count` frames of `stride` bytes, the last one shorter or equal.
        size = len(frame) - HEADER_BYTES
        stride = size if index < count - 1 else _stride_from_last(count, total, size)
        last = total - (count - 1) * stride
        if not (total == size if count == 1 else 1 <= last <= stride):
            raise RefusedError(
                Reason.BAD_CHUNK, f"{count} frames of {stride} bytes are not {total}"
            )
        return transfer_id, index, _Layout(count, total, digest, stride), frame[HEADER_BYTES:]

    def _make_room_for_transfer(self) -> None:
        while len(self._transfers) >= self._limits.max_open_transfers:
            self._evict(next(iter(self._transfers)))

    def _make_room_for_bytes(self, keep: bytes) -> None:
        # `keep` alone fits: check 2 charged all of its frames before the first was taken.
        while self._held_bytes > self._limits.max_total_bytes:
            self._evict(next(i for i in self._transfers if i != keep))

    def _evict(self, transfer_id: bytes) -> None:
        self._drop(transfer_id)
        self._evicted += 1

    def _drop(self, transfer_id: bytes) -> None:
        transfer = self._transfers.pop(transfer_id, None)
        if transfer is not None:
            self._held_bytes -= transfer.cost


def _stride_from_last(count: int, total: int, size: int) -> int:
    """Return the data bytes of the other frames, given the last one's size."""
    if count == 1:
        return size
    stride, rest = divmod(total - size, count - 1)
    if total < size or rest:
        raise RefusedError(Reason.BAD_CHUNK, f"a last frame of {size} bytes does not end {total}")
    return stride


def _verified(payload: bytes, layout: _Layout) -> bytes:
    if hashlib.sha256(payload).digest() != layout.digest:
        raise RefusedError(
            Reason.BAD_CHUNK, "payload has another SHA-256 digest than its frames say"
        )
    return payload
