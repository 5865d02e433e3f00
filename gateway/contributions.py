"""The updates of a round, kept for the hospitals that recompute its sum (SPEC 10.4, 10.5).

They are handed out by their order in the receipts, in windows of bounded size: one window of
one hospital is in memory at a time, and a hospital that asks again replaces what it asked
before. What went out and was lost is asked for again; nothing here waits for anybody.
"""

import secrets
import sqlite3
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Annotated

from vitalring.errors import RecordError
from vitalring.protocol import chunks, limits, topics
from vitalring.protocol.cbor import decode, encode
from vitalring.protocol.records import Federation, Receipts, RoundReport
from vitalring.protocol.release import SetPart, SetRequest
from vitalring.protocol.signing import Signed
from vitalring.schema import Range

_DAY_MS = 86_400_000
_PART_OVERHEAD_BYTES = 1024
"""Of a `SetPart` besides its updates, and of each update in it: more than CBOR takes."""


@dataclass(frozen=True)
class KeptUpdates:
    """How long counted updates are kept, and how many bytes of them one answer carries.

    `keep_days` is counted from the close of a round that comes to no end; of one that has its
    model they are deleted at once.
    """

    keep_days: Annotated[int, Range(1, 365)] = 7
    window_bytes: Annotated[int, Range(64 * limits.KIB, 32 * limits.MIB)] = 4 * limits.MIB


def keep(db: sqlite3.Connection, plan: bytes, digest: bytes, content: bytes) -> None:
    """Keep a counted update, an encoded `SealedUpdate`; the caller holds a transaction."""
    db.execute("INSERT INTO contributions VALUES (?, ?, ?)", (plan, digest, content))


def forget(db: sqlite3.Connection, plan: bytes) -> None:
    """Delete a round's updates; the caller holds a transaction."""
    db.execute("DELETE FROM contributions WHERE plan = ?", (plan,))


def any_kept(db: sqlite3.Connection) -> bool:
    """Tell whether updates of any round are kept."""
    return db.execute("SELECT 1 FROM contributions LIMIT 1").fetchone() is not None


def due_ms(report: RoundReport, kept: KeptUpdates) -> int:
    """Return when the updates of a closed round are deleted, whatever became of it."""
    return report.closed_ms + kept.keep_days * _DAY_MS


def window(
    db: sqlite3.Connection, receipts: Receipts, request: SetRequest, window_bytes: int
) -> SetPart:
    """Return the updates asked for, as many as fit: at least one while there are any.

    An answer without updates says that there is none from `request.first` on.
    """
    found: list[bytes] = []
    room = window_bytes - _PART_OVERHEAD_BYTES
    for digest in receipts.digests[request.first : request.first + request.count]:
        row = db.execute(
            "SELECT content FROM contributions WHERE plan = ? AND digest = ?",
            (receipts.plan, digest),
        ).fetchone()
        if row is None or (found and len(row[0]) > room):
            break
        found.append(row[0])
        room -= len(row[0]) + _PART_OVERHEAD_BYTES
    return SetPart(receipts.plan, request.first, tuple(found))


class SetServer:
    """Answers hospitals' requests, frame by frame, in the order in which they asked."""

    def __init__(
        self,
        db: sqlite3.Connection,
        federation: Federation,
        max_payload_bytes: int,
        kept: KeptUpdates,
    ) -> None:
        self._db = db
        self._federation = federation
        self._max_payload_bytes = max_payload_bytes
        self._kept = kept
        self._asked: OrderedDict[str, SetRequest] = OrderedDict()
        # The one window that is in memory: whose it is, what it answers, and its frames to go.
        self._answered: tuple[str, SetRequest] | None = None
        self._frames: deque[bytes] = deque()

    @property
    def busy(self) -> bool:
        """Tell whether there is more to send."""
        return bool(self._frames or self._asked)

    def ask(self, hospital: str, payload: bytes) -> None:
        """Take a request that came on a hospital's topic; it replaces that hospital's last one.

        Raises RecordError for one that is malformed or of nobody in the federation.
        """
        if hospital not in [known.name for known in self._federation.hospitals]:
            raise RecordError(f"updates are asked for by {hospital[:40]!r}, which is no hospital")
        request = decode(SetRequest, payload)
        if self._frames and self._answered == (hospital, request):
            return  # the answer is on its way
        self._asked[hospital] = request

    def next(self) -> tuple[str, bytes] | None:
        """Return the next frame with its topic, None when there is nothing to send."""
        while not self._frames:
            if not self._asked:
                return None
            self._load(*self._asked.popitem(last=False))
        assert self._answered is not None  # noqa: S101 - set with the frames
        name = self._federation.name
        return topics.set_topic(name, self._answered[0]), self._frames.popleft()

    def give_up(self) -> None:
        """Drop the window on its way: a frame of it was lost, and its hospital will ask again."""
        self._frames.clear()

    def _load(self, hospital: str, request: SetRequest) -> None:
        row = self._db.execute(
            "SELECT receipts FROM rounds WHERE plan = ? AND status = 'closed'", (request.plan,)
        ).fetchone()
        if row is None:
            return  # open still, or done: whoever asks learns that from the log
        receipts = decode(Receipts, decode(Signed, row[0]).payload)
        part = window(self._db, receipts, request, self._kept.window_bytes)
        self._answered = hospital, request
        self._frames.extend(
            chunks.split(
                encode(part),
                self._max_payload_bytes,
                secrets.token_bytes(chunks.TRANSFER_ID_BYTES),
            )
        )
