"""What the link promises without a broker, and against one that lies."""

import socket
import ssl
import threading
from contextlib import contextmanager, suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitalring.errors import ConfigError, TransportError
from vitalring.mqtt import (
    Backoff,
    BrokerConfig,
    Dialects,
    Link,
    PersistentSession,
    QueueLimits,
    new_client_id,
    submit,
)
from vitalring.schema import from_plain, to_plain

SECRET = "correct horse battery staple"


@pytest.fixture
def files(tmp_path):
    """A private, readable, useless file for each role."""
    paths = {name: tmp_path / name for name in ("ca", "certificate", "key", "password")}
    for path in paths.values():
        path.write_text(SECRET)
        path.chmod(0o600)
    return paths


@pytest.mark.parametrize(
    ("url", "host", "port", "tls"),
    [
        ("mqtt://broker", "broker", 1883, False),
        ("mqtts://broker", "broker", 8883, True),
        ("mqtts://10.0.0.7:8884/", "10.0.0.7", 8884, True),
        ("mqtt://[::1]:1884", "::1", 1884, False),
    ],
)
def test_reads_addresses(url, host, port, tls):
    config = BrokerConfig(url)
    assert (config.host, config.port, config.tls) == (host, port, tls)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"url": "broker:1883"}, "url"),
        ({"url": "http://broker"}, "url"),
        ({"url": "mqtt://"}, "url"),
        ({"url": "mqtt://broker:0"}, "url"),
        ({"url": "mqtt://broker:70000"}, "url"),
        ({"url": "mqtt://broker/topic"}, "url"),
        ({"url": f"mqtts://user:{SECRET}@broker"}, "url"),
        ({"url": "mqtt://broker", "ca_file": "ca"}, "ca_file"),
        ({"certificate_file": "certificate"}, "key_file"),
        ({"key_file": "key"}, "certificate_file"),
        ({"password_file": "password"}, "username"),
        ({"url": "mqtt://broker", "username": "u", "password_file": "password"}, "password_file"),
        ({"keepalive_s": 1}, "keepalive_s"),
        ({"max_payload_bytes": 0}, "max_payload_bytes"),
    ],
)
def test_refuses_settings_that_cannot_work_and_names_them(changes, named, files):
    arguments = {
        name: files[value] if name.endswith("_file") else value for name, value in changes.items()
    }
    with pytest.raises(ConfigError, match=named) as error:
        BrokerConfig(**({"url": "mqtts://broker"} | arguments))
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("role", "fault"),
    [
        *((role, "absent") for role in ("ca", "certificate", "key", "password")),
        *((role, "nonsense") for role in ("ca", "certificate", "key", "password")),
        *((role, "not private") for role in ("key", "password")),
    ],
)
def test_unusable_files_are_named_and_never_shown(role, fault, files):
    if fault == "absent":
        files[role].unlink()
    if fault == "not private":
        files[role].chmod(0o644)
    arguments = {"username": "u", "password_file": files["password"]} if role == "password" else {}
    if role == "ca":
        arguments = {"ca_file": files["ca"]}
    if role in ("certificate", "key"):
        arguments = {"certificate_file": files["certificate"], "key_file": files["key"]}
    config = BrokerConfig("mqtts://broker", **arguments)
    if (role, fault) == ("password", "nonsense"):
        files["password"].write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=f"{role}.*_file|_file [^ ]*{role}") as error:
        Link(config)
    assert SECRET not in str(error.value)
    assert SECRET not in repr(config)


def test_a_password_loses_its_line_end_only(files):
    files["password"].write_text(f" {SECRET} \n")
    config = BrokerConfig("mqtts://broker", username="u", password_file=files["password"])
    assert config.password() == f" {SECRET} "


def test_tls_always_verifies_the_server():
    context = BrokerConfig("mqtts://broker").tls_context()
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert BrokerConfig("mqtt://broker").tls_context() is None


def test_is_read_from_a_configuration_file():
    table = {"url": "mqtts://broker", "ca_file": "/etc/ca.pem", "max_payload_bytes": 1000}
    config = from_plain(BrokerConfig, table, ConfigError, "broker")
    assert config.max_payload_bytes == 1000
    assert str(to_plain(config)["ca_file"]) == "/etc/ca.pem"
    with pytest.raises(ConfigError, match=r"broker\.keepalive_s"):
        from_plain(BrokerConfig, table | {"keepalive_s": 0}, ConfigError, "broker")


def test_client_ids_are_fresh_and_acceptable_everywhere():
    ids = {new_client_id() for _ in range(200)}
    assert len(ids) == 200
    assert all(len(i) == 23 and i.isalnum() and i.isascii() for i in ids)
    assert "abc" not in repr(PersistentSession("abc"))


@given(
    st.integers(0, 10_000),
    st.floats(0, 1, exclude_max=True),
    st.floats(0.01, 10),
    st.floats(10, 1000),
)
def test_back_off_stays_between_half_and_whole_of_the_doubled_wait(failures, u, first, ceiling):
    backoff = Backoff(first_s=first, ceiling_s=ceiling)
    delay = backoff.delay_s(failures, lambda: u)
    exact = min(ceiling, first * 2.0 ** min(failures, 64))
    assert exact / 2 <= delay <= exact <= ceiling
    assert delay > 0


