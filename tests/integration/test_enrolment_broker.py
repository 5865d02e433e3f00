"""The enrolment office and devices at real brokers: calls out, answers in, noise in between."""

import threading
import time
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from federation_fixture import Parties, small_federation
from mosquitto_fixture import FEDERATION, Mosquitto
from services_fixture import wait_for

from vitalring.edge_agent import state
from vitalring.edge_agent.daemon import Daemon, Downlink, Submission, subscriptions
from vitalring.edge_agent.enrolling import Applicant, Enroller
from vitalring.edge_agent.keyring import Keyring
from vitalring.gateway import enrolment as kept
from vitalring.gateway import store
from vitalring.gateway.config import GatewayKeys
from vitalring.gateway.mosquitto import BrokerLimits, cohort_user, write
from vitalring.gateway.service import Gateway
from vitalring.gateway.service import subscriptions as gateway_subscriptions
from vitalring.mqtt import BrokerConfig, Dialects, Link, Message, submit
from vitalring.protocol import enrolment, topics
from vitalring.protocol.chunks import ChunkLimits
from vitalring.tools.embedded_broker import EmbeddedBroker

COHORT = "ward"
CALL = topics.call_topic(FEDERATION, COHORT)
ENROL = topics.enrol_topic(FEDERATION, COHORT)
TICKETS = [bytes([number]) * 32 for number in range(3)]
LAST = topics.object_topic(FEDERATION, bytes(32))
WAIT_S = 60.0


def now_ms():
    return time.time_ns() // 1_000_000


@contextmanager
def embedded(_folder):
    with EmbeddedBroker() as broker:
        config = BrokerConfig(broker.url)
        yield config, config


@contextmanager
def mosquitto(folder):
    broker = Mosquitto(folder)
    limits = BrokerLimits(save_interval_s=1)
    broker.files = write(
        folder, FEDERATION, [COHORT], ["localhost"], port=broker.port, bind="127.0.0.1",
        limits=limits, now=datetime.now(UTC),
    )  # fmt: skip
    broker.start()
    try:
        yield broker.gateway, broker.config(cohort_user(COHORT))
    finally:
        broker.stop()


@contextmanager
def working(run):
    """Run something in a thread until the block ends; it takes the event that stops it."""
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(WAIT_S)
        assert not thread.is_alive()


class Office:
    """A gateway at a broker, and the operator's connection to its database."""

    def __init__(self, parties, config):
        self.parties, self.config = parties, config
        self.folder = store_folder(parties)
        self.db = store.write_store(self.folder)
        kept.import_tickets(
            self.db,
            {enrolment.ticket_hash(each): f"d{n}" for n, each in enumerate(TICKETS)},
        )

    def run(self, stop):
        federation = self.parties.federation
        keys = GatewayKeys(federation.log_key, federation.sealing_key)
        link = Link(self.config, gateway_subscriptions(federation.study))
        with closing(store.write_store(self.folder)) as db, link:
            Gateway(db, federation.files, keys, link, 2**20, ChunkLimits(), now_ms).run(stop)

    def open(self, epoch=1):
        federation = self.parties.federation
        closes_ms = now_ms() + 3_600_000
        return kept.open_call(self.db, federation.log_key, federation.study, epoch, closes_ms)

    def enrolled(self, epoch):
        return {each.name: each.key for each in kept.enrolled(self.db) if each.epoch == epoch}


def store_folder(parties):
    name = parties.db.execute("PRAGMA database_list").fetchone()[2]
    return Path(name).parent


def devices_of(federation, config, folder):
    """Three devices with tickets in one process; returns their keyrings and what runs them."""
    dialects = Dialects()
    submission = Submission(config, federation, COHORT, dialects, retry_s=0.5)
    keys = [Keyring(folder / f"d{n}" / "keys") for n in range(len(TICKETS))]

    def run(stop):
        db = state.open_state(folder / "state")
        applicants = [Applicant(db, *each) for each in zip(keys, TICKETS, strict=True)]

        def send(box):
            submit(config, ENROL, [box], WAIT_S, dialects=dialects)

        enroller = Enroller(applicants, federation, COHORT, send, submission.retry_s)
        filters = subscriptions(federation, COHORT)
        with closing(db), Link(config, filters, dialects=dialects) as link:
            downlink = Downlink(link, federation.name, stop)
            Daemon([], downlink, submission, now_ms, enroller).run(stop)

    return keys, run


