"""Several hospitals' whole services around one broker in memory, on a clock that the test moves.

Gateway, aggregators, keys, ciphertexts and databases are the project's own; devices send
made-up updates. Nothing runs at the same time as anything else, and time passes only when nobody
has anything to do, so a fault strikes at the same point in every run. What really runs
side by side is tested with processes (test_joint_faults.py).
"""

import contextlib
import secrets
import sqlite3
import time
import types
from collections import deque
from pathlib import Path

import numpy as np
from federation_fixture import START_MS, small_federation
from paho.mqtt.client import topic_matches_sub

from vitalring.aggregator import channel as channel_module
from vitalring.aggregator import joint_service, rounds, store
from vitalring.aggregator.channel import Channel
from vitalring.aggregator.release import Party
from vitalring.aggregator.rosters import Rosters
from vitalring.errors import RecordError, SignatureError, TransportError
from vitalring.files import write_atomic
from vitalring.gateway import rounds as gateway_rounds
from vitalring.gateway import service as gateway_service
from vitalring.gateway import store as gateway_store
from vitalring.gateway.config import GatewayKeys
from vitalring.gateway.export import export_log
from vitalring.mqtt import Connected, Message
from vitalring.protocol import chunks, topics, trust
from vitalring.protocol.cbor import decode, digest, type_of
from vitalring.protocol.commitments import KINDS
from vitalring.protocol.quantise import decode_sum
from vitalring.protocol.records import Bundle, LoggedObject
from vitalring.protocol.release import PartPromise, ReleaseRefusal
from vitalring.protocol.secure_sum import threshold_params
from vitalring.protocol.signing import Signed, verify
from vitalring.protocol.update import rotation_seed
from vitalring.tools import verify as verifier

PAYLOAD_BYTES = 1 << 16
"""Small enough that parts of decryptions travel in pieces."""
SCHEDULE = rounds.Schedule(
    window_ms=1_000, timeout_ms=600_000, turn_ms=10_000, patience_ms=20_000, rounds=400
)
GATEWAY = "gateway"


class Killed(BaseException):
    """The process is gone, here and now."""


class Clock:
    """Seconds that pass when a test, or somebody's waiting, lets them."""

    def __init__(self):
        self.now = 1_000.0

    def monotonic(self):
        return self.now

    def ms(self):
        return START_MS + int(self.now * 1000)


class Stop:
    """Never set; waiting for it lets time pass."""

    def __init__(self, clock):
        self._clock = clock

    def is_set(self):
        return False

    def wait(self, seconds):
        self._clock.now += seconds


class Hub:
    """A broker: retained messages, and who is connected.

    `tamper(sender, receiver, topic, payload)` returns what a party gets of a message, None for
    nothing. `spoken` is everything that was ever published, by whom, in order.
    """

    def __init__(self, clock):
        self.clock = clock
        self.retained = {}
        self.links = {}
        self.spoken = []
        self.tamper = lambda sender, receiver, topic, payload: payload

    def take(self, sender, topic, payload, retain):
        self.spoken.append((sender, topic, payload))
        if retain and payload:
            self.retained[topic] = (sender, payload)
        elif retain:
            self.retained.pop(topic, None)
        for link in list(self.links.values()):
            link.offer(sender, topic, payload, retained=False)

    def restart(self, *, forget):
        """Drop all connections; `forget` all that was retained."""
        if forget:
            self.retained.clear()
        for link in list(self.links.values()):
            link.connect()


class HubLink:
    """Has what services use of `vitalring.mqtt.Link`."""

    def __init__(self, hub, name, filters, point=lambda: None):
        self._hub, self._name, self._point = hub, name, point
        self._filters = dict.fromkeys(filters)
        self._incoming = deque()
        self.connected = False
        self.refused = set()
        self.unacknowledged = 0
        self.connections = 0

    @property
    def waiting(self):
        return bool(self._incoming)

    def connect(self):
        self.connected, self.unacknowledged = True, 0
        self.connections += 1
        self._hub.links[self._name] = self
        self._incoming.clear()
        self._incoming.append(Connected(session_present=False))
        for name in self._filters:
            self._bring(name)

    def close(self):
        self.connected = False
        if self._hub.links.get(self._name) is self:
            del self._hub.links[self._name]

    def offer(self, sender, topic, payload, *, retained):
        if any(topic_matches_sub(name, topic) for name in self._filters):
            payload = self._hub.tamper(sender, self._name, topic, payload)
            if payload is not None:
                self._incoming.append(Message(topic, payload, retained=retained, packet_id=1))

    def _bring(self, name):
        for topic, (sender, payload) in sorted(self._hub.retained.items()):
            if topic_matches_sub(name, topic):
                self.offer(sender, topic, payload, retained=True)

    def receive(self, timeout_s):
        if self._incoming:
            event = self._incoming.popleft()
            self.unacknowledged += isinstance(event, Message)
            return event
        self._hub.clock.now += timeout_s
        return None

    def ack(self, message):
        self.unacknowledged -= message.packet_id != 0

    def publish(self, topic, payload, *, retain=False, expiry_s=None, timeout_s=30.0):
        if topic in self.refused:
            raise TransportError(f"{topic} is refused")
        self._hub.take(self._name, topic, payload, retain)
        self._point()

    def subscribe(self, name):
        if name not in self._filters:
            self._filters[name] = None
            self._bring(name)

    def unsubscribe(self, name):
        self._filters.pop(name, None)

    def reconnect(self):
        self.connect()


