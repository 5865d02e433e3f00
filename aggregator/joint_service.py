"""One of several hospitals' aggregators at work (SPEC 11.6 to 11.15).

All hospitals do the same: they recompute a round's sum, decrypt it together, come to the same
model, and sign it and the next plan together. What the gateway logged is what happened; a
hospital that missed something takes it from there. `AggregatorService` is the same for one
hospital that decrypts alone.
"""

import functools
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from vitalring.aggregator import rounds, store
from vitalring.aggregator.channel import Channel
from vitalring.aggregator.cosign import check_model, check_plan
from vitalring.aggregator.drafts import Drafted, Drafts
from vitalring.aggregator.joint_round import JointRound
from vitalring.aggregator.notices import Notices
from vitalring.aggregator.optimisers import Vector
from vitalring.aggregator.release import Party
from vitalring.aggregator.release_store import forget_releases_before
from vitalring.aggregator.service import report
from vitalring.errors import RecordError, StorageError, TransportError, VitalRingError
from vitalring.mqtt import Message
from vitalring.protocol import topics, trust
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.records import Bundle, GlobalModel, PlanAnnouncement, RoundPlan

_log = logging.getLogger(__name__)
_PAUSE_S = 5.0
"""Between attempts at what the disk refused."""
_RETRY_S = 1.0
"""Between attempts at what the broker refused."""
_RECEIPTS = 32
"""Rounds whose receipts are remembered: theirs may come before their plan."""
_REPEAT_S = 15.0
"""What the gateway has not logged by then is said again."""