@pytest.fixture(
    params=[pytest.param(mosquitto, marks=pytest.mark.mosquitto), embedded],
    ids=["mosquitto", "embedded"],
)
def brokers(request, tmp_path):
    with request.param(tmp_path / "broker") as configs:
        with Link(configs[0]) as gateway:
            gateway.publish(LAST, b"the last", retain=True, timeout_s=WAIT_S)
        yield configs


@pytest.fixture
def office(brokers, tmp_path):
    parties = Parties(small_federation(), tmp_path / "parties")
    office = Office(parties, brokers[0])
    yield office
    office.db.close()
    parties.close_databases()


def retained(config, topic):
    """What who connects now finds on a topic."""
    with Link(config, [topic]) as link:
        link.wait_connected(WAIT_S)
        # Brokers answer subscriptions in their order, so what is retained comes before this.
        link.subscribe(LAST)
        while not isinstance(event := link.receive(WAIT_S), Message):
            assert event is not None
        return event.payload if event.topic == topic else None


def retained_call(config):
    """What a device that connects now finds on the topic of calls."""
    return retained(config, CALL)


def test_calls_are_answered_through_the_broker_and_noise_costs_nobody_anything(
    office, brokers, tmp_path
):
    _, for_devices = brokers
    federation = office.parties.federation.study.federation
    keys, run = devices_of(federation, for_devices, tmp_path)
    with working(office.run), working(run):
        # Before there is a call nobody is taken, and what comes does no harm.
        submit(for_devices, ENROL, [b"", b"x", bytes(enrolment.BOX_BYTES)], WAIT_S)
        record = office.open()
        wait_for("three keys", lambda: len(office.enrolled(1)) == 3 + 6, WAIT_S)
        here = office.enrolled(1)
        assert {here[f"d{n}"] for n in range(3)} == {each.require(1).public for each in keys}
        assert retained_call(for_devices).endswith(record)
        # Another call, with another challenge: the same keys come again and change nothing.
        again = office.open()
        wait_for("the new call", lambda: retained_call(for_devices).endswith(again), WAIT_S)
        office.open(2)
        wait_for("keys of epoch 2", lambda: len(office.enrolled(2)) == 3, WAIT_S)
        assert office.enrolled(1) == here
        kept.close_call(office.db)
        wait_for("the call's end", lambda: retained_call(for_devices) is None, WAIT_S)
        # Nothing of it is kept at the broker.
        submit(for_devices, ENROL, [bytes(enrolment.BOX_BYTES)], WAIT_S)
        wait_for("a count", lambda: kept.refused(office.db).get("no_call", 0) >= 1, WAIT_S)


def test_a_gateway_that_comes_back_says_its_call_again_and_clears_what_was_closed(office, brokers):
    _, for_devices = brokers
    record = office.open()
    with working(office.run):
        wait_for("the call", lambda: retained_call(for_devices) is not None, WAIT_S)
        assert retained_call(for_devices).endswith(record)
    kept.close_call(office.db)
    assert retained_call(for_devices) is not None
    with working(office.run):
        wait_for("the call's end", lambda: retained_call(for_devices) is None, WAIT_S)


@pytest.mark.parametrize(
    "brokers", [pytest.param(mosquitto, marks=pytest.mark.mosquitto)], indirect=True
)
def test_what_somebody_leaves_retained_among_enrolments_is_cleared(office, brokers):
    """With MQTT 5, which says of what comes at once whether it stays (SPEC 12.10)."""
    for_gateway, for_devices = brokers
    with working(office.run), Link(for_devices) as device:
        device.wait_connected(WAIT_S)
        device.publish(ENROL, b"for ever", retain=True, timeout_s=WAIT_S)
        office.open()
        wait_for("the gateway's work", lambda: retained_call(for_devices) is not None, WAIT_S)
        wait_for("the clearing", lambda: retained(for_gateway, ENROL) is None, WAIT_S)
    with Link(for_gateway, [ENROL]) as later:
        later.wait_connected(WAIT_S)
        submit(for_devices, ENROL, [b"next"], WAIT_S)
        while not isinstance(event := later.receive(WAIT_S), Message):
            assert event is not None
        assert event.payload == b"next"
