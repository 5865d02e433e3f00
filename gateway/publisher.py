"""What the broker holds retained for a gateway: all of it follows from the database.

So after any crash, of the gateway or of the broker, `all` makes it whole again, and `round`
says what a step of the newest round changed. What has served is cleared, so that a broker
holds no more for a long study than for a short one, but for the log itself and its plans.
"""

import sqlite3

from vitalring.errors import TransportError
from vitalring.gateway import log, rosters, rounds, store
from vitalring.mqtt import Link
from vitalring.protocol import blobs, topics, trust
from vitalring.protocol.cbor import digest
from vitalring.protocol.tiles import TILE_WIDTH, Tile

_RECENT_RECEIPTS = 16


class Publisher:
    """Publishes retained. Every method raises TransportError; call it again then."""

    def __init__(
        self, db: sqlite3.Connection, files: trust.StudyFiles, link: Link, max_payload_bytes: int
    ) -> None:
        self._db = db
        self._files = files
        self._study = files.study
        self._name = files.study.federation.name
        self._link = link
        self._max_payload_bytes = max_payload_bytes
        # Entries of the log that the broker has.
        self._published = 0
        # Pieces of what stands on a topic whose content changes.
        self._pieces: dict[str, set[bytes]] = {}

    def all(self) -> None:
        """Publish everything anew: the broker may have forgotten it."""
        # A roster of the study's folder may be none of the log's.
        records = [each for kind, each in self._files.records.items() if kind != rosters.KIND]
        for content in (*records, *self._files.objects.values(), *rosters.all_logged(self._db)):
            self._object(content)
        for (plan,) in self._db.execute("SELECT signed_plan FROM rounds").fetchall():
            self._object(plan)
        self._published = 0
        for number, receipts in rounds.recent_receipts(self._db, _RECENT_RECEIPTS):
            self._receipts(number, receipts)
        self.round()

    def round(self) -> None:
        """Publish the log's tail, and what the newest round has for devices and aggregator."""
        self.log_tail()
        announced, total = b"", rounds.model_for_hospitals(self._db)
        current = rounds.latest(self._db)
        if current is not None:
            # The aggregator proposed it and looks for it here to know that it is in the log.
            self._object(current.signed_plan)
            if current.status == "open":
                # Devices fetch it, and hospitals that were away; it may have come with this round.
                self._object(rosters.newest(self._db) or b"")
                self._weights(current)
                announced = rounds.announcement(self._db, current)
            elif current.status == "closed":
                total = rounds.sum_bundle(self._db, current, self._study)
            else:
                # As with the plan: only now may the aggregator go on, or end.
                signed = rounds.last_model(self._db)
                self._object(signed)
                model = trust.open_model(signed, self._study.federation, self._study.plan)
                if model.final:
                    # Devices learn here that the study is over, free what is left of it, and
                    # predict with its weights.
                    self._object(store.get_object(self._db, model.weights) or b"")
                    announced = signed
            if current.receipts is not None:
                self._receipts(current.number, current.receipts)
                self._clear(self._receipts_topic(current.number - _RECENT_RECEIPTS))
        self._replace(topics.plan_topic(self._name, self._study.roster.cohort), announced)
        self._replace(topics.sum_topic(self._name), total)

    def call(self, record: bytes | None) -> None:
        """Publish the call for keys that is open, or that none is."""
        topic = topics.call_topic(self._name, self._study.roster.cohort)
        self._replace(topic, record or b"")

    def log_tail(self) -> None:
        """Publish what the broker lacks of the log."""
        size, note = log.size(self._db), log.latest_checkpoint(self._db)
        for bundle in range(self._published // TILE_WIDTH, -(-size // TILE_WIDTH)):
            self._entries(bundle)
        self._published = size
        if note is not None:
            self._publish(topics.checkpoint_topic(self._name), note)

    def _weights(self, current: rounds.Round) -> None:
        """Publish the weights that a round starts from, and clear those of the round before."""
        content = self._weights_of(current.signed_plan)
        self._object(content)
        row = self._db.execute(
            "SELECT signed_plan FROM rounds WHERE round = ?", (current.number - 1,)
        ).fetchone()
        if row is None or (old := self._weights_of(row[0])) == content:
            return
        for name in self._names(old) - self._names(content):
            self._clear(topics.object_topic(self._name, name))

    def _weights_of(self, signed_plan: bytes) -> bytes:
        # It is in the log; the one of the round before may name an earlier roster.
        plan = trust.peek_round_plan(signed_plan, self._study.federation)
        return store.get_object(self._db, plan.weights) or b""

    def _names(self, content: bytes) -> set[bytes]:
        """Return under which digests an object and its pieces stand."""
        _, pieces = blobs.split(content, self._max_payload_bytes)
        return {digest(each) for each in (content, *pieces)}

    def _receipts_topic(self, number: int) -> str | None:
        if number < 1:
            return None
        return topics.receipts_topic(self._name, self._study.roster.cohort, number)

    def _receipts(self, number: int, receipts: bytes) -> None:
        self._publish(
            topics.receipts_topic(self._name, self._study.roster.cohort, number), receipts
        )

    def _entries(self, bundle: int) -> None:
        width = min(TILE_WIDTH, log.size(self._db) - bundle * TILE_WIDTH)
        content = log.tile_bytes(self._db, Tile(None, bundle, width))
        self._replace(topics.entries_topic(self._name, bundle), content)

    def _object(self, content: bytes) -> None:
        self._publish(topics.object_topic(self._name, digest(content)), content)

    def _replace(self, topic: str, content: bytes) -> None:
        """Publish, and clear the pieces of what stood there before."""
        new = self._publish(topic, content)
        for name in self._pieces.get(topic, set()) - new:
            self._clear(topics.object_topic(self._name, name))
        self._pieces[topic] = new

    def _publish(self, topic: str, content: bytes) -> set[bytes]:
        """Publish retained and return the names of the pieces; empty content clears the topic."""
        # Waiting for a connection would keep the gateway from closing rounds, and from ending.
        if not self._link.connected:
            raise TransportError("not connected")
        message, pieces = blobs.split(content, self._max_payload_bytes) if content else (b"", ())
        for piece in pieces:
            self._object(piece)
        self._link.publish(topic, message, retain=True, timeout_s=10.0)
        return {digest(piece) for piece in pieces}

    def _clear(self, topic: str | None) -> None:
        if topic is not None:
            self._publish(topic, b"")
