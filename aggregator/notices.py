"""What a hospital has to say at the broker, said again after every new connection."""

from vitalring.aggregator.channel import Channel


class Notices:
    """Retained messages by topic; only what changed is published."""

    def __init__(self) -> None:
        self._wanted: dict[str, bytes] = {}
        self._told: dict[str, bytes] = {}

    def stand(self, topic: str, content: bytes) -> None:
        """Have this content on a topic from now on; no bytes clear it."""
        self._wanted[topic] = content

    def leave(self, topic: str) -> None:
        """Say no more of a topic; what stands there stays."""
        self._wanted.pop(topic, None)

    def forget(self, topic: str = "") -> None:
        """Say this topic's content again, or everything: somebody may have forgotten it."""
        if topic:
            self._told.pop(topic, None)
        else:
            self._told.clear()

    def publish(self, channel: Channel) -> None:
        """Publish what is due. Raises TransportError; call it again then."""
        for topic, content in self._wanted.items():
            if self._told.get(topic) != content:
                channel.publish(topic, content)
                self._told[topic] = content
