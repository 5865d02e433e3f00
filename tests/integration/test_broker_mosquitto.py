"""The written Mosquitto configuration and the link, against each other."""

import socket
import threading

import pytest
from mosquitto_fixture import COHORT, FEDERATION, OTHER_COHORT, Mosquitto

from vitalring.errors import TransportError
from vitalring.gateway.mosquitto import BrokerLimits, cohort_user
from vitalring.mqtt import (
    Backoff,
    BrokerConfig,
    Connected,
    Dialects,
    Link,
    Message,
    PersistentSession,
    QueueLimits,
    new_client_id,
    submit,
)
from vitalring.protocol import topics

pytestmark = pytest.mark.mosquitto

UPLINK = topics.uplink_topic(FEDERATION, COHORT, 1)
UPLINKS = topics.uplink_filter(FEDERATION)
PLAN = topics.plan_topic(FEDERATION, COHORT)
CALL = topics.call_topic(FEDERATION, COHORT)
ENROL = topics.enrol_topic(FEDERATION, COHORT)
SOON = Backoff(first_s=0.02, ceiling_s=0.2)
WAIT_S = 60.0


def next_message(link: Link) -> Message:
    while True:
        event = link.receive(WAIT_S)
        assert event is not None, "nothing arrived"
        if isinstance(event, Message):
            return event


def next_connected(link: Link) -> Connected:
    while True:
        event = link.receive(WAIT_S)
        assert event is not None, "no connection"
        if isinstance(event, Connected):
            return event


def test_an_update_travels_from_device_to_gateway(mosquitto):
    payload = bytes(range(256)) * 400
    with Link(mosquitto.gateway, [UPLINKS]) as gateway:
        gateway.wait_connected(WAIT_S)
        submit(mosquitto.device, UPLINK, [payload, b"second"], WAIT_S, expiry_s=60)
        message = next_message(gateway)
        assert (message.topic, message.payload, message.retained) == (UPLINK, payload, False)
        assert next_message(gateway).payload == b"second"


def test_a_gateway_sees_and_clears_what_a_device_leaves_retained(mosquitto):
    with Link(mosquitto.gateway, [UPLINKS]) as gateway, Link(mosquitto.device) as device:
        gateway.wait_connected(WAIT_S)
        device.publish(UPLINK, b"to stay for ever", retain=True, timeout_s=WAIT_S)
        message = next_message(gateway)
        assert message.retained
        gateway.publish(message.topic, b"", retain=True, timeout_s=WAIT_S)
    with Link(mosquitto.gateway, [UPLINKS]) as later:
        later.wait_connected(WAIT_S)
        submit(mosquitto.device, UPLINK, [b"the next"], WAIT_S)
        assert next_message(later).payload == b"the next"


def test_retained_state_reaches_who_subscribes_later(mosquitto):
    later = topics.object_topic(FEDERATION, bytes(32))
    with Link(mosquitto.gateway) as gateway, Link(mosquitto.device, [PLAN]) as device:
        gateway.publish(PLAN, b"plan", retain=True, timeout_s=WAIT_S)
        gateway.publish(later, b"model", retain=True, timeout_s=WAIT_S)
        assert next_message(device).payload == b"plan"
        device.subscribe(later)
        message = next_message(device)
        assert (message.payload, message.retained) == (b"model", True)


def refused(config: BrokerConfig) -> str:
    with pytest.raises(TransportError) as error:
        submit(config, UPLINK, [b"x"], WAIT_S)
    return str(error.value)


def test_without_the_hospitals_certificate_nobody_connects(mosquitto, tmp_path):
    url, ca_file = mosquitto.device.url, mosquitto.files.ca_file
    assert "SSL" in refused(BrokerConfig(url, ca_file=ca_file))
    refused(BrokerConfig(url.replace("mqtts", "mqtt")))
    stranger = Mosquitto(tmp_path / "other").files.credentials[cohort_user(COHORT)]
    assert "SSL" in refused(
        BrokerConfig(
            url,
            ca_file=ca_file,
            certificate_file=stranger.certificate_file,
            key_file=stranger.key_file,
        )
    )


