"""One of several hospitals' aggregators at work (SPEC 11.6 to 11.15).

All hospitals do the same: they recompute a round's sum, decrypt it together, come to the same
model, and sign it and the next plan together. What the gateway logged is what happened; a
hospital that missed something takes it from there. `AggregatorService` is the same for one
hospital that decrypts alone.

What others say is in the `Inbox`; this module follows it.
"""

import functools
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

from vitalring.aggregator import rounds, store
from vitalring.aggregator.channel import Channel
from vitalring.aggregator.cosign import check_model, check_plan
from vitalring.aggregator.drafts import Drafted, Drafts
from vitalring.aggregator.joint_inbox import Agreed, Inbox
from vitalring.aggregator.joint_round import JointRound
from vitalring.aggregator.notices import Notices
from vitalring.aggregator.optimisers import Vector
from vitalring.aggregator.release import Party
from vitalring.aggregator.release_store import forget_releases_before, trust_opened
from vitalring.aggregator.rosters import Rosters
from vitalring.aggregator.service import report
from vitalring.errors import (
    RecordError,
    SignatureError,
    StorageError,
    TransportError,
    VitalRingError,
)
from vitalring.mqtt import Message
from vitalring.protocol import topics, trust
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.records import (
    Bundle,
    GlobalModel,
    RoundPlan,
)

_log = logging.getLogger(__name__)
_PAUSE_S = 5.0
"""Between attempts at what the disk refused."""
_RETRY_S = 1.0
"""Between attempts at what the broker refused."""
_REPEAT_S = 15.0
"""What the gateway has not logged by then is said again."""


