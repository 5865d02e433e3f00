"""A gateway's service on a link that a test holds in its hand."""

from collections import deque

from vitalring.errors import TransportError
from vitalring.gateway.config import GatewayKeys
from vitalring.gateway.service import Gateway
from vitalring.mqtt import Message


class HandLink:
    """Has what a service uses of `vitalring.mqtt.Link`, and a broker's retained messages."""

    def __init__(self):
        self.connected = True
        self.retained = {}
        self.sent = []
        """What was published once, not retained."""
        self.refuses = None
        self.filters = set()
        self.incoming = deque()
        self.acked = 0
        self.reconnections = 0

    def receive(self, timeout_s):
        return self.incoming.popleft() if self.incoming else None

    def ack(self, message):
        self.acked += message.packet_id != 0

    def publish(self, topic, payload, *, retain=False, expiry_s=None, timeout_s=30.0):
        if topic == self.refuses:
            raise TransportError(f"{topic} is refused")
        if not retain:
            self.sent.append((topic, payload))
        elif payload:
            self.retained[topic] = payload
        else:
            self.retained.pop(topic, None)

    def subscribe(self, name):
        self.filters.add(name)
        if name in self.retained:
            self.incoming.append(Message(name, self.retained[name], retained=True, packet_id=9))

    def unsubscribe(self, name):
        self.filters.discard(name)

    def reconnect(self):
        self.reconnections += 1


def gateway_of(federation, db, link, now_ms, chunk_limits, max_payload_bytes=1 << 20):
    """The real service with the keys of a small federation."""
    keys = GatewayKeys(federation.log_key, federation.sealing_key)
    return Gateway(db, federation.files, keys, link, max_payload_bytes, chunk_limits, now_ms)