def test_a_server_that_is_not_the_hospitals_is_refused(mosquitto, tmp_path):
    other = Mosquitto(tmp_path / "other")
    assert "CERTIFICATE_VERIFY" in refused(
        mosquitto.config(cohort_user(COHORT), ca_file=other.files.ca_file)
    )
    # The certificate names "localhost"; the same broker under another name is not believed.
    address = f"mqtts://127.0.0.1:{mosquitto.port}"
    assert "CERTIFICATE_VERIFY" in refused(mosquitto.config(cohort_user(COHORT), url=address))


@pytest.mark.parametrize("uplink", [UPLINK, ENROL])
@pytest.mark.parametrize("wanted", [UPLINKS, ENROL, f"vr1/{FEDERATION}/#", "#", "vr1/+/up/+/+"])
def test_a_device_hears_no_uplink(mosquitto, wanted, uplink):
    with (
        Link(mosquitto.gateway, [uplink]) as gateway,
        Link(mosquitto.device, [wanted, PLAN]) as device,
    ):
        gateway.wait_connected(WAIT_S)
        device.wait_connected(WAIT_S)
        submit(mosquitto.device, uplink, [b"secret"], WAIT_S)
        assert next_message(gateway).payload == b"secret"
        # The broker sends in order, so the update would come before this plan.
        gateway.publish(PLAN, b"plan", timeout_s=WAIT_S)
        assert next_message(device).payload == b"plan"


@pytest.mark.parametrize(
    "forbidden",
    [
        PLAN,
        topics.receipts_topic(FEDERATION, COHORT, 1),
        topics.object_topic(FEDERATION, bytes(32)),
        topics.checkpoint_topic(FEDERATION),
        topics.sum_topic(FEDERATION),
        topics.propose_topic(FEDERATION),
        topics.uplink_topic(FEDERATION, OTHER_COHORT, 1),
        CALL,
        topics.enrol_topic(FEDERATION, OTHER_COHORT),
        "anything/else",
    ],
)
def test_a_device_writes_nothing_but_its_uplink(mosquitto, forbidden):
    with Link(mosquitto.gateway, [f"vr1/{FEDERATION}/#", "#"]) as gateway:
        gateway.wait_connected(WAIT_S)
        with pytest.raises(TransportError, match="Not authorized"):
            submit(mosquitto.device, forbidden, [b"forged"], WAIT_S)
        # A broker that took it would deliver it before this one.
        submit(mosquitto.device, UPLINK, [b"allowed"], WAIT_S)
        assert next_message(gateway).payload == b"allowed"


def test_a_call_reaches_the_cohort_and_its_answer_the_gateway_alone(mosquitto):
    with (
        Link(mosquitto.gateway, [ENROL]) as gateway,
        Link(mosquitto.aggregator, [ENROL, CALL, f"vr1/{FEDERATION}/#", PLAN]) as aggregator,
        Link(mosquitto.config(cohort_user(OTHER_COHORT)), [ENROL, CALL, "#"]) as other,
    ):
        for link in (gateway, aggregator, other):
            link.wait_connected(WAIT_S)
        gateway.publish(CALL, b"call", retain=True, timeout_s=WAIT_S)
        with Link(mosquitto.device, [CALL]) as device:
            assert next_message(device).payload == b"call"
        submit(mosquitto.device, ENROL, [b"answer"], WAIT_S)
        assert next_message(gateway).payload == b"answer"
        # The broker sends in order: what comes first is what each may read.
        theirs = topics.plan_topic(FEDERATION, OTHER_COHORT)
        other.subscribe(theirs)
        for topic in (PLAN, theirs):
            gateway.publish(topic, b"plan", retain=True, timeout_s=WAIT_S)
        assert next_message(aggregator).payload == b"plan"
        assert next_message(other).payload == b"plan"


