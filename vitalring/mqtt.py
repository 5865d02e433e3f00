"""MQTT for all parties (SPEC 3.4, 3.8, 3.9): a long-lived `Link`, and `submit` for one update.

Both publish at QoS 1: when a call returns, the broker has the message; when it raises, the
broker may have it, so the caller says it again and receivers take duplicates. A link gives
a message back to the broker's care until its owner acknowledges it, and holds no more than
its limits: when they are reached it stops reading, and TCP holds the broker back.
"""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import paho.mqtt.client as paho

from vitalring.broker_config import BrokerConfig
from vitalring.errors import ConfigError, TransportError
from vitalring.mqtt_connection import (
    CONNECT_TIMEOUT_S,
    Connection,
    Dialects,
    PersistentSession,
    new_client_id,
    open_connection,
)

__all__ = [
    "Backoff",
    "BrokerConfig",
    "Connected",
    "Dialects",
    "Link",
    "Message",
    "PersistentSession",
    "QueueLimits",
    "new_client_id",
    "submit",
]

_log = logging.getLogger(__name__)
_TURN_S = 1.0
_CLOSE_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Backoff:
    """Waiting times between connections: doubling, with jitter, up to a ceiling.

    A connection that stood for `stable_s` starts the series anew.
    """

    first_s: float = 1.0
    ceiling_s: float = 120.0
    stable_s: float = 30.0

    def __post_init__(self) -> None:
        """Refuse a series that would hammer the broker. Raises ConfigError."""
        if not 0 < self.first_s <= self.ceiling_s < float("inf"):
            raise ConfigError(
                f"back-off from {self.first_s} to {self.ceiling_s} seconds: "
                "use 0 < first_s <= ceiling_s"
            )

    def delay_s(self, failures: int, uniform: Callable[[], float]) -> float:
        """Return the wait after this many failures in a row, in seconds.

        `uniform` draws from [0, 1); half of the wait is jitter, so that the devices of a
        ward do not come back all at once.
        """
        exact = min(self.ceiling_s, self.first_s * 2.0 ** min(failures, 64))
        return exact * (0.5 + 0.5 * uniform())


@dataclass(frozen=True)
class QueueLimits:
    """What a link holds for its owner before it stops reading.

    A single message more may arrive after a limit is reached. While the owner waits in
    `publish`, the link reads on to find the acknowledgement, up to four times the limits.
    """

    max_messages: int = 1000
    max_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        """Refuse limits under which nothing could arrive. Raises ConfigError."""
        if not 1 <= self.max_messages <= 65535 or self.max_bytes < 1:
            raise ConfigError(
                f"a queue of {self.max_messages} messages and {self.max_bytes} bytes: "
                "use 1 to 65535 messages and at least 1 byte"
            )


@dataclass(frozen=True)
class Connected:
    """The link is up and its subscriptions stand; the owner republishes its retained state."""

    session_present: bool


@dataclass(frozen=True)
class Message:
    """A message received; `redelivered` is the broker's hint, not a promise."""

    topic: str
    payload: bytes = field(repr=False)
    retained: bool = False
    redelivered: bool = False
    origin: Connection | None = field(default=None, repr=False, compare=False)
    packet_id: int = field(default=0, repr=False, compare=False)


