"""One of two gateways at work: it admits its halves of updates and agrees with the other one.

The first hospital's gateway publishes plan, log and receipts for devices as any gateway does.
The second one's log is its own to serve: at the broker it says what the agreement needs, its
sum, and what it logged (SPEC 10.6 to 10.9). What was heard from the other gateway is retained
at the broker, so it is kept in memory here until its step is due.
"""

import logging
import sqlite3
from collections.abc import Sequence

from vitalring.errors import RecordError, RefusedError, SignatureError
from vitalring.gateway import admission, agreement, log, rounds
from vitalring.gateway.publisher import Publisher
from vitalring.gateway.service import Gateway
from vitalring.mqtt import Link, Message
from vitalring.protocol import agreement as shares
from vitalring.protocol import blobs, topics, trust, two_server
from vitalring.protocol.agreement import Closing
from vitalring.protocol.cbor import decode
from vitalring.protocol.records import LoggedObject
from vitalring.protocol.secure_sum import SumScheme
from vitalring.protocol.signing import Signed
from vitalring.protocol.update import RoundChecks

_log = logging.getLogger(__name__)

PATIENCE_MS = 60_000
"""After a round's deadline the other gateway is waited for so long."""


class SharePublisher(Publisher):
    """What the broker holds retained for a gateway with shares."""

    def __init__(
        self,
        db: sqlite3.Connection,
        files: trust.StudyFiles,
        link: Link,
        max_payload_bytes: int,
        role: int,
    ) -> None:
        super().__init__(db, files, link, max_payload_bytes)
        self._role = role
        self._hospital = files.study.federation.hospitals[role].name

    def all(self) -> None:
        """Publish everything anew: the broker may have forgotten it."""
        if self._role == two_server.VECTOR:
            super().all()
        else:
            self.round()

    def round(self) -> None:
        """Publish what the newest round has for devices, the other gateway and aggregators."""
        if self._role == two_server.VECTOR:
            super().round()
        current = rounds.latest(self._db)
        if current is None:
            return
        known = agreement.state(self._db, current.plan)
        self._say("held", known.own if known else b"")
        self._say("half", (known.half or b"") if known else b"")
        if self._role == two_server.SEED:
            closed = current.status == "closed"
            self._say("sum", rounds.sum_bundle(self._db, current, self._study) if closed else b"")
            # Only when both logs have a plan or a model may the aggregator go on.
            self._say("logged", self._newest_record(current))

    def _newest_record(self, current: rounds.Round) -> bytes:
        if current.status != "done":
            return current.plan
        size = log.size(self._db)
        return decode(LoggedObject, log.entries(self._db, size - 1, size)[0]).digest

    def _say(self, step: str, content: bytes) -> None:
        self._replace(topics.gateway_topic(self._name, self._hospital, step), content)


