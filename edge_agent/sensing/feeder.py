"""Samples from a feeder over MQTT: a message is a block of samples.

As deterministic CBOR a `SensorBlock`; as JSON an object with the keys `run`, `sequence`,
`start_ms`, `rate` and `samples`, a list of rows. `run` is a word that a feeder draws anew at each
start; in a run messages are numbered 0, 1, 2, ... without a gap, whether they arrive or not.

Rules kept here: a message is confirmed to the broker after its samples are on the disk, so one
may come twice, and the second is dropped by its number; one that is early waits a little for
those before it; one that is late or cannot be read is dropped; all are counted.
"""

import functools
import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Generic, TypeVar

import numpy as np

from vitalring.edge_agent.sensing.config import MAX_CHANNELS, StreamConfig, TopicConfig
from vitalring.edge_agent.sensing.cutting import Signal, Times
from vitalring.edge_agent.sensing.samples import Block, empty_times, float32
from vitalring.errors import RecordError
from vitalring.mqtt import Dialects, Link, Message, PersistentSession
from vitalring.protocol.cbor import decode, encode
from vitalring.schema import Pattern, Range, from_plain

MAX_RUNS = 8
MAX_HELD = 16
HOLD_S = 2.0
_JSON_START = b"{"

Run = Annotated[str, Pattern("[!-~]{1,64}")]
Whole = Annotated[int, Range(0, 2**53)]
Rate = Annotated[float, Range(1e-3, 1e6)]
T = TypeVar("T")


@dataclass(frozen=True)
class SensorBlock:
    """Samples of one message: float32, little-endian, row after row of `channels` numbers."""

    TYPE: ClassVar[str] = "vitalring/sensor-block/1"
    MAX_BYTES: ClassVar[int] = 1 << 20

    run: Run
    sequence: Whole
    start_ms: Annotated[int, Range(0, 2**43)]
    rate: Rate
    channels: Annotated[int, Range(1, MAX_CHANNELS)]
    samples: bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse half a row. Raises RecordError."""
        if not self.samples or len(self.samples) % (4 * self.channels):
            raise RecordError(
                f"{len(self.samples)} bytes of samples are not rows of {self.channels} float32"
            )

    @property
    def times(self) -> Times:
        """Microseconds since 1970 of each sample: (n,)."""
        rows = len(self.samples) // (4 * self.channels)
        steps: Times = np.rint(np.arange(rows) * (1e6 / self.rate)).astype(np.int64)
        return self.start_ms * 1000 + steps

    @property
    def values(self) -> Signal:
        """The samples: (n, channels)."""
        flat = np.frombuffer(self.samples, "<f4").astype(np.float32)
        return flat.reshape(-1, self.channels)


@dataclass(frozen=True)
class _JsonBlock:
    run: Run
    sequence: Whole
    start_ms: Annotated[int, Range(0, 2**43)]
    rate: Rate
    samples: tuple[tuple[float, ...], ...]


def encode_block(block: SensorBlock) -> bytes:
    """Return a feeder's message in CBOR."""
    return encode(block)


def decode_block(payload: bytes, channels: int) -> SensorBlock:
    """Read a feeder's message, CBOR or JSON, of samples of `channels`. Raises RecordError."""
    if len(payload) > SensorBlock.MAX_BYTES:
        raise RecordError(f"a message of {len(payload)} bytes, at most {SensorBlock.MAX_BYTES}")
    is_json = payload[:1] == _JSON_START
    block = _decode_json(payload) if is_json else decode(SensorBlock, payload)
    if block.channels != channels:
        raise RecordError(
            f"samples of {block.channels} channels, the configuration says {channels}"
        )
    return block


def _decode_json(payload: bytes) -> SensorBlock:
    try:
        plain = json.loads(payload)
    except (ValueError, RecursionError):
        raise RecordError("the message is not JSON") from None
    block = from_plain(_JsonBlock, plain, RecordError, "message")
    widths = {len(row) for row in block.samples}
    if len(widths) != 1 or not 1 <= max(widths) <= MAX_CHANNELS:
        raise RecordError(f"samples has rows of {sorted(widths)[:5]} numbers, must have one width")
    return SensorBlock(
        block.run,
        block.sequence,
        block.start_ms,
        block.rate,
        max(widths),
        float32(block.samples).astype("<f4").tobytes(),
    )


@dataclass(frozen=True)
class Given(Generic[T]):
    """A message whose turn it is, and the last number given out of each run once it is."""

    item: T
    reached: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Taken(Generic[T]):
    """Messages in order; `late` when the one taken is none of them and never will be."""

    ready: tuple[Given[T], ...]
    late: bool = False


