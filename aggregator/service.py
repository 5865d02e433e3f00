"""The aggregator at work: it proposes rounds, waits for their sums and publishes models.

What it has sent is on disk first, so after a crash, its own or the broker's,
it sends the same bytes again and the gateway takes them once. The gateway
publishes a plan or a model as an object of its own once it is in the log; until
the aggregator sees it there, it says the same again, and does nothing that
builds on it.
"""

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from vitalring.aggregator import rounds, store
from vitalring.errors import StorageError, TransportError, VitalRingError
from vitalring.mqtt import Connected, Link, Message
from vitalring.protocol import blobs, topics, trust
from vitalring.protocol.cbor import decode, digest
from vitalring.protocol.records import Bundle, GlobalModel

_log = logging.getLogger(__name__)
_TICK_S = 0.5
_PIECE_TIMEOUT_S = 30.0
_PAUSE_S = 5.0
"""Between attempts at what the disk or the broker refused."""
_REPEAT_S = 60.0
"""What the gateway has not logged by then is said again."""


@dataclass(frozen=True)
class _Standing:
    """The newest round: what is to be said of it, and what the gateway logs then."""

    proposal: bytes
    model_bundle: bytes
    model: GlobalModel | None
    deadline_ms: int
    record: bytes
    """Digest of the newest record, the plan or the model."""


class AggregatorService:
    """One study's aggregator."""

    def __init__(
        self,
        db: sqlite3.Connection,
        aggregator: rounds.Aggregator,
        link: Link,
        max_payload_bytes: int,
        now_ms: Callable[[], int],
    ) -> None:
        self._db = db
        self._aggregator = aggregator
        self._link = link
        self._max_payload_bytes = max_payload_bytes
        self._now_ms = now_ms
        self._name = aggregator.study.federation.name
        self._stop = threading.Event()
        self._waiting: deque[Message] = deque()
        self._standing: _Standing | None = None
        # Whether the gateway's log is known to hold the newest record.
        self._logged = False
        # When to say everything again (monotonic seconds).
        self._publish_at = 0.0
        self._pieces: dict[str, tuple[bytes, ...]] = {}
        self._stand(store.latest(db))

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set or the final model is in the log."""
        self._stop = stop
        while not stop.is_set() and not self.finished():
            message = self._waiting.popleft() if self._waiting else self._receive(_TICK_S)
            if message is not None:
                self._take(message)
            self._advance()

    def finished(self) -> bool:
        """Tell whether the final model is in the log."""
        model = self._standing.model if self._standing else None
        return self._logged and model is not None and model.final

    def _advance(self) -> None:
        """Publish what the newest round asks for; propose the next once its model is logged."""
        try:
            if self._may_propose():
                self._stand(rounds.propose(self._db, self._aggregator, self._now_ms()))
            due = not self._logged and time.monotonic() >= self._publish_at
            if due and self._standing and self._link.connected:
                self._link.subscribe(topics.object_topic(self._name, self._standing.record))
                self._publish(topics.propose_topic(self._name), self._standing.proposal)
                self._publish(topics.model_topic(self._name), self._standing.model_bundle)
                self._publish_at = time.monotonic() + _REPEAT_S
        except TransportError as error:
            _log.warning("published too little, will publish again: %s", error)
            self._publish_at = time.monotonic() + _PAUSE_S
        except (StorageError, sqlite3.Error) as error:
            self._pause(error)

    def _may_propose(self) -> bool:
        if self._standing is None:
            return True
        model = self._standing.model
        if not self._logged or model is None or model.final:
            return False
        # A round without a result is not followed by the next before its time is over: clocks
        # that disagree would otherwise use up the study's rounds in no time.
        return model.applied or self._now_ms() > self._standing.deadline_ms

    def _stand(self, current: store.Round | None) -> None:
        """Take this for the newest round; its newest record is yet to be logged."""
        if self._standing is not None:
            self._link.unsubscribe(topics.object_topic(self._name, self._standing.record))
        self._standing = _standing(current, self._aggregator.study) if current else None
        self._logged, self._publish_at = False, 0.0

    def _receive(self, timeout_s: float) -> Message | None:
        event = self._link.receive(timeout_s)
        if isinstance(event, Connected):
            # The broker may have forgotten everything.
            self._logged, self._publish_at = False, 0.0
            return None
        return event

    def _take(self, message: Message) -> None:
        try:
            topic = topics.parse(message.topic)
            if topic.kind is topics.Kind.SUM and message.payload:
                bundle = decode(Bundle, blobs.join(message.payload, self._piece))
                model = rounds.conclude(self._db, self._aggregator, bundle)
                if model is not None:
                    _report(model)
                    self._stand(store.latest(self._db))
            elif self._standing and topic.digest == self._standing.record and message.payload:
                self._logged = True
        except (StorageError, TransportError, sqlite3.Error) as error:
            self._pause(error)
            self._link.reconnect()  # the broker then brings it again
            return
        except VitalRingError as error:
            _log.error("the message on %s is refused: %s", message.topic[:120], error)
        self._link.ack(message)

    def _pause(self, error: Exception) -> None:
        _log.error("the aggregator cannot go on, next try in %g s: %s", _PAUSE_S, error)
        self._stop.wait(_PAUSE_S)

    def _piece(self, name: bytes) -> bytes:
        topic = topics.object_topic(self._name, name)
        self._link.subscribe(topic)
        try:
            deadline = time.monotonic() + _PIECE_TIMEOUT_S
            while time.monotonic() < deadline and not self._stop.is_set():
                message = self._receive(_TICK_S)
                if message is None:
                    continue
                if message.topic == topic:
                    self._link.ack(message)
                    return blobs.whole(message.payload)
                self._waiting.append(message)
        finally:
            self._link.unsubscribe(topic)
        raise TransportError(f"piece {name.hex()} of a sum did not arrive")

    def _publish(self, topic: str, content: bytes) -> None:
        """Publish retained, and clear the pieces that served what was there before."""
        message, pieces = blobs.split(content, self._max_payload_bytes) if content else (b"", ())
        names = tuple(digest(piece) for piece in pieces)
        for name, piece in zip(names, pieces, strict=True):
            self._send(topics.object_topic(self._name, name), blobs.WHOLE + piece)
        self._send(topic, message)
        for name in set(self._pieces.get(topic, ())) - set(names):
            self._send(topics.object_topic(self._name, name), b"")
        self._pieces[topic] = names

    def _send(self, topic: str, message: bytes) -> None:
        if not self._link.connected:
            raise TransportError("not connected")
        self._link.publish(topic, message, retain=True, timeout_s=10.0)


def subscriptions(study: trust.Study) -> list[str]:
    """Return what an aggregator listens to."""
    return [topics.sum_topic(study.federation.name)]


def _standing(current: store.Round, study: trust.Study) -> _Standing:
    plan = trust.open_round_plan(decode(Bundle, current.proposal).record, study)
    if current.model is None:
        return _Standing(current.proposal, b"", None, plan.deadline_ms, current.plan)
    record = decode(Bundle, current.model).record
    model = trust.open_model(record, study.federation, study.plan)
    return _Standing(current.proposal, current.model, model, plan.deadline_ms, digest(record))


def _report(model: GlobalModel) -> None:
    if model.evaluation is None:
        _log.info("round %d: %d updates", model.round, model.contributions)
    else:
        _log.info(
            "round %d: %d updates, accuracy %.3f, macro-F1 %.3f",
            model.round,
            model.contributions,
            model.evaluation.accuracy,
            model.evaluation.macro_f1,
        )
