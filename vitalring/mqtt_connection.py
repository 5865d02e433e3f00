"""One connection to one broker, and what it takes to open it.

A `Connection` is used once: its owner opens it, drives it with `turn` from one thread, and
closes it. So no state of paho outlives a connection, the MQTT version may change from one
to the next, and a device's submission needs no thread. `publish`, `subscribe` and `ack` may
be called from other threads, `wake` then ends the owner's wait.

MQTT 5 is tried first (SPEC 3.12). A broker that refuses it, or leaves it unanswered as amqtt
does, is asked again with 3.1.1, and `Dialects` remembers the answer.
"""

import contextlib
import secrets
import select
import socket
import ssl
import string
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from vitalring.broker_config import BrokerConfig
from vitalring.errors import TransportError

MQTT_5 = MQTTProtocolVersion.MQTTv5
MQTT_3_1_1 = MQTTProtocolVersion.MQTTv311
_VERSION_NAMES = {MQTT_5: "5", MQTT_3_1_1: "3.1.1"}

CONNECT_TIMEOUT_S = 10.0
UNANSWERED_S = 3.0
"""A broker that leaves MQTT 5 unanswered for so long is asked with 3.1.1."""
_CLOSE_TIMEOUT_S = 1.0
_MAX_INFLIGHT = 10
_PACKET_OVERHEAD_BYTES = 1024
"""Room for topic and properties beside the payload."""


def _send_at_once(_client: paho.Client, _userdata: object, sock: "paho.SocketLike") -> None:
    # Nagle's algorithm would hold the first packet after a TLS handshake back for 40 ms.
    if isinstance(sock, socket.socket):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def new_client_id() -> str:
    """Return 23 random characters, the longest client id every broker takes (MQTT 3.1.3.1)."""
    alphabet = string.ascii_letters + string.digits
    return "".join(secrets.choice(alphabet) for _ in range(23))


@dataclass(frozen=True)
class PersistentSession:
    """A session that the broker keeps while its owner is away.

    Whoever connects with `client_id` takes the session over, so it is a secret: draw it once
    with `new_client_id` and keep it with the owner's state.
    """

    client_id: str = field(repr=False)
    expiry_s: int = 7 * 24 * 3600


class Dialects:
    """Which brokers were found to speak MQTT 3.1.1 only; share one among connections."""

    def __init__(self) -> None:
        self._old: set[str] = set()

    def version(self, url: str) -> MQTTProtocolVersion:
        """Return the version to try first."""
        return MQTT_3_1_1 if url in self._old else MQTT_5

    def learn_old(self, url: str) -> None:
        """Remember that this broker answers 3.1.1 and not 5."""
        self._old.add(url)


class _Mqtt5UnansweredError(TransportError):
    """The broker said nothing to MQTT 5, so it may be too old for it."""

    def __init__(self, message: str, *, certain: bool) -> None:
        super().__init__(message)
        self.certain = certain


