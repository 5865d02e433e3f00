"""The gateway at work: messages in, state on disk, retained messages out.

Whatever the broker holds retained follows from the database, so after any
crash, of the gateway or of the broker, the publisher makes it whole again.
A message is acknowledged to the broker only after its effect is on disk; one
that could not take effect comes again after a reconnection.
"""

import contextlib
import dataclasses
import functools
import logging
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from vitalring.errors import Reason, RefusedError, StorageError, TransportError, VitalRingError
from vitalring.gateway import admission, rosters, rounds, words
from vitalring.gateway.config import GatewayKeys
from vitalring.gateway.contributions import KeptUpdates, SetServer
from vitalring.gateway.office import Office
from vitalring.gateway.publisher import Publisher
from vitalring.gateway.waiting import WaitingUpdates
from vitalring.mqtt import Connected, Link, Message
from vitalring.protocol import blobs, topics, trust
from vitalring.protocol import rosters as succession
from vitalring.protocol.cbor import decode
from vitalring.protocol.chunks import ChunkLimits, Reassembler
from vitalring.protocol.records import Bundle, RoundPlan
from vitalring.protocol.secure_sum import SumScheme
from vitalring.protocol.update import RoundChecks, round_checks

_log = logging.getLogger(__name__)
_TICK_S = 0.5
_PAUSE_S = 5.0
"""Between attempts at what the disk or the broker refused."""
_PIECE_TIMEOUT_S = 10.0
_SET_TIMEOUT_S = 10.0
_LOOK_MS = 3_600_000
_FROM_DEVICES = (topics.Kind.UPLINK, topics.Kind.SHARE, topics.Kind.ENROL)


class _PieceMissingError(TransportError):
    """A bundle cannot be read yet."""


