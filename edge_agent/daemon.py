"""The agent at work: announcements in, updates out, for ever.

One loop, one thread. A process hosts one device, or the many virtual devices
of a simulation; each has its own state, key and outbox, and every submission
goes over a fresh connection of its own whichever device it is from.
"""

import heapq
import itertools
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vitalring.edge_agent import state
from vitalring.edge_agent.agent import Agent
from vitalring.edge_agent.announcement import UnknownHistoryError
from vitalring.errors import RecordError, StorageError, TransportError, VitalRingError
from vitalring.mqtt import BrokerConfig, Connected, Dialects, Link, Message, submit
from vitalring.protocol import blobs, chunks, sealing, topics
from vitalring.protocol.cbor import digest
from vitalring.protocol.records import Federation
from vitalring.protocol.tiles import Tile

_log = logging.getLogger(__name__)
_FETCH_TIMEOUT_S = 30.0
_IDLE_S = 5.0
_RETRY_JITTER = 0.5
_PASSING_FAULT_MS = 5_000


@dataclass(frozen=True)
class Submission:
    """How updates reach the gateway."""

    broker: BrokerConfig
    federation: Federation
    cohort: str
    dialects: Dialects
    retry_s: float


class Downlink:
    """What devices read: one connection, with messages kept for later while one is awaited."""

    def __init__(self, link: Link, federation: str) -> None:
        self._link = link
        self._federation = federation
        self._waiting: list[Message | Connected] = []

    def next(self, timeout_s: float) -> Message | Connected | None:
        """Return the next message, or None."""
        if self._waiting:
            return self._waiting.pop(0)
        event = self._link.receive(timeout_s)
        if isinstance(event, Message):
            self._link.ack(event)
        return event

    def read(self, topic: str) -> bytes:
        """Return what a topic holds, put together from its pieces where it is large.

        Raises TransportError where nothing comes, RecordError where it is not whole.
        """
        return blobs.join(self.fetch(topic), self._piece)

    def whole(self, message: Message) -> bytes:
        """Return what a message carries, its pieces fetched where there are any."""
        return blobs.join(message.payload, self._piece)

    def object(self, name: bytes) -> bytes:
        """Return the object with this digest. Raises TransportError or RecordError."""
        data = self.read(topics.object_topic(self._federation, name))
        if digest(data) != name:
            raise RecordError(f"the broker has other bytes under {name.hex()}")
        return data

    def _piece(self, name: bytes) -> bytes:
        return blobs.whole(self.fetch(topics.object_topic(self._federation, name)))

    def fetch(self, topic: str) -> bytes:
        """Return the retained message of a topic. Raises TransportError where there is none."""
        self._link.subscribe(topic)
        try:
            deadline = time.monotonic() + _FETCH_TIMEOUT_S
            while (left := deadline - time.monotonic()) > 0:
                event = self._link.receive(left)
                if isinstance(event, Message):
                    self._link.ack(event)
                    if event.topic == topic:
                        return event.payload
                if event is not None:
                    self._waiting.append(event)
        finally:
            self._link.unsubscribe(topic)
        raise TransportError(f"the broker has nothing on {topic}")