class ShareGateway(Gateway):
    """The gateway of the first or the second hospital of a study with shares."""

    @property
    def _role(self) -> int:
        return trust.log_of(self._study.federation, self._keys.log.public)

    def _new_publisher(self, files: trust.StudyFiles, max_payload_bytes: int) -> Publisher:
        self._heard: dict[str, bytes] = {}
        self._holder = agreement.Holder(self._keys.log, self._study.federation, self._role)
        return SharePublisher(self._db, files, self._link, max_payload_bytes, self._role)

    def _new_scheme(self) -> SumScheme:
        return self._share_sum()

    def _share_sum(self) -> two_server.ShareSum:
        plan = self._study.plan
        params = two_server.share_params(plan.codec, plan.vector_size)
        return two_server.share_sum(self._role, params)

    def _screen(self, box: bytes) -> admission.Admission | None:
        return admission.screen(
            self._db,
            self._open,
            box,
            self._keys.sealing,
            self._now_ms(),
            agreement.open_share,
        )

    def _count(
        self, current: RoundChecks, valid: Sequence[admission.Admission], spent_us: int
    ) -> list[tuple[admission.Admission, RefusedError]]:
        return admission.count(self._db, current, valid, spent_us, keep=True, add=False)

    def _act(self, message: Message) -> None:
        if message.payload:
            topic = topics.parse(message.topic)
            if topic.kind is topics.Kind.GATEWAY:
                other = self._study.federation.hospitals[self._holder.other].name
                if topic.hospital == other and topic.step in ("held", "half"):
                    # Put together when it is due: a piece of something else may be on its way.
                    self._heard[topic.step] = message.payload
                return
        super()._act(message)

    def _prepare(self) -> RoundChecks | None:
        prepared = super()._prepare()
        if prepared and agreement.state(self._db, prepared.plan_digest) is not None:
            return None  # it told what it has: nothing more is admitted
        return prepared

    def _close_if_due(self) -> bool:
        """Go as far with the agreement as what was heard allows; True where the round closed."""
        current = rounds.latest(self._db)
        if current is None or current.status != "open":
            return False
        closing = Closing(trust.open_round_plan(current.signed_plan, self._study), current.plan)
        known = agreement.state(self._db, current.plan)
        if known is None:
            if not self._is_due(current, closing):
                return False
            # What waits came in time.
            self._settle()
            agreement.hold(self._db, self._holder, closing)
            self._open = None
            self._publisher.round()
        try:
            self._agree(closing)
        except (SignatureError, RecordError) as error:
            # A second set stays in the database as evidence; what came first stands.
            _log.error("what the other gateway said is refused: %s", error)
            self._heard.clear()
        known = agreement.state(self._db, current.plan)
        if known is None:
            return False
        if known.both is not None:
            agreement.settle(self._db, self._holder, closing, self._share_sum())
        elif self._is_hopeless(known, closing):
            agreement.give_up(self._db, closing)
        else:
            return False
        plan, refused = closing.plan, dict(self._refusals)
        expected = len(self._study.roster.keys)
        rounds.close(self._db, self._keys.log, plan, expected, refused, self._now_ms(), known.both)
        self._refusals.clear()
        self._heard.clear()
        self._publisher.round()
        return True

    def _agree(self, closing: Closing) -> None:
        """Take the other gateway's set and signature, if they came and fit this round."""
        known = agreement.state(self._db, closing.digest)
        theirs = self._of_round("held", closing)
        if known and theirs and theirs != known.theirs:
            agreement.take_set(self._db, self._holder, closing, theirs)
            self._publisher.round()
            known = agreement.state(self._db, closing.digest)
        if (
            known
            and known.half
            and known.both is None
            and (half := self._of_round("half", closing))
        ):
            agreement.take_half(self._db, self._holder, closing, half)

    def _of_round(self, step: str, closing: Closing) -> bytes | None:
        """Return what was heard in a step, if it is about this round: the broker retains all."""
        payload = self._heard.get(step)
        if payload is None:
            return None
        heard = blobs.join(payload, self._piece)
        federation, role = self._study.federation, self._holder.other
        try:
            if step == "held":
                shares.open_share_set(heard, federation, role, closing)
            elif shares.open_half_agreed(heard, federation, role).plan != closing.digest:
                return None
        except (SignatureError, RecordError) as error:
            _log.debug("%s of the other gateway is not about this round: %s", step, error)
            return None
        return heard

    def _is_due(self, current: rounds.Round, closing: Closing) -> bool:
        """Tell whether nothing more can come: all are here, all of the other's, or it is late."""
        if (
            current.admitted >= self._room(closing.plan)
            or self._now_ms() > closing.plan.deadline_ms
        ):
            return True
        theirs = self._of_round("held", closing)
        if theirs is None:
            return False
        held = decode(shares.ShareSet, decode(Signed, theirs).payload).digests
        rows = self._db.execute("SELECT digest FROM admitted WHERE plan = ?", (closing.digest,))
        return set(held) <= {name for (name,) in rows.fetchall()}

    def _is_hopeless(self, known: agreement.Agreement, closing: Closing) -> bool:
        """Tell whether the set is too small, or the other gateway is silent for too long."""
        if known.theirs is not None and known.half is None:
            return True
        return self._now_ms() > closing.plan.deadline_ms + PATIENCE_MS


def subscriptions(study: trust.Study, role: int) -> list[str]:
    """Return what a gateway with shares listens to."""
    name, cohort = study.federation.name, study.roster.cohort
    other = study.federation.hospitals[1 - role].name
    first = role == two_server.VECTOR
    return [
        topics.uplink_filter(name, cohort) if first else topics.share_filter(name, cohort),
        topics.propose_topic(name),
        topics.model_topic(name),
        topics.gateway_topic(name, other, "held"),
        topics.gateway_topic(name, other, "half"),
        # The host enrols devices.
        *([topics.enrol_topic(name, cohort)] if first else []),
    ]