class Gateway:
    """One hospital's gateway for one study. Drive it with `run` or `take` and `tick`."""

    def __init__(
        self,
        db: sqlite3.Connection,
        files: trust.StudyFiles,
        keys: GatewayKeys,
        link: Link,
        max_payload_bytes: int,
        chunk_limits: ChunkLimits,
        now_ms: Callable[[], int],
        kept: KeptUpdates | None = None,
    ) -> None:
        self._db = db
        self._study = files.study
        self._keys = keys
        self._link = link
        self._publisher = self._new_publisher(files, max_payload_bytes)
        self._now_ms = now_ms
        self._kept = kept or KeptUpdates()
        # The host alone enrols devices.
        hosting = keys.log.public == files.study.federation.hospitals[0].log_key
        self._office = Office(db, files.study.federation, keys.sealing) if hosting else None
        # The call that the broker holds retained.
        self._called: bytes | None = None
        self._sets = SetServer(db, files.study.federation, max_payload_bytes, self._kept)
        self._stop = threading.Event()
        self._reassembler = Reassembler(chunk_limits)
        self._scheme = self._new_scheme()
        self._refusals: Counter[Reason] = Counter()
        self._waiting = WaitingUpdates()
        # The piece that a bundle waits for, and bundles that came meanwhile, the newest of a kind.
        self._awaited: bytes | None = None
        self._piece_message: bytes | None = None
        self._postponed: dict[topics.Kind, Message] = {}
        # A model that came before the commitments that it needs.
        self._early: Message | None = None
        # Whether the broker may lack something, and when to publish again (monotonic seconds).
        self._stale = False
        self._publish_at = 0.0
        # When to look next for updates that are kept too long (ms since 1970).
        self._look_at_ms = 0
        rounds.open_study_log(db, keys.log, files.records, list(files.objects.values()))
        self._open = self._prepare()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set."""
        self._stop = stop
        while not stop.is_set():
            self._receive()
            self.tick()
        self._guarded(self._settle)

    def take(self, message: Message) -> None:
        """Act on a message, then let the broker forget it. Nothing that arrives stops us."""
        self._collect(message)
        self._guarded(self._settle)

    def _collect(self, message: Message) -> None:
        """Act on a message; an update may wait for others, and its acknowledgement with it."""
        try:
            self._act(message)
        except _PieceMissingError as error:
            _log.warning("message on %s comes too early: %s", message.topic[:120], error)
            self._link.reconnect()
            return
        except (StorageError, sqlite3.Error) as error:
            self._pause(error)
            self._link.reconnect()
            return
        except TransportError as error:
            self._publish_later(error)
        except VitalRingError as error:
            _log.warning("message on %s dropped: %s", message.topic[:120], error)
        if not self._waiting.holds(message):
            self._link.ack(message)
        if self._waiting.full:
            # After the question above: a step acknowledges what it decides, this message too, and
            # a second time would free another message that the broker gave its number.
            self._guarded(self._step)

    def tick(self) -> None:
        """Count what waited, close the round if nothing more can come, publish what is missing."""
        while self._postponed:
            self._collect(self._postponed.popitem()[1])
        self._guarded(self._work)

    def _work(self) -> None:
        if self._is_step_due():
            self._step()
        self._close_if_due()
        self._delete_if_due()
        self._send_set()
        if self._stale and self._link.connected and time.monotonic() >= self._publish_at:
            self._publisher.all()
            self._say_call(anew=True)
            self._stale = False
        self._say_call()

    def _say_call(self, *, anew: bool = False) -> None:
        """Publish the enrolment office's call when a command changed it, or all is published."""
        if self._office is None or not self._link.connected:
            return
        call = self._office.look(self._now_ms())
        if anew or call != self._called:
            self._publisher.call(call)
            self._called = call

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do something that broker and disk may refuse; then it is tried again later."""
        try:
            work()
        except TransportError as error:
            self._publish_later(error)
        except (StorageError, sqlite3.Error) as error:
            self._pause(error)

    def _is_step_due(self) -> bool:
        """Tell whether updates have waited long enough, or no others can come."""
        left_s = self._waiting.left_s(time.monotonic())
        if left_s is None or self._open is None:
            return left_s is not None
        here = admission.counted(self._db, self._open.plan_digest) + len(self._waiting)
        return left_s <= 0 or here >= self._room(self._open.plan)

    def _room(self, plan: RoundPlan) -> int:
        """Return how many updates a round can have at most."""
        return min(len(self._study.roster.keys), plan.codec.n_max)

    def _settle(self) -> None:
        """Decide on every update that waits."""
        while self._waiting:
            self._step()

    def _step(self) -> None:
        """Decide on some of the updates that wait, in a bounded time."""
        current = self._open

        def count(
            valid: Sequence[admission.Admission], spent_us: int
        ) -> list[tuple[admission.Admission, RefusedError]]:
            assert current is not None  # noqa: S101 - without a round nothing is valid
            return self._count(current, valid, spent_us)

        step = self._waiting.step(functools.partial(admission.judge, self._db, current), count)
        self._refusals.update(step.refused)
        for message in step.done:
            self._link.ack(message)

    def _receive(self) -> None:
        wait_s = 0.0 if self._sets.busy and self._link.connected else _TICK_S
        left_s = self._waiting.left_s(time.monotonic())
        event = self._link.receive(wait_s if left_s is None else min(wait_s, left_s))
        if isinstance(event, Connected):
            self._stale, self._publish_at = True, 0.0
        elif event is not None:
            self._collect(event)

    def _publish_later(self, error: TransportError) -> None:
        _log.warning("published too little, will publish again: %s", error)
        # A new connection ends the wait: what refuses us is then perhaps another broker.
        self._stale, self._publish_at = True, time.monotonic() + _PAUSE_S

    def _pause(self, error: Exception) -> None:
        """Wait for space on the disk. Nothing is lost meanwhile: the broker keeps its messages."""
        _log.error("the gateway cannot keep its state, next try in %g s: %s", _PAUSE_S, error)
        self._stop.wait(_PAUSE_S)
        # What was committed before the fault counts, whatever we knew of it.
        with contextlib.suppress(sqlite3.Error):
            self._open = self._prepare()
        self._stale = True

    def _act(self, message: Message) -> None:
        if not message.payload:
            return  # a retained message that its owner cleared
        topic = topics.parse(message.topic)
        if message.retained and topic.kind in _FROM_DEVICES:
            # No device asks for that; it would stay in the broker's memory for ever.
            self._link.publish(message.topic, b"", retain=True)
        match topic.kind:
            case topics.Kind.UPLINK | topics.Kind.SHARE:
                self._admit(message)
            case topics.Kind.ENROL if self._office is not None:
                self._office.take(message.payload, self._study.roster_digest, self._now_ms())
            case topics.Kind.PROPOSE | topics.Kind.MODEL if self._awaited is not None:
                # They are retained: should we end before their turn, the broker has them still.
                # Acknowledged now, and not again then: its number may be another message's by then.
                self._postponed[topic.kind] = dataclasses.replace(message, packet_id=0)
            case topics.Kind.PROPOSE:
                self._begin(self._bundle(message.payload))
            case topics.Kind.MODEL:
                self._early = None
                try:
                    self._finish(self._bundle(message.payload))
                except rounds.EarlyModelError:
                    self._early = dataclasses.replace(message, packet_id=0)
                    raise
            case topics.Kind.HOSPITAL if topic.step in words.KIND_OF_STEP:
                self._hear(topic, blobs.whole(message.payload))
            case topics.Kind.WANT:
                self._sets.ask(topic.hospital or "", message.payload)
            case topics.Kind.OBJECT if topic.digest == self._awaited:
                self._piece_message = message.payload
            case _:
                _log.debug("nothing to do for %s", message.topic)

    def _bundle(self, payload: bytes) -> Bundle:
        return decode(Bundle, blobs.join(payload, self._piece))

    def _piece(self, name: bytes) -> bytes:
        """Wait for a piece of a large bundle, which its sender published before the manifest."""
        topic = topics.object_topic(self._study.federation.name, name)
        self._awaited, self._piece_message = name, None
        self._link.subscribe(topic)
        try:
            deadline = time.monotonic() + _PIECE_TIMEOUT_S
            while (
                self._piece_message is None
                and time.monotonic() < deadline
                and not self._stop.is_set()
            ):
                self._receive()
        finally:
            self._awaited = None
            self._link.unsubscribe(topic)
        if self._piece_message is None:
            raise _PieceMissingError(f"piece {name.hex()} of a bundle did not arrive")
        return blobs.whole(self._piece_message)

    def _admit(self, message: Message) -> None:
        """Check an update but for its signature; then it waits for others (SPEC 10.10)."""
        started = time.perf_counter_ns()
        try:
            box = self._reassembler.add(message.payload, time.monotonic())
            screened = None if box is None else self._screen(box)
        except RefusedError as refusal:
            # Counted in memory and written at the close: hostile bytes must not cost disk writes.
            self._refusals[refusal.reason] += 1
            _log.debug("refused: %s", refusal)
            return
        if screened is None:
            return
        spent_us = (time.perf_counter_ns() - started) // 1000
        replaced = self._waiting.add(screened, message, spent_us, time.monotonic())
        if replaced is not None:
            self._link.ack(replaced)

    def _screen(self, box: bytes) -> admission.Admission | None:
        return admission.screen(self._db, self._open, box, self._keys.sealing, self._now_ms())

    def _count(
        self, current: RoundChecks, valid: Sequence[admission.Admission], spent_us: int
    ) -> list[tuple[admission.Admission, RefusedError]]:
        keep = self._study.joint is not None
        return admission.count(self._db, current, valid, spent_us, keep=keep)

    def _new_publisher(self, files: trust.StudyFiles, max_payload_bytes: int) -> Publisher:
        return Publisher(self._db, files, self._link, max_payload_bytes)

    def _new_scheme(self) -> SumScheme:
        return self._study.scheme()

    def _begin(self, proposal: Bundle) -> None:
        name = trust.peek_round_plan(proposal.record, self._study.federation).roster
        study, new = succession.follow(self._study, name, proposal.objects)
        now_ms = self._now_ms()
        if rounds.begin(self._db, self._keys.log, study, proposal, now_ms, new) is None:
            return
        self._study = study
        self._open = self._prepare()
        self._refusals.clear()
        # One that comes after its deadline is not announced: devices would train for nothing.
        if not self._close_if_due():
            self._publisher.round()

    def _close_if_due(self) -> bool:
        if self._open is None:
            return False
        plan, expected = self._open.plan, len(self._study.roster.keys)
        complete = admission.counted(self._db, self._open.plan_digest) >= self._room(plan)
        if not complete and self._now_ms() <= plan.deadline_ms:
            return False
        # What waits came in time.
        self._settle()
        rounds.close(self._db, self._keys.log, plan, expected, dict(self._refusals), self._now_ms())
        self._open = None
        self._refusals.clear()
        self._publisher.round()
        return True

    def _finish(self, bundle: Bundle) -> None:
        if rounds.finish(self._db, self._keys.log, self._study, bundle) is not None:
            self._publisher.round()

    def _hear(self, topic: topics.Topic, record: bytes) -> None:
        """Log what a hospital says of the closed round; a model may have waited for it."""
        hospital, kind = topic.hospital or "", words.KIND_OF_STEP[topic.step or ""]
        if not words.take(self._db, self._keys.log, self._study, hospital, kind, record):
            return
        if self._early is not None:
            self._postponed[topics.Kind.MODEL], self._early = self._early, None
        self._publisher.log_tail()

    def _send_set(self) -> None:
        """Send one frame of the updates that hospitals ask for."""
        if not self._link.connected:
            return
        try:
            frame = self._sets.next()
            if frame is not None:
                self._link.publish(*frame, timeout_s=_SET_TIMEOUT_S)
        except TransportError as error:
            self._sets.give_up()
            _log.warning("a hospital's updates were not sent, it will ask again: %s", error)

    def _delete_if_due(self) -> None:
        """Delete, once an hour at most, updates that were kept for too long."""
        if self._now_ms() < self._look_at_ms:
            return
        self._look_at_ms = self._now_ms() + _LOOK_MS
        if rounds.delete_overdue(self._db, self._study.federation, self._kept, self._now_ms()):
            _log.warning("updates of a round without a model were deleted: its time was over")

    def _prepare(self) -> RoundChecks | None:
        self._study = rosters.current(self._db, self._study)
        current = rounds.latest(self._db)
        if current is None or current.status != "open":
            return None
        plan = trust.open_round_plan(current.signed_plan, self._study)
        return round_checks(plan, current.plan, self._scheme, self._study.rings)


def subscriptions(study: trust.Study) -> list[str]:
    """Return what a gateway listens to."""
    name = study.federation.name
    heard = [
        topics.uplink_filter(name, study.roster.cohort),
        topics.enrol_topic(name, study.roster.cohort),
        topics.propose_topic(name),
        topics.model_topic(name),
    ]
    if study.joint is not None:
        heard += [topics.hospital_filter(name, step) for step in words.KIND_OF_STEP]
        heard.append(topics.want_filter(name))
    return heard
