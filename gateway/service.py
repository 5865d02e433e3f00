"""The gateway at work: messages in, state on disk, retained messages out.

Whatever the broker holds retained follows from the database, so after any
crash, of the gateway or of the broker, `_publish_all` makes it whole again.
An update is acknowledged to the broker only after it is on disk.
"""

import logging
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable

from vitalring.errors import Reason, Refused, StorageError, TransportError, VitalRingError
from vitalring.gateway import admission, log, rounds, store
from vitalring.gateway.config import GatewayKeys
from vitalring.mqtt import Connected, Link, Message
from vitalring.protocol import blobs, lsag, topics, trust
from vitalring.protocol.cbor import decode, digest
from vitalring.protocol.chunks import ChunkLimits, Reassembler
from vitalring.protocol.records import Bundle
from vitalring.protocol.secure_sum import sum_scheme
from vitalring.protocol.tiles import TILE_WIDTH, Tile

_log = logging.getLogger(__name__)
_TICK_S = 0.5
_FULL_DISK_PAUSE_S = 5.0
_RECENT_RECEIPTS = 16


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
    ) -> None:
        self._db = db
        self._files = files
        self._study = files.study
        self._keys = keys
        self._link = link
        self._max_payload_bytes = max_payload_bytes
        self._now_ms = now_ms
        self._reassembler = Reassembler(chunk_limits)
        plan = self._study.plan
        self._scheme = sum_scheme(plan.secure_sum, plan.codec, plan.model.dimension)
        self._rings = lsag.cut(self._study.roster.keys, self._study.roster.ring_size)
        self._refusals: Counter[Reason] = Counter()
        self._pieces: dict[bytes, bytes] = {}
        self._stale = False
        rounds.open_study_log(db, keys.log, files.records, list(files.objects.values()))
        self._open = self._prepare()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set."""
        while not stop.is_set():
            event = self._link.receive(_TICK_S)
            if isinstance(event, Connected):
                self._stale = True
            elif event is not None:
                self.take(event)
            self.tick()

    def take(self, message: Message) -> None:
        """Act on a message, then let the broker forget it. Nothing that arrives stops us."""
        try:
            self._act(message)
        except StorageError:
            # Not acknowledged: after a reconnection the broker brings it again.
            _log.exception("a message could not be kept")
            time.sleep(_FULL_DISK_PAUSE_S)
            self._link.reconnect()
            return
        except TransportError as error:
            _log.warning("published too little, will publish again: %s", error)
            self._stale = True
        except VitalRingError as error:
            _log.warning("message on %s dropped: %s", message.topic[:120], error)
        self._link.ack(message)

    def tick(self) -> None:
        """Close the round if its time is over or all are here; publish what is missing."""
        try:
            self._close_if_due()
            if self._stale and self._link.connected:
                self._publish_all()
                self._stale = False
        except TransportError as error:
            _log.warning("published too little, will publish again: %s", error)
            self._stale = True

    def _act(self, message: Message) -> None:
        if not message.payload:
            return  # a retained message that its owner cleared
        topic = topics.parse(message.topic)
        match topic.kind:
            case topics.Kind.UPLINK:
                self._admit(message.payload)
            case topics.Kind.PROPOSE:
                self._begin(self._bundle(message.payload))
            case topics.Kind.MODEL:
                self._finish(self._bundle(message.payload))
            case topics.Kind.OBJECT:
                self._pieces[digest(message.payload)] = message.payload
            case _:
                _log.debug("nothing to do for %s", message.topic)

    def _bundle(self, payload: bytes) -> Bundle:
        try:
            return decode(Bundle, blobs.join(payload, self._piece))
        finally:
            self._pieces.clear()

    def _piece(self, name: bytes) -> bytes:
        """Wait for a piece of a large bundle, which its sender published before the manifest."""
        topic = topics.object_topic(self._study.federation.name, name)
        self._link.subscribe(topic)
        try:
            deadline = time.monotonic() + 10.0
            while name not in self._pieces and time.monotonic() < deadline:
                event = self._link.receive(_TICK_S)
                if isinstance(event, Connected):
                    self._stale = True
                elif event is not None:
                    self.take(event)
        finally:
            self._link.unsubscribe(topic)
        if name not in self._pieces:
            raise TransportError(f"piece {name.hex()} of a bundle did not arrive")
        return self._pieces[name]

    def _admit(self, frame: bytes) -> None:
        started = time.perf_counter_ns()
        try:
            box = self._reassembler.add(frame, time.monotonic())
            if box is None:
                return
            admitted = admission.check(
                self._db, self._open, box, self._keys.sealing, self._now_ms()
            )
        except Refused as refusal:
            # Counted in memory and written at the close: hostile bytes must not cost disk writes.
            self._refusals[refusal.reason] += 1
            _log.debug("refused: %s", refusal)
            return
        if admitted is not None and self._open is not None:
            spent_us = (time.perf_counter_ns() - started) // 1000
            admission.fold(self._db, self._open, admitted, spent_us)

    def _begin(self, proposal: Bundle) -> None:
        if rounds.begin(self._db, self._keys.log, self._study, proposal, self._now_ms()) is None:
            return
        self._open = self._prepare()
        self._refusals.clear()
        self._publish_round()

    def _close_if_due(self) -> None:
        if self._open is None:
            return
        current, plan = rounds.latest(self._db), self._open.plan
        expected = len(self._study.roster.keys)
        complete = current is not None and current.admitted >= min(expected, plan.codec.n_max)
        if not complete and self._now_ms() <= plan.deadline_ms:
            return
        rounds.close(self._db, self._keys.log, plan, expected, dict(self._refusals), self._now_ms())
        self._open = None
        self._refusals.clear()
        self._publish_round()

    def _finish(self, bundle: Bundle) -> None:
        model = rounds.finish(self._db, self._keys.log, self._study, bundle)
        if model is not None:
            self._publish_object(bundle.record)
            self._publish_round()

    def _prepare(self) -> admission.OpenRound | None:
        current = rounds.latest(self._db)
        if current is None or current.status != "open":
            return None
        plan = trust.open_round_plan(current.signed_plan, self._study)
        return admission.open_round(plan, current.plan, self._scheme, self._rings)

    # What the broker holds retained.

    def _publish_all(self) -> None:
        for content in (*self._files.records.values(), *self._files.objects.values()):
            self._publish_object(content)
        for (plan,) in self._db.execute("SELECT signed_plan FROM rounds").fetchall():
            self._publish_object(plan)
        for bundle in range(-(-log.size(self._db) // TILE_WIDTH)):
            self._publish_entries(bundle)
        self._publish_round()

    def _publish_round(self) -> None:
        """Publish the log's tail, and what the newest round has for devices and aggregator."""
        name, cohort = self._study.federation.name, self._study.roster.cohort
        size, note = log.size(self._db), log.latest_checkpoint(self._db)
        # A round appends at most one entry a device and a few more.
        first = max(0, size - len(self._study.roster.keys) - 8) // TILE_WIDTH
        for bundle in range(first, -(-size // TILE_WIDTH)):
            self._publish_entries(bundle)
        if note is not None:
            self._publish(topics.checkpoint_topic(name), note)
        current = rounds.latest(self._db)
        announced, total = b"", b""
        if current is not None and current.status == "open":
            plan = trust.open_round_plan(current.signed_plan, self._study)
            self._publish_object(store.get_object(self._db, plan.weights) or b"")
            self._publish_object(current.signed_plan)
            announced = rounds.announcement(self._db, current)
        if current is not None and current.status == "closed":
            total = rounds.sum_bundle(self._db, current, self._study.federation)
        for number, receipts in rounds.recent_receipts(self._db, _RECENT_RECEIPTS):
            self._publish(topics.receipts_topic(name, cohort, number), receipts)
        self._publish(topics.plan_topic(name, cohort), announced)
        self._publish(topics.sum_topic(name), total)

    def _publish_entries(self, bundle: int) -> None:
        width = min(TILE_WIDTH, log.size(self._db) - bundle * TILE_WIDTH)
        content = log.tile_bytes(self._db, Tile(None, bundle, width))
        self._publish(topics.entries_topic(self._study.federation.name, bundle), content)

    def _publish_object(self, content: bytes) -> None:
        topic = topics.object_topic(self._study.federation.name, digest(content))
        self._publish(topic, content)

    def _publish(self, topic: str, content: bytes) -> None:
        """Publish retained; empty content clears the topic."""
        message, pieces = blobs.split(content, self._max_payload_bytes) if content else (b"", ())
        for piece in pieces:
            self._publish_object(piece)
        self._link.publish(topic, message, retain=True)


def subscriptions(study: trust.Study) -> list[str]:
    """Return what a gateway listens to."""
    name = study.federation.name
    return [
        topics.uplink_filter(name, study.roster.cohort),
        topics.propose_topic(name),
        topics.model_topic(name),
    ]