def open_connection(
    config: BrokerConfig,
    dialects: Dialects,
    on_message: "Callable[[Connection, paho.MQTTMessage], None]",
    *,
    session: PersistentSession | None = None,
    receive_maximum: int = 20,
    timeout_s: float = CONNECT_TIMEOUT_S,
) -> "Connection":
    """Connect with the newest MQTT version that the broker speaks.

    Raises:
        ConfigError: when certificate, key or password file cannot be used.
        TransportError: when no version connects within about `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    version = dialects.version(config.url)
    connection = Connection(config, version, on_message, session, receive_maximum)
    try:
        connection.open(timeout_s)
    except _Mqtt5UnansweredError as refusal:
        left = max(deadline - time.monotonic(), 1.0)
        connection = Connection(config, MQTT_3_1_1, on_message, session, receive_maximum)
        connection.open(left)
        # A broker that merely hung up may have been shutting down: ask it with 5 next time.
        if refusal.certain:
            dialects.learn_old(config.url)
    return connection


class Connection:
    """One MQTT connection; see the module's docstring for who may call what."""

    def __init__(
        self,
        config: BrokerConfig,
        version: MQTTProtocolVersion,
        on_message: "Callable[[Connection, paho.MQTTMessage], None]",
        session: PersistentSession | None,
        receive_maximum: int,
    ) -> None:
        self._config = config
        self._version = version
        self._session = session
        self._receive_maximum = receive_maximum
        self._connack: ReasonCode | None = None
        self._lost = "connection closed by the broker"
        self._max_packet_bytes: int | None = None
        self._waker: tuple[socket.socket, socket.socket] | None = None
        self.session_present = False
        self.published: deque[tuple[int, ReasonCode]] = deque()
        """Acknowledged publications as (packet id, reason), filled by `turn`."""
        self.subscribed: dict[int, list[ReasonCode]] = {}
        """Answered subscriptions by packet id, filled by `turn`."""
        self._client = self._build(on_message)

    @property
    def version_name(self) -> str:
        """The MQTT version spoken, "5" or "3.1.1"."""
        return _VERSION_NAMES[self._version]

    def open(self, timeout_s: float) -> None:
        """Connect and wait for the broker's welcome. Raises TransportError."""
        config, client = self._config, self._client
        deadline = time.monotonic() + timeout_s
        try:
            client.connect_timeout = min(timeout_s, CONNECT_TIMEOUT_S)
            if self._version == MQTT_5:
                client.connect(
                    config.host,
                    config.port,
                    config.keepalive_s,
                    clean_start=self._session is None,
                    properties=self._connect_properties(),
                )
            else:
                client.connect(config.host, config.port, config.keepalive_s)
        except (OSError, ValueError) as error:
            raise TransportError(f"{config.url} cannot be reached: {error}") from error
        try:
            self._await_welcome(deadline)
        except TransportError:
            self.close()
            raise
        client.on_log = None  # it served to learn why TLS failed, and costs time per packet
        self._waker = socket.socketpair()
        for end in self._waker:
            end.setblocking(False)

    def turn(self, timeout_s: float, *, read: bool = True) -> None:
        """Wait for the network, at most `timeout_s`, and do what is due.

        With `read` false nothing is taken in (TCP holds the broker back), but pings and
        acknowledgements go out. Raises TransportError when the connection is lost.
        """
        sock = self._client.socket()
        if sock is None:
            raise TransportError(f"{self._config.url}: {self._lost}")
        buffered = read and isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        poller = select.poll()
        poller.register(
            sock.fileno(),
            (select.POLLIN if read else 0) | (select.POLLOUT if self._client.want_write() else 0),
        )
        if self._waker is not None:
            poller.register(self._waker[0], select.POLLIN)
        ready = dict(poller.poll(0 if buffered else max(0.0, timeout_s) * 1000))
        if self._waker is not None and self._waker[0].fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                self._waker[0].recv(4096)
        events = ready.get(sock.fileno(), 0)
        if not read and events & (select.POLLHUP | select.POLLERR):
            raise TransportError(f"{self._config.url}: {self._lost}")
        try:
            if buffered or (read and events & ~select.POLLOUT):
                self._client.loop_read()
            if self._client.want_write():
                self._client.loop_write()
            self._client.loop_misc()
        except Exception as error:  # whatever bytes arrive, the owner sees one kind of error
            raise TransportError(f"{self._config.url}: bad packet: {error!r}") from error
        if self._client.socket() is None:
            raise TransportError(f"{self._config.url}: {self._lost}")

    def publish(self, topic: str, payload: bytes, *, retain: bool, expiry_s: int | None) -> int:
        """Queue a QoS 1 publication; return the packet id that `published` will name.

        Raises TransportError for a payload above the broker's limit or ours.
        """
        if len(payload) > self._config.max_payload_bytes:
            raise TransportError(
                f"payload of {len(payload)} bytes is above max_payload_bytes "
                f"({self._config.max_payload_bytes}): send it in chunks"
            )
        size = len(payload) + len(topic.encode()) + 32
        if self._max_packet_bytes is not None and size > self._max_packet_bytes:
            raise TransportError(
                f"packet of about {size} bytes is above the {self._max_packet_bytes} that "
                f"{self._config.url} takes: lower max_payload_bytes"
            )
        properties = None
        if self._version == MQTT_5 and expiry_s is not None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.MessageExpiryInterval = max(1, expiry_s)
        try:
            info = self._client.publish(topic, payload, 1, retain, properties)
        except (ValueError, struct.error) as error:
            raise TransportError(f"topic {topic[:120]!r} cannot be published: {error}") from error
        self.wake()
        return info.mid

    def subscribe(self, filters: Sequence[str]) -> int:
        """Ask for QoS 1 subscriptions; return the packet id that `subscribed` will name."""
        if self._version == MQTT_5:
            # The flag as it was published tells a receiver what the broker now holds for others.
            options = SubscribeOptions(qos=1, retainAsPublished=True)
            result = self._client.subscribe([(name, options) for name in filters])
        else:
            result = self._client.subscribe([(name, 1) for name in filters])
        self.wake()
        return result[1] or 0

    def unsubscribe(self, name: str) -> None:
        """End a subscription; the broker's answer is not awaited."""
        self._client.unsubscribe(name)
        self.wake()

    def ack(self, packet_id: int) -> None:
        """Tell the broker that a QoS 1 message may be forgotten."""
        self._client.ack(packet_id, 1)
        self.wake()

    def wake(self) -> None:
        """End the wait of a concurrent `turn`, so that it sends what was just queued."""
        waker = self._waker
        if waker is not None:
            # A full pipe has woken the owner already; a closed one needs nobody awake.
            with contextlib.suppress(OSError):
                waker[1].send(b"\0")

    def close(self) -> None:
        """Take leave within a second, then close whatever happens."""
        deadline = time.monotonic() + _CLOSE_TIMEOUT_S
        with contextlib.suppress(TransportError):
            self._client.disconnect()
            while time.monotonic() < deadline:
                self.turn(0.1, read=False)
        sock = self._client.socket()
        if sock is not None:
            sock.close()
        if self._waker is not None:
            for end in self._waker:
                end.close()

    def _build(self, on_message: "Callable[[Connection, paho.MQTTMessage], None]") -> paho.Client:
        config, session = self._config, self._session
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=new_client_id() if session is None else session.client_id,
            clean_session=None if self._version == MQTT_5 else session is None,
            protocol=self._version,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        # Below the smallest Receive Maximum in common use; paho cannot follow the broker's.
        client.max_inflight_messages = _MAX_INFLIGHT
        context = config.tls_context()
        if context is not None:
            client.tls_set_context(context)
        if config.username is not None:
            client.username_pw_set(config.username, config.password())
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_log = self._on_log
        client.on_socket_open = _send_at_once
        client.on_publish = lambda _c, _u, mid, reason, _p: self.published.append((mid, reason))
        client.on_subscribe = lambda _c, _u, mid, reasons, _p: self.subscribed.update(
            {mid: reasons}
        )
        client.on_message = lambda _c, _u, message: on_message(self, message)
        # Set, so that paho leaves all writing to `turn`: two writing threads would mix packets.
        client.on_socket_register_write = lambda _c, _u, _s: None
        return client

    def _connect_properties(self) -> Properties:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = self._config.max_payload_bytes + _PACKET_OVERHEAD_BYTES
        properties.ReceiveMaximum = self._receive_maximum
        if self._session is not None:
            properties.SessionExpiryInterval = self._session.expiry_s
        return properties

    def _await_welcome(self, deadline: float) -> None:
        asked_at = time.monotonic()
        old_perhaps = self._version == MQTT_5
        while self._connack is None:
            try:
                self.turn(0.25)
            except TransportError as error:
                if self._connack is not None:
                    break
                if old_perhaps and "SSL" not in self._lost:
                    raise _Mqtt5UnansweredError(str(error), certain=False) from error
                raise
            now = time.monotonic()
            if self._connack is None and now > min(deadline, asked_at + UNANSWERED_S):
                message = f"{self._config.url} does not answer"
                if old_perhaps:
                    raise _Mqtt5UnansweredError(message, certain=True)
                if now > deadline:
                    raise TransportError(message)
        if self._connack.is_failure:
            message = f"{self._config.url} refuses the connection: {self._connack}"
            if old_perhaps and self._connack == "Unsupported protocol version":
                raise _Mqtt5UnansweredError(message, certain=True)
            raise TransportError(message)

    def _on_connect(
        self,
        _client: paho.Client,
        _userdata: object,
        flags: paho.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        self._connack = reason
        self.session_present = flags.session_present
        self._max_packet_bytes = getattr(properties, "MaximumPacketSize", None)

    def _on_disconnect(
        self,
        _client: paho.Client,
        _userdata: object,
        flags: paho.DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self._lost = f"connection ended by the broker: {reason}"

    def _on_log(self, _client: paho.Client, _userdata: object, level: int, text: str) -> None:
        if level == paho.MQTT_LOG_ERR:
            self._lost = text