@pytest.mark.parametrize(("first", "ceiling"), [(0, 1), (2, 1), (1, float("inf")), (-1, 1)])
def test_back_off_refuses_to_hammer(first, ceiling):
    with pytest.raises(ConfigError):
        Backoff(first_s=first, ceiling_s=ceiling)


@pytest.mark.parametrize(("messages", "size"), [(0, 1), (65536, 1), (1, 0)])
def test_queue_limits_must_admit_something(messages, size):
    with pytest.raises(ConfigError):
        QueueLimits(max_messages=messages, max_bytes=size)


def test_a_broker_that_cannot_be_reached_is_a_transport_error():
    with socket.socket() as bound:  # bound, not listening: refused at once
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(TransportError, match="cannot be reached"):
            submit(BrokerConfig(f"mqtt://127.0.0.1:{bound.getsockname()[1]}"), "t", [b""], 2.0)
    with pytest.raises(TransportError, match="cannot be reached"):
        submit(BrokerConfig("mqtt://no-such-host.invalid"), "t", [b""], 2.0)


@contextmanager
def lying_broker(answer):
    """A server that sends `answer` to whoever connects, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client, suppress(OSError):
                    client.settimeout(5.0)
                    client.sendall(answer)
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(65536):
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"mqtt://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


WELCOME_5 = bytes((0x20, 3, 0, 0, 0))
WELCOME_3 = bytes((0x20, 2, 0, 0))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([b"", WELCOME_5, WELCOME_3]), st.binary(max_size=40))
def test_whatever_a_broker_answers_a_submission_fails_by_name(welcome, noise):
    with lying_broker(welcome + noise) as url, pytest.raises(TransportError):
        submit(BrokerConfig(url), "vr1/f/up/c/1", [b"update"] * 20, 5.0)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([b"", WELCOME_5]), st.binary(min_size=1, max_size=40))
def test_whatever_a_broker_sends_a_link_keeps_trying(welcome, noise):
    tries = threading.Semaphore(0)

    def uniform():
        tries.release()  # drawn once for each wait between connections
        return 0.0

    with (
        lying_broker(welcome + noise) as url,
        Link(
            BrokerConfig(url),
            ["vr1/f/plan/c"],
            backoff=Backoff(first_s=0.001, ceiling_s=0.001),
            uniform=uniform,
        ),
    ):
        assert all(tries.acquire(timeout=60.0) for _ in range(3))


def test_waits_grow_while_connections_do_not_last_and_shrink_after_one_did():
    delays, failures = [], []
    now = iter(range(0, 10_000, 10))  # every connection "lasts" 10 seconds

    class Recorder(Backoff):
        def delay_s(self, count, uniform):
            failures.append(count)
            if len(failures) == 5:
                done.set()
            return 0.001

    def run(stable_s):
        failures.clear()
        done.clear()
        with (
            lying_broker(WELCOME_5) as url,
            Link(
                BrokerConfig(url), backoff=Recorder(stable_s=stable_s), monotonic=lambda: next(now)
            ),
        ):
            assert done.wait(60.0)
        delays.append(failures[:5])

    done = threading.Event()
    run(stable_s=30.0)
    run(stable_s=5.0)
    assert delays == [[0, 1, 2, 3, 4], [0, 0, 0, 0, 0]]


@contextmanager
def old_broker(manner):
    """A broker of MQTT 3.1.1 that takes one publication from each connection.

    To MQTT 5 it "refuses" by the book, "hangs up", or "stays silent".
    """
    silent = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                level = client.recv(4096)[8]
                if level == 5 and manner == "stays silent":
                    silent.append(client)
                    continue
                with client, suppress(OSError):
                    if level == 5:
                        client.sendall(bytes((0x20, 2, 0, 1)) if manner == "refuses" else b"")
                        continue
                    client.sendall(WELCOME_3)
                    publication = client.recv(4096)
                    topic_end = 4 + publication[3]
                    client.sendall(b"\x40\x02" + publication[topic_end : topic_end + 2])
                    client.recv(4096)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"mqtt://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for client in silent:
                client.close()


@pytest.mark.parametrize(
    ("manner", "remembered"), [("refuses", True), ("stays silent", True), ("hangs up", False)]
)
def test_an_old_broker_is_served_and_remembered_when_it_is_certain(manner, remembered, monkeypatch):
    if manner == "stays silent":
        # No answer else may take longer, or a broker that hangs up would pass for a silent one.
        monkeypatch.setattr("vitalring.mqtt_connection.UNANSWERED_S", 0.1)
    dialects = Dialects()
    with old_broker(manner) as url:
        newest = dialects.version(url)
        for _ in range(2):
            submit(BrokerConfig(url), "t", [b"x"], 60.0, dialects=dialects)
        assert (dialects.version(url) != newest) is remembered


def test_a_broker_that_speaks_neither_version_teaches_nothing():
    dialects = Dialects()
    with lying_broker(bytes((0x20, 2, 0, 1))) as url:
        newest = dialects.version(url)
        with pytest.raises(TransportError):
            submit(BrokerConfig(url), "t", [b"x"], 5.0, dialects=dialects)
        assert dialects.version(url) == newest
