"""Sources of samples: lines, recordings and messages; what is broken, early, late or doubled."""

import itertools
import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensing_fixture import HZ, START_MS, lines, recording, signal

from vitalring.edge_agent.sensing.config import (
    LinesConfig,
    ReplayConfig,
    RuleConfig,
    SensorConfig,
    StreamConfig,
    TopicConfig,
)
from vitalring.edge_agent.sensing.feeder import (
    SensorBlock,
    Sequencer,
    decode_block,
    encode_block,
)
from vitalring.edge_agent.sensing.lines import open_lines
from vitalring.edge_agent.sensing.replay import Replay
from vitalring.edge_agent.sensing.samples import LineReader, Stamper, join
from vitalring.errors import ConfigError, DataError, RecordError, TransportError
from vitalring.mqtt import BrokerConfig

NOW_US = 5_000_000_000


def stream(source, channels=2):
    kind = {ReplayConfig: "replay", LinesConfig: "lines"}[type(source)]
    return StreamConfig(sampling_hz=HZ, channels=channels, **{kind: source})


def read_all(source):
    """Everything that is there now, in one block."""
    blocks = []
    while (block := source.read(0.0)) is not None:
        blocks.append(block)
    source.close()
    return join(blocks)


@given(st.lists(st.integers(0, 400), max_size=10), st.booleans())
def test_lines_are_the_same_however_they_arrive(cuts, timed):
    data = b"time,x,y\n" * timed + lines(0, 20, timed=timed, broken={7, 12})
    bounds = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    reader = LineReader(2, at_start=True)
    rows = [reader.feed(data[a:b]) for a, b in itertools.pairwise(bounds)]
    values = np.concatenate([each.values for each in rows])
    assert sum(each.broken for each in rows) == 2
    assert reader.consumed == len(data)
    if timed:
        times = np.concatenate([each.times for each in rows if each.times is not None])
        good = [n for n in range(20) if n not in (7, 12)]
        assert times.tolist() == [(START_MS + 20 * n) * 1000 for n in good]
        assert np.array_equal(values, signal(20)[good])
    else:
        # A broken line took its place in time.
        assert np.isnan(values).any(axis=1).nonzero()[0].tolist() == [7, 12]
        assert len(values) == 20


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_any_bytes_are_lines_or_counted(pieces):
    reader = LineReader(2, at_start=True)
    for piece in pieces:
        rows = reader.feed(piece)
        assert rows.values.dtype == np.float32
        assert rows.times is None or len(rows.times) == len(rows.values)


def test_a_line_without_end_is_given_up():
    reader = LineReader(2, at_start=False)
    broken = sum(reader.feed(b"1" * 3000).broken for _ in range(10))
    assert broken == 1
    rows = reader.feed(b"23\n1,2\n")
    assert rows.values.tolist() == [[1.0, 2.0]]


def test_numbers_beyond_float32_are_left_to_the_cutter():
    rows = LineReader(2, at_start=False).feed(b"1e300,2\nnan,1\n")
    assert not np.isfinite(rows.values[:, 0]).any()


def test_stamps_follow_a_sensor_that_is_a_little_off_without_a_break():
    for rate in (0.99, 1.0, 1.01):
        stamper, now = Stamper(20_000.0), 10**9
        steps, last = [], None
        for _ in range(2000):
            now += int(10 * 20_000 / rate)
            times = stamper.stamp(10, now)
            steps += np.diff(times if last is None else np.concatenate([[last], times])).tolist()
            last = int(times[-1])
        assert min(steps) > 19_000, rate
        assert max(steps) < 21_000, rate
        assert abs(last - now) < 500_000


def test_stamps_start_anew_after_a_silence():
    stamper = Stamper(20_000.0)
    first = stamper.stamp(5, 10**9)
    second = stamper.stamp(5, 10**9 + 60_000_000)
    assert second[0] - first[-1] > 59_000_000
    assert second[-1] == 10**9 + 60_000_000


