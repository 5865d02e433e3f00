"""Where results go: a file that is rotated and stays bounded, or a broker of the owner's choice."""

import getpass
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mosquitto_fixture import lasting_port, mosquitto_program
from wearer_fixture import put_in_use

from vitalring.config import load_config
from vitalring.edge_agent import results
from vitalring.edge_agent.inference import Prediction
from vitalring.edge_agent.results import BrokerSink, FileSink, ResultsConfig, open_sink
from vitalring.errors import ConfigError, StorageError, TransportError
from vitalring.mqtt import BrokerConfig, Link, Message, PersistentSession, new_client_id
from vitalring.tools.embedded_broker import EmbeddedBroker

BROKER = BrokerConfig("mqtt://127.0.0.1:1883")
SOON_S = 60.0


@pytest.fixture(scope="module")
def broker():
    with EmbeddedBroker() as running:
        yield BrokerConfig(running.url, reconnect_s=0.2)


@pytest.fixture
def about(tmp_path):
    return put_in_use(tmp_path / "state")


def lines_of(path):
    return path.read_text().splitlines()


def test_a_result_names_window_model_and_time(about):
    prediction = Prediction(np.array([0.25, 0.625, 0.125], np.float32), 0.00123456)
    line = results.result({"window": 7, "start_ms": 1_700_000_000_123}, prediction, about)
    assert "\n" not in line
    assert json.loads(line) == {
        "window": 7,
        "start_ms": 1_700_000_000_123,
        "class": "S",
        "probabilities": {"N": 0.25, "S": 0.625, "V": 0.125},
        "study": "study",
        "round": 3,
        "model": about.int8[:12],
        "head": "global",
        "latency_ms": 1.235,
    }


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({}, "either file"),
        ({"file": Path("a"), "broker": BROKER, "topic": "t"}, "either file"),
        ({"broker": BROKER}, "go together"),
        ({"file": Path("a"), "topic": "t"}, "go together"),
        ({"file": Path("a"), "status_topic": "t"}, "needs"),
        ({"broker": BROKER, "topic": "vr1/fed/plan/ward"}, "federation's"),
        ({"broker": BROKER, "topic": "t", "status_topic": "vr1/x"}, "federation's"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, wrong):
    with pytest.raises(ConfigError, match=wrong):
        ResultsConfig(**settings)


@pytest.mark.parametrize("topic", ["", "home/+/ecg", "home/#", "a\\u0000b", "x" * 201])
def test_topics_with_wildcards_are_refused(tmp_path, topic):
    path = tmp_path / "results.toml"
    path.write_text(f'topic = "{topic}"\n[broker]\nurl = "mqtt://127.0.0.1"\n')
    with pytest.raises(ConfigError, match="topic"):
        load_config(ResultsConfig, path)


def test_a_configuration_opens_its_sink(tmp_path, broker):
    file = open_sink(ResultsConfig(file=tmp_path / "deep" / "results.jsonl"))
    file.write("{}")
    file.close()
    assert lines_of(tmp_path / "deep" / "results.jsonl") == ["{}"]
    sink = open_sink(ResultsConfig(broker=broker, topic="home/ecg"))
    assert isinstance(sink, BrokerSink)
    sink.close()


