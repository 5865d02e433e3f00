"""Sensors on real parts: pipes, terminals, brokers, recordings, and processes that are killed."""

import contextlib
import json
import os
import termios
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from sensing_fixture import (
    CLASSES,
    HZ,
    START_MS,
    assert_windows,
    broker_config,
    config,
    counts,
    expected,
    lines,
    message,
    recording,
    signal,
    stored,
    subscribed,
)
from services_fixture import GENEROUS_S, wait_for

from vitalring.edge_agent.sensing.buffer import Buffer
from vitalring.edge_agent.sensing.config import (
    LabelsConfig,
    LinesConfig,
    ReplayConfig,
    RuleConfig,
    SensingConfig,
    SensorConfig,
    StreamConfig,
    TopicConfig,
)
from vitalring.edge_agent.sensing.feeder import SensorBlock, encode_block
from vitalring.edge_agent.sensing.runner import Sensing
from vitalring.edge_agent.sensing.status import sensing_status
from vitalring.errors import ConfigError, DataError
from vitalring.mqtt import Backoff, Link
from vitalring.tools.embedded_broker import EmbeddedBroker

FAST = Backoff(first_s=0.05, ceiling_s=0.1)


class Windows:
    """Collects windows, and lets a test wait for so many."""

    def __init__(self):
        self.found = []
        self._changed = threading.Condition()

    def __call__(self, window):
        with self._changed:
            self.found.append(window)
            self._changed.notify_all()

    def wait(self, count):
        with self._changed:
            came = self._changed.wait_for(lambda: len(self.found) >= count, GENEROUS_S)
        assert came, f"{len(self.found)} windows of {count}"
        return self.found


def labels(folder, sensing):
    return sensing_status(sensing, folder)["windows"].get("labels")


def test_a_recording_is_cut_kept_and_handed_on(tmp_path):
    sensing = config(ReplayConfig(recording(tmp_path / "r.npz", 5000), speed=0))
    seen = Windows()
    with Sensing(sensing, tmp_path / "state", seen) as running:
        assert running.wait_ended(GENEROUS_S)
    assert_windows(seen.found, expected(5000))
    assert_windows(stored(tmp_path / "state", sensing), expected(5000))
    assert sensing_status(sensing, tmp_path / "state")["again_after_power_cut"] == 0


def test_what_was_handed_on_is_noted_once_the_sensor_is_quiet(tmp_path):
    pipe, state = tmp_path / "pipe", tmp_path / "state"
    os.mkfifo(pipe)
    sensing = config(LinesConfig(pipe))
    seen = Windows()
    with Sensing(sensing, state, seen):
        with pipe.open("wb") as writer:
            writer.write(lines(0, 24))
            writer.flush()
            assert len(seen.wait(5)) == 5
            wait_for("a note", lambda: not sensing_status(sensing, state)["again_after_power_cut"])
        assert sensing_status(sensing, state)["windows"]["kept"] == 5


def test_channels_are_chosen_and_scaled(tmp_path):
    path = recording(tmp_path / "r.npz", 40, channels=3)
    sensing = config(ReplayConfig(path, speed=0), channels=3, inputs=(2, 0), scale=(0.5, 0.1))
    seen = Windows()
    with Sensing(sensing, tmp_path / "state", seen) as running:
        assert running.wait_ended(GENEROUS_S)
    first = signal(8, 3)[:, [2, 0]] * np.float32([0.5, 0.1])
    assert np.array_equal(seen.found[0].x, first)
    # As a data set of the same numbers would be read.
    assert seen.found[0].x.dtype == np.float32


def test_a_recording_that_cannot_be_played_ends_the_start(tmp_path):
    sensing = config(ReplayConfig(tmp_path / "none.npz"))
    with pytest.raises(DataError, match=r"none\.npz"), Sensing(sensing, tmp_path / "state"):
        pass


