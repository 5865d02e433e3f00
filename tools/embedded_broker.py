"""A broker for simulations: amqtt in a process of its own, on a free loopback port.

For one machine and one user: no encryption, no names, nothing on disk. A process, because
amqtt is pure Python and would share the interpreter lock with the simulation. It ends with
its parent, whatever ends that: it watches its standard input.
"""

import asyncio
import logging
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Self

from amqtt.adapters import ReaderAdapter, StreamReaderAdapter, StreamWriterAdapter
from amqtt.broker import Broker
from amqtt.session import Session

from vitalring.errors import TransportError

HOST = "127.0.0.1"
_STOP_TIMEOUT_S = 5.0
_FIRST_PACKET_TIMEOUT_S = 10.0
_MQTT_5_LEVEL = 5
_REFUSED_VERSION = bytes((0x20, 2, 0, 1))
"""CONNACK, "unacceptable protocol version" (MQTT 3.1.1, 3.2.2.3)."""


class EmbeddedBroker:
    """Runs the broker while its `with` block lasts; `url` is where it listens."""

    def __init__(self, log_file: Path | None = None) -> None:
        """Prepare; `log_file` receives the broker's warnings, which are dropped without it."""
        self._log_file = log_file
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """The broker's address."""
        return f"mqtt://{HOST}:{self._port}"

    @property
    def pid(self) -> int | None:
        """The broker's process id, None when it does not run."""
        return None if self._process is None else self._process.pid

    def __enter__(self) -> Self:
        """Start. Raises TransportError when the broker does not come up."""
        with open(self._log_file or os.devnull, "ab") as log:  # noqa: PTH123
            # A session of its own: Ctrl-C stops the simulation, which then stops the broker.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vitalring.tools.embedded_broker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self._process.stdout is not None  # noqa: S101
        line = self._process.stdout.readline()
        if not line.strip().isdigit():
            self.close()
            raise TransportError(
                f"the embedded broker did not start (see {self._log_file or 'log_file'})"
            )
        self._port = int(line)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the broker; what it held is gone."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# amqtt carries no types, so neither have its subclasses a typed base.
class _Prefixed(ReaderAdapter):  # type: ignore[misc]
    """A reader that first gives back bytes already taken."""

    def __init__(self, prefix: bytes, rest: ReaderAdapter) -> None:
        self._prefix = prefix
        self._rest = rest

    async def read(self, n: int = -1) -> bytes:
        head, self._prefix = self._prefix[:n], self._prefix[n:]
        if len(head) == n:
            return head
        return head + bytes(await self._rest.read(n - len(head)))

    def feed_eof(self) -> None:
        self._rest.feed_eof()


class _Payload(bytes):
    """Bytes that are not written out when a message is logged."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


# As above: the base has no types.
class _SimulationBroker(Broker):  # type: ignore[misc]
    """amqtt 0.11 and 0.12 with three faults cured."""

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        """Refuse MQTT 5 at once.

        amqtt reads an MQTT 5 CONNECT as one of 3.1.1 and then waits for bytes that never
        come, so that every client would have to time out first.
        """
        # Fixed header, name "MQTT" and level of the shortest CONNECT: 2 + 6 + 1 bytes at
        # least; a remaining length above 127 takes a second byte.
        try:
            async with asyncio.timeout(_FIRST_PACKET_TIMEOUT_S):
                head = await reader.readexactly(9)
                if head[1] & 0x80:
                    head += await reader.readexactly(1)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            writer.close()
            return
        if head[-1] == _MQTT_5_LEVEL:
            writer.write(_REFUSED_VERSION)
            writer.close()
            return
        with suppress(OSError):
            await self._client_connected(
                listener_name,
                _Prefixed(head, StreamReaderAdapter(reader)),
                StreamWriterAdapter(writer),
            )

    async def _broadcast_message(
        self, session: Session | None, topic: str, data: bytes | None, force_qos: int | None = None
    ) -> None:
        """Distribute a message without formatting its content, which no log level shows.

        amqtt makes text of every payload for a line of its debugging log, shown or not.
        """
        await super()._broadcast_message(session, topic, _Payload(data or b""), force_qos)

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        """Send retained messages only to who subscribed to them.

        amqtt sends every new connection whatever anybody subscribed to, so that each of a
        thousand submissions would receive all retained models.
        """
        subscribers = self.subscriptions.get(subscription[0], [])
        if any(subscriber is session for subscriber, _ in subscribers):
            await super()._publish_retained_messages_for_subscription(subscription, session)


async def _serve() -> None:
    broker = _SimulationBroker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"{HOST}:0"}},
            # amqtt ends a connection after exactly its keep-alive time; clients ping then.
            "timeout_disconnect_delay": 60,
            # No plugin for $SYS topics.
            "plugins": {
                "amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}
            },
        }
    )
    await broker.start()
    listener = broker._servers["default"].instance
    print(listener.sockets[0].getsockname()[1], flush=True)
    loop = asyncio.get_running_loop()
    parent_gone = asyncio.Event()

    def on_input() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            parent_gone.set()

    loop.add_reader(sys.stdin.fileno(), on_input)
    await parent_gone.wait()
    # A broker that holds nothing on disk has nothing to put in order.
    os._exit(0)


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(_serve())