class Database:
    """A connection whose process may die right after a transaction."""

    def __init__(self, db, point):
        self._db, self._point = db, point
        # Tests kill objects, not machines.
        db.execute("PRAGMA synchronous=OFF")

    def __getattr__(self, name):
        return getattr(self._db, name)

    def execute(self, sql, *values):
        found = self._db.execute(sql, *values)
        if sql == "COMMIT":
            self._point()
        return found


class Party_:
    """A service that can be killed, left away and started again.

    It dies at point `dies_at`, counted from its start: each transaction, and each message that
    the broker has taken, is one.
    """

    def __init__(self, world, name):
        self.world, self.name = world, name
        self.service = None
        self.dies_at = None
        self.points = 0
        self.deaths = 0

    def point(self):
        self.points += 1
        if self.dies_at is not None and self.points >= self.dies_at:
            self.dies_at = None
            raise Killed

    def start(self):
        self.points = 0
        try:
            self._start()
        except Killed:
            self._died()
        return self

    def stop(self):
        if self.service is not None:
            self.service = None
            self.link.close()
            self.db.close()

    def turn(self):
        try:
            self._turn()
        except Killed:
            self._died()

    def _died(self):
        self.deaths += 1
        self.service = self.service or object()
        self.stop()


class GatewayParty(Party_):
    def _start(self):
        federation = self.world.federation
        self.db = Database(gateway_store.open_store(self.world.folder / GATEWAY), self.point)
        self.link = HubLink(
            self.world.hub, GATEWAY, gateway_service.subscriptions(federation.study), self.point
        )
        self.service = gateway_service.Gateway(
            self.db,
            federation.files,
            GatewayKeys(federation.log_key, federation.sealing_key),
            self.link,
            PAYLOAD_BYTES,
            chunks.ChunkLimits(),
            self.world.clock.ms,
        )
        self.service._stop = Stop(self.world.clock)
        self.link.connect()

    def _turn(self):
        self.service._receive()
        self.service.tick()

    @property
    def standing(self):
        return gateway_rounds.latest(self.db)


class AggregatorParty(Party_):
    def __init__(self, world, index, schedule):
        self.hospital = world.federation.study.federation.hospitals[index]
        super().__init__(world, self.hospital.name)
        self.index, self.schedule = index, schedule

    @property
    def folder(self):
        return self.world.folder / self.name

    @property
    def public(self):
        return self.world.folder / "public" / self.name

    def _start(self):
        world, federation = self.world, self.world.federation
        study, seed = federation.study, federation.aggregator_seeds[self.index]
        params = threshold_params(study.plan.codec, study.plan.vector_size, study.joint)
        pieces = {piece.index: piece for piece in federation.pieces}
        held = tuple(pieces[p] for p in params.access.held_by(self.index))
        party = Party(study, params, self.index, seed, held, self.schedule.patience_ms)
        aggregator = rounds.Aggregator(
            study=study,
            scheme=federation.scheme,
            decrypt=lambda _: None,
            signing_seed=seed,
            goal=federation.goal(),
            schedule=self.schedule,
        )
        self.db = Database(store.open_store(self.folder), self.point)
        rounds.start(self.db, aggregator)
        heard = joint_service.subscriptions(study, self.index)
        self.link = HubLink(world.hub, self.name, heard, self.point)
        channel = Channel(self.link, study.federation.name, PAYLOAD_BYTES)
        known = Rosters(self.db, study, federation.files.records["roster"], self.public)
        known.save()
        self.service = joint_service.JointService(
            self.db, aggregator, party, known, channel, self.folder / "updates", world.clock.ms
        )
        self.service.until(Stop(world.clock))
        self.link.connect()

    def _turn(self):
        if not self.service.finished():
            self.service.step()
            return
        # Its process has ended.
        while self.link.waiting:
            self.link.receive(0.0)

    def lose_database(self):
        assert self.service is None
        for path in self.folder.iterdir():
            path.unlink()

    def _read(self, query, *values):
        path = self.folder / "aggregator.sqlite"
        with contextlib.closing(sqlite3.connect(path)) as db:
            return db.execute(query, values).fetchall()

    @property
    def state(self):
        """The newest round with a model, and the weights (d,) after it."""
        number, weights = self._read("SELECT round, weights FROM state ORDER BY round DESC")[0]
        return number, np.frombuffer(weights)

    @property
    def releases(self):
        """{round: set} of all that this hospital was ever bound to."""
        return dict(self._read("SELECT round, set_digest FROM releases"))

    @property
    def refusals(self):
        return [r for (r,) in self._read("SELECT reason FROM release_refusals ORDER BY round")]