class Daemon:
    """Runs agents until `stop` is set."""

    def __init__(
        self,
        agents: Sequence[Agent],
        downlink: Downlink,
        submission: Submission,
        now_ms: Callable[[], int],
    ) -> None:
        self._agents = agents
        self._downlink = downlink
        self._submission = submission
        self._now_ms = now_ms
        # (when, tie-breaker, agent, plan): what is to be sent next.
        self._due: list[tuple[int, int, Agent, bytes]] = []
        self._order = itertools.count()
        self._announcement = b""
        # Agents that a passing fault kept out of the round, and when they try again.
        self._retries: dict[Agent, int] = {}
        for agent in agents:
            self._schedule(agent)

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set. Errors of one message or device end neither."""
        while not stop.is_set():
            wait_s = _IDLE_S
            if self._due:
                wait_s = min(wait_s, max(0.0, (self._due[0][0] - self._now_ms()) / 1000))
            event = self._downlink.next(wait_s)
            if isinstance(event, Message) and event.payload:
                self._take(event, stop)
            self._retry()
            self._send_due(stop)
            self._expire()

    def _take(self, message: Message, stop: threading.Event) -> None:
        try:
            topic = topics.parse(message.topic)
            payload = self._downlink.whole(message)
        except VitalRingError as error:
            _log.warning("message on %s dropped: %s", message.topic[:120], error)
            return
        if topic.kind is topics.Kind.PLAN:
            self._announcement = payload
            self._retries.clear()
        for agent in self._agents:
            if stop.is_set():
                return
            try:
                if topic.kind is topics.Kind.PLAN:
                    self._consider(agent)
                    self._send_due(stop)
                elif topic.kind is topics.Kind.RECEIPTS:
                    agent.receipts(payload)
            except VitalRingError as error:
                _log.warning("%s: %s", type(error).__name__, error)

    def _consider(self, agent: Agent) -> None:
        """Let an agent take part in the round that was announced last."""
        self._retries.pop(agent, None)
        try:
            if not agent.caught_up:
                self._catch_up(agent)
            try:
                outcome = agent.consider(self._announcement, self._now_ms())
            except UnknownHistoryError:
                self._catch_up(agent)
                outcome = agent.consider(self._announcement, self._now_ms())
        except (TransportError, StorageError):
            # The broker or the disk may be back before the round is over.
            self._retries[agent] = self._now_ms() + _PASSING_FAULT_MS
            raise
        if outcome == "ready":
            self._schedule(agent)
        else:
            _log.info("stays out of a round: %s", outcome)

    def _retry(self) -> None:
        due = [agent for agent, when in self._retries.items() if when <= self._now_ms()]
        for agent in due:
            try:
                self._consider(agent)
            except VitalRingError as error:
                _log.warning("%s: %s", type(error).__name__, error)

    def _catch_up(self, agent: Agent) -> None:
        name = self._submission.federation.name

        def read(tile: Tile) -> bytes:
            return self._downlink.read(topics.entries_topic(name, tile.index))

        agent.catch_up(self._downlink.read(topics.checkpoint_topic(name)), read)

    def _schedule(self, agent: Agent) -> None:
        planned = {(entry[2], entry[3]) for entry in self._due}
        for pending in state.outbox(agent.db):
            if (agent, pending.plan) not in planned:
                entry = (pending.submit_at_ms, next(self._order), agent, pending.plan)
                heapq.heappush(self._due, entry)

    def _send_due(self, stop: threading.Event) -> None:
        while self._due and self._due[0][0] <= self._now_ms() and not stop.is_set():
            _, _, agent, plan = heapq.heappop(self._due)
            for pending in state.outbox(agent.db):
                if pending.plan == plan:
                    self._send(agent, pending)

    def _send(self, agent: Agent, pending: state.Pending) -> None:
        """Submit once; if no receipt comes, the same update is sealed anew and sent again."""
        to = self._submission
        try:
            box = sealing.seal(pending.update, to.federation.hospitals[0].sealing_key)
            limit = to.broker.max_payload_bytes
            frames = chunks.split(box, limit, secrets.token_bytes(chunks.TRANSFER_ID_BYTES))
            topic = topics.uplink_topic(to.federation.name, to.cohort, pending.round)
            submit(
                to.broker,
                topic,
                frames,
                _FETCH_TIMEOUT_S,
                expiry_s=max(1, (pending.deadline_ms - self._now_ms()) // 1000),
                dialects=to.dialects,
            )
        except VitalRingError as error:
            _log.warning("submission failed, will try again: %s", error)
        jitter = 1.0 + _RETRY_JITTER * secrets.randbelow(1000) / 1000
        next_ms = self._now_ms() + int(to.retry_s * 1000 * jitter)
        state.note_attempt(agent.db, pending.plan, next_ms)
        self._schedule(agent)

    def _expire(self) -> None:
        now_ms = self._now_ms()
        for agent in self._agents:
            for pending in agent.expire(now_ms):
                _log.warning("round %d ended without a receipt for our update", pending.round)


def subscriptions(federation: Federation, cohort: str) -> list[str]:
    """Return what a device listens to."""
    return [
        topics.plan_topic(federation.name, cohort),
        topics.receipts_filter(federation.name, cohort),
    ]
