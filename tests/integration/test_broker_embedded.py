"""The simulation's broker: MQTT 3.1.1 only, a process of its own, nothing left behind."""

import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest
from services_fixture import wait_for

from vitalring.errors import TransportError
from vitalring.mqtt import (
    Backoff,
    BrokerConfig,
    Connected,
    Dialects,
    Link,
    Message,
    QueueLimits,
    submit,
)
from vitalring.mqtt_connection import MQTT_3_1_1
from vitalring.tools.embedded_broker import EmbeddedBroker

WAIT_S = 60.0
UPLINK = "vr1/sim/up/c/1"
UPLINKS = "vr1/sim/up/+/+"
OBJECT = "vr1/sim/object/" + "ab" * 32


@pytest.fixture(scope="module")
def url():
    with EmbeddedBroker() as broker:
        yield broker.url


@pytest.fixture
def config(url):
    return BrokerConfig(url, max_payload_bytes=2 * 2**20)


@pytest.fixture(scope="module")
def dialects():
    return Dialects()


def next_message(link):
    while True:
        event = link.receive(WAIT_S)
        assert event is not None, "nothing arrived"
        if isinstance(event, Message):
            return event


def test_falls_back_to_mqtt_3_1_1_and_remembers_it(config):
    dialects = Dialects()
    submit(config, UPLINK, [b"x"], WAIT_S, dialects=dialects)
    assert dialects.version(config.url) is MQTT_3_1_1
    submit(config, UPLINK, [b"x"], WAIT_S, dialects=dialects)


def test_carries_large_updates_at_quality_1(config, dialects):
    payloads = [os.urandom(100_000) for _ in range(10)] + [os.urandom(2**20)]
    with Link(config, [UPLINKS], dialects=dialects) as gateway:
        gateway.wait_connected(WAIT_S)
        submit(config, UPLINK, payloads, WAIT_S, dialects=dialects)
        received = [next_message(gateway) for _ in payloads]
        for message in received:
            gateway.ack(message)
        assert sorted(message.payload for message in received) == sorted(payloads)


def test_many_short_connections_all_arrive(config, dialects):
    count = 200
    with Link(config, [UPLINKS], dialects=dialects) as gateway:
        gateway.wait_connected(WAIT_S)
        for number in range(count):
            submit(config, UPLINK, [b"%d" % number], WAIT_S, dialects=dialects)
        arrived = set()
        for _ in range(count):
            message = next_message(gateway)
            gateway.ack(message)
            arrived.add(message.payload)
        assert arrived == {b"%d" % number for number in range(count)}


def test_keeps_retained_messages_for_those_who_ask_and_for_nobody_else(config, dialects):
    model = os.urandom(2**20)
    with (
        Link(config, [OBJECT], dialects=dialects) as first,
        Link(config, dialects=dialects) as gateway,
    ):
        first.wait_connected(WAIT_S)
        gateway.publish(OBJECT, model, retain=True, timeout_s=WAIT_S)
        assert next_message(first).payload == model
        # A newcomer that asked for something else gets that alone, though `first` wants more.
        with Link(config, ["vr1/sim/plan/c"], dialects=dialects) as newcomer:
            newcomer.wait_connected(WAIT_S)
            gateway.publish("vr1/sim/plan/c", b"plan", timeout_s=WAIT_S)
            assert next_message(newcomer).payload == b"plan"
            newcomer.subscribe(OBJECT)
            message = next_message(newcomer)
            assert (message.payload, message.retained) == (model, True)
        gateway.publish(OBJECT, b"", retain=True, timeout_s=WAIT_S)


def test_a_slow_owner_stops_the_flow_within_its_limits(config, dialects):
    limits = QueueLimits(max_messages=8, max_bytes=400_000)
    payloads = [bytes([n]) * 100_000 for n in range(60)]
    with Link(config, [UPLINKS], limits=limits, dialects=dialects) as gateway:
        gateway.wait_connected(WAIT_S)
        submit(config, UPLINK, payloads, WAIT_S, dialects=dialects)
        arrived = []
        while len(arrived) < len(payloads):
            assert gateway.queued_bytes <= limits.max_bytes + 100_000
            message = next_message(gateway)
            arrived.append(message.payload)
            gateway.ack(message)
        assert sorted(arrived) == payloads


def test_an_owner_with_a_full_queue_can_still_publish(config, dialects):
    limits = QueueLimits(max_messages=3)
    with Link(config, [UPLINKS], limits=limits, dialects=dialects) as gateway:
        gateway.wait_connected(WAIT_S)
        payloads = [b"%d" % n for n in range(8)]
        submit(config, UPLINK, payloads, WAIT_S, dialects=dialects)
        gateway.publish("vr1/sim/plan/c", b"plan", timeout_s=WAIT_S)
        assert sorted(next_message(gateway).payload for _ in payloads) == payloads


def test_a_link_survives_the_broker_and_its_owner_is_told(dialects):
    with EmbeddedBroker() as broker:
        link = Link(
            BrokerConfig(broker.url),
            [UPLINKS],
            backoff=Backoff(first_s=0.01, ceiling_s=0.05),
        )
        with link:
            assert isinstance(link.receive(WAIT_S), Connected)
            broker.close()
            with pytest.raises(TransportError):
                link.publish(UPLINK, b"x", timeout_s=0.3)
            wait_for("the loss is noticed", lambda: not link.connected)


def test_ends_with_its_parent_even_when_that_is_killed():
    program = (
        "import sys, time\n"
        "from vitalring.tools.embedded_broker import EmbeddedBroker\n"
        "with EmbeddedBroker() as broker:\n"
        "    print(broker.pid, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        broker = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
        broker.wait(WAIT_S)
    except psutil.NoSuchProcess:
        pass
    finally:
        parent.kill()
        parent.wait()
        parent.stdin.close()
        parent.stdout.close()


def test_stopping_leaves_no_process_and_no_thread():
    threads = set(threading.enumerate())
    with EmbeddedBroker() as broker:
        process = psutil.Process(broker.pid)
        submit(BrokerConfig(broker.url), UPLINK, [b"x"], WAIT_S)
    assert not process.is_running()
    assert set(threading.enumerate()) <= threads