class Link:
    """A connection that comes back for ever; a context manager.

    Without a `session` every connection uses a fresh random client id and a clean start.
    With one, messages queue at the broker while the owner is away.
    """

    def __init__(
        self,
        config: BrokerConfig,
        subscriptions: Iterable[str] = (),
        *,
        session: PersistentSession | None = None,
        limits: QueueLimits | None = None,
        backoff: Backoff | None = None,
        dialects: Dialects | None = None,
        uniform: Callable[[], float] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing connects before the `with` block. Raises ConfigError."""
        # Certificates are read again at every connection, so renewed ones are taken up; here
        # only to fail early.
        config.tls_context()
        config.password()
        self._config = config
        self._session = session
        self._limits = limits or QueueLimits()
        self._backoff = backoff or Backoff(
            first_s=min(1.0, config.reconnect_s), ceiling_s=config.reconnect_s
        )
        self._dialects = dialects or Dialects()
        self._uniform = uniform or random.SystemRandom().random
        self._monotonic = monotonic
        self._filters = dict.fromkeys(subscriptions)
        self._changed = threading.Condition()
        # All below is guarded by `_changed`.
        self._queue: deque[Message | Connected] = deque()
        self._queued_bytes = 0
        self._connection: Connection | None = None
        self._ready = False
        self._outcomes: dict[int, str] = {}
        self._publishing = 0
        self._reset = False
        self._stopping = threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="mqtt-link", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def connected(self) -> bool:
        """Whether the link is up and subscribed at this moment."""
        return self._ready

    @property
    def queued_bytes(self) -> int:
        """Payload bytes received and not yet taken by `receive`."""
        return self._queued_bytes

    def wait_connected(self, timeout_s: float) -> None:
        """Wait until the link is up. Raises TransportError when it is not within the time."""
        self._ready_connection(time.monotonic() + timeout_s)

    def receive(self, timeout_s: float) -> Message | Connected | None:
        """Return the next event, or None when none came within `timeout_s`.

        Raises TransportError once the link is closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._over(), timeout_s)
            self._raise_if_over()
            if not self._queue:
                return None
            had_room = self._has_room()
            event = self._queue.popleft()
            if isinstance(event, Message):
                self._queued_bytes -= len(event.payload)
            connection = self._connection
        if not had_room and connection is not None:
            connection.wake()
        return event

    def ack(self, message: Message) -> None:
        """Let the broker forget a message, once its effect is durable.

        After a reconnection this does nothing, and the broker delivers the message again.
        """
        with self._changed:
            current = message.origin is self._connection
        if current and message.origin is not None and message.packet_id:
            message.origin.ack(message.packet_id)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        expiry_s: int | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        """Publish at QoS 1 and wait until the broker has it.

        `expiry_s` (MQTT 5 only) lets the broker drop the message undelivered after that time.

        Raises:
            TransportError: not connected in time, connection lost, refused, or too large.
        """
        deadline = time.monotonic() + timeout_s
        connection = self._ready_connection(deadline)
        with self._changed:
            self._publishing += 1
        try:
            packet_id = connection.publish(topic, payload, retain=retain, expiry_s=expiry_s)
            with self._changed:
                self._changed.wait_for(
                    lambda: packet_id in self._outcomes or connection is not self._connection,
                    max(0.0, deadline - time.monotonic()),
                )
                if connection is not self._connection:
                    raise TransportError(f"{self._config.url}: connection lost while publishing")
                refusal = self._outcomes.pop(packet_id, None)
        finally:
            with self._changed:
                self._publishing -= 1
        if refusal is None:
            raise TransportError(f"{self._config.url}: no acknowledgement within {timeout_s:g} s")
        if refusal:
            raise TransportError(f"{self._config.url} refuses {topic[:120]}: {refusal}")

    def subscribe(self, name: str) -> None:
        """Add a subscription, for this connection and later ones."""
        with self._changed:
            if name in self._filters:
                return
            self._filters[name] = None
            connection = self._connection
        if connection is not None:
            connection.subscribe([name])

    def unsubscribe(self, name: str) -> None:
        """Drop a subscription."""
        with self._changed:
            self._filters.pop(name, None)
            connection = self._connection
        if connection is not None:
            connection.unsubscribe(name)

    def reconnect(self) -> None:
        """Drop the connection: only then does a broker deliver again what was not acknowledged."""
        with self._changed:
            self._reset = True
            connection = self._connection
        if connection is not None:
            connection.wake()

    def close(self) -> None:
        """Disconnect and end the thread; unacknowledged messages stay with the broker."""
        self._stopping.set()
        with self._changed:
            connection = self._connection
            self._changed.notify_all()
        if connection is not None:
            connection.wake()
        if self._thread.is_alive():
            # A broker that hangs in the midst of a handshake must not keep its owner from ending.
            self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        try:
            self._keep_connected()
        except BaseException as fault:
            self._fault = fault
            _log.exception("link to %s ended by a fault", self._config.url)
        with self._changed:
            self._changed.notify_all()

    def _keep_connected(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            started: float | None = None
            why = "closed"
            try:
                connection = open_connection(
                    self._config,
                    self._dialects,
                    self._on_message,
                    session=self._session,
                    receive_maximum=self._receive_maximum(),
                )
                started = self._monotonic()
                self._serve(connection)
            except (TransportError, ConfigError) as error:
                why = str(error)
            if self._stopping.is_set():
                return
            stable = started is not None and self._monotonic() - started >= self._backoff.stable_s
            failures = 0 if stable else failures
            delay_s = self._backoff.delay_s(failures, self._uniform)
            failures += 1
            _log.warning("no connection: %s; next try in %.1f s", why, delay_s)
            self._stopping.wait(delay_s)

    def _serve(self, connection: Connection) -> None:
        """Drive one connection until it is lost or the link closes."""
        with self._changed:
            self._connection = connection
            self._outcomes.clear()
            self._reset = False
            filters = list(self._filters)
        try:
            if filters:
                self._subscribe_all(connection, filters)
            with self._changed:
                self._ready = True
                self._queue.append(Connected(connection.session_present))
                self._changed.notify_all()
            _log.info("connected to %s, MQTT %s", self._config.url, connection.version_name)
            while not self._stopping.is_set():
                connection.turn(_TURN_S, read=self._has_room())
                self._settle(connection)
                if self._reset:
                    raise TransportError("dropped at the owner's wish")
        finally:
            with self._changed:
                self._connection, self._ready = None, False
                self._changed.notify_all()
            connection.close()

    def _subscribe_all(self, connection: Connection, filters: Sequence[str]) -> None:
        packet_id = connection.subscribe(filters)
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while packet_id not in connection.subscribed:
            if time.monotonic() > deadline or self._stopping.is_set():
                raise TransportError(f"{self._config.url} does not answer a subscription")
            connection.turn(_TURN_S, read=self._has_room())
        for name, reason in zip(filters, connection.subscribed[packet_id], strict=False):
            if reason.is_failure:
                raise TransportError(f"{self._config.url} refuses subscription {name}: {reason}")

    def _settle(self, connection: Connection) -> None:
        if not connection.published:
            return
        with self._changed:
            while connection.published:
                packet_id, reason = connection.published.popleft()
                self._outcomes[packet_id] = str(reason) if reason.is_failure else ""
            self._changed.notify_all()

    def _on_message(self, connection: Connection, received: paho.MQTTMessage) -> None:
        packet_id = received.mid if received.qos else 0
        try:
            topic = received.topic
        except UnicodeDecodeError:
            topic = ""
        if not topic or len(received.payload) > self._config.max_payload_bytes:
            _log.warning(
                "dropped a message of %d bytes: too large or nameless", len(received.payload)
            )
            if packet_id:
                connection.ack(packet_id)
            return
        message = Message(
            topic, bytes(received.payload), received.retain, received.dup, connection, packet_id
        )
        with self._changed:
            # Our own senders use QoS 1, which the broker holds back; QoS 0 it cannot.
            if not packet_id and not self._has_room():
                return
            self._queue.append(message)
            self._queued_bytes += len(message.payload)
            self._changed.notify_all()

    def _has_room(self) -> bool:
        # An owner that waits in `publish` empties no queue, and its acknowledgement comes
        # behind the messages: without the margin both would wait for ever.
        factor = 4 if self._publishing else 1
        return (
            len(self._queue) < factor * self._limits.max_messages
            and self._queued_bytes < factor * self._limits.max_bytes
        )

    def _receive_maximum(self) -> int:
        """Unacknowledged messages that a broker of MQTT 5 may send: what the queue can hold."""
        fitting = self._limits.max_bytes // self._config.max_payload_bytes
        return max(1, min(self._limits.max_messages, fitting))

    def _ready_connection(self, deadline: float) -> Connection:
        with self._changed:
            self._changed.wait_for(
                lambda: self._ready or self._over(), max(0.0, deadline - time.monotonic())
            )
            self._raise_if_over()
            if not self._ready or self._connection is None:
                raise TransportError(f"{self._config.url}: not connected")
            return self._connection

    def _over(self) -> bool:
        return self._stopping.is_set() or self._fault is not None

    def _raise_if_over(self) -> None:
        if self._over():
            raise TransportError(f"link to {self._config.url} is closed") from self._fault


def submit(
    config: BrokerConfig,
    topic: str,
    payloads: Sequence[bytes],
    timeout_s: float,
    *,
    expiry_s: int | None = None,
    dialects: Dialects | None = None,
) -> None:
    """Publish `payloads` over one fresh connection that nothing ties to another (SPEC 3.8).

    Fresh random client id, clean start, no thread; returns when the broker has them all.

    Raises:
        ConfigError: when certificate, key or password file cannot be used.
        TransportError: otherwise; some payloads may have arrived.
    """
    deadline = time.monotonic() + timeout_s
    connection = open_connection(
        config,
        dialects or Dialects(),
        lambda _connection, _message: None,
        timeout_s=min(timeout_s, CONNECT_TIMEOUT_S),
    )
    try:
        waiting = {
            connection.publish(topic, payload, retain=False, expiry_s=expiry_s)
            for payload in payloads
        }
        while waiting:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TransportError(f"{config.url}: no acknowledgement within {timeout_s:g} s")
            connection.turn(min(left, _TURN_S))
            while connection.published:
                packet_id, reason = connection.published.popleft()
                if reason.is_failure:
                    raise TransportError(f"{config.url} refuses {topic[:120]}: {reason}")
                waiting.discard(packet_id)
    finally:
        connection.close()
