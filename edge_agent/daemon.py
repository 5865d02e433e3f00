"""The agent at work: announcements in, updates out, for ever.

One loop, one thread. A process hosts one device, or the many virtual devices
of a simulation; each has its own state, key and outbox, and every submission
goes over a fresh connection of its own whichever device it is from.
"""

import heapq
import itertools
import logging
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vitalring.edge_agent import state
from vitalring.edge_agent.agent import Agent
from vitalring.edge_agent.announcement import UnknownHistoryError
from vitalring.edge_agent.enrolling import Enroller
from vitalring.errors import RecordError, StorageError, TransportError, VitalRingError
from vitalring.mqtt import BrokerConfig, Connected, Dialects, Link, Message, submit
from vitalring.protocol import blobs, chunks, sealing, topics
from vitalring.protocol.agreement import messages_of
from vitalring.protocol.cbor import digest, type_of
from vitalring.protocol.records import Federation
from vitalring.protocol.signing import Signed
from vitalring.protocol.tiles import Tile

_log = logging.getLogger(__name__)
_DISK_FAULTS = (StorageError, sqlite3.Error)
_FETCH_TIMEOUT_S = 30.0
_IDLE_S = 1.0
_RETRY_JITTER = 0.5
_MAX_WAITING = 1_000
_PASSING_FAULT_MS = 5_000
_FIRST_RETRY_S = 1.0
_RECEIPTS_ARRIVE_MS = 10_000
"""After a connection, the receipts that the broker holds retained are here within this time."""


@dataclass(frozen=True)
class Submission:
    """How updates reach the gateway.

    `retry_s` is how long an update waits for its receipt before it is sent again. One that
    did not reach the broker is sent again sooner, at growing intervals up to this.
    """

    broker: BrokerConfig
    federation: Federation
    cohort: str
    dialects: Dialects
    retry_s: float


