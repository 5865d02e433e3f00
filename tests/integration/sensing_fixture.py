"""Configurations and recordings for tests of the sensors."""

import contextlib
import time

import numpy as np
from services_fixture import GENEROUS_S

from vitalring.edge_agent.sensing.buffer import Buffer
from vitalring.edge_agent.sensing.config import (
    BufferConfig,
    LabelsConfig,
    LinesConfig,
    ReplayConfig,
    SensingConfig,
    SensorConfig,
    TopicConfig,
)
from vitalring.edge_agent.sensing.feeder import SensorBlock, encode_block
from vitalring.edge_agent.sensing.status import sensing_status
from vitalring.mqtt import BrokerConfig

HZ = 50.0
PERIOD_US = 20_000
START_MS = 1_700_000_000_000
CLASSES = ("rest", "walk")


def config(source, *, window=8, stride=4, channels=2, labels=None, buffer=None, **sensor):
    """A sensing configuration; `labels` and `buffer` are what differs from the usual."""
    kind = {ReplayConfig: "replay", LinesConfig: "lines", TopicConfig: "mqtt"}[type(source)]
    return SensingConfig(
        SensorConfig(
            sampling_hz=HZ,
            channels=channels,
            window=window,
            stride=stride,
            **{kind: source},
            **sensor,
        ),
        LabelsConfig(CLASSES, **(labels or {})),
        BufferConfig(**{"commit_s": 0.05, **(buffer or {})}),
    )


def signal(count, channels=2):
    """Samples that name themselves: (n, channels), exact in float32."""
    numbers = np.arange(count, dtype=np.float32)[:, None]
    return np.concatenate([numbers, *[numbers * 2 + c for c in range(1, channels)]], axis=1)


def recording(path, count, channels=2, **more):
    """Write an .npz recording of `count` samples that name themselves."""
    np.savez(path, signal=signal(count, channels), rate=HZ, start_ms=START_MS, **more)
    return path


def lines(first, stop, *, timed=True, broken=()):
    """Samples `first` to `stop` as text."""
    out = []
    for number in range(first, stop):
        text = ",".join(f"{value:g}" for value in signal(stop)[number])
        stamp = f"{START_MS + number * 20}," if timed else ""
        out.append("broken,line,,x" if number in broken else stamp + text)
    return "".join(f"{line}\n" for line in out).encode()


def expected(count, window=8, stride=4, channels=2):
    """The windows of `count` samples without a gap: [(start_ms, x)]."""
    x = signal(count, channels)
    return [
        (START_MS + 20 * row, x[row : row + window]) for row in range(0, count - window + 1, stride)
    ]


def assert_windows(windows, wanted):
    """Every window is there once, in order, with its samples."""
    assert [window.start_ms for window in windows] == [start for start, _ in wanted]
    for window, (_, x) in zip(windows, wanted, strict=True):
        assert np.array_equal(window.x, x)


def broker_config(url):
    return BrokerConfig(url, reconnect_s=0.2)


def stored(folder, sensing):
    with contextlib.closing(Buffer(folder, sensing)) as buffer:
        return buffer.windows_after(0, 100_000)


def counts(folder, sensing):
    return sensing_status(sensing, folder).get("counts", {})


def message(sequence, rows=10, run="run-1"):
    start = sequence * rows
    return encode_block(
        SensorBlock(
            run, sequence, START_MS + 20 * start, HZ, 2,
            signal(start + rows)[start:].astype("<f4").tobytes(),
        )
    )  # fmt: skip


def subscribed(feeder, folder, sensing):
    """Say the first message until it arrives: then the subscription stands."""
    deadline = time.monotonic() + GENEROUS_S
    while not counts(folder, sensing).get("samples"):
        assert time.monotonic() < deadline, "not subscribed"
        feeder.publish("ward/sensor", message(0))
        time.sleep(0.1)
