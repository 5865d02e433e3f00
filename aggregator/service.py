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
from collections.abc import Callable
from dataclasses import dataclass, replace

from vitalring.aggregator import rounds, store, two_sums
from vitalring.aggregator.channel import Channel
from vitalring.aggregator.rosters import Rosters
from vitalring.aggregator.two_sums import TwoSums
from vitalring.errors import StorageError, TransportError, VitalRingError
from vitalring.mqtt import Message
from vitalring.protocol import topics, trust, two_server
from vitalring.protocol.agreement import open_share_report
from vitalring.protocol.cbor import decode, digest
from vitalring.protocol.records import Bundle, GlobalModel

_log = logging.getLogger(__name__)
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
        rosters: Rosters,
        channel: Channel,
        now_ms: Callable[[], int],
    ) -> None:
        self._db = db
        # Its study is under the roster of the newest round.
        self._aggregator = aggregator
        self._rosters = rosters
        self._channel = channel
        self._now_ms = now_ms
        self._name = aggregator.study.federation.name
        self._stop = threading.Event()
        self._standing: _Standing | None = None
        # Gateways whose logs are known to hold the newest record, and sums that came of the round.
        self._logged_by: frozenset[int] = frozenset()
        self._sums: dict[int, Bundle] = {}
        # When to say everything again (monotonic seconds).
        self._publish_at = 0.0
        self._stand(store.latest(db))

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set or the final model is in the log."""
        self._stop = stop
        self._channel.until(stop)
        while not stop.is_set() and not self.finished():
            message = self._channel.receive()
            if self._channel.reconnected():
                # The broker may have forgotten everything.
                self._logged_by, self._publish_at = frozenset(), 0.0
            if message is not None:
                self._take(message)
            self._advance()

    @property
    def _logged(self) -> bool:
        """Tell whether every gateway's log holds the newest record."""
        return len(self._logged_by) == (2 if self._aggregator.study.shared else 1)

    def finished(self) -> bool:
        """Tell whether the final model is in the log."""
        model = self._standing.model if self._standing else None
        return self._logged and model is not None and model.final

    def _advance(self) -> None:
        """Publish what the newest round asks for; propose the next once its model is logged."""
        try:
            if self._may_propose():
                self._stand(self._propose())
            due = not self._logged and time.monotonic() >= self._publish_at
            if due and self._standing and self._channel.connected:
                self._channel.watch(self._standing.record)
                self._channel.publish(topics.propose_topic(self._name), self._standing.proposal)
                self._channel.publish(topics.model_topic(self._name), self._standing.model_bundle)
                self._publish_at = time.monotonic() + _REPEAT_S
        except TransportError as error:
            _log.warning("published too little, will publish again: %s", error)
            self._publish_at = time.monotonic() + _PAUSE_S
        except (StorageError, sqlite3.Error) as error:
            self._pause(error)

    def _propose(self) -> store.Round:
        """Keep the next plan, under the newest roster; the gateway gets what its log may lack."""
        self._rosters.look()
        last = self._rosters.serial_of(self._standing.proposal) if self._standing else -1
        study, new = self._rosters.next(last)
        aggregator = replace(self._aggregator, study=study)
        return rounds.propose(self._db, aggregator, self._now_ms(), new)

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
            self._channel.unwatch(self._standing.record)
        self._standing = None
        if current is not None:
            study = self._rosters.of_plan(decode(Bundle, current.proposal).record)
            self._aggregator = replace(self._aggregator, study=study)
            self._standing = _standing(current, study)
        self._logged_by, self._publish_at = frozenset(), 0.0

    def _take(self, message: Message) -> None:
        try:
            topic = topics.parse(message.topic)
            if topic.kind is topics.Kind.SUM and message.payload:
                self._conclude(decode(Bundle, self._channel.join(message.payload)))
            elif topic.kind is topics.Kind.GATEWAY and message.payload:
                self._take_from_second(topic, self._channel.join(message.payload))
            elif self._standing and topic.digest == self._standing.record and message.payload:
                self._logged_by |= {two_server.VECTOR}
        except (StorageError, TransportError, sqlite3.Error) as error:
            self._pause(error)
            self._channel.ask_again()  # the broker then brings it again
            return
        except VitalRingError as error:
            _log.error("the message on %s is refused: %s", message.topic[:120], error)
        self._channel.ack(message)

    def _conclude(self, bundle: Bundle, from_: int = two_server.VECTOR) -> None:
        """Make a model of a closed round; of two gateways' sums once both are here."""
        aggregator, reports = self._aggregator, tuple[bytes, ...]()
        if aggregator.study.shared:
            self._sums[from_] = bundle
            current = store.latest(self._db)
            joined = self._joined(current) if current and current.model is None else None
            if joined is None:
                return
            bundle, reports = joined.bundle, joined.reports
            aggregator = replace(aggregator, decrypt=joined.decrypt)
        model = rounds.conclude(self._db, aggregator, bundle, reports)
        if model is not None:
            report(model)
            self._sums.clear()
            self._stand(store.latest(self._db))

    def _joined(self, current: store.Round) -> TwoSums | None:
        """Return the sums of both gateways, once both are of the newest round."""
        study = self._aggregator.study
        for role, bundle in list(self._sums.items()):
            if open_share_report(bundle.record, study.federation, role).plan != current.plan:
                del self._sums[role]  # of an earlier round, which the broker still had
        if len(self._sums) < len(two_server.ROLES):
            return None
        plan = trust.open_round_plan(decode(Bundle, current.proposal).record, study)
        both = (self._sums[two_server.VECTOR], self._sums[two_server.SEED])
        return two_sums.join(study, plan, current.plan, both)

    def _take_from_second(self, topic: topics.Topic, content: bytes) -> None:
        """Take what the second gateway says: its sum, and which record it logged last."""
        hospitals = self._aggregator.study.federation.hospitals
        if topic.hospital != hospitals[two_server.SEED].name:
            return
        if topic.step == "sum":
            self._conclude(decode(Bundle, content), two_server.SEED)
        elif topic.step == "logged" and self._standing and content == self._standing.record:
            self._logged_by |= {two_server.SEED}

    def _pause(self, error: Exception) -> None:
        _log.error("the aggregator cannot go on, next try in %g s: %s", _PAUSE_S, error)
        self._stop.wait(_PAUSE_S)


def subscriptions(study: trust.Study) -> list[str]:
    """Return what an aggregator listens to."""
    name = study.federation.name
    if not study.shared:
        return [topics.sum_topic(name)]
    second = study.federation.hospitals[two_server.SEED].name
    steps = [topics.gateway_topic(name, second, step) for step in ("sum", "logged")]
    return [topics.sum_topic(name), *steps]


def _standing(current: store.Round, study: trust.Study) -> _Standing:
    plan = trust.open_round_plan(decode(Bundle, current.proposal).record, study)
    if current.model is None:
        return _Standing(current.proposal, b"", None, plan.deadline_ms, current.plan)
    record = decode(Bundle, current.model).record
    model = trust.open_model(record, study.federation, study.plan)
    return _Standing(current.proposal, current.model, model, plan.deadline_ms, digest(record))


def report(model: GlobalModel) -> None:
    """Log what a round came to."""
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