def test_gateway_and_aggregator_share_the_inner_topics(mosquitto):
    propose, total = topics.propose_topic(FEDERATION), topics.sum_topic(FEDERATION)
    with (
        Link(mosquitto.gateway, [propose]) as gateway,
        Link(mosquitto.aggregator, [total, UPLINKS]) as aggregator,
    ):
        aggregator.publish(propose, b"proposal", retain=True, timeout_s=WAIT_S)
        assert next_message(gateway).payload == b"proposal"
        submit(mosquitto.device, UPLINK, [b"update"], WAIT_S)
        gateway.publish(total, b"sum", retain=True, timeout_s=WAIT_S)
        assert next_message(aggregator).payload == b"sum"
        with pytest.raises(TransportError, match="Not authorized"):
            aggregator.publish(PLAN, b"plan", timeout_s=WAIT_S)


def test_an_oversized_payload_is_refused(tmp_path):
    broker = Mosquitto(tmp_path / "broker", BrokerLimits(max_payload_bytes=10_000))
    broker.start()
    try:
        large = bytes(20_000)
        config = broker.device
        with Link(broker.gateway, [UPLINKS]) as gateway:
            gateway.wait_connected(WAIT_S)
            # MQTT 5: the broker said what it takes, so nothing is sent.
            with pytest.raises(TransportError, match="max_payload_bytes"):
                submit(config, UPLINK, [large], WAIT_S)
            # MQTT 3.1.1 cannot say it: the broker ends the connection.
            old = Dialects()
            old.learn_old(config.url)
            with pytest.raises(TransportError, match=r"closed|lost|reset|ended"):
                submit(config, UPLINK, [large], WAIT_S, dialects=old)
            submit(config, UPLINK, [bytes(10_000)], WAIT_S, dialects=old)
            assert next_message(gateway).payload == bytes(10_000)
    finally:
        broker.stop()


def test_a_link_comes_back_after_the_broker_was_killed(mosquitto):
    with Link(mosquitto.gateway, [UPLINKS], backoff=SOON) as gateway:
        for number in range(3):
            next_connected(gateway)
            payload = str(number).encode()
            submit(mosquitto.device, UPLINK, [payload], WAIT_S)
            message = next_message(gateway)
            assert message.payload == payload
            gateway.ack(message)
            mosquitto.kill()
            with pytest.raises(TransportError):
                submit(mosquitto.device, UPLINK, [b"nobody listens"], WAIT_S)
            mosquitto.start()


def test_publishing_to_a_dead_broker_fails_and_works_again_later(mosquitto):
    with Link(mosquitto.gateway, backoff=SOON) as gateway:
        next_connected(gateway)
        mosquitto.kill()
        with pytest.raises(TransportError):
            gateway.publish(PLAN, b"lost", timeout_s=0.5)
        mosquitto.start()
        next_connected(gateway)
        gateway.publish(PLAN, b"plan", retain=True, timeout_s=WAIT_S)
        with Link(mosquitto.device, [PLAN]) as device:
            assert next_message(device).payload == b"plan"


def test_messages_wait_for_a_gateway_that_is_away(mosquitto):
    session = PersistentSession(new_client_id())
    with Link(mosquitto.gateway, [UPLINKS], session=session) as gateway:
        assert not next_connected(gateway).session_present
    for number in range(30):
        submit(mosquitto.device, UPLINK, [b"%d" % number], WAIT_S)
    # In order, and over an orderly restart of the broker too.
    mosquitto.stop()
    mosquitto.start()
    with Link(mosquitto.gateway, [UPLINKS], session=session) as gateway:
        arrived = [next_message(gateway) for _ in range(30)]
        assert [message.payload for message in arrived] == [b"%d" % n for n in range(30)]
        assert next_connected(gateway).session_present