def test_a_file_is_appended_to_and_read_by_its_owner_alone(tmp_path):
    path = tmp_path / "results.jsonl"
    for number in range(2):
        sink = FileSink(path, 4096, 4)
        sink.write(str(number))
        sink.close()
    assert lines_of(path) == ["0", "1"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_half_line_of_a_power_cut_spoils_no_other(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"window": 0}\n{"wind')
    sink = FileSink(path, 4096, 4)
    sink.write('{"window": 2}')
    sink.close()
    assert lines_of(path) == ['{"window": 0}', '{"wind', '{"window": 2}']


@pytest.mark.parametrize("files", [1, 2, 4])
def test_files_are_rotated_and_bounded(tmp_path, files):
    sink = FileSink(tmp_path / "r", 100, files)
    for number in range(100):
        sink.write(f"{number:019}")
    sink.close()
    found = sorted(tmp_path.iterdir())
    assert [path.name for path in found] == ["r", *[f"r.{i}" for i in range(1, files)]]
    assert all(path.stat().st_size <= 100 for path in found)
    # The newest are kept, in order, none doubled.
    newest = [line for path in [*found[:0:-1], found[0]] for line in lines_of(path)]
    assert newest == [f"{number:019}" for number in range(100 - len(newest), 100)]
    assert len(newest) == 5 * files


@given(st.lists(st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]))))
def test_every_line_arrives_once(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("lines") / "r"
    sink = FileSink(path, 2**20, 1)
    for line in lines:
        sink.write(line)
    sink.close()
    assert path.read_bytes().decode().split("\n")[:-1] == lines


def test_a_disk_that_fails_is_told_and_the_next_result_is_written(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    sink = FileSink(path, 4096, 2)
    sink.write("0")
    real = results.os.write
    with monkeypatch.context() as full:
        # As a disk with room for three bytes.
        full.setattr(results.os, "write", lambda fd, data: real(fd, data[:3]))
        with pytest.raises(StorageError, match="No space left"):
            sink.write("1111111")
    sink.write("2")
    sink.close()
    assert lines_of(path) == ["0", "111", "2"]


def test_a_folder_that_cannot_be_written_is_told_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        FileSink(tmp_path / "file" / "results.jsonl", 4096, 2)


def received(link, count):
    found = []
    while len(found) < count:
        event = link.receive(SOON_S)
        assert event is not None, f"only {found}"
        if isinstance(event, Message):
            link.ack(event)
            found.append(event)
    return found


def test_results_arrive_in_order_and_the_model_is_retained(broker, about):
    with Link(broker, ["home/results"]) as reader:
        reader.wait_connected(SOON_S)
        sink = BrokerSink(broker, "home/results", "home/model")
        sink.model(about)
        for number in range(20):
            sink.write(str(number))
        assert [m.payload.decode() for m in received(reader, 20)] == [str(n) for n in range(20)]
        sink.close()
        assert sink.given_up == 0
    with Link(broker, ["home/model"]) as late:
        (status,) = received(late, 1)
        assert status.retained
        assert json.loads(status.payload)["round"] == 3


def test_a_broker_that_is_away_is_waited_for_with_so_many_results(monkeypatch):
    monkeypatch.setattr(results, "_CLOSE_TIMEOUT_S", 0.1)
    with EmbeddedBroker() as gone:
        config = BrokerConfig(gone.url, reconnect_s=0.1)
    sink = BrokerSink(config, "home/results", max_waiting=5)
    try:
        # One may be on its way besides.
        refused = 0
        for number in range(20):
            try:
                sink.write(str(number))
            except TransportError as error:
                refused += 1
                assert "behind" in str(error)
        assert refused == sink.given_up
        assert 14 <= refused <= 15
    finally:
        sink.close()
    assert sink.given_up == 20


class HomeBroker:
    """A Mosquitto as somebody runs at home: anybody on this machine may connect."""

    def __init__(self, folder):
        self.port = lasting_port()
        self.config = BrokerConfig(f"mqtt://127.0.0.1:{self.port}", reconnect_s=0.1)
        self._file = folder / "home.conf"
        self._file.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\n"
            f"persistence true\npersistence_location {folder}/\nuser {getpass.getuser()}\n"
        )
        self._process = None

    def start(self):
        words = [mosquitto_program(), "-c", str(self._file)]
        self._process = subprocess.Popen(words, stderr=subprocess.DEVNULL)

    def stop(self):
        self._process.terminate()
        self._process.wait()


@pytest.mark.mosquitto
def test_results_that_waited_arrive_when_the_broker_is_back(tmp_path):
    home = HomeBroker(tmp_path)
    session = PersistentSession(new_client_id())
    home.start()
    try:
        with Link(home.config, ["home/results"], session=session) as reader:
            reader.wait_connected(SOON_S)
            sink = BrokerSink(home.config, "home/results")
            sink.write("0")
            assert [m.payload for m in received(reader, 1)] == [b"0"]
            home.stop()
            for number in range(1, 10):
                sink.write(str(number))
            home.start()
            # The broker may have gone before the reader's word that it has the first one.
            found = {b"0"}
            while len(found) < 10:
                found |= {m.payload for m in received(reader, 1)}
            assert found == {str(number).encode() for number in range(10)}
            sink.close()
            assert sink.given_up == 0
    finally:
        home.stop()