def test_a_pipe_with_broken_lines_gaps_and_several_writers(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    sensing = config(LinesConfig(pipe))
    seen = Windows()
    with Sensing(sensing, tmp_path / "state", seen):
        with pipe.open("wb") as writer:
            writer.write(lines(0, 20, broken={3}))
        seen.wait(3)
        # Another writer, after a gap, and a clock that was set back.
        with pipe.open("wb") as writer:
            writer.write(lines(40, 52))
        seen.wait(5)
        with pipe.open("wb") as writer:
            writer.write(lines(0, 8))
        seen.wait(6)
    # The broken line is missing from its window's middle, so no window holds it.
    assert [int(w.x[0, 0]) for w in seen.found] == [4, 8, 12, 40, 44, 0]
    found = counts(tmp_path / "state", sensing)
    assert (found["bad_lines"], found["gaps"], found["jumps_backward"]) == (1, 2, 1)
    assert found["source_faults"] == 0


def test_a_pipe_without_times_is_stamped_by_the_clock(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    sensing = config(LinesConfig(pipe))
    seen = Windows()
    before = time.time() * 1000
    with Sensing(sensing, tmp_path / "state", seen), pipe.open("wb") as writer:
        writer.write(lines(0, 24, timed=False))
        writer.flush()
        seen.wait(5)
    assert [int(w.x[0, 0]) for w in seen.found] == [0, 4, 8, 12, 16]
    assert before - 1000 < seen.found[0].start_ms < time.time() * 1000


def test_a_serial_port_that_vanishes_is_opened_again(tmp_path):
    sensing = config(LinesConfig(tmp_path / "port", baud=115200))
    seen = Windows()
    with Sensing(sensing, tmp_path / "state", seen, backoff=FAST):
        wait_for("fault", lambda: counts(tmp_path / "state", sensing).get("source_faults"))
        for attempt in range(2):
            ours, theirs = os.openpty()
            (tmp_path / "port").symlink_to(os.ttyname(theirs))
            wait_for("raw mode", lambda: not termios.tcgetattr(theirs)[3] & termios.ICANON)  # noqa: B023
            if attempt == 0:
                # Raw mode: none of these may be eaten or changed by the line discipline.
                os.write(ours, b"\x03\x04\x11\x13\n")
            os.write(ours, lines(100 * attempt, 100 * attempt + 16))
            seen.wait(3 * (attempt + 1))
            (tmp_path / "port").unlink()
            os.close(theirs)
            os.close(ours)
    assert [int(w.x[0, 0]) for w in seen.found] == [0, 4, 8, 100, 104, 108]


def test_an_unknown_baud_rate_is_said(tmp_path, caplog):
    ours, theirs = os.openpty()
    sensing = config(LinesConfig(Path(os.ttyname(theirs)), baud=12345))
    with Sensing(sensing, tmp_path / "state", backoff=FAST):
        wait_for("complaint", lambda: "baud 12345" in caplog.text)
    os.close(ours)
    os.close(theirs)


def json_message(sequence, rows=10, run="run-1"):
    start = sequence * rows
    plain = {
        "run": run, "sequence": sequence, "start_ms": START_MS + 20 * start, "rate": 50.0,
        "samples": signal(start + rows)[start:].tolist(),
    }  # fmt: skip
    return json.dumps(plain).encode()


@pytest.fixture(params=["embedded", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
def broker_url(request):
    if request.param == "mosquitto":
        yield request.getfixturevalue("own_mosquitto")
        return
    with EmbeddedBroker() as broker:
        yield broker.url


def test_a_feeder_over_a_broker_doubled_early_and_broken(tmp_path, broker_url, monkeypatch):
    # However slowly they come here, none is given up.
    monkeypatch.setattr("vitalring.edge_agent.sensing.feeder.HOLD_S", GENEROUS_S)
    sensing = config(TopicConfig("ward/sensor", broker_config(broker_url)))
    seen = Windows()
    with (
        Link(broker_config(broker_url)) as feeder,
        Sensing(sensing, tmp_path / "state", seen, backoff=FAST),
    ):
        feeder.wait_connected(GENEROUS_S)
        subscribed(feeder, tmp_path / "state", sensing)
        for payload in (
            json_message(1), message(1), message(3), b"nothing", message(2), message(4), message(0),
        ):  # fmt: skip
            feeder.publish("ward/sensor", payload)
        seen.wait(len(expected(50)))
        # A feeder that starts anew, with its numbers from the start.
        samples = signal(8).astype("<f4").tobytes()
        again = SensorBlock("run-2", 0, START_MS + 10_000, HZ, 2, samples)
        feeder.publish("ward/sensor", encode_block(again))
        seen.wait(len(expected(50)) + 1)
    assert_windows(seen.found[:-1], expected(50))
    found = counts(tmp_path / "state", sensing)
    assert found["repeated_messages"] >= 2
    assert found["bad_messages"] == 1
    assert (found["gaps"], found["jumps_backward"]) == (1, 0)


def test_a_message_that_never_comes_is_not_waited_for_long(tmp_path, broker_url, monkeypatch):
    monkeypatch.setattr("vitalring.edge_agent.sensing.feeder.HOLD_S", 0.1)
    sensing = config(TopicConfig("ward/sensor", broker_config(broker_url)))
    seen = Windows()
    with (
        Link(broker_config(broker_url)) as feeder,
        Sensing(sensing, tmp_path / "state", seen, backoff=FAST),
    ):
        feeder.wait_connected(GENEROUS_S)
        subscribed(feeder, tmp_path / "state", sensing)
        feeder.publish("ward/sensor", message(2))
        seen.wait(2)
    assert [int(window.x[0, 0]) for window in seen.found] == [0, 20]
    assert counts(tmp_path / "state", sensing)["gaps"] == 1


@pytest.mark.mosquitto
def test_the_broker_keeps_messages_while_the_agent_is_away(tmp_path, own_mosquitto):
    sensing = config(TopicConfig("ward/sensor", broker_config(own_mosquitto)))
    seen = Windows()
    with Link(broker_config(own_mosquitto)) as feeder:
        feeder.wait_connected(GENEROUS_S)
        with Sensing(sensing, tmp_path / "state", seen, backoff=FAST):
            subscribed(feeder, tmp_path / "state", sensing)
        for sequence in range(1, 5):
            feeder.publish("ward/sensor", message(sequence))
        with Sensing(sensing, tmp_path / "state", seen, backoff=FAST):
            seen.wait(len(expected(50)))
    assert_windows(seen.found, expected(50))


def test_labels_by_button_file_and_message_reach_windows(tmp_path, broker_url, monkeypatch):
    monkeypatch.setattr("vitalring.edge_agent.sensing.runner._LABELS_EVERY_S", 0.05)
    monkeypatch.setattr("vitalring.edge_agent.sensing.runner._TURN_S", 0.05)
    table = tmp_path / "annotations.csv"
    topic = TopicConfig("ward/labels", broker_config(broker_url))
    sensing = config(
        ReplayConfig(recording(tmp_path / "r.npz", 48), speed=0),
        labels={
            "annotations": table, "button": tmp_path / "button", "mqtt": topic,
            "mark_s": 0.16, "mark_before_s": 0.0,
        },
    )  # fmt: skip
    state = tmp_path / "state"
    with Sensing(sensing, state) as running, Link(broker_config(broker_url)) as clinician:
        clinician.wait_connected(GENEROUS_S)
        assert running.wait_ended(GENEROUS_S)
        assert labels(state, sensing) == {}
        # The wearer presses; a line that says nothing clear is counted.
        (tmp_path / "button").write_bytes(b"walk,%d\nsleep\n" % START_MS)
        wait_for("press", lambda: labels(state, sensing) == {"walk": 2})
        # The clinician's file, with a bad line; then a line less.
        start = START_MS + 400
        table.write_text(
            f"start,end,label\n{start},{start + 160},rest\n{start},{start - 1},rest\n"
            f"{start + 160},{start + 320},rest\n"
        )
        wait_for("file", lambda: labels(state, sensing) == {"walk": 2, "rest": 5})
        assert counts(state, sensing)["bad_annotation_lines"] == 1
        table.write_text(f"start,end,label\n{start},{start + 160},rest\n")
        wait_for("withdrawal", lambda: labels(state, sensing) == {"walk": 2, "rest": 3})
        # A message annotates, contradicts, and is taken back. Whether anybody listens yet, nobody
        # knows; said again it changes nothing.
        said = json.dumps({"id": "1", "label": "walk", "start": start, "end": start + 160}).encode()

        def heard(payload, wanted):
            clinician.publish("ward/labels", payload)
            return labels(state, sensing) == wanted

        wait_for("conflict", lambda: heard(said, {"walk": 2}))
        assert sensing_status(sensing, state)["windows"]["conflicts"] == 3
        taken_back = b'{"id": "1", "remove": true}'
        wait_for("taken back", lambda: heard(taken_back, {"walk": 2, "rest": 3}))
        assert counts(state, sensing)["bad_marks"] == 1


def test_rules_on_the_stream_and_on_a_second_one(tmp_path):
    raw = signal(100)
    np.savez(tmp_path / "r.npz", signal=raw, rate=HZ, start_ms=START_MS)
    # A second sensor at 10 Hz says 1 in the seconds from 0.4 to 1.2.
    beats = np.zeros((20, 1), np.float32)
    beats[4:12] = 1
    np.savez(tmp_path / "s.npz", signal=beats, rate=10.0, start_ms=START_MS)
    second = StreamConfig(
        sampling_hz=10.0, channels=1, replay=ReplayConfig(tmp_path / "s.npz", speed=0)
    )
    rules = (
        RuleConfig("rest", 0, above=79.5, for_s=0.2),
        RuleConfig("walk", 0, above=0.5, for_s=0.5, of="signal"),
    )
    sensing = config(
        ReplayConfig(tmp_path / "r.npz", speed=0), labels={"rules": rules, "signal": second}
    )
    with Sensing(sensing, tmp_path / "state") as running:
        assert running.wait_ended(GENEROUS_S)
    with contextlib.closing(Buffer(tmp_path / "state", sensing)) as buffer:
        rows = buffer.db.execute("SELECT start_ms, label FROM windows WHERE label IS NOT NULL")
        found = {start - START_MS: label for start, label in rows}
    assert found == {
        **dict.fromkeys(range(320, 1200 - 80 + 1, 80), "walk"),
        **dict.fromkeys(range(1520, 1841, 80), "rest"),
    }


def test_a_full_disk_stops_nothing_for_good(tmp_path, monkeypatch):
    sensing = config(ReplayConfig(recording(tmp_path / "r.npz", 3000), speed=0))
    monkeypatch.setattr("vitalring.edge_agent.sensing.runner._DISK_RETRY_S", 0.01)
    keep, failures = Buffer.keep, iter([True] * 3)

    def failing(self, *words):
        # As SQLite says it, from inside the transaction.
        if next(failures, False):
            self.db.execute("PRAGMA query_only=ON")
        try:
            return keep(self, *words)
        finally:
            self.db.execute("PRAGMA query_only=OFF")

    monkeypatch.setattr(Buffer, "keep", failing)
    seen = Windows()
    with Sensing(sensing, tmp_path / "state", seen) as running:
        assert running.wait_ended(GENEROUS_S)
    assert_windows(seen.found, expected(3000))


def test_a_fault_of_ours_is_told_and_does_not_pass_for_silence(tmp_path, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("vitalring.edge_agent.sensing.runner.cut", broken)
    sensing = config(ReplayConfig(recording(tmp_path / "r.npz", 100), speed=0))
    told = threading.Event()
    # The fault may come before the start is over or after it.
    with (
        pytest.raises(ZeroDivisionError),
        Sensing(sensing, tmp_path / "state", on_fault=told.set) as running,
    ):
        assert told.wait(GENEROUS_S)
        running.check()
    assert told.wait(GENEROUS_S)


@pytest.mark.parametrize("step", ["_opener", "Feed.start"])
def test_a_source_that_cannot_be_started_ends_the_start(tmp_path, monkeypatch, step):
    def no_thread(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(f"vitalring.edge_agent.sensing.runner.{step}", no_thread)
    sensing = config(ReplayConfig(recording(tmp_path / "r.npz", 100), speed=0))
    with pytest.raises(RuntimeError, match="new thread"), Sensing(sensing, tmp_path / "state"):
        pass


def test_who_takes_windows_may_fail_and_gets_the_next(tmp_path):
    seen = Windows()

    def choosy(window):
        seen(window)
        if window.number == 3:
            raise RuntimeError("no")

    sensing = config(ReplayConfig(recording(tmp_path / "r.npz", 100), speed=0))
    with Sensing(sensing, tmp_path / "state", choosy) as running:
        assert running.wait_ended(GENEROUS_S)
    assert_windows(seen.found, expected(100))
    assert counts(tmp_path / "state", sensing)["unpredicted"] == 1


def test_a_button_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "button").write_text("")
    sensing = config(
        ReplayConfig(recording(tmp_path / "r.npz", 100)), labels={"button": tmp_path / "button"}
    )
    with pytest.raises(ConfigError, match="is no pipe"), Sensing(sensing, tmp_path / "state"):
        pass


@pytest.mark.hapt
def test_a_real_recording_gives_the_windows_of_its_data_set(tmp_path):
    """The windows that HAPT's authors cut are, sample for sample, among those cut here."""
    with np.load(os.environ["VITALRING_HAPT"]) as file:
        first, stop = file["offset"][0], file["offset"][1]
        raw, marks = file["signals"][first:stop], file["labels"]
    np.savez(tmp_path / "r.npz", signal=raw, rate=50.0, start_ms=START_MS)
    marks = marks[(marks[:, 0] == 1) & (marks[:, 2] <= 6)]
    names = ("walking", "upstairs", "downstairs", "sitting", "standing", "laying")
    rows = [
        f"{START_MS + 20 * (first - 1)},{START_MS + 20 * last},{names[activity - 1]}"
        for _, _, activity, first, last in marks
    ]
    (tmp_path / "a.csv").write_text("\n".join(["start,end,label", *rows, ""]))
    sensing = SensingConfig(
        SensorConfig(
            sampling_hz=50.0, channels=6, window=128, stride=64,
            replay=ReplayConfig(tmp_path / "r.npz", speed=0),
        ),
        LabelsConfig(names, annotations=tmp_path / "a.csv"),
    )  # fmt: skip
    state = tmp_path / "state"
    with Sensing(sensing, state) as running:
        assert running.wait_ended(GENEROUS_S)
        wait_for("labels", lambda: len(labels(state, sensing)) == 6)
    found = stored(state, sensing)
    assert len(found) == (len(raw) - 128) // 64 + 1
    for row, window in enumerate(found):
        assert np.array_equal(window.x, raw[64 * row : 64 * row + 128].astype(np.float32))
    status = sensing_status(sensing, state)
    assert status["windows"]["conflicts"] == 0
    marked = sum(last - first + 1 for _, _, _, first, last in marks)
    assert abs(sum(status["windows"]["labels"].values()) * 64 / marked - 1) < 0.1


def test_classes_of_the_fixture_are_those_of_its_labels():
    assert config(LinesConfig(Path("x"))).labels.classes == CLASSES