def test_a_recording_goes_on_at_the_exact_sample(tmp_path):
    source = ReplayConfig(recording(tmp_path / "r.npz", 3000), speed=0)
    whole = read_all(Replay(source, stream(source), b"", lambda: NOW_US))
    assert np.array_equal(whole.values, signal(3000))
    assert whole.times.tolist() == [(START_MS + 20 * n) * 1000 for n in range(3000)]
    first = Replay(source, stream(source), b"", lambda: NOW_US).read(0.0)
    rest = read_all(Replay(source, stream(source), first.position, lambda: 0))
    assert 0 < len(first.times) < 3000
    assert np.array_equal(join([first, rest]).times, whole.times)
    assert np.array_equal(join([first, rest]).values, whole.values)
    done = Replay(source, stream(source), rest.position, lambda: 0)
    assert done.ended
    assert done.read(0.0) is None


def test_a_recording_without_a_time_keeps_that_of_its_first_start(tmp_path):
    np.savez(tmp_path / "r.npz", signal=signal(2000), rate=HZ)
    source = ReplayConfig(tmp_path / "r.npz", speed=0)
    first = Replay(source, stream(source), b"", lambda: NOW_US).read(0.0)
    rest = read_all(Replay(source, stream(source), first.position, lambda: NOW_US + 10**9))
    assert first.times[0] == NOW_US
    assert rest.times[-1] == NOW_US + 1999 * 20_000
    chosen = ReplayConfig(tmp_path / "r.npz", speed=0, start_ms=7)
    assert Replay(chosen, stream(chosen), b"", lambda: NOW_US).read(0.0).times[0] == 7000


def test_a_recording_is_scaled_as_it_says(tmp_path):
    raw = np.array([[100, -3]] * 4, np.int16)
    np.savez(tmp_path / "r.npz", signal=raw, rate=HZ, scale=[0.01, 2.0])
    source = ReplayConfig(tmp_path / "r.npz", speed=0)
    values = read_all(Replay(source, stream(source), b"", lambda: 0)).values
    assert np.array_equal(values, raw.astype(np.float32) * np.float32([0.01, 2.0]))


def test_a_recording_is_played_at_its_speed(tmp_path):
    source = ReplayConfig(recording(tmp_path / "r.npz", 500), speed=2.0)
    now = [100.0]
    player = Replay(source, stream(source), b"", lambda: 0, monotonic=lambda: now[0])
    assert len(player.read(0.0).times) == 1
    now[0] += 1.0
    # One second of the device's is two of the recording's.
    assert len(player.read(0.0).times) == 100
    assert player.read(0.0) is None
    now[0] += 1000.0
    assert len(player.read(0.0).times) == 399
    assert player.ended


@pytest.mark.parametrize("timed", [True, False])
def test_a_csv_recording_is_played_like_any(tmp_path, timed):
    (tmp_path / "r.csv").write_bytes(b"t,x,y\n" * timed + lines(0, 1500, timed=timed, broken={9}))
    source = ReplayConfig(tmp_path / "r.csv", speed=0, start_ms=START_MS)
    block = read_all(Replay(source, stream(source), b"", lambda: NOW_US))
    good = np.isfinite(block.values).all(axis=1)
    wanted = [n for n in range(1500) if n != 9]
    assert np.array_equal(block.values[good], signal(1500)[wanted])
    assert block.times[good].tolist() == [(START_MS + 20 * n) * 1000 for n in wanted]
    assert block.counts == {"bad_lines": 1}


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"signal": signal(5)}, "needed are"),
        ({"signal": signal(5), "rate": HZ, "y": [1]}, "needed are"),
        ({"signal": signal(5, 3), "rate": HZ}, r"must be \(n, 2\)"),
        ({"signal": signal(0), "rate": HZ}, r"must be \(n, 2\)"),
        ({"signal": signal(5), "rate": 100.0}, "sampling_hz says 50"),
        ({"signal": signal(5), "rate": np.nan}, "sampling_hz says 50"),
        ({"signal": signal(5), "rate": HZ, "scale": [1.0]}, "scale has shape"),
        ({"signal": signal(5).astype("U"), "rate": HZ}, "must be numbers"),
        ({"signal": signal(5), "rate": np.array([{}])}, "not an intact recording"),
    ],
)
def test_a_recording_that_is_not_one_is_refused_by_name(tmp_path, arrays, why):
    np.savez(tmp_path / "r.npz", **arrays)
    source = ReplayConfig(tmp_path / "r.npz")
    with pytest.raises(DataError, match=why) as caught:
        Replay(source, stream(source), b"", lambda: 0)
    assert "r.npz" in str(caught.value)