class JointService:
    """One hospital's aggregator in a study whose sums several hospitals decrypt."""

    def __init__(
        self,
        db: sqlite3.Connection,
        aggregator: rounds.Aggregator,
        party: Party,
        rosters: Rosters,
        channel: Channel,
        spool: Path,
        now_ms: Callable[[], int],
    ) -> None:
        """Go on from what is on disk; `spool` is a file for one round's ciphertexts."""
        self._db, self._aggregator, self._party = db, aggregator, party
        self._rosters = rosters
        self._study = aggregator.study
        self._name = self._study.federation.name
        self._names = [each.name for each in self._study.federation.hospitals]
        self._channel, self._notices = channel, Notices()
        self._inbox = Inbox(
            self._study, rosters, party.hospital, party.params, channel.watch, channel.unwatch
        )
        self._spool, self._now_ms = spool, now_ms
        self._stop = threading.Event()
        # The newest round that the gateway logged, with its model if that is logged too.
        self._stand_at(store.latest(db))
        self._next: tuple[RoundPlan, bytes] | None = None
        # What is in hand: a closed round, what follows from it, and what is to be signed.
        self._round: JointRound | None = None
        self._began, self._report_record = 0.0, b""
        self._result: tuple[object, rounds.Result] | None = None
        self._matter: Drafts[RoundPlan] | Drafts[GlobalModel] | None = None
        self._said: set[str] = set()
        self._repeat_at = 0.0

    def until(self, stop: threading.Event) -> None:
        """Wait for nothing any more once `stop` is set."""
        self._stop = stop
        self._channel.until(stop)

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set or the final model is in the log."""
        self.until(stop)
        while not stop.is_set() and not self.finished():
            self.step()

    def step(self) -> None:
        """Take what came, after a moment without anything too, and do what follows."""
        messages = self._channel.receive_all()
        if self._channel.reconnected():
            self._notices.forget()
        for message in messages:
            self._take(message)
        self._advance()

    def finished(self) -> bool:
        """Tell whether the final model is in the log."""
        return self._model is not None and self._model.final

    @property
    def _number(self) -> int:
        return self._current.number if self._current else 0

    def _stand_at(self, current: store.Round | None) -> None:
        self._current, self._model = current, None
        self._serial = self._rosters.serial_of(current.proposal) if current else -1
        self._inbox.number = self._number
        if current is not None and current.model is not None:
            record = decode(Bundle, current.model).record
            self._model = trust.open_model(record, self._study.federation, self._study.plan)

    # What others say.

    def _take(self, message: Message) -> None:
        try:
            self._inbox.take(message)
        except VitalRingError as error:
            _log.warning("the message on %s is refused: %s", message.topic[:120], error)

    def _deliver(self) -> None:
        """Give the round in hand what came for it; take up the model that the gateway logged."""
        inbox = self._inbox
        frames, inbox.frames = inbox.frames, []
        fresh, inbox.fresh = inbox.fresh, []
        if self._round is not None:
            for frame in frames:
                self._round.feed(frame, time.monotonic())
            for key in fresh:
                self._hear_again(key)
        self._said |= inbox.own_said
        inbox.own_said = set()
        if inbox.logged is not None:
            self._adopt_logged(inbox.logged)
            inbox.logged = None

    # What this hospital does.

    def _advance(self) -> None:
        try:
            # What the next steps build on is on disk before them.
            self._rosters.save()
            self._deliver()
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
        """Wait; what the disk refused in the midst of a round is taken up anew from the disk."""
        _log.error("the aggregator cannot go on, next try in %g s: %s", _PAUSE_S, error)
        if isinstance(error, StorageError | sqlite3.Error):
            self._close_round()
        self._stop.wait(_PAUSE_S)

    def _follow(self) -> None:
        """Take up the round that the gateway announced, as far as this hospital knows enough."""
        if self._inbox.announced is None or not self._inbox.news:
            return
        if self._adopt_plan(*self._inbox.announced):
            self._inbox.announced = None
        self._inbox.news = False

    def _adopt_plan(self, plan: RoundPlan, signed: bytes) -> bool:
        """Keep a plan that the gateway logged; False where it does not follow on what we know."""
        if plan.round <= self._number:
            return True
        if plan.round > self._number + 1 or (self._current is not None and self._model is None):
            self._adopt_missed(plan)
        known = self._current is None or self._model is not None
        if not known or plan.round != self._number + 1 or not self._goes_on(plan):
            _log.warning(
                "round %d does not follow on what this hospital knows of the study: it goes "
                "on with the next model that the others agree on",
                plan.round,
            )
            return False
        weights = self._next_plan(0)[1]
        self._stand_at(rounds.keep_plan(self._db, plan.round, signed, weights))
        self._end_round()
        self._notices.leave(topics.propose_topic(self._name))
        return True

    def _goes_on(self, plan: RoundPlan) -> bool:
        """Tell whether a plan starts from the weights and the clip of one's own state."""
        own = self._next_plan(0)[0]
        return (plan.weights, plan.clip_factor) == (own.weights, own.clip_factor)

    def _adopt_missed(self, plan: RoundPlan) -> None:
        """Keep the model on which a logged plan follows: then that is logged too."""
        for agreed in list(self._inbox.agreed.values()):
            model = agreed.model
            follows = (model.round, model.weights) == (plan.round - 1, plan.weights)
            if follows and not model.final:
                self._adopt_logged(agreed)

    def _adopt_logged(self, agreed: Agreed) -> None:
        try:
            self._adopt_model(agreed)
        except RecordError as error:
            _log.warning("the model of round %d is of no use: %s", agreed.model.round, error)

    def _adopt_model(self, agreed: Agreed) -> None:
        """Keep a logged model with the state that it names. Raises RecordError without that."""
        model, bundle = agreed.model, agreed.bundle
        if model.round < self._number or (model.round == self._number and self._model is not None):
            return
        current = self._current
        if current and model.round == current.number and model.plan != current.plan:
            raise RecordError(f"the model of round {model.round} follows from another plan")
        # Objects are not signed: what others left out this hospital may have found itself.
        own = self._result[1].objects if self._result is not None else ()
        others = (o for each in self._inbox.agreed.values() for o in each.bundle.objects)
        bundle = replace(bundle, objects=(*bundle.objects, *own, *others))
        result = rounds.agreed_result(self._aggregator, model, bundle)
        seconds = time.monotonic() - self._began if self._round else 0.0
        rounds.keep_model(self._db, result, bundle.record, seconds)
        if model.applied:
            trust_opened(self._db, model.round)
        self._stand_at(store.latest(self._db))
        self._end_round()
        self._inbox.news = True
        self._notices.leave(topics.model_topic(self._name))
        report(model)

    def _end_round(self) -> None:
        self._close_round()
        self._result, self._next = None, None
        forget_releases_before(self._db, self._number)

    def _close_round(self) -> None:
        if self._round is not None:
            self._round.close()
        self._round = None

    def _next_plan(self, now_ms: int) -> tuple[RoundPlan, bytes]:
        """Return the plan of the next round as of now, and the weights that it starts from."""
        study, _ = self._rosters.next(self._serial)
        if self._next is None or self._next[0].roster != study.roster_digest:
            aggregator = replace(self._aggregator, study=study)
            self._next = rounds.next_plan(self._db, aggregator, 0)
        plan, weights = self._next
        late = plan.deadline_ms - plan.opens_ms
        return replace(plan, opens_ms=now_ms, deadline_ms=now_ms + late), weights

    def _work(self) -> None:
        """Recompute and decrypt the closed round's sum; come to a model of one's own."""
        current, closed = self._current, self._inbox.closed
        if current is None or current.model is not None or closed is None:
            return
        if closed.report.plan != current.plan:
            return
        if closed.report.status != "summed":
            self._conclude("no sum", current, closed.record, lambda: None)
            return
        if self._round is None:
            self._began, self._report_record = time.monotonic(), closed.record
            plan = decode(Bundle, current.proposal).record
            party = replace(self._party, study=self._rosters.of_plan(plan))
            self._round = JointRound(
                self._db, party, plan, closed.record, closed.receipts, self._spool
            )
            for key in list(self._inbox.release):
                self._hear_again(key)
        work = self._round
        request = work.request(time.monotonic())
        if request is not None:
            topic = topics.want_topic(self._name, self._names[self._party.hospital])
            self._channel.tell(topic, request)
        work.advance(self._now_ms())
        self._say(work.said())
        if work.outcome is not None:
            mean = functools.partial(work.mean, self._aggregator.goal)
            # The report that this hospital recomputed, whatever the gateway says meanwhile.
            self._conclude(work.outcome, current, self._report_record, mean)

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

    def _hear_again(self, key: tuple[int, str, int]) -> None:
        content = self._inbox.release.get(key)
        try:
            if self._round is not None and content is not None:
                self._round.hear(*key, content)
        except (RecordError, SignatureError) as error:
            _log.info("%s of hospital %d does not count: %s", key[1], key[0], error)

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
        new: tuple[bytes, ...] = ()
        if self._result is not None:
            result = self._result[1]
            models = self._drafts_of(GlobalModel, number, now)
            last = number >= rounds.last_round(self._aggregator)
            early = not last and self._aggregator.schedule.patience > 0
            signed = models.advance(
                lambda: result.model,
                lambda theirs: check_model(theirs, result.model, early=early),
                self._inbox.drafts,
                self._inbox.signatures,
                now,
            )
            if signed:
                bundle = Bundle(signed, result.objects)
                if digest(signed) not in self._inbox.agreed:
                    self._inbox.agree(bundle)
                self._notices.stand(topics.model_topic(self._name), encode(bundle))
        elif self._may_plan(now):
            self._rosters.look()
            _, new = self._rosters.next(self._serial)
            plans = self._drafts_of(RoundPlan, number + 1, now)
            mine, weights = self._next_plan(now)
            signed = plans.advance(
                lambda: mine,
                lambda theirs: check_plan(theirs, mine),
                self._inbox.drafts,
                self._inbox.signatures,
                now,
            )
            if signed:
                proposal = encode(Bundle(signed, (weights, *new)))
                self._notices.stand(topics.propose_topic(self._name), proposal)
        else:
            self._matter = None
        own = self._matter
        self._stand("roster", new[-1] if new else None)
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
        current, model = self._current, self._model
        if current is None:
            return True
        if model is None or model.final:
            return False
        # A round without a result is not followed by the next before its time is over.
        return model.applied or now_ms > rounds.deadline_of(current, self._study)


def subscriptions(study: trust.Study, hospital: int) -> list[str]:
    """Return what the aggregator of this hospital listens to."""
    name = study.federation.name
    return [
        topics.plan_topic(name, study.roster.cohort),
        topics.sum_topic(name),
        topics.model_topic(name),
        topics.hospital_filter(name),
        topics.set_topic(name, study.federation.hospitals[hospital].name),
    ]
