"""What a broker's network card sees: a recording tap before it, and a decoder of MQTT 5.

A `Tap` stands between clients and a broker and keeps every byte of every connection, with its
direction and time. `packets` reads a direction of a connection; it knows MQTT 5 whole and refuses
what it does not know, so that nothing in a packet can go unseen.
"""

import asyncio
import threading
import time
from dataclasses import dataclass, field

UP, DOWN = 0, 1
CONNECT, CONNACK, PUBLISH, PUBACK = 1, 2, 3, 4
SUBSCRIBE, UNSUBSCRIBE, PINGREQ, DISCONNECT = 8, 10, 12, 14

# Properties by identifier (MQTT 5, 2.2.2.2): how each is encoded.
_PROPERTIES = {
    **dict.fromkeys((0x01, 0x17, 0x19, 0x24, 0x25, 0x28, 0x29, 0x2A), "byte"),
    **dict.fromkeys((0x13, 0x21, 0x22, 0x23), "two"),
    **dict.fromkeys((0x02, 0x11, 0x18, 0x27), "four"),
    **dict.fromkeys((0x03, 0x08, 0x12, 0x15, 0x1A, 0x1C, 0x1F), "text"),
    **dict.fromkeys((0x09, 0x16), "text"),
    0x0B: "variable",
    0x26: "pair",
}


@dataclass
class Capture:
    """One TCP connection; `chunks` are (monotonic seconds, direction, bytes) as they came."""

    number: int
    opened: float
    chunks: list = field(default_factory=list)
    closed: bool = False

    def bytes(self, direction):
        return b"".join(data for _, way, data in self.chunks if way == direction)


class Tap:
    """A proxy in a thread of its own that records what passes; a context manager."""

    def __init__(self, host, port):
        self._target = host, port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tap")
        self._tasks = set()
        self.captures = []
        self.port = None

    def __enter__(self):
        self._thread.start()
        starting = asyncio.start_server(self._connected, "127.0.0.1", 0)
        server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(60)
        self._server = server
        self.port = server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self):
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, client, answer):
        task = asyncio.current_task()
        self._tasks.add(task)
        capture = Capture(len(self.captures), time.monotonic())
        self.captures.append(capture)
        try:
            broker, order = await asyncio.open_connection(*self._target)
            try:
                await asyncio.gather(
                    self._pass_on(capture, UP, client, order),
                    self._pass_on(capture, DOWN, broker, answer),
                )
            finally:
                order.close()
        except ConnectionError:
            pass  # whoever hung up; what passed is recorded
        finally:
            answer.close()
            capture.closed = True
            self._tasks.discard(task)

    async def _pass_on(self, capture, direction, source, sink):
        while data := await source.read(1 << 16):
            capture.chunks.append((time.monotonic(), direction, data))
            sink.write(data)
            await sink.drain()
        sink.close()


@dataclass(frozen=True)
class Packet:
    """An MQTT control packet; `fields` is everything in it, `size` its length in bytes."""

    kind: int
    flags: int
    size: int
    fields: dict


class _Reader:
    def __init__(self, data):
        self.data = data
        self.at = 0

    def take(self, count):
        taken = self.data[self.at : self.at + count]
        assert len(taken) == count, "the packet ends early"
        self.at += count
        return taken

    def number(self, count):
        return int.from_bytes(self.take(count), "big")

    def string(self):
        return self.take(self.number(2))

    def variable(self):
        value = 0
        for shift in range(0, 28, 7):
            byte = self.number(1)
            value |= (byte & 127) << shift
            if not byte & 128:
                return value
        raise AssertionError("a length of more than four bytes")

    def properties(self):
        inner, found = _Reader(self.take(self.variable())), []
        while inner.more:
            name = inner.variable()
            match _PROPERTIES[name]:
                case "byte":
                    value = inner.number(1)
                case "two":
                    value = inner.number(2)
                case "four":
                    value = inner.number(4)
                case "variable":
                    value = inner.variable()
                case "text":
                    value = inner.string()
                case "pair":
                    value = inner.string(), inner.string()
            found.append((name, value))
        return tuple(found)

    @property
    def more(self):
        return self.at < len(self.data)

    def rest(self):
        return self.take(len(self.data) - self.at)


def packets(stream):
    """Return the packets of one direction of a connection, all of it."""
    reader, found = _Reader(stream), []
    while reader.more:
        begin = reader.at
        first = reader.number(1)
        body = _Reader(reader.take(reader.variable()))
        kind, flags = first >> 4, first & 15
        fields = _fields(kind, flags, body)
        assert not body.more, f"a packet of type {kind} is longer than what it says"
        found.append(Packet(kind, flags, reader.at - begin, fields))
    return found


def _fields(kind, flags, body):
    match kind:
        case 1:
            return _connect(body)
        case 2:
            return {"flags": body.number(1), "reason": body.number(1), "props": body.properties()}
        case 3:
            return {
                "topic": body.string(),
                "id": body.number(2) if flags & 6 else None,
                "props": body.properties(),
                "payload": body.rest(),
            }
        case 4:
            return {
                "id": body.number(2),
                "reason": body.number(1) if body.more else 0,
                "props": body.properties() if body.more else (),
            }
        case 8 | 10:
            about = {"id": body.number(2), "props": body.properties(), "filters": []}
            while body.more:
                name = body.string()
                about["filters"].append((name, body.number(1) if kind == 8 else None))
            return about
        case 9 | 11:
            return {"id": body.number(2), "props": body.properties(), "reasons": body.rest()}
        case 12 | 13:
            return {}
        case 14:
            return {
                "reason": body.number(1) if body.more else 0,
                "props": body.properties() if body.more else (),
            }
    raise AssertionError(f"a packet of type {kind}")


def _connect(body):
    about = {"protocol": body.string(), "level": body.number(1), "flags": body.number(1)}
    assert about["level"] == 5, "the decoder knows MQTT 5"
    about |= {"keepalive": body.number(2), "props": body.properties(), "client": body.string()}
    if about["flags"] & 4:
        about["will"] = body.properties(), body.string(), body.string()
    if about["flags"] & 128:
        about["user"] = body.string()
    if about["flags"] & 64:
        about["password"] = body.string()
    return about
