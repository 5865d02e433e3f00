"""The device's buffer: windows, labels and the source's place, all or nothing, within bounds."""

import itertools
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sensing_fixture import (
    CLASSES,
    START_MS,
    assert_windows,
    config,
    expected,
    signal,
)

from vitalring.edge_agent.sensing.buffer import FILE, Buffer, Intake, Place
from vitalring.edge_agent.sensing.config import BufferConfig, LinesConfig, SensingConfig
from vitalring.edge_agent.sensing.cutting import cut
from vitalring.edge_agent.sensing.labels import Annotation, Change, verdict
from vitalring.edge_agent.sensing.marks import mark
from vitalring.edge_agent.sensing.records import SensorRecords, newest_windows
from vitalring.edge_agent.sensing.rules import Hold
from vitalring.edge_agent.sensing.status import sensing_status
from vitalring.errors import ConfigError, DataError, StorageError

NOW_MS = START_MS + 1_000_000
SOURCE = LinesConfig(Path("/nowhere"))


def usual(**changes):
    return config(SOURCE, **changes)


def study(unit="none", classes=CLASSES, features=b""):
    return SimpleNamespace(
        plan=SimpleNamespace(
            study="s",
            model=SimpleNamespace(classes=classes, features=features),
            privacy=SimpleNamespace(unit=unit),
        )
    )


def times_of(numbers):
    return START_MS * 1000 + 20_000 * np.asarray(numbers, np.int64)


def feed(buffer, sensing, first, stop, now_ms=NOW_MS):
    """Take samples as the runner does."""
    done = cut(
        sensing.sensor.layout,
        buffer.carry(),
        times_of(range(first, stop)),
        signal(stop)[first:stop],
    )
    place = Place("sensor", "here", str(stop).encode(), START_MS * 1000 + 20_000 * (stop - 1))
    return buffer.keep(Intake(place, done.tally.as_counts(), done.carry, done.windows), 0, now_ms)


def labels(buffer):
    rows = buffer.db.execute("SELECT number, label, conflict FROM windows ORDER BY number")
    return {number: "!" if conflict else label for number, label, conflict in rows}


def at(first, stop):
    """The time of samples `first` to `stop`."""
    return START_MS + 20 * first, START_MS + 20 * stop


def says(key, first, stop, label):
    return ("message", Change(key, Annotation(*at(first, stop), label)))


@pytest.fixture
def sensing():
    return usual()


@pytest.fixture
def buffer(tmp_path, sensing):
    with closing(Buffer(tmp_path, sensing)) as opened:
        yield opened


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=12),
    st.lists(st.booleans(), min_size=12, max_size=12),
    st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_nothing_is_lost_or_doubled_across_crashes_and_restarts(sizes, crashes, restarts):
    sensing = usual()
    with tempfile.TemporaryDirectory() as folder:
        buffer = Buffer(Path(folder), sensing)
        reached = 0
        for size, crash, restart in zip(sizes, crashes, restarts, strict=False):
            stop = reached + size
            if crash:
                # The last statement before the commit fails: everything of the block is undone.
                buffer._drop = _fail
                with pytest.raises(StorageError):
                    feed(buffer, sensing, reached, stop)
                del buffer._drop
            if restart:
                buffer.close()
                buffer = Buffer(Path(folder), sensing)
            assert int(buffer.position("sensor", "here") or b"0") == reached
            feed(buffer, sensing, reached, stop)
            reached = stop
        found = buffer.windows_after(0, 1000)
        buffer.close()
    assert_windows(found, expected(reached))
    assert [window.number for window in found] == list(range(1, len(found) + 1))


def _fail(_now_ms):
    raise sqlite3.OperationalError("disk I/O error")


def test_the_place_in_one_source_means_nothing_in_another(buffer, sensing):
    feed(buffer, sensing, 0, 20)
    assert buffer.position("sensor", "here") == b"20"
    assert buffer.position("sensor", "elsewhere") == b""
    assert buffer.position("signal", "here") == b""


def test_a_buffer_of_other_windows_is_refused_and_left_alone(buffer, sensing, tmp_path):
    feed(buffer, sensing, 0, 20)
    with pytest.raises(ConfigError, match="holds windows of another sensor"):
        Buffer(tmp_path, usual(window=9))
    # The distance of windows may change.
    Buffer(tmp_path, usual(stride=8)).close()
    assert len(buffer.windows_after(0, 100)) == 4


