"""Windows of a stream: the same whatever blocks it comes in, and never across a break."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.edge_agent.sensing.cutting import Carry, Layout, cut
from vitalring.errors import ConfigError

HZ = 50.0
PERIOD_US = 20_000
GAP_US = 31_000
START_US = 1_700_000_000_000_000


def layout(window=4, stride=2, channels=2, drift=0.05):
    return Layout(HZ, channels, window, stride, GAP_US, 3_600_000_000, drift)


def stream(times, channels=2):
    """A signal in which each number names its sample, so that a window tells what it holds."""
    times = np.asarray(times, np.int64)
    return times, np.repeat(np.arange(len(times), dtype=np.float32)[:, None], channels, axis=1)


def in_blocks(shape, times, values, cuts):
    carry = Carry.start(shape.channels)
    windows, tallies = [], []
    bounds = [0, *sorted(cuts), len(times)]
    for begin, end in itertools.pairwise(bounds):
        done = cut(shape, carry, times[begin:end], values[begin:end])
        # What a restart would read back is all that there is.
        carry = Carry(
            done.carry.times.copy(), done.carry.values.copy(), done.carry.skip, done.carry.last_us
        )
        windows += done.windows
        tallies.append(done.tally)
    return windows, tallies, carry


def offline(shape, times, values):
    """The definition, over the whole recording at once, one sample after another."""
    runs, start = [], 0
    for index in range(1, len(times) + 1):
        last = index == len(times)
        if last or times[index] < times[index - 1] or times[index] - times[index - 1] > GAP_US:
            runs.append((start, index))
            start = index
    found = []
    for begin, end in runs:
        for first in range(begin, end - shape.window + 1, shape.stride):
            part = slice(first, first + shape.window)
            length = times[part][-1] - times[part][0]
            nominal = (shape.window - 1) * PERIOD_US
            if abs(length - nominal) <= shape.drift * nominal + 1000:
                found.append((times[first] // 1000, values[part]))
    return found


def same(windows, expected):
    assert len(windows) == len(expected)
    for window, (start_ms, values) in zip(windows, expected, strict=True):
        assert window.start_ms == start_ms
        assert np.array_equal(window.x, values)


sizes = st.integers(1, 7)
blocks = st.lists(st.integers(0, 80), max_size=12)


@given(sizes, sizes, st.integers(1, 80), blocks)
def test_a_stream_without_gaps_gives_what_offline_cutting_gives(window, stride, count, cuts):
    shape = layout(window, stride)
    times, values = stream(START_US + PERIOD_US * np.arange(count))
    windows, tallies, _ = in_blocks(shape, times, values, [min(c, count) for c in cuts])
    rows = range(0, count - window + 1, stride)
    same(windows, [(times[row] // 1000, values[row : row + window]) for row in rows])
    assert sum(each.samples for each in tallies) == count
    assert all(each.gaps == each.jumps_backward == each.off_rate == 0 for each in tallies)


steps = st.one_of(
    st.just(PERIOD_US),
    st.just(PERIOD_US),
    st.integers(19_000, 21_000),
    st.integers(0, GAP_US),
    st.integers(-5_000_000, 5_000_000),
    st.just(10_000_000_000),
)


@settings(max_examples=300)
@given(sizes, sizes, st.lists(steps, min_size=1, max_size=80), blocks)
def test_no_window_spans_a_break_however_the_stream_is_cut(window, stride, gaps, cuts):
    shape = layout(window, stride)
    times, values = stream(START_US + np.cumsum(gaps))
    windows, tallies, _ = in_blocks(shape, times, values, [min(c, len(gaps)) for c in cuts])
    same(windows, offline(shape, times, values))
    moved = np.diff(times)
    assert sum(each.jumps_backward for each in tallies) == (moved < 0).sum()
    assert sum(each.jumps_forward for each in tallies) == (moved > 3_600_000_000).sum()
    assert sum(each.gaps + each.jumps_forward for each in tallies) == (moved > GAP_US).sum()
    assert sum(each.windows for each in tallies) == len(windows)


def test_the_state_between_blocks_is_small_however_long_the_stream():
    shape = layout(window=128, stride=64)
    carry = Carry.start(2)
    for block in range(200):
        times, values = stream(START_US + PERIOD_US * (np.arange(500) + 500 * block))
        carry = cut(shape, carry, times, values).carry
        assert len(carry.times) < 128
        # Not a view of the block, which would keep all of it in memory.
        assert carry.values.base is None


def test_a_sensor_a_little_off_its_rate_is_followed_and_one_far_off_is_not():
    shape = layout(window=50, stride=50, drift=0.05)
    for period, kept, off in ((20_400, 4, 0), (19_600, 4, 0), (22_000, 0, 4), (10_000, 0, 4)):
        times, values = stream(START_US + period * np.arange(200))
        (done,) = [cut(shape, Carry.start(2), times, values)]
        assert (done.tally.windows, done.tally.off_rate) == (kept, off), period
        assert done.tally.gaps == 0


def test_a_bad_sample_is_counted_and_leaves_a_gap():
    times, values = stream(START_US + PERIOD_US * np.arange(12))
    values[5, 1] = np.nan
    values[9, 0] = np.inf
    done = cut(layout(window=3, stride=1), Carry.start(2), times, values)
    assert [int(w.x[0, 0]) for w in done.windows] == [0, 1, 2, 6]
    assert (done.tally.bad_samples, done.tally.gaps, done.tally.samples) == (2, 2, 12)


def test_a_window_says_when_it_was():
    times, values = stream(START_US + PERIOD_US * np.arange(4))
    (window,) = cut(layout(), Carry.start(2), times, values).windows
    assert (window.start_ms, window.end_ms) == (START_US // 1000, START_US // 1000 + 80)
    assert window.x.dtype == np.float32


@pytest.mark.parametrize("change", [{"window": 0}, {"stride": 0}, {"channels": 0}])
def test_a_layout_that_nothing_could_fill_is_refused(change):
    with pytest.raises(ConfigError, match="must be positive"):
        layout(**change)


def test_a_tolerance_below_the_rate_is_refused():
    with pytest.raises(ConfigError, match="every sample would be one"):
        Layout(HZ, 1, 4, 2, PERIOD_US - 1, 10**9, 0.05)
