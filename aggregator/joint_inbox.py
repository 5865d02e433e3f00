"""What one of several hospitals hears from the gateway and the others (SPEC 11.6 to 11.15).

What comes is checked before it is remembered, so that old or hostile messages stop nobody; of
each kind the newest is kept. The broker may forget a message at once: all are retained, and come
again with a new connection, but for the gateway's updates, which are asked for again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from vitalring.aggregator.parcels import Parcels
from vitalring.aggregator.rosters import Rosters, UnknownRosterError
from vitalring.errors import RecordError, SignatureError
from vitalring.mqtt import Message
from vitalring.protocol import blobs, limits, topics, trust
from vitalring.protocol.cbor import decode, digest
from vitalring.protocol.records import (
    Bundle,
    GlobalModel,
    PlanAnnouncement,
    RoundPlan,
    RoundReport,
)
from vitalring.protocol.release import member_sets
from vitalring.protocol.signing import Signed
from vitalring.protocol.threshold.params import ThresholdParams

_MODELS = 16
"""Models of a round, signed by different hospitals, of which one is going to be logged."""

Key = tuple[int, str, int]
"""Hospital, step and attempt: what names a message of a release."""


@dataclass(frozen=True)
class Closed:
    """A round that the gateway closed."""

    report: RoundReport
    record: bytes
    receipts: bytes


@dataclass(frozen=True)
class Agreed:
    """A model that a quorum signed, with what came along; it counts once it is logged."""

    model: GlobalModel
    bundle: Bundle


@dataclass
class Inbox:
    """The newest of what others say; its owner empties `frames` and `fresh`, and takes `logged`.

    `number` is the newest round that the owner knows the gateway to have logged. `fresh` names
    messages of a release that came since, `own_said` what stands under the owner's own name.
    What it learns of `rosters` its owner saves.
    """

    study: trust.Study
    rosters: Rosters
    hospital: int
    params: ThresholdParams
    watch: Callable[[bytes], None]
    unwatch: Callable[[bytes], None]
    number: int = 0
    announced: tuple[RoundPlan, bytes] | None = None
    closed: Closed | None = None
    logged: Agreed | None = None
    agreed: dict[bytes, Agreed] = field(default_factory=dict)
    drafts: dict[int, bytes] = field(default_factory=dict)
    signatures: dict[int, bytes] = field(default_factory=dict)
    release: dict[Key, bytes] = field(default_factory=dict)
    fresh: list[Key] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)
    own_said: set[str] = field(default_factory=set)
    news: bool = False
    """Whether anything came by which a plan may be followed that could not be before."""

    def __post_init__(self) -> None:
        self._names = [each.name for each in self.study.federation.hospitals]
        self._parcels = Parcels(self.watch, self.unwatch)
        self._attempts = len(member_sets(self.params.access))
        # A closed round's plan that was missed.
        self._missed = b""
        # A logged plan whose roster is not known yet, and that roster's digest.
        self._waiting: tuple[bytes, bytes] | None = None

    def take(self, message: Message) -> None:
        """Take a message. Raises VitalRingError for what cannot be; nothing of it is kept."""
        topic, payload = topics.parse(message.topic), message.payload
        if topic.kind is topics.Kind.SET:
            self.frames.append(payload)
        elif topic.kind is topics.Kind.OBJECT:
            self._hear_object(topic.digest or b"", message)
        else:
            content = self._parcels.take(message.topic, payload, self._most_bytes(topic))
            if content is not None:
                self._hear_whole(topic, content)

    def _hear_object(self, name: bytes, message: Message) -> None:
        payload = message.payload
        if payload and name == self._missed:
            plan = blobs.whole(payload)
            if digest(plan) == name:
                self._hear_plan(plan)
        if payload and self._waiting is not None and name == self._waiting[1]:
            roster = self._parcels.take(message.topic, payload, Signed.MAX_BYTES)
            if roster is not None:
                self._hear_roster(roster)
        for topic, content in self._parcels.piece(name, payload):
            self._hear_whole(topics.parse(topic), content)

    def _most_bytes(self, topic: topics.Topic) -> int:
        """Return how large a message on this topic may be. Raises RecordError for none at all."""
        if topic.kind is not topics.Kind.HOSPITAL:
            return 2 * limits.MAX_OBJECT_BYTES
        if topic.hospital not in self._names or (topic.attempt or 0) >= self._attempts:
            raise RecordError(f"there is no such hospital, or no set {topic.attempt} of members")
        if topic.step in ("check", "part"):
            return self.study.plan.groups * self.params.partial_bytes
        return Signed.MAX_BYTES

    def _hear_whole(self, topic: topics.Topic, content: bytes) -> None:
        match topic.kind:
            case topics.Kind.HOSPITAL:
                self._hear_hospital(topic, content)
            case topics.Kind.OBJECT:
                self._hear_roster(content)
            case topics.Kind.PLAN if content:
                self._hear_plan(_announced_plan(content))
            case topics.Kind.SUM if content:
                self._hear_gateway(decode(Bundle, content))
            case topics.Kind.MODEL if content:
                self.agree(decode(Bundle, content))

    def _hear_plan(self, signed: bytes) -> None:
        if not signed:
            return
        self._wait_for(None)
        try:
            plan = self.rosters.open_plan(signed)
        except UnknownRosterError as error:
            # This hospital was away while it was signed.
            self._wait_for((signed, error.name))
        else:
            self.announced, self.news = (plan, signed), True

    def _wait_for(self, waiting: tuple[bytes, bytes] | None) -> None:
        if self._waiting is not None:
            self.unwatch(self._waiting[1])
        self._waiting = waiting
        if waiting is not None:
            self.watch(waiting[1])

    def _hear_roster(self, record: bytes) -> None:
        """Learn a roster; take the logged plan that waited for it."""
        self.rosters.learn(record)
        if self._waiting is not None and digest(record) == self._waiting[1]:
            self._hear_plan(self._waiting[0])

    def _hear_gateway(self, bundle: Bundle) -> None:
        """Take what the gateway alone says: a closed round, or the newest model that it logged."""
        try:
            model = trust.open_model(bundle.record, self.study.federation, self.study.plan)
        except (RecordError, SignatureError):
            self._hear_closed(bundle)
        else:
            self.logged = Agreed(model, bundle)

    def _hear_closed(self, bundle: Bundle) -> None:
        """Note a closed round; ask for its plan where that was missed."""
        closed = trust.open_report(bundle.record, self.study.federation)
        receipts = b""
        if closed.status == "summed":
            receipts = bundle.objects[0] if bundle.objects else b""
            trust.open_receipts(receipts, self.study.federation)
        self.closed = Closed(closed, bundle.record, receipts)
        if closed.round > self.number and closed.plan != self._missed:
            if self._missed:
                self.unwatch(self._missed)
            self._missed = closed.plan
            self.watch(closed.plan)

    def _hear_hospital(self, topic: topics.Topic, content: bytes) -> None:
        hospital, step = self._names.index(topic.hospital or ""), topic.step or ""
        own = hospital == self.hospital
        if own and content and step not in ("draft", "signature"):
            # Said before a restart; it is cleared with what this round does not say again.
            self.own_said.add(
                topics.hospital_topic(
                    self.study.federation.name, self._names[hospital], step, topic.attempt or 0
                )
            )
        # What stands under our own name tells of a database that was lost, or put back.
        if own and step not in ("commitment", "promise"):
            return
        if step == "roster":
            if content:
                self._hear_roster(content)
            return
        if step in ("draft", "signature"):
            heard = self.drafts if step == "draft" else self.signatures
            if content:
                heard[hospital] = content
            else:
                heard.pop(hospital, None)
            return
        key = (hospital, step, topic.attempt or 0)
        if not content:
            self.release.pop(key, None)
            return
        # Kept too: it may be of a round that this hospital has yet to take up.
        self.release[key] = content
        self.fresh.append(key)

    def agree(self, bundle: Bundle) -> None:
        """Note what a quorum signed; it counts once the gateway logged it."""
        model = trust.open_model(bundle.record, self.study.federation, self.study.plan)
        if model.round < self.number:
            return
        named = tuple(o for o in bundle.objects if digest(o) in (model.weights, model.state))
        self.agreed[digest(bundle.record)] = Agreed(model, replace(bundle, objects=named))
        newest = max(agreed.model.round for agreed in self.agreed.values())
        for old, agreed in list(self.agreed.items()):
            if agreed.model.round < newest or len(self.agreed) > _MODELS:
                del self.agreed[old]
        self.news = True


def _announced_plan(content: bytes) -> bytes:
    """Return the plan in an announcement; nothing at a study's end, whose model is an object."""
    try:
        return decode(PlanAnnouncement, content).plan
    except RecordError:
        return b""