def test_late_labels_reach_windows_and_withdrawn_ones_leave_them(buffer, sensing):
    feed(buffer, sensing, 0, 24)
    assert labels(buffer) == dict.fromkeys(range(1, 6))
    buffer.annotate([says("a", 0, 12, "walk")])
    assert labels(buffer) == {1: "walk", 2: "walk", 3: "walk", 4: None, 5: None}
    # The next windows find what was said of their time before they were cut.
    buffer.annotate([says("b", 20, 60, "rest")])
    feed(buffer, sensing, 24, 36)
    assert labels(buffer)[8] == "rest"
    # A correction, then a contradiction.
    buffer.annotate([says("a", 4, 12, "rest")])
    assert labels(buffer) == {
        1: "rest", 2: "rest", 3: "rest", 4: None, 5: "rest", 6: "rest", 7: "rest", 8: "rest",
    }  # fmt: skip
    buffer.annotate([says("c", 0, 12, "walk")])
    assert [labels(buffer)[n] for n in (1, 2, 3)] == ["!", "!", "!"]
    buffer.annotate([("message", Change("c", None))])
    assert [labels(buffer)[n] for n in (1, 2, 3)] == ["rest"] * 3
    buffer.annotate([("message", Change("a", None)), ("message", Change("b", None))])
    assert set(labels(buffer).values()) == {None}


spans = st.tuples(
    st.sampled_from("abcd"), st.integers(-5, 45), st.integers(1, 30), st.sampled_from(CLASSES)
)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.one_of(spans, st.sampled_from("abcd"), st.integers(0, 20)), max_size=14))
def test_labels_always_follow_from_the_annotations_that_stand(acts):
    """However annotations and windows interleave; the definition is applied to all at the end."""
    sensing, stop, standing = usual(), 0, {}
    with tempfile.TemporaryDirectory() as folder, closing(Buffer(Path(folder), sensing)) as buffer:
        for act in acts:
            if isinstance(act, int):
                feed(buffer, sensing, stop, stop + act)
                stop += act
            elif isinstance(act, str):
                buffer.annotate([("message", Change(act, None))])
                standing.pop(act, None)
            else:
                key, first, length, label = act
                buffer.annotate([says(key, first, first + length, label)])
                standing[key] = Annotation(*at(first, first + length), label)
        about = sorted(standing.values(), key=lambda each: each.start_ms)
        for window in buffer.windows_after(0, 1000):
            due = verdict(window.start_ms, window.end_ms, about, 0.5)
            assert labels(buffer)[window.number] == ("!" if due.conflict else due.label)


def test_a_file_says_all_that_its_origin_says(buffer, sensing):
    feed(buffer, sensing, 0, 24)
    buffer.annotate([says("m", 16, 24, "rest")])
    first, second = Annotation(*at(0, 8), "walk"), Annotation(*at(8, 16), "walk")
    buffer.replace("file", frozenset([first, second]), bad=3)
    assert labels(buffer) == {1: "walk", 2: "walk", 3: "walk", 4: "!", 5: "rest"}
    buffer.replace("file", frozenset([second]), bad=0)
    assert labels(buffer) == {1: None, 2: "walk", 3: "walk", 4: "!", 5: "rest"}
    buffer.replace("file", frozenset(), bad=0)
    assert labels(buffer) == {1: None, 2: None, 3: None, 4: "rest", 5: "rest"}


def test_a_mark_works_beside_the_agent(buffer, sensing, tmp_path):
    feed(buffer, sensing, 0, 24)
    made = mark(sensing, tmp_path, "walk", at=str(START_MS), seconds=0.24, now_ms=START_MS + 10**6)
    assert (made.start_ms, made.end_ms, made.windows) == (START_MS, START_MS + 240, 3)
    assert labels(buffer) == {1: "walk", 2: "walk", 3: "walk", 4: None, 5: None}
    for wrong in ({"label": "sleep"}, {"at": "noon"}, {"seconds": 0.0}):
        words = {"label": "walk", "at": None, "seconds": None} | wrong
        label = words.pop("label")
        with pytest.raises(ConfigError):
            mark(sensing, tmp_path, label, now_ms=START_MS, **words)
    with pytest.raises(ConfigError, match=r"no table \[labels\]"):
        mark(SensingConfig(sensing.sensor), tmp_path, "walk", at=None, seconds=None, now_ms=0)