def test_what_was_not_acknowledged_is_delivered_again(mosquitto):
    session = PersistentSession(new_client_id())
    with Link(mosquitto.gateway, [UPLINKS], session=session) as gateway:
        gateway.wait_connected(WAIT_S)
        submit(mosquitto.device, UPLINK, [b"first", b"second"], WAIT_S)
        first, second = next_message(gateway), next_message(gateway)
        assert (first.payload, second.payload) == (b"first", b"second")
        gateway.ack(first)
    with Link(mosquitto.gateway, [UPLINKS], session=session) as gateway:
        again = next_message(gateway)
        assert again.payload == b"second"
        gateway.ack(again)
        submit(mosquitto.device, UPLINK, [b"third"], WAIT_S)
        assert next_message(gateway).payload == b"third"


def test_reconnecting_brings_back_what_was_not_acknowledged(mosquitto):
    session = PersistentSession(new_client_id())
    with Link(mosquitto.gateway, [UPLINKS], session=session, backoff=SOON) as gateway:
        next_connected(gateway)
        submit(mosquitto.device, UPLINK, [b"disk was full"], WAIT_S)
        assert next_message(gateway).payload == b"disk was full"
        gateway.reconnect()
        again = next_message(gateway)
        assert (again.payload, again.redelivered) == (b"disk was full", True)


def test_an_acknowledgement_of_an_earlier_connection_counts_for_nothing(mosquitto):
    session = PersistentSession(new_client_id())
    with Link(mosquitto.gateway, [UPLINKS], session=session, backoff=SOON) as gateway:
        next_connected(gateway)
        submit(mosquitto.device, UPLINK, [b"update"], WAIT_S)
        early = next_message(gateway)
        mosquitto.stop()
        mosquitto.start()
        next_connected(gateway)
        gateway.ack(early)
    with Link(mosquitto.gateway, [UPLINKS], session=session) as gateway:
        assert next_message(gateway).payload == b"update"


def test_a_slow_owner_holds_the_broker_back_and_loses_nothing(mosquitto):
    limits = QueueLimits(max_messages=5)
    with Link(mosquitto.gateway, [UPLINKS], limits=limits) as gateway:
        gateway.wait_connected(WAIT_S)
        payloads = [b"%d" % n for n in range(100)]
        submit(mosquitto.device, UPLINK, payloads, WAIT_S)
        got = []
        for _ in payloads:
            message = next_message(gateway)
            got.append(message.payload)
            gateway.ack(message)
        assert got == payloads


def test_an_owner_with_a_full_queue_can_still_publish(mosquitto):
    limits = QueueLimits(max_messages=3)
    with Link(mosquitto.gateway, [UPLINKS], limits=limits) as gateway:
        gateway.wait_connected(WAIT_S)
        submit(mosquitto.device, UPLINK, [b"%d" % n for n in range(8)], WAIT_S)
        gateway.publish(PLAN, b"plan", timeout_s=WAIT_S)
        for number in range(8):
            message = next_message(gateway)
            assert message.payload == b"%d" % number
            gateway.ack(message)


def test_closing_leaves_no_thread_and_no_socket(mosquitto):
    before = set(threading.enumerate())
    with Link(mosquitto.gateway, [UPLINKS]) as gateway:
        gateway.wait_connected(WAIT_S)
        assert len(set(threading.enumerate()) - before) == 1
    assert set(threading.enumerate()) <= before
    with pytest.raises(TransportError, match="closed"):
        gateway.receive(0.0)
    with pytest.raises(TransportError, match="closed"):
        gateway.publish(PLAN, b"x", timeout_s=0.1)


def test_closing_does_not_wait_for_a_broker_that_is_away(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        config = BrokerConfig(f"mqtt://127.0.0.1:{taken.getsockname()[1]}")
        never = Backoff(first_s=3600.0, ceiling_s=3600.0)
        with (
            Link(config, backoff=never) as link,
            pytest.raises(TransportError, match="not connected"),
        ):
            link.wait_connected(0.2)
        assert not link.connected
