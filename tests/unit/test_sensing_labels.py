"""Labels by people and rules: what they say of a window, and what cannot be read."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitalring.edge_agent.sensing.labels import (
    Annotation,
    Press,
    Verdict,
    parse_message,
    parse_press,
    parse_table,
    parse_time,
    verdict,
)
from vitalring.edge_agent.sensing.rules import Hold, Threshold, follow
from vitalring.errors import RecordError

CLASSES = ("rest", "walk", "fall, hard")
PRESS = Press(before_ms=2_000, after_ms=8_000)


def said(*spans):
    return [Annotation(*span) for span in sorted(spans)]


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        (said(), Verdict(None)),
        (said((0, 100, "rest")), Verdict("rest")),
        (said((0, 49, "rest")), Verdict(None)),
        (said((50, 500, "rest")), Verdict("rest")),
        # Two people who say the same of the same moment say it once.
        (said((0, 30, "rest"), (0, 30, "rest"), (10, 40, "rest")), Verdict(None)),
        (said((0, 30, "rest"), (70, 100, "rest")), Verdict("rest")),
        (said((0, 100, "rest"), (50, 100, "walk")), Verdict(None, conflict=True)),
        (said((0, 100, "rest"), (60, 100, "walk")), Verdict("rest")),
    ],
)
def test_a_window_has_the_one_label_that_covers_enough_of_it(annotations, expected):
    assert verdict(0, 100, annotations, 0.5) == expected


@given(
    st.lists(
        st.tuples(st.integers(-20, 120), st.integers(1, 60), st.sampled_from(CLASSES)), max_size=8
    ),
    st.sampled_from([0.1, 0.5, 1.0]),
)
def test_verdicts_count_each_millisecond_once(spans, share):
    annotations = said(*[(start, start + length, label) for start, length, label in spans])
    covered = {
        label: sum(
            any(a.label == label and a.start_ms <= t < a.end_ms for a in annotations)
            for t in range(100)
        )
        for label in CLASSES
    }
    applying = [label for label in CLASSES if covered[label] and covered[label] >= share * 100]
    expected = Verdict(applying[0]) if len(applying) == 1 else Verdict(None, len(applying) > 1)
    assert verdict(0, 100, annotations, share) == expected


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ("0", 0),
        (" 1700000000123 ", 1_700_000_000_123),
        ("2023-11-14T22:13:20.123Z", 1_700_000_000_123),
        ("2023-11-14T23:13:20.123+01:00", 1_700_000_000_123),
    ],
)
def test_times_are_milliseconds_or_iso(text, time_ms):
    assert parse_time(text) == time_ms


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2023-11-14T22:13:20", "does not say its offset"),
        ("yesterday", "neither"),
        ("-5", "neither"),
        ("1e12", "neither"),
        ("1969-12-31T23:59:59Z", "outside"),
        ("9999999999999999", "outside"),
    ],
)
def test_times_that_could_mean_several_things_are_refused(text, why):
    with pytest.raises(RecordError, match=why):
        parse_time(text)


def test_a_table_keeps_its_good_lines_and_names_its_bad_ones():
    table = parse_table(
        "start,end,label\n"
        "0,1000,rest\n"
        '1970-01-01T00:00:01Z,2500,"fall, hard"\n'
        "\n"
        "2000,1000,walk\n"
        "0,1000,sleep\n"
        "0,1000\n"
        "0,tomorrow,rest\n"
        '0,1000,"rest\n',
        CLASSES,
    )
    assert table.annotations == {
        Annotation(0, 1000, "rest"),
        Annotation(1000, 2500, "fall, hard"),
    }
    assert table.bad_lines == 5
    assert [text.split(":")[0] for text in table.complaints] == [
        "line 5", "line 6", "line 7", "line 8", "line 9",
    ]  # fmt: skip
    assert "'sleep' is not one of" in table.complaints[1]


@pytest.mark.parametrize("text", ["", "begin,end,label\n0,1,rest\n", "0,1000,rest\n"])
def test_a_table_without_its_header_is_refused(text):
    with pytest.raises(RecordError, match="must be start,end,label"):
        parse_table(text, CLASSES)


@given(st.text(max_size=200))
def test_any_text_is_a_table_or_refused(text):
    table = parse_table("start,end,label\n" + text, CLASSES)
    assert len(table.complaints) <= table.bad_lines


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rest", Annotation(98_000, 108_000, "rest")),
        ("rest,50000", Annotation(48_000, 58_000, "rest")),
        ("rest,,3", Annotation(100_000, 103_000, "rest")),
        ('"fall, hard",50000,0.5', Annotation(50_000, 50_500, "fall, hard")),
        ("walk,1000", Annotation(0, 9_000, "walk")),
    ],
)
def test_a_press_labels_around_its_moment(line, expected):
    assert parse_press(line, PRESS, 100_000, CLASSES) == expected


@pytest.mark.parametrize(
    "line", ["", "sleep", "rest,soon", "rest,1,x", "rest,1,-2", "rest,1,nan", "a,b,c,d", "x" * 2000]
)
def test_a_press_that_says_nothing_clear_is_refused(line):
    with pytest.raises(RecordError):
        parse_press(line, PRESS, 100_000, CLASSES)


def message(**table):
    return parse_message(json.dumps(table).encode(), PRESS, 100_000, CLASSES)


def test_messages_annotate_take_back_and_press():
    change = message(id="a", label="rest", start=0, end="1970-01-01T00:00:05Z")
    assert (change.key, change.annotation) == ("a", Annotation(0, 5000, "rest"))
    assert message(id="a", remove=True).annotation is None
    assert message(label="rest").annotation == Annotation(98_000, 108_000, "rest")
    assert message(label="rest", at=0, seconds=2).annotation == Annotation(0, 2000, "rest")


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"[]", b"{", b'{"id": "a"}', b'{"id": "a", "remove": false}', b"[" * 5000,
        b'{"id": "", "label": "rest", "start": 0, "end": 1}',
        b'{"id": "a", "label": "rest", "start": 0.5, "end": 1}',
        b'{"id": "a", "label": "rest", "start": true, "end": 1}',
        b'{"label": "rest", "at": -1}', b'{"label": "rest", "seconds": true}',
        b'{"label": "rest", "seconds": NaN}', b'{"label": ["rest"]}', b"\xff\xfe",
    ],
)  # fmt: skip
def test_messages_that_cannot_be_read_are_refused(payload):
    with pytest.raises(RecordError):
        parse_message(payload, PRESS, 0, CLASSES)


@given(st.binary(max_size=100))
def test_any_bytes_are_a_message_or_refused(payload):
    try:
        parse_message(payload, PRESS, 0, CLASSES)
    except RecordError:
        return


def held(rule, times, signal, cuts, gap_us=1500):
    hold, union = Hold(), {}
    bounds = [0, *sorted(min(c, len(times)) for c in cuts), len(times)]
    for begin, end in itertools.pairwise(bounds):
        hold, spans = follow(
            rule, hold, times[begin:end], signal[begin:end], gap_us=gap_us, period_us=1000
        )
        for span in spans:
            union[span.start_us] = span.end_us
    return union


def test_a_rule_holds_from_where_its_condition_began_once_it_lasted():
    times = np.arange(10, dtype=np.int64) * 1000
    signal = np.array([1, 9, 9, 9, 1, 9, 1, 9, 9, 9], np.float32)[:, None]
    rule = Threshold(0, above=5.0, below=None, for_us=3000)
    assert held(rule, times, signal, []) == {1000: 4000, 7000: 10_000}
    gone = times.copy()
    gone[9:] += 5000
    assert held(rule, gone, signal, []) == {1000: 4000}
    signal[2] = np.nan
    assert held(rule, times, signal, []) == {7000: 10_000}


@given(
    st.lists(st.tuples(st.sampled_from([1000, 1000, 1000, 0, 5000, -3000]), st.integers(0, 3)),
             min_size=1, max_size=40),
    st.lists(st.integers(0, 40), max_size=8),
    st.integers(0, 4000),
)  # fmt: skip
def test_a_rule_says_the_same_in_any_blocks(samples, cuts, for_us):
    times = np.cumsum([step for step, _ in samples], dtype=np.int64) + 10**9
    signal = np.array([[level] for _, level in samples], np.float32)
    rule = Threshold(0, above=0.5, below=2.5, for_us=for_us)
    assert held(rule, times, signal, cuts) == held(rule, times, signal, [])