def test_the_oldest_unlabelled_go_first_then_the_oldest_labelled_and_never_the_newest(tmp_path):
    sensing = usual(buffer={"rows": 4, "megabytes": 0.01})
    capacity = sensing.capacity
    kept, dropped = [], {"dropped_unlabelled": 0, "dropped_labelled": 0}
    with closing(Buffer(tmp_path, sensing)) as buffer:
        # Windows 1 to 9 have a label, 10 to 19 none, all after them one.
        buffer.annotate([says("a", 0, 38, "walk"), says("b", 80, 10_000, "walk")])
        feed(buffer, sensing, 0, 4)
        for number in range(1, 2 * capacity):
            feed(buffer, sensing, 4 * number, 4 * number + 4)
            kept.append(number)
            if len(kept) > capacity:
                old = [each for each in kept if each <= number - 4]
                bare = [each for each in old if 10 <= each <= 19]
                gone = (bare or old)[0]
                kept.remove(gone)
                dropped["dropped_unlabelled" if bare else "dropped_labelled"] += 1
            assert list(labels(buffer)) == kept
        assert {n for n, label in labels(buffer).items() if label is None} == set()
        counts = sensing_status(sensing, tmp_path)["counts"]
        assert {name: counts[name] for name in dropped} == dropped
        assert min(dropped.values()) > 0
        # What was dropped is gone from the disk with its samples.
        assert buffer.db.execute("SELECT COUNT(*) FROM samples").fetchone()[0] == capacity


def test_windows_without_a_label_yet_are_safe_among_labelled_ones(tmp_path):
    """A late label finds them: else a buffer full of labelled windows would take no new one."""
    sensing = usual(buffer={"rows": 4, "megabytes": 0.01})
    with closing(Buffer(tmp_path, sensing)) as buffer:
        buffer.annotate([says("a", 0, 4 * sensing.capacity, "walk")])
        feed(buffer, sensing, 0, 4 * sensing.capacity + 20)
        bare = [number for number, label in labels(buffer).items() if label is None]
        assert bare == list(range(sensing.capacity + 1, sensing.capacity + 5))


def test_windows_go_by_their_own_age(tmp_path):
    sensing = usual(buffer={"days": 1.0})
    day = 86_400_000
    with closing(Buffer(tmp_path, sensing)) as buffer:
        feed(buffer, sensing, 0, 8, now_ms=NOW_MS)
        feed(buffer, sensing, 8, 12, now_ms=NOW_MS + day // 2)
        buffer.annotate([says("a", 0, 8, "walk")])
        buffer.tidy(NOW_MS + day + 1)
        assert list(labels(buffer)) == [2]
        assert sensing_status(sensing, tmp_path)["counts"]["expired"] == 1


def test_rows_that_the_disk_cannot_hold_are_refused():
    with pytest.raises(ConfigError, match=r"buffer\.rows asks for 1000"):
        usual(buffer={"rows": 1000, "megabytes": 0.01})


def test_a_round_sees_the_labelled_windows_and_no_others(buffer, sensing, tmp_path):
    feed(buffer, sensing, 0, 40)
    buffer.annotate([says("a", 4, 12, "walk"), says("b", 20, 28, "rest")])
    records = SensorRecords(sensing, tmp_path).records(study())
    assert records.x.dtype == np.float32
    assert records.x.shape == (6, 8, 2)
    shown = [number for number, label in labels(buffer).items() if label]
    for row, number in enumerate(shown):
        assert np.array_equal(records.x[row], signal(40)[4 * (number - 1) : 4 * (number - 1) + 8])
    assert [CLASSES[y] for y in records.y] == [labels(buffer)[number] for number in shown]
    # What a study calls its classes, in its order.
    turned = SensorRecords(sensing, tmp_path).records(study(classes=("other", "walk")))
    assert turned.y.tolist() == [1, 1, 1]


def test_the_newest_windows_are_there_to_predict_labelled_or_not(buffer, sensing, tmp_path):
    feed(buffer, sensing, 0, 40)
    newest = newest_windows(sensing, tmp_path, 3)
    assert [window.number for window in newest] == sorted(labels(buffer))[-3:]
    for window in newest:
        first = 4 * (window.number - 1)
        assert np.array_equal(window.x, signal(40)[first : first + 8])
    with pytest.raises(ConfigError, match="has not run with this sensor"):
        newest_windows(sensing, tmp_path / "elsewhere", 3)


def test_a_study_that_is_about_something_else_is_refused(buffer, sensing, tmp_path):
    source = SensorRecords(sensing, tmp_path)
    with pytest.raises(DataError, match="has none of them"):
        source.records(study(classes=("N", "V")))
    with pytest.raises(DataError, match="about tables"):
        source.records(study(features=b"x" * 32))
    with pytest.raises(DataError, match="asks for statistics"):
        source.answer(study())
    assert len(source.records(study())) == 0


@pytest.mark.parametrize("unit", ["none", "record"])
def test_a_snapshot_is_bounded_by_the_configuration(tmp_path, unit):
    sensing = usual(buffer={"rows": 5})
    with closing(Buffer(tmp_path, sensing)) as buffer:
        feed(buffer, sensing, 0, 4 + 4 * 12)
        buffer.annotate([says("a", 0, 4 + 4 * 6, "walk"), says("b", 36, 52, "rest")])
        seen = SensorRecords(sensing, tmp_path).records(study(unit))
        starts = [int(x[0, 0]) // 4 + 1 for x in seen.x]
        labelled = [number for number, label in labels(buffer).items() if label]
        if unit == "record":
            assert starts == [number for number in labelled if number > 12 - 5]
        else:
            assert starts == labelled[-5:]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 120), st.integers(1, 40)), max_size=6),
    st.integers(0, 40),
)
def test_one_label_less_changes_one_record_of_a_guaranteed_round(sizes, walks, chosen):
    """The neighbours of SPEC 7.2, through a buffer that drops for space all the while."""
    sensing = usual(buffer={"rows": 6, "megabytes": 0.01})
    views = []
    for without in (None, chosen):
        with (
            tempfile.TemporaryDirectory() as folder,
            closing(Buffer(Path(folder), sensing)) as buffer,
        ):
            if without is not None:
                _without_label(buffer, without)
            buffer.annotate(
                says(str(n), first, first + length, "walk")
                for n, (first, length) in enumerate(walks)
            )
            stop = 0
            for size in itertools.chain(sizes, [4 * (sensing.capacity + 3)]):
                feed(buffer, sensing, stop, stop + size)
                stop += size
                seen = SensorRecords(sensing, Path(folder)).records(study("record"))
                views.append((without, {int(x[0, 0]) for x in seen.x}))
    half = len(views) // 2
    for (_, full), (_, less) in zip(views[:half], views[half:], strict=True):
        assert less <= full
        assert full - less <= {4 * (chosen - 1)}