@pytest.mark.parametrize("name", ["missing.npz", "broken.npz", "empty.csv", "odd.wav"])
def test_a_file_that_is_no_recording_is_refused(tmp_path, name):
    if name != "missing.npz":
        (tmp_path / name).write_bytes(b"" if name == "empty.csv" else b"PK\3\4 nothing")
    source = ReplayConfig(tmp_path / name)
    with pytest.raises(DataError, match=name):
        Replay(source, stream(source), b"", lambda: 0)


@pytest.mark.parametrize("timed", [True, False])
def test_a_growing_file_goes_on_after_the_last_whole_line(tmp_path, timed):
    path = tmp_path / "lines"
    data = lines(0, 40, timed=timed)
    path.write_bytes(data[: len(data) // 2 + 3])
    source = LinesConfig(path)
    first = open_lines(source, stream(source), b"", lambda: START_MS * 1000)
    before = first.read(0.0)
    first.close()
    path.write_bytes(data)
    rest = read_all(open_lines(source, stream(source), before.position, lambda: 0))
    both = join([before, rest])
    assert np.array_equal(both.values, signal(40))
    assert both.times.tolist() == [(START_MS + 20 * n) * 1000 for n in range(40)]
    assert "bad_lines" not in {k for k, v in both.counts.items() if v}


def test_a_file_in_the_place_of_another_is_read_from_its_start(tmp_path):
    path = tmp_path / "lines"
    source = LinesConfig(path)
    path.write_bytes(lines(0, 10))
    reader = open_lines(source, stream(source), b"", lambda: 0)
    block = reader.read(0.0)
    (tmp_path / "new").write_bytes(lines(50, 55))
    (tmp_path / "new").rename(path)
    with pytest.raises(DataError, match="was replaced"):
        reader.read(0.0)
    reader.close()
    again = read_all(open_lines(source, stream(source), block.position, lambda: 0))
    assert np.array_equal(again.values, signal(55)[50:])
    assert again.counts["source_restarts"] == 1


def test_a_port_that_is_not_there_is_an_error_to_wait_on(tmp_path):
    source = LinesConfig(tmp_path / "none")
    with pytest.raises(TransportError, match="none"):
        open_lines(source, stream(source), b"", lambda: 0)


def test_a_baud_rate_is_for_serial_ports(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    source = LinesConfig(tmp_path / "pipe", baud=9600)
    with pytest.raises(ConfigError, match="no serial port"):
        open_lines(source, stream(source), b"", lambda: 0)


def json_block(**changes):
    return json.dumps({"run": "a", "sequence": 0, "start_ms": 0, "rate": 50} | changes).encode()


def block(sequence=0, run="a", rows=3, channels=2):
    samples = signal(rows, channels).astype("<f4").tobytes()
    return SensorBlock(run, sequence, START_MS, HZ, channels, samples)


def test_a_message_says_the_same_in_both_forms():
    made = block(rows=3)
    plain = {
        "run": "a", "sequence": 0, "start_ms": START_MS, "rate": 50,
        "samples": signal(3).tolist(),
    }  # fmt: skip
    assert decode_block(encode_block(made), 2) == made
    assert decode_block(json.dumps(plain).encode(), 2) == made
    assert np.array_equal(made.values, signal(3))
    assert made.times.tolist() == [(START_MS + 20 * n) * 1000 for n in range(3)]


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"{", b"{}", b"\xa0", b"x" * ((1 << 20) + 1), b"{" + b'"a":[' * 2000,
        encode_block(block()) + b"\0",
        encode_block(block(channels=3)),
        json_block(samples=[]), json_block(samples=[[]]), json_block(samples=[[1, 2], [3]]),
        json_block(samples=[[1, 2]], rate=0), json_block(samples=[["1", 2]]),
        b'{"run":"a","sequence":0,"start_ms":0,"rate":50,"samples":[[NaN,1]]}',
        b'{"run":"a","sequence":true,"start_ms":0,"rate":50,"samples":[[0,1]]}',
    ],
)  # fmt: skip
def test_messages_that_cannot_be_read_are_refused(payload):
    with pytest.raises(RecordError):
        decode_block(payload, 2)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(payload):
    for prefix in (b"", b"{"):
        try:
            decode_block(prefix + payload, 2)
        except RecordError:
            continue


def give(sequencer, *messages):
    given_out, late = [], 0
    for run, sequence in messages:
        taken = sequencer.take(run, sequence, (run, sequence))
        given_out += taken.ready
        late += taken.late
    return given_out, late


def test_messages_are_given_out_once_and_in_order():
    sequencer = Sequencer({}, max_held=3)
    given_out, late = give(
        sequencer, ("a", 5), ("a", 7), ("a", 5), ("a", 7), ("a", 8), ("a", 6), ("a", 6)
    )
    assert [each.item for each in given_out] == [("a", n) for n in (5, 6, 7, 8)]
    assert late == 3
    assert [dict(each.reached)["a"] for each in given_out] == [5, 6, 7, 8]


def test_what_never_comes_is_given_up():
    sequencer = Sequencer({"a": 0}, max_held=2)
    given_out, _ = give(sequencer, ("a", 2), ("a", 4), ("a", 5))
    assert [each.item[1] for each in given_out] == [2]
    assert sequencer.holds
    assert [each.item[1] for each in sequencer.flush()] == [4, 5]
    assert give(sequencer, ("a", 1), ("a", 3)) == ([], 2)


def test_a_feeder_that_starts_anew_is_followed_and_its_old_run_is_over():
    sequencer = Sequencer({})
    given_out, late = give(sequencer, ("a", 0), ("a", 2), ("b", 0), ("a", 3), ("b", 1))
    assert [each.item for each in given_out] == [("a", 0), ("a", 2), ("b", 0), ("b", 1)]
    assert late == 1
    # A crash after ("a", 2) must not take ("b", 0) for known.
    assert dict(given_out[1].reached) == {"a": 2}
    many = [(f"r{n}", 0) for n in range(50)]
    give(sequencer, *many)
    assert len(sequencer.reached) <= 8


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9)), max_size=60),
    st.lists(st.integers(0, 60), max_size=4),
)
def test_no_message_counts_twice_across_restarts(messages, stops):
    """What is kept at a stop is what was given out; what waited comes again from the broker."""
    sequencer, kept = Sequencer({}, max_held=3), []
    for index, (run, sequence) in enumerate(messages):
        if index in stops:
            sequencer = Sequencer(dict(kept[-1].reached) if kept else {}, max_held=3)
        kept += sequencer.take(run, sequence, (run, sequence)).ready
    items = [each.item for each in kept]
    assert len(set(items)) == len(items)
    for run in "ab":
        numbers = [number for name, number in items if name == run]
        assert numbers == sorted(numbers)