class JointWorld:
    """A study of several hospitals, its devices, and the network between all."""

    def __init__(self, folder: Path, monkeypatch, federation, schedule=SCHEDULE):
        self.folder, self.federation = folder, federation
        self.clock = Clock()
        self.hub = Hub(self.clock)
        for module in (joint_service, channel_module, gateway_service):
            now = types.SimpleNamespace(
                monotonic=self.clock.monotonic, perf_counter_ns=time.perf_counter_ns
            )
            monkeypatch.setattr(module, "time", now)
        hospitals = len(federation.study.federation.hospitals)
        self.gateway = GatewayParty(self, GATEWAY)
        self.hospitals = [AggregatorParty(self, h, schedule) for h in range(hospitals)]
        self.devices = range(len(federation.devices))
        self._served, self._boxes = None, (b"", [])
        # The federation under each roster that was made, by the roster's digest.
        self.under = {federation.study.roster_digest: federation}
        self._encryptor = federation.study.encryptor(federation.sum_key)

    @property
    def parties(self):
        return [self.gateway, *self.hospitals]

    def start(self, *away):
        for party in self.parties:
            if party.name not in away:
                party.start()
        return self

    def stop(self):
        for party in self.parties:
            party.stop()

    # Running.

    def step(self):
        """Let everybody who has a message act; where nobody has, time passes."""
        self._serve_devices()
        there = [party for party in self.parties if party.service is not None]
        busy = [party for party in there if party.link.waiting or self._owes(party)]
        for party in busy or there:
            if party.service is not None:
                party.turn()

    @staticmethod
    def _owes(party):
        return party.name == GATEWAY and party.service._sets.busy

    def run(self, until, limit_s=7_200.0, each=lambda: None):
        """Run until a condition holds; fail when it does not within so many of its seconds."""
        deadline = self.clock.now + limit_s
        while not until():
            assert self.clock.now < deadline, f"not within {limit_s} s of the test's clock"
            self.step()
            each()

    def run_rounds(self, number, **how):
        """Run until a round is over, and everybody who is there knows its model."""
        self.run(lambda: self.over(number), **how)

    def over(self, number):
        there = [h for h in self.hospitals if h.service is not None]
        return bool(there) and all(h.state[0] >= number for h in there)

    def _serve_devices(self):
        """Have every device answer an open round."""
        if self.gateway.service is None:
            return
        current, link = self.gateway.standing, self.gateway.link
        if current is None or current.status != "open":
            return
        if self._boxes[0] != current.plan:
            updates = [
                self.update(current.signed_plan, device)
                for device in self.devices_of(current.signed_plan)
            ]
            self._boxes = current.plan, [self.federation.box(update) for update in updates]
        elif self._served == (current.plan, link, link.connections):
            return
        # A device says again what the gateway may have lost.
        self._served = current.plan, link, link.connections
        topic = topics.uplink_topic("fed", self.federation.study.roster.cohort, current.number)
        for box in self._boxes[1]:
            name = secrets.token_bytes(chunks.TRANSFER_ID_BYTES)
            for frame in chunks.split(box, PAYLOAD_BYTES, name):
                self.hub.take("devices", topic, frame, retain=False)

    def update(self, signed_plan, device, rng_seed=None):
        """What a device sends in a round."""
        rng_seed = device if rng_seed is None else rng_seed
        fields = self.federation.fields(digest(signed_plan), rng_seed=rng_seed)
        ciphertexts = self._encryptor.encrypt(fields)
        return self._at(signed_plan).update(signed_plan, device, ciphertexts)

    def _at(self, signed_plan):
        """Return the federation under the roster that a plan names."""
        federation = self.federation.study.federation
        return self.under[trust.peek_round_plan(signed_plan, federation).roster]

    def devices_of(self, signed_plan):
        """Those of the devices at work that are in the roster of a round."""
        at = self._at(signed_plan)
        return [d for d in self.devices if at.devices[d].public in at.study.roster.keys]

    def make_roster(self, before, *more, **changes):
        """Return the signed roster that follows on another, and its federation."""
        record = before.next_roster(**changes)
        self.under[digest(record)] = before.under(record, *more)
        return record, self.under[digest(record)]

    def install(self, record, *hospitals):
        """Have operators of these hospitals put a roster into their study's folder."""
        for hospital in hospitals:
            write_atomic(self.hospitals[hospital].public / trust.ROSTER_FILE, record)

    # What came of it.

    def models(self):
        """Return every logged model, by round."""
        return list(map(self._opened, self.logged("global-model")))

    def _opened(self, record):
        study = self.federation.study
        return trust.open_model(record, study.federation, study.plan)

    def refusals(self):
        """Return (hospital, reason) of every refusal in the log, in its order."""
        found = []
        for record in self.logged("release-refusal"):
            signer = decode(Signed, record).signatures[0].key
            hospitals = self.federation.study.federation.hospitals
            name = next(h.name for h in hospitals if h.aggregator_key == signer)
            found.append((name, verify(ReleaseRefusal, record, {signer}, 1).reason))
        return found

    def logged(self, kind):
        """Return the signed records of a kind that the log names, in its order."""
        db = self.gateway.db
        size = gateway_rounds.log.size(db)
        entries = gateway_rounds.log.entries(db, 0, size)
        logged = [decode(LoggedObject, e) for e in entries if type_of(e) == LoggedObject.TYPE]
        return [gateway_store.get_object(db, e.digest) for e in logged if e.kind == kind]

    def expected(self, applied, devices=None):
        """Weights (d,) after these rounds, computed from what the devices encrypted."""
        goal, codec = self.federation.goal(), self.federation.study.plan.codec
        state = goal.optimiser.init(goal.start)
        for record, does in zip(self.logged("round-plan"), applied, strict=False):
            if does:
                name = digest(record)
                fields = sum(
                    self.federation.fields(name, rng_seed=d) for d in devices or self.devices
                )
                decoded = decode_sum(
                    fields,
                    len(devices or self.devices),
                    codec,
                    goal.start.size,
                    rotation_seed(name),
                )
                state = goal.optimiser.apply(state, decoded.mean)
        return state.weights

    def check(self, *, verified=True):
        """Hold what must always hold: one state, a sound log, no round released twice."""
        states = {}
        for hospital in self.hospitals:
            number, weights = hospital.state
            states.setdefault(number, weights)
            assert np.array_equal(states[number], weights), "hospitals came to different states"
        self._check_promises()
        if verified:
            folder = self.folder / f"log-{secrets.token_hex(4)}"
            export_log(self.gateway.db, self.federation.files, folder)
            verifier.verify_log(folder, self.federation.authority_key)

    def _check_promises(self):
        """Every hospital promised parts of one sum a round, and each of them once."""
        keys = {h.name: h.aggregator_key for h in self.federation.study.federation.hospitals}
        said = {}
        for sender, topic, payload in self.hub.spoken:
            parsed = topics.parse(topic)
            if parsed.step != "promise" or sender not in keys or not payload:
                continue
            with contextlib.suppress(RecordError, SignatureError):
                promise = verify(PartPromise, payload[1:], {keys[sender]}, 1)
                said.setdefault((sender, promise.plan), {}).setdefault(parsed.attempt, set()).add(
                    (promise.set, promise.challenge, promise.check, promise.part)
                )
        for attempts in said.values():
            assert all(len(different) == 1 for different in attempts.values())
            assert len({set_ for each in attempts.values() for set_, *_ in each}) == 1


def bundle_of(payload):
    return decode(Bundle, payload[1:])


def federation_of(hospitals=3, threshold=2, devices=3, study_rounds=400, **how):
    return small_federation(
        secure_sum="threshold-he",
        hospitals=hospitals,
        threshold=threshold,
        devices=devices,
        min_cohort=2,
        study_rounds=study_rounds,
        **how,
    )


__all__ = ["GATEWAY", "KINDS", "SCHEDULE", "JointWorld", "Killed", "bundle_of", "federation_of"]