def _without_label(buffer, number):
    """Let window `number` never have a label, and all else be as it is."""
    buffer.db.execute(
        f"CREATE TRIGGER unlabelled_{number} AFTER INSERT ON windows WHEN NEW.number = {number} "
        f"BEGIN UPDATE windows SET label = NULL WHERE number = {number}; END"
    )


def test_status_counts_what_is_there(buffer, sensing, tmp_path):
    assert sensing_status(sensing, tmp_path / "elsewhere") == {"windows": {"kept": 0}}
    feed(buffer, sensing, 0, 24)
    buffer.annotate([says("a", 0, 12, "walk"), says("b", 0, 8, "rest")], {"bad_marks": 2})
    buffer.note_handed(3)
    status = sensing_status(sensing, tmp_path)
    assert status["windows"] == {
        "kept": 5, "labels": {"walk": 1}, "unlabelled": 4, "conflicts": 2, "in_reach": 1,
        "room_for": sensing.capacity,
    }  # fmt: skip
    assert status["annotations"] == {"message": 2}
    assert status["again_after_power_cut"] == 2
    buffer.db.execute("DELETE FROM windows WHERE number = 5")
    assert sensing_status(sensing, tmp_path)["again_after_power_cut"] == 1
    assert status["counts"]["samples"] == 24
    assert status["counts"]["bad_marks"] == 2
    assert status["streams"]["sensor"] == {
        "last_sample_ms": START_MS + 23 * 20,
        "lag_ms": NOW_MS - START_MS - 23 * 20,
    }


def test_a_rule_that_goes_on_labels_more_and_the_state_of_rules_is_kept(buffer, sensing, tmp_path):
    feed(buffer, sensing, 0, 24)
    for stop in (8, 16, 24):
        said = Annotation(*at(4, stop), "walk")
        place = Place("signal", "there", b"", 0)
        hold = Hold(4, stop)
        changes = [("rule signal:0", Change("4", said))]
        buffer.keep(Intake(place, {}, holds={"signal:0": hold}, changes=changes), 0, NOW_MS)
    assert labels(buffer) == {1: "walk", 2: "walk", 3: "walk", 4: "walk", 5: "walk"}
    assert buffer.hold("signal:0") == Hold(4, 24)
    assert buffer.hold("signal:1") == Hold()
    assert sensing_status(sensing, tmp_path)["annotations"] == {"rule signal:0": 1}


def test_the_file_is_its_owners_alone(buffer, tmp_path):
    assert (tmp_path / FILE).stat().st_mode & 0o077 == 0


def test_a_session_name_is_drawn_once(buffer, tmp_path, sensing):
    name = buffer.session("sensor")
    assert buffer.session("labels") != name
    with closing(Buffer(tmp_path, sensing)) as again:
        assert again.session("sensor") == name


def test_defaults_fit_a_device():
    assert BufferConfig().rows <= usual().capacity
