"""The aggregator at work: it proposes rounds, waits for their sums and publishes models.

What it has sent is on disk first, so after a crash, its own or the broker's,
it sends the same bytes again and the gateway takes them once.
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable

from vitalring.aggregator import rounds, store
from vitalring.errors import TransportError, VitalRingError
from vitalring.mqtt import Connected, Link, Message
from vitalring.protocol import blobs, topics, trust
from vitalring.protocol.cbor import decode, digest
from vitalring.protocol.records import Bundle, GlobalModel

_log = logging.getLogger(__name__)
_TICK_S = 0.5
_PIECE_TIMEOUT_S = 30.0


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
        self._stale = True

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set or the study has its final model."""
        while not stop.is_set() and not self.finished():
            event = self._link.receive(_TICK_S)
            if isinstance(event, Connected):
                self._stale = True
            elif event is not None:
                self._take(event)
            self._advance()

    def finished(self) -> bool:
        """Tell whether the final model is out."""
        last = store.latest(self._db)
        if self._stale or last is None or last.model is None:
            return False
        return self._model_of(last.model).final

    def _advance(self) -> None:
        """Publish what the newest round asks for; propose the next once a model is out."""
        try:
            if not self._link.connected:
                return
            last = store.latest(self._db)
            if last is None:
                last = rounds.propose(self._db, self._aggregator, self._now_ms())
                self._stale = True
            if self._stale:
                self._publish(topics.propose_topic(self._name), last.proposal)
                self._publish(topics.model_topic(self._name), last.model or b"")
                self._stale = False
                if last.model and not self._model_of(last.model).final:
                    rounds.propose(self._db, self._aggregator, self._now_ms())
                    self._stale = True
        except TransportError as error:
            _log.warning("published too little, will publish again: %s", error)
            self._stale = True

    def _take(self, message: Message) -> None:
        try:
            if topics.parse(message.topic).kind is topics.Kind.SUM and message.payload:
                bundle = decode(Bundle, blobs.join(message.payload, self._piece))
                model = rounds.conclude(self._db, self._aggregator, bundle)
                if model is not None:
                    _report(model)
                    self._stale = True
        except VitalRingError as error:
            _log.error("the message on %s is refused: %s", message.topic[:120], error)
        self._link.ack(message)

    def _model_of(self, bundle: bytes) -> GlobalModel:
        study = self._aggregator.study
        record = decode(Bundle, bundle).record
        return trust.open_model(record, study.federation, study.plan)

    def _piece(self, name: bytes) -> bytes:
        topic = topics.object_topic(self._name, name)
        self._link.subscribe(topic)
        try:
            deadline = time.monotonic() + _PIECE_TIMEOUT_S
            while (left := deadline - time.monotonic()) > 0:
                event = self._link.receive(left)
                if isinstance(event, Connected):
                    self._stale = True
                elif event is not None:
                    self._link.ack(event)
                    if event.topic == topic:
                        return blobs.whole(event.payload)
        finally:
            self._link.unsubscribe(topic)
        raise TransportError(f"piece {name.hex()} of a sum did not arrive")

    def _publish(self, topic: str, content: bytes) -> None:
        message, pieces = blobs.split(content, self._max_payload_bytes) if content else (b"", ())
        for piece in pieces:
            self._publish(topics.object_topic(self._name, digest(piece)), piece)
        self._link.publish(topic, message, retain=True)


def subscriptions(study: trust.Study) -> list[str]:
    """Return what an aggregator listens to."""
    return [topics.sum_topic(study.federation.name)]


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