class Downlink:
    """What devices read: one connection, with messages kept for later while one is awaited."""

    def __init__(self, link: Link, federation: str, stop: threading.Event) -> None:
        self._link = link
        self._federation = federation
        self._stop = stop
        self._waiting: list[Message | Connected] = []

    @property
    def connected(self) -> bool:
        """Whether messages can arrive at this moment."""
        return self._link.connected

    def ask_again(self) -> None:
        """Have everything retained delivered once more, by a new connection."""
        self._link.reconnect()

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
            while (left := deadline - time.monotonic()) > 0 and not self._stop.is_set():
                event = self._link.receive(min(left, _IDLE_S))
                if isinstance(event, Message):
                    self._link.ack(event)
                    if event.topic == topic:
                        return event.payload
                if event is not None:
                    self._waiting.append(event)
                if len(self._waiting) > _MAX_WAITING:
                    raise TransportError(f"{len(self._waiting)} messages came before {topic}")
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
        enroller: Enroller | None = None,
    ) -> None:
        self._agents = agents
        self._downlink = downlink
        self._submission = submission
        self._now_ms = now_ms
        self._enroller = enroller
        # (when, tie-breaker, agent, plan): what is to be sent next.
        self._due: list[tuple[int, int, Agent, bytes]] = []
        self._order = itertools.count()
        self._announcement = b""
        # Agents that a passing fault kept out of the round, and when they try again.
        self._retries: dict[Agent, int] = {}
        # Submissions in a row that did not reach the broker.
        self._failures: dict[tuple[Agent, bytes], int] = {}
        self._expire_at: int | None = None
        for agent in agents:
            self._schedule(agent)

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set. Errors of one message or device end neither."""
        while not stop.is_set():
            wait_s = _IDLE_S
            if self._due:
                wait_s = min(wait_s, max(0.0, (self._due[0][0] - self._now_ms()) / 1000))
            event = self._downlink.next(wait_s)
            if isinstance(event, Connected):
                self._expire_at = self._now_ms() + _RECEIPTS_ARRIVE_MS
            elif event is not None:
                self._take(event, stop)
            self._retry(stop)
            self._send_due(stop)
            self._expire()
            if self._enroller is not None:
                self._enroller.work(self._now_ms(), stop)

    def _take(self, message: Message, stop: threading.Event) -> None:
        try:
            topic = topics.parse(message.topic)
            if topic.kind is topics.Kind.CALL and self._enroller is not None:
                call = self._downlink.whole(message) if message.payload else b""
                self._enroller.hear(call, self._now_ms())
                return
            if not message.payload:
                return  # a retained message that its owner cleared
            act = self._action(topic, self._downlink.whole(message))
        except VitalRingError as error:
            _log.warning("message on %s dropped: %s", message.topic[:120], error)
            return
        for agent in self._agents:
            if stop.is_set():
                return
            try:
                act(agent)
                self._send_due(stop)
            except _DISK_FAULTS as error:
                _log.error("%s: %s", type(error).__name__, error)
                self._downlink.ask_again()
            except VitalRingError as error:
                _log.warning("%s: %s", type(error).__name__, error)

    def _action(self, topic: topics.Topic, payload: bytes) -> Callable[[Agent], object]:
        """Return what a message asks each device to do. Raises RecordError."""
        if topic.kind is topics.Kind.RECEIPTS:
            return lambda agent: agent.receipts(payload)
        if topic.kind is not topics.Kind.PLAN:
            raise RecordError(f"topic {topic.kind} is none that a device listens to")
        self._retries.clear()
        if type_of(payload) == Signed.TYPE:
            return lambda agent: agent.end_study(payload)
        self._announcement = payload
        return self._consider

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
        except (TransportError, *_DISK_FAULTS):
            # The broker or the disk may be back before the round is over.
            self._retries[agent] = self._now_ms() + _PASSING_FAULT_MS
            raise
        # Also an update of before, whose place among what is due a fault may have cost it.
        self._schedule(agent)
        if outcome != "ready":
            _log.info("stays out of a round: %s", outcome)
        if agent.owes_erasure and not agent.erase_old_keys():
            self._catch_up(agent)

    def _retry(self, stop: threading.Event) -> None:
        due = [agent for agent, when in self._retries.items() if when <= self._now_ms()]
        for agent in due:
            if stop.is_set() or not self._downlink.connected:
                return
            try:
                self._consider(agent)
            except (VitalRingError, sqlite3.Error) as error:
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
                self._plan(agent, pending.plan, pending.submit_at_ms)

    def _plan(self, agent: Agent, plan: bytes, when_ms: int) -> None:
        heapq.heappush(self._due, (when_ms, next(self._order), agent, plan))

    def _send_due(self, stop: threading.Event) -> None:
        while self._due and self._due[0][0] <= self._now_ms() and not stop.is_set():
            _, _, agent, plan = heapq.heappop(self._due)
            again_ms = self._now_ms() + _PASSING_FAULT_MS
            try:
                pending = next((each for each in state.outbox(agent.db) if each.plan == plan), None)
                if pending is None:
                    self._failures.pop((agent, plan), None)
                    continue
                again_ms = self._send(agent, pending)
                state.note_attempt(agent.db, plan, again_ms)
            except _DISK_FAULTS as error:
                _log.error("%s: %s", type(error).__name__, error)
            self._plan(agent, plan, again_ms)

    def _send(self, agent: Agent, pending: state.Pending) -> int:
        """Submit once; return when to do so again, sealed anew, if no receipt comes."""
        to = self._submission
        wait_s = to.retry_s
        try:
            # To each gateway its own, over a fresh connection each.
            for gateway, message in enumerate(messages_of(pending.update)):
                self._submit(pending, gateway, message)
            self._failures.pop((agent, pending.plan), None)
        except VitalRingError as error:
            failures = self._failures.get((agent, pending.plan), 0)
            self._failures[agent, pending.plan] = failures + 1
            wait_s = min(wait_s, _FIRST_RETRY_S * 2.0 ** min(failures, 64))
            _log.warning("submission failed, next try in about %.0f s: %s", wait_s, error)
        jitter = 1.0 + _RETRY_JITTER * secrets.randbelow(1000) / 1000
        return self._now_ms() + int(wait_s * 1000 * jitter)

    def _submit(self, pending: state.Pending, gateway: int, message: bytes) -> None:
        to = self._submission
        key = to.federation.hospitals[gateway].sealing_key
        box = sealing.seal(message, key, pending.spare_bytes)
        limit = to.broker.max_payload_bytes
        frames = chunks.split(box, limit, secrets.token_bytes(chunks.TRANSFER_ID_BYTES))
        uplink = topics.share_topic if gateway else topics.uplink_topic
        submit(
            to.broker,
            uplink(to.federation.name, to.cohort, pending.round),
            frames,
            _FETCH_TIMEOUT_S,
            expiry_s=pending.expiry_s,
            dialects=to.dialects,
        )

    def _expire(self) -> None:
        """Give up what is too late, once the broker has had time to show us our receipts."""
        now_ms = self._now_ms()
        if self._expire_at is None or now_ms < self._expire_at or not self._downlink.connected:
            return
        for agent in self._agents:
            try:
                for pending in agent.expire(now_ms):
                    _log.warning("round %d ended without a receipt for our update", pending.round)
            except _DISK_FAULTS as error:
                _log.error("%s: %s", type(error).__name__, error)
                self._expire_at = now_ms + _PASSING_FAULT_MS


def subscriptions(federation: Federation, cohort: str) -> list[str]:
    """Return what a device listens to."""
    return [
        topics.plan_topic(federation.name, cohort),
        topics.receipts_filter(federation.name, cohort),
        topics.call_topic(federation.name, cohort),
    ]
