"""A round's updates from gateway to hospitals through a real Mosquitto, each in its own name."""

import contextlib
import threading
import time

import pytest
from federation_fixture import NAMES, Parties, small_federation
from mosquitto_fixture import FEDERATION, Mosquitto

from vitalring.aggregator.recompute import Recomputation
from vitalring.errors import TransportError
from vitalring.gateway import log, rounds, store
from vitalring.gateway.config import GatewayKeys
from vitalring.gateway.contributions import KeptUpdates
from vitalring.gateway.mosquitto import aggregator_users
from vitalring.gateway.service import Gateway, subscriptions
from vitalring.mqtt import Link, Message
from vitalring.protocol import blobs, topics
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.chunks import ChunkLimits
from vitalring.protocol.records import LoggedObject
from vitalring.protocol.release import SetCommitment, set_digest
from vitalring.protocol.signing import sign

pytestmark = pytest.mark.mosquitto

DEVICES = 30
PAYLOAD_BYTES = 1 << 16
WINDOW_BYTES = 1 << 19
HOSPITALS = NAMES[:3]
WAIT_S = 60.0


@pytest.fixture(scope="module")
def federation():
    return small_federation(
        secure_sum="threshold-he",
        hospitals=3,
        threshold=2,
        devices=DEVICES,
        ring_size=10,
        n_max=DEVICES,
    )


@pytest.fixture(scope="module")
def closed(federation, tmp_path_factory):
    """The gateway's state folder and its closed round."""
    folder = tmp_path_factory.mktemp("parties")
    parties = Parties(federation, folder)
    parties.begin(parties.propose())
    parties.submit(range(DEVICES))
    parties.now_ms += 20_000
    parties.close()
    found = rounds.latest(parties.db)
    parties.close_databases()
    return folder / "gateway", found, parties.now_ms


@pytest.fixture
def broker(tmp_path):
    made = Mosquitto(tmp_path / "broker", hospitals=HOSPITALS)
    made.start()
    yield made
    made.stop()


@contextlib.contextmanager
def gateway_at_work(federation, closed, broker):
    """The real service, in a thread with its own database connection."""
    folder, _, now_ms = closed
    stop, faults = threading.Event(), []

    def work():
        db = store.open_store(folder)
        try:
            with Link(broker.config("gateway"), subscriptions(federation.study)) as link:
                Gateway(
                    db,
                    federation.files,
                    GatewayKeys(federation.log_key, federation.sealing_key),
                    link,
                    PAYLOAD_BYTES,
                    ChunkLimits(),
                    lambda: now_ms,
                    KeptUpdates(window_bytes=WINDOW_BYTES),
                ).run(stop)
        except BaseException as fault:
            faults.append(fault)
            raise
        finally:
            db.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert faults == []


def link_of(broker, hospital):
    user = aggregator_users(HOSPITALS)[hospital]
    heard = [topics.set_topic(FEDERATION, hospital), topics.hospital_filter(FEDERATION)]
    return Link(broker.config(user), heard)


def recompute(federation, closed, link, hospital, spool):
    _, found, _ = closed
    state = Recomputation(
        federation.study,
        found.signed_plan,
        found.report,
        found.receipts,
        spool,
        patience_s=5.0,
    )
    deadline, frames = time.monotonic() + WAIT_S, 0
    while not state.complete:
        assert time.monotonic() < deadline
        request = state.requests(time.monotonic())
        if request is not None:
            link.publish(topics.want_topic(FEDERATION, hospital), encode(request))
        event = link.receive(0.2)
        if isinstance(event, Message):
            if event.topic == topics.set_topic(FEDERATION, hospital):
                frames += 1
                assert len(event.payload) <= PAYLOAD_BYTES
                state.feed(event.payload, time.monotonic())
            link.ack(event)
    return state.result(), frames


def logged(folder):
    db = store.read_store(folder)
    try:
        entries = log.entries(db, 0, log.size(db))
    finally:
        db.close()
    return [decode(LoggedObject, e) for e in entries if b"vitalring/logged-object" in e]


def test_hospitals_recompute_a_round_and_commit_to_it(federation, closed, broker, tmp_path):
    folder, found, _ = closed
    plan, report = found.plan, digest(found.report)
    sets, said = set(), []
    with gateway_at_work(federation, closed, broker):
        for number, hospital in enumerate(HOSPITALS):
            with link_of(broker, hospital) as link:
                link.wait_connected(WAIT_S)
                made, frames = recompute(federation, closed, link, hospital, tmp_path / hospital)
                assert len(made.contributions) == DEVICES
                assert frames > 30 * 50_000 // PAYLOAD_BYTES
                chosen = set_digest(plan, report, made.contributions, made.total_bytes)
                sets.add(chosen)
                word = SetCommitment(
                    federation.study.sum_key_digest,
                    1,
                    plan,
                    report,
                    chosen,
                    bytes([number]) * 32,
                )
                said.append(sign(word, [federation.aggregator_seeds[number]]))
                topic = topics.hospital_topic(FEDERATION, hospital, "commitment")
                # In another's name it cannot speak: the broker lets nobody hear it.
                other = topics.hospital_topic(FEDERATION, HOSPITALS[number - 1], "refusal")
                with contextlib.suppress(TransportError):
                    link.publish(other, blobs.WHOLE + b"forged", retain=True)
                link.publish(topic, blobs.WHOLE + said[-1], retain=True)
        assert len(sets) == 1
        deadline = time.monotonic() + WAIT_S
        while len([e for e in logged(folder) if e.kind == "set-commitment"]) < len(HOSPITALS):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    names = [e.digest for e in logged(folder) if e.kind == "set-commitment"]
    assert names == [digest(record) for record in said]
    with link_of(broker, HOSPITALS[0]) as link:
        link.wait_connected(WAIT_S)
        retained = set()
        while len(retained) < len(HOSPITALS):
            event = link.receive(WAIT_S)
            assert event is not None
            if isinstance(event, Message) and event.retained:
                retained.add(event.topic)
        assert link.receive(0.2) is None
        assert {topics.parse(topic).step for topic in retained} == {"commitment"}