BROKER = BrokerConfig("mqtt://localhost:1883")
SENSOR = {"sampling_hz": HZ, "channels": 2, "window": 8, "stride": 4}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, "0 sources"),
        ({"lines": LinesConfig("x"), "mqtt": TopicConfig("t", BROKER)}, "2 sources"),
        ({"lines": LinesConfig("x"), "inputs": (0, 0)}, "name a channel once"),
        ({"lines": LinesConfig("x"), "inputs": (2,)}, "channels are 0 to 1"),
        ({"lines": LinesConfig("x"), "scale": (1.0,)}, "1 factors for windows of 2"),
        ({"lines": LinesConfig("x"), "scale": (1.0, 0.0)}, "erase a channel"),
        ({"lines": LinesConfig("x"), "gap_ms": 10.0}, "gap_ms is 10"),
    ],
)
def test_a_sensor_that_cannot_be_is_refused(changes, why):
    with pytest.raises(ConfigError, match=why):
        SensorConfig(**SENSOR, **changes)


def test_a_topic_is_one_topic_and_a_rule_has_a_threshold():
    with pytest.raises(ConfigError, match="name one topic"):
        TopicConfig("sensor/#", BROKER)
    with pytest.raises(ConfigError, match="neither above nor below"):
        RuleConfig("walk", 0)