class JointService:
    """One hospital's aggregator in a study whose sums several hospitals decrypt."""

    def __init__(
        self,
        db: sqlite3.Connection,
        aggregator: rounds.Aggregator,
        party: Party,
        channel: Channel,
        spool: Path,
        now_ms: Callable[[], int],
    ) -> None:
        """Go on from what is on disk; `spool` is a file for one round's ciphertexts."""
        self._db, self._aggregator, self._party = db, aggregator, party
        self._study = aggregator.study
        self._name = self._study.federation.name
        self._names = [each.name for each in self._study.federation.hospitals]
        self._channel, self._notices = channel, Notices()
        self._spool, self._now_ms = spool, now_ms
        self._stop = threading.Event()
        # The newest of what others say: gateway, quorum, each hospital.
        self._announced = b""
        self._closed: Bundle | None = None
        self._agreed: Bundle | None = None
        self._receipts: dict[bytes, bytes] = {}
        self._drafts: dict[int, bytes] = {}
        self._signatures: dict[int, bytes] = {}
        self._release: dict[tuple[int, str, int], bytes] = {}
        # The newest round that the gateway logged, with its model if that is logged too.
        self._current = store.latest(db)
        # What is in hand: a closed round, what follows from it, and what is to be signed.
        self._round: JointRound | None = None
        self._began = 0.0
        self._result: tuple[object, rounds.Result] | None = None
        self._matter: Drafts[RoundPlan] | Drafts[GlobalModel] | None = None
        self._said: set[str] = set()
        self._repeat_at = 0.0
        # A plan that does not follow on what this hospital knows, and was told so once.
        self._stranger = b""
        self._watched = b""

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set or the final model is in the log."""
        self._stop = stop
        self._channel.until(stop)
        while not stop.is_set() and not self.finished():
            message = self._channel.receive()
            if self._channel.reconnected():
                self._notices.forget()
            if message is not None:
                self._take(message)
            self._advance()

    def finished(self) -> bool:
        """Tell whether the final model is in the log."""
        model = self._model()
        return model is not None and model.final

    @property
    def _number(self) -> int:
        return self._current.number if self._current else 0

    # What others say.

    def _take(self, message: Message) -> None:
        try:
            self._hear(message)
        except (StorageError, TransportError, sqlite3.Error) as error:
            self._pause(error)
            self._channel.ask_again()
            return
        except VitalRingError as error:
            _log.warning("the message on %s is refused: %s", message.topic[:120], error)
        self._channel.ack(message)

    def _hear(self, message: Message) -> None:
        topic = topics.parse(message.topic)
        payload = message.payload
        match topic.kind:
            case topics.Kind.HOSPITAL:
                self._hear_hospital(topic, payload)
            case topics.Kind.SET if self._round is not None:
                self._round.feed(payload, time.monotonic())
            case topics.Kind.OBJECT if payload and topic.digest == self._watched:
                self._adopt_model()
            case topics.Kind.PLAN if payload:
                self._announced = _announced_plan(self._channel.join(payload))
            case topics.Kind.SUM if payload:
                self._closed = decode(Bundle, self._channel.join(payload))
            case topics.Kind.RECEIPTS if payload:
                content = self._channel.join(payload)
                receipts = trust.open_receipts(content, self._study.federation)
                self._receipts[receipts.plan] = content
                while len(self._receipts) > _RECEIPTS:
                    del self._receipts[next(iter(self._receipts))]
            case topics.Kind.MODEL if payload:
                self._agree(decode(Bundle, self._channel.join(payload)))

    def _hear_hospital(self, topic: topics.Topic, payload: bytes) -> None:
        if topic.hospital not in self._names or topic.step is None or topic.attempt is None:
            raise RecordError(f"{topic.hospital} is no hospital of federation {self._name}")
        hospital, step = self._names.index(topic.hospital), topic.step
        own = hospital == self._party.hospital
        # What stands under our own name tells of a database that was lost, or put back.
        if own and step not in ("commitment", "promise"):
            return
        content = self._channel.join(payload) if payload else b""
        if step in ("draft", "signature"):
            heard = self._drafts if step == "draft" else self._signatures
            if content:
                heard[hospital] = content
            else:
                heard.pop(hospital, None)
            return
        key = (hospital, step, topic.attempt)
        if not content:
            self._release.pop(key, None)
            return
        # Kept too: it may be of a round that this hospital has yet to take up.
        self._release[key] = content
        if self._round is not None:
            self._round.hear(*key, content)

    # What this hospital does.

    def _advance(self) -> None:
        try:
            self._follow()
            self._work()
            self._sign()
            if time.monotonic() >= self._repeat_at:
                # What the gateway did not log it may have come to too early.
                self._notices.forget(topics.model_topic(self._name))
                self._notices.forget(topics.propose_topic(self._name))
                self._repeat_at = time.monotonic() + _REPEAT_S
            if self._channel.connected:
                self._notices.publish(self._channel)
        except TransportError as error:
            _log.warning("published too little, will publish again: %s", error)
            self._stop.wait(_RETRY_S)
        except (StorageError, sqlite3.Error, VitalRingError) as error:
            self._pause(error)

    def _pause(self, error: Exception) -> None:
        _log.error("the aggregator cannot go on, next try in %g s: %s", _PAUSE_S, error)
        self._stop.wait(_PAUSE_S)

    def _follow(self) -> None:
        """Take up the round that the gateway announced, or closed."""
        if self._announced and self._adopt_plan(self._announced):
            self._announced = b""
        if self._closed is not None:
            closed = trust.open_report(self._closed.record, self._study.federation)
            if self._number < closed.round and closed.plan != self._stranger:
                self._adopt_plan(self._channel.fetch(closed.plan))

    def _adopt_plan(self, signed: bytes) -> bool:
        """Keep a plan that the gateway logged; False where it does not follow on what we know."""
        plan = trust.open_round_plan(signed, self._study)
        if plan.round <= self._number:
            return True
        if (self._current is not None and self._current.model is None) or (
            plan.round != self._number + 1
        ):
            # A model was missed; what the hospitals agreed on has all that it takes to go on.
            self._adopt_model()
        _, weights = rounds.next_plan(self._db, self._aggregator, plan.opens_ms)
        if plan.round != self._number + 1 or plan.weights != digest(weights):
            if self._stranger != digest(signed):
                self._stranger = digest(signed)
                _log.warning(
                    "round %d does not follow on what this hospital knows of the study: it goes "
                    "on with the next model that the others agree on",
                    plan.round,
                )
            return False
        self._current = rounds.keep_plan(self._db, plan.round, signed, weights)
        self._end_round()
        self._notices.leave(topics.propose_topic(self._name))
        return True

    def _agree(self, bundle: Bundle) -> None:
        """Note what a quorum signed; it counts once the gateway logged it."""
        model = trust.open_model(bundle.record, self._study.federation, self._study.plan)
        if self._current is not None and model.round < self._current.number:
            return
        self._agreed = bundle
        if self._watched:
            self._channel.unwatch(self._watched)
        self._watched = digest(bundle.record)
        self._channel.watch(self._watched)

    def _adopt_model(self) -> None:
        """Keep the agreed model with the state that it names."""
        if self._agreed is None:
            return
        study, bundle = self._study, self._agreed
        model = trust.open_model(bundle.record, study.federation, study.plan)
        last = self._current
        if last is not None and (model.round, last.model is None) < (last.number, True):
            return
        result = rounds.agreed_result(self._aggregator, model, bundle)
        seconds = time.monotonic() - self._began if self._round else 0.0
        rounds.keep_model(self._db, result, bundle.record, seconds)
        self._current = store.latest(self._db)
        self._end_round()
        self._agreed = None
        self._notices.leave(topics.model_topic(self._name))
        report(model)

    def _end_round(self) -> None:
        if self._round is not None:
            self._round.close()
        self._round, self._result = None, None
        forget_releases_before(self._db, self._number)

    def _work(self) -> None:
        """Recompute and decrypt the closed round's sum; come to a model of one's own."""
        current, bundle = self._current, self._closed
        if current is None or current.model is not None or bundle is None:
            return
        closed = trust.open_report(bundle.record, self._study.federation)
        if closed.plan != current.plan:
            return
        if closed.status != "summed":
            self._conclude("no sum", current, bundle.record, lambda: None)
            return
        if self._round is None:
            if current.plan not in self._receipts:
                return
            self._began = time.monotonic()
            plan = decode(Bundle, current.proposal).record
            receipts = self._receipts[current.plan]
            self._round = JointRound(
                self._db, self._party, plan, bundle.record, receipts, self._spool
            )
            for key, content in list(self._release.items()):
                self._hear_again(key, content)
        work = self._round
        request = work.request(time.monotonic())
        if request is not None:
            topic = topics.want_topic(self._name, self._names[self._party.hospital])
            self._channel.tell(topic, request)
        work.advance(self._now_ms())
        self._say(work.said())
        if work.outcome is not None:
            mean = functools.partial(work.mean, self._aggregator.goal)
            self._conclude(work.outcome, current, bundle.record, mean)

    def _conclude(
        self,
        outcome: object,
        current: store.Round,
        report_record: bytes,
        mean: Callable[[], Vector | None],
    ) -> None:
        """Come to this hospital's own result; anew where a refusal became an opened sum."""
        if self._result is None or self._result[0] != outcome:
            result = rounds.result_of(self._db, self._aggregator, current, report_record, mean())
            self._result = (outcome, result)

    def _hear_again(self, key: tuple[int, str, int], content: bytes) -> None:
        try:
            if self._round is not None:
                self._round.hear(*key, content)
        except VitalRingError as error:
            _log.debug("%s of hospital %d does not count: %s", key[1], key[0], error)

    def _say(self, said: dict[tuple[str, int], bytes]) -> None:
        """Have this on our topics, and nothing of rounds before."""
        mine = self._names[self._party.hospital]
        wanted = {
            topics.hospital_topic(self._name, mine, step, attempt): content
            for (step, attempt), content in said.items()
        }
        for topic in self._said - wanted.keys():
            self._notices.stand(topic, b"")
        for topic, content in wanted.items():
            self._notices.stand(topic, content)
        self._said = set(wanted)

    def _sign(self) -> None:
        """Bring the matter in hand forward: the closed round's model, or the next round's plan."""
        now, number = self._now_ms(), self._number
        signed: bytes | None = None
        if self._result is not None:
            result = self._result[1]
            models = self._drafts_of(GlobalModel, number, now)
            last = number >= rounds.last_round(self._aggregator)
            early = not last and self._aggregator.schedule.patience > 0
            signed = models.advance(
                lambda: result.model,
                lambda theirs: check_model(theirs, result.model, early=early),
                self._drafts,
                self._signatures,
                now,
            )
            if signed and (self._agreed is None or self._agreed.record != signed):
                bundle = Bundle(signed, result.objects)
                self._agree(bundle)
                self._notices.stand(topics.model_topic(self._name), encode(bundle))
        elif self._may_plan(now):
            plans = self._drafts_of(RoundPlan, number + 1, now)
            mine, weights = rounds.next_plan(self._db, self._aggregator, now)
            signed = plans.advance(
                lambda: mine,
                lambda theirs: check_plan(theirs, mine),
                self._drafts,
                self._signatures,
                now,
            )
            if signed:
                proposal = encode(Bundle(signed, (weights,)))
                self._notices.stand(topics.propose_topic(self._name), proposal)
        else:
            self._matter = None
        own = self._matter
        self._stand("draft", own.draft if own else None)
        self._stand("signature", own.signature if own else None)

    def _drafts_of(self, kind: type[Drafted], number: int, now_ms: int) -> Drafts[Drafted]:
        """Return the drafts of this matter; a new matter begins now."""
        matter = self._matter
        if matter is not None and (matter.kind, matter.number) == (kind, number):
            return cast(Drafts[Drafted], matter)
        party = self._party
        made = Drafts(
            kind,
            number,
            self._study.federation,
            party.hospital,
            party.signing_seed,
            self._study.plan.quorum,
            now_ms + party.hospital * self._aggregator.schedule.turn_ms,
        )
        self._matter = cast(Drafts[RoundPlan] | Drafts[GlobalModel], made)
        return made

    def _stand(self, step: str, content: bytes | None) -> None:
        mine = self._names[self._party.hospital]
        self._notices.stand(topics.hospital_topic(self._name, mine, step, 0), content or b"")

    def _may_plan(self, now_ms: int) -> bool:
        current, model = self._current, self._model()
        if current is None:
            return True
        if model is None or model.final:
            return False
        # A round without a result is not followed by the next before its time is over.
        return model.applied or now_ms > rounds.deadline_of(current, self._study)

    def _model(self) -> GlobalModel | None:
        if self._current is None or self._current.model is None:
            return None
        record = decode(Bundle, self._current.model).record
        return trust.open_model(record, self._study.federation, self._study.plan)


def subscriptions(study: trust.Study, hospital: int) -> list[str]:
    """Return what the aggregator of this hospital listens to."""
    name = study.federation.name
    return [
        topics.plan_topic(name, study.roster.cohort),
        topics.receipts_filter(name, study.roster.cohort),
        topics.sum_topic(name),
        topics.model_topic(name),
        topics.hospital_filter(name),
        topics.set_topic(name, study.federation.hospitals[hospital].name),
    ]


def _announced_plan(content: bytes) -> bytes:
    """Return the plan in an announcement; nothing at a study's end, whose model is an object."""
    try:
        return decode(PlanAnnouncement, content).plan
    except RecordError:
        return b""
