"""Sensing processes that are killed lose nothing that was stored and double nothing."""

import os
import signal as signals
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sensing_fixture import (
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

from vitalring.edge_agent.sensing.config import LinesConfig, ReplayConfig, TopicConfig
from vitalring.mqtt import Link

CHILD = """
import sys, threading
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from sensing_fixture import config, broker_config
from vitalring.edge_agent.sensing.config import LinesConfig, ReplayConfig, TopicConfig
from vitalring.edge_agent.sensing.runner import Sensing
from vitalring.mqtt import Backoff
kind, where, state = sys.argv[2], sys.argv[3], Path(sys.argv[4])
source = {
    "replay": lambda: ReplayConfig(Path(where), speed=float(sys.argv[5])),
    "lines": lambda: LinesConfig(Path(where)),
    "mqtt": lambda: TopicConfig("ward/sensor", broker_config(where)),
}[kind]()
def said(window):
    print(window.number, window.start_ms, flush=True)
with Sensing(config(source), state, said, backoff=Backoff(first_s=0.05, ceiling_s=0.1)) as running:
    running.wait_ended(3600)
    running.check()
print("ended", flush=True)
"""


class Child:
    """A process that senses, which is killed as a power cut would."""

    def __init__(self, *words, pipe_bytes=-1):
        here = str(Path(__file__).parent)
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, here, *map(str, words)],
            stdout=subprocess.PIPE,
            text=True,
            pipesize=pipe_bytes,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        self.said = []

    def read(self, count):
        """Read so many lines, or up to the end."""
        for line in self.process.stdout:
            self.said.append(line.split())
            if len(self.said) >= count:
                break
        return self.said

    def read_until(self, number):
        """Read up to this window: it is stored before it is handed on."""
        for line in self.process.stdout:
            self.said.append(line.split())
            if self.said[-1][0] == str(number):
                return
        raise AssertionError(f"window {number} was not handed on")

    def kill(self):
        self.process.send_signal(signals.SIGKILL)
        self.said += [line.split() for line in self.process.stdout]
        self.process.wait()


def check_handed_on(children, count):
    """Every window was handed on; one may be again after a kill, with the number it had."""
    said = [tuple(line) for child in children for line in child.said if len(line) == 2]
    assert {int(number) for number, _ in said} == set(range(1, count + 1))
    assert len(set(said)) == count
    for child in children:
        numbers = [int(line[0]) for line in child.said if len(line) == 2]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_a_killed_replay_loses_and_doubles_nothing(tmp_path):
    path = recording(tmp_path / "r.npz", 60_000)
    sensing = config(ReplayConfig(path, speed=0))
    children = []
    for wanted in (1, 2000, 3000):
        # A pipe with room for a few hundred windows: none comes to the end before it is killed.
        child = Child("replay", path, tmp_path / "state", 0, pipe_bytes=4096)
        children.append(child)
        child.read(wanted)
        child.kill()
    assert 0 < len(stored(tmp_path / "state", sensing)) < len(expected(60_000))
    last = Child("replay", path, tmp_path / "state", 0)
    last.read(10**9)
    assert last.said[-1] == ["ended"]
    found = stored(tmp_path / "state", sensing)
    assert_windows(found, expected(60_000)[-len(found) :])
    assert len(found) == sensing.capacity or len(found) == len(expected(60_000))
    check_handed_on([*children, last], len(expected(60_000)))


def test_a_killed_reader_of_a_growing_file_loses_and_doubles_nothing(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(lines(0, 1000))
    sensing = config(LinesConfig(path))
    children = []
    for stop in (1000, 2000, 3000):
        child = Child("lines", path, tmp_path / "state")
        children.append(child)
        with path.open("ab") as writer:
            # A line in two pieces, the second after the kill.
            tail = lines(stop, stop + 1000)
            writer.write(tail[:5000])
            writer.flush()
            child.read(10)
            child.kill()
            writer.write(tail[5000:])
    last = Child("lines", path, tmp_path / "state")
    wanted = expected(4000)
    wait_for("all", lambda: counts(tmp_path / "state", sensing).get("windows") == len(wanted))
    last.read_until(len(wanted))
    last.kill()
    assert_windows(stored(tmp_path / "state", sensing), wanted)
    assert counts(tmp_path / "state", sensing)["bad_lines"] == 0
    check_handed_on([*children, last], len(wanted))


def test_a_killed_reader_of_a_pipe_doubles_nothing_and_spans_no_hole(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    sensing = config(LinesConfig(pipe))
    # Held open, so that what is in the pipe survives its reader.
    holder = os.open(pipe, os.O_RDWR)
    children = []
    for start in (0, 1000, 2000):
        child = Child("lines", pipe, tmp_path / "state")
        children.append(child)
        os.write(holder, lines(start, start + 1000))
        child.read(20)
        child.kill()
    os.close(holder)
    found = stored(tmp_path / "state", sensing)
    assert len(found) >= 60
    names = [int(window.x[0, 0]) for window in found]
    assert names == sorted(set(names))
    for window in found:
        first = int(window.x[0, 0])
        assert np.array_equal(window.x, signal(first + 8)[first:])


@pytest.mark.mosquitto
def test_a_killed_subscriber_loses_and_doubles_nothing(tmp_path, own_mosquitto):
    broker_url = own_mosquitto
    sensing = config(TopicConfig("ward/sensor", broker_config(broker_url)))
    children = []
    with Link(broker_config(broker_url)) as feeder:
        feeder.wait_connected(GENEROUS_S)
        child = Child("mqtt", broker_url, tmp_path / "state")
        children.append(child)
        subscribed(feeder, tmp_path / "state", sensing)
        for sequence in range(1, 90):
            feeder.publish("ward/sensor", message(sequence))
            if sequence in (20, 45, 70):
                child.read(5)
                child.kill()
                child = Child("mqtt", broker_url, tmp_path / "state")
                children.append(child)
        wanted = expected(900)
        wait_for("all", lambda: counts(tmp_path / "state", sensing)["windows"] >= len(wanted))
        child.read_until(len(wanted))
        child.kill()
    assert_windows(stored(tmp_path / "state", sensing), wanted)
    assert counts(tmp_path / "state", sensing)["gaps"] == 0
    check_handed_on(children, len(wanted))