class Sequencer(Generic[T]):
    """Puts numbered messages in order, run by run; a message is given out once.

    `reached` is the last number given out of each of the last runs, the newest run at the end.
    """

    def __init__(self, reached: dict[str, int], max_held: int = MAX_HELD) -> None:
        self.reached = dict(reached)
        self._max_held = max_held
        self._held: dict[int, T] = {}

    @property
    def holds(self) -> bool:
        """Whether messages wait for one before them."""
        return bool(self._held)

    def take(self, run: str, sequence: int, item: T) -> Taken[T]:
        """Take a message; return those whose turn it is."""
        if run not in self.reached:
            # 1. A feeder that started anew; its first message is where it begins for us.
            ready = self.flush()
            self.reached[run] = sequence
            while len(self.reached) > MAX_RUNS:
                del self.reached[next(iter(self.reached))]
            return Taken((*ready, self._given(item)))
        # 2. Given out before, or waiting already, or of a run that is over.
        if run != self._current or sequence <= self.reached[run] or sequence in self._held:
            return Taken((), late=True)
        # 3. In order, with what waited for it; or early.
        self._held[sequence] = item
        ready = self._next()
        if not ready and len(self._held) > self._max_held:
            ready = self._skip()
        return Taken(ready)

    def flush(self) -> tuple[Given[T], ...]:
        """Give up on what is missing; return all that waited, in order."""
        ready: tuple[Given[T], ...] = ()
        while self._held:
            ready += self._skip()
        return ready

    def _skip(self) -> tuple[Given[T], ...]:
        self.reached[self._current] = min(self._held) - 1
        return self._next()

    def _next(self) -> tuple[Given[T], ...]:
        ready = []
        while (following := self.reached[self._current] + 1) in self._held:
            self.reached[self._current] = following
            ready.append(self._given(self._held.pop(following)))
        return tuple(ready)

    def _given(self, item: T) -> Given[T]:
        # As of this message and none after it: a crash between two must not skip the second.
        return Given(item, tuple(self.reached.items()))

    @property
    def _current(self) -> str:
        return next(reversed(self.reached))


class Feeder:
    """A subscription to a feeder's topic."""

    ended = False

    def __init__(
        self,
        config: TopicConfig,
        stream: StreamConfig,
        position: bytes,
        session: str,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Subscribe; the broker keeps messages while nobody is there. Raises ConfigError."""
        self._channels = stream.channels
        self._monotonic = monotonic
        reached = json.loads(position) if position else []
        self._sequencer: Sequencer[tuple[SensorBlock, Message]] = Sequencer(dict(reached))
        self._ready: deque[Block] = deque()
        self._held_since: float | None = None
        self._link = Link(
            config.broker, [config.topic], session=PersistentSession(session), dialects=Dialects()
        )
        self._link.__enter__()

    def read(self, timeout_s: float) -> Block | None:
        """Return the next message's samples."""
        if self._ready:
            return self._ready.popleft()
        event = self._link.receive(timeout_s)
        if isinstance(event, Message):
            self._take(event)
        waited = self._held_since
        if waited is not None and self._monotonic() - waited > HOLD_S:
            self._give_out(self._sequencer.flush())
        return self._ready.popleft() if self._ready else None

    def _take(self, message: Message) -> None:
        try:
            block = decode_block(message.payload, self._channels)
        except RecordError:
            self._ready.append(self._nothing({"bad_messages": 1}, message))
            return
        taken = self._sequencer.take(block.run, block.sequence, (block, message))
        if taken.late:
            # Confirmed behind the blocks given out before: the first copy may be one of them.
            self._ready.append(self._nothing({"repeated_messages": 1}, message))
        self._give_out(taken.ready)

    def _give_out(self, ready: tuple[Given[tuple[SensorBlock, Message]], ...]) -> None:
        if not self._sequencer.holds:
            self._held_since = None
        elif self._held_since is None or ready:
            self._held_since = self._monotonic()
        for given in ready:
            block, message = given.item
            self._ready.append(
                Block(
                    block.times,
                    block.values,
                    json.dumps(given.reached).encode(),
                    {},
                    (functools.partial(self._link.ack, message),),
                )
            )

    def _nothing(self, counts: dict[str, int], message: Message) -> Block:
        return Block(
            empty_times(),
            np.empty((0, self._channels), np.float32),
            json.dumps(list(self._sequencer.reached.items())).encode(),
            counts,
            (functools.partial(self._link.ack, message),),
        )

    def close(self) -> None:
        """Disconnect; the broker keeps what was not confirmed."""
        self._link.close()
