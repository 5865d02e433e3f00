"""An aggregator's messages: retained objects out, messages and the pieces of large ones in."""

import threading
import time
from collections import Counter, deque

from vitalring.errors import TransportError
from vitalring.mqtt import Connected, Link, Message
from vitalring.protocol import blobs, topics
from vitalring.protocol.cbor import digest

_TICK_S = 0.5
_PIECE_TIMEOUT_S = 30.0
_PUBLISH_TIMEOUT_S = 10.0
_BATCH = 100


class Channel:
    """What one aggregator says and hears at the broker."""

    def __init__(self, link: Link, federation: str, max_payload_bytes: int) -> None:
        self._link = link
        self._federation = federation
        self._max_payload_bytes = max_payload_bytes
        self._waiting: deque[Message] = deque()
        self._pieces: dict[str, tuple[bytes, ...]] = {}
        self._watched: Counter[bytes] = Counter()
        self._stop = threading.Event()
        # Whether a connection was made since somebody asked.
        self._reconnected = False

    @property
    def connected(self) -> bool:
        """Tell whether the broker can be reached now."""
        return self._link.connected

    def until(self, stop: threading.Event) -> None:
        """Give up waiting once `stop` is set."""
        self._stop = stop

    def reconnected(self) -> bool:
        """Tell once of each connection: the broker may have forgotten everything."""
        told, self._reconnected = self._reconnected, False
        return told

    def receive(self) -> Message | None:
        """Return the next message, or None after a moment without one."""
        return self._waiting.popleft() if self._waiting else self._next(_TICK_S)

    def ack(self, message: Message) -> None:
        """Let the broker forget a message: its effect is on disk, or it has none."""
        self._link.ack(message)

    def ask_again(self) -> None:
        """Come back to the broker, which then brings what was not acknowledged."""
        self._link.reconnect()

    def receive_all(self) -> list[Message]:
        """Return what came, or nothing after a moment; the broker may forget it at once.

        For whoever hears only what is retained, or what it asks for again.
        """
        first = self.receive()
        messages = [] if first is None else [first]
        while messages and len(messages) < _BATCH:
            # An event that is no message ends a batch, so that nothing after it is acted on first.
            message = self._next(0.0)
            if message is None:
                break
            messages.append(message)
        for message in messages:
            self._link.ack(message)
        return messages

    def join(self, payload: bytes) -> bytes:
        """Return the content of a retained message, with its pieces. Raises TransportError."""
        return blobs.join(payload, self.fetch)

    def fetch(self, name: bytes) -> bytes:
        """Return the object with the digest `name`; wait for it. Raises TransportError."""
        topic = topics.object_topic(self._federation, name)
        self._link.subscribe(topic)
        try:
            deadline = time.monotonic() + _PIECE_TIMEOUT_S
            while time.monotonic() < deadline and not self._stop.is_set():
                message = self._next(_TICK_S)
                if message is None:
                    continue
                if message.topic == topic:
                    self._link.ack(message)
                    return blobs.whole(message.payload)
                self._waiting.append(message)
        finally:
            self._link.unsubscribe(topic)
        raise TransportError(f"object {name.hex()} did not arrive")

    def watch(self, name: bytes) -> None:
        """Hear of the object with the digest `name` once it is published."""
        self._watched[name] += 1
        self._link.subscribe(topics.object_topic(self._federation, name))

    def unwatch(self, name: bytes) -> None:
        """Undo one `watch`."""
        self._watched[name] -= 1
        if self._watched[name] <= 0:
            del self._watched[name]
            self._link.unsubscribe(topics.object_topic(self._federation, name))

    def publish(self, topic: str, content: bytes) -> None:
        """Publish retained, and clear the pieces that served what was there before.

        No bytes clear the topic. Raises TransportError.
        """
        message, pieces = blobs.split(content, self._max_payload_bytes) if content else (b"", ())
        names = tuple(digest(piece) for piece in pieces)
        for name, piece in zip(names, pieces, strict=True):
            self._send(topics.object_topic(self._federation, name), blobs.WHOLE + piece)
        self._send(topic, message)
        for name in set(self._pieces.get(topic, ())) - set(names):
            self._send(topics.object_topic(self._federation, name), b"")
        self._pieces[topic] = names

    def tell(self, topic: str, message: bytes) -> None:
        """Publish once, not retained. Raises TransportError."""
        self._send(topic, message, retain=False)

    def _send(self, topic: str, message: bytes, *, retain: bool = True) -> None:
        if not self._link.connected:
            raise TransportError("not connected")
        self._link.publish(topic, message, retain=retain, timeout_s=_PUBLISH_TIMEOUT_S)

    def _next(self, timeout_s: float) -> Message | None:
        event = self._link.receive(timeout_s)
        if isinstance(event, Connected):
            self._reconnected = True
            return None
        return event
