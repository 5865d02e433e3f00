"""Typed tables: every field checked, errors that name the field, nothing else ever raised."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitalring.errors import ConfigError, RecordError
from vitalring.schema import OneOf, Pattern, Range, Size, from_plain, to_plain


@dataclass(frozen=True)
class Inner:
    number: Annotated[int, Range(0, 10)]
    share: Annotated[float, Range(0.0, 1.0)] = 0.5


@dataclass(frozen=True)
class Outer:
    name: Annotated[str, Pattern("[a-z]{1,8}")]
    key: Annotated[bytes, Size(4)]
    inner: Inner
    rows: Annotated[tuple[Inner, ...], Size(0, 3)] = ()
    counts: dict[Annotated[str, Pattern("[a-z]+")], int] = field(default_factory=dict)
    word: Annotated[str, OneOf(("red", "green"))] = "red"
    flag: bool = False
    maybe: Annotated[str, Size(1, 3)] | None = None
    folder: Path = Path("here")


GOOD = {"name": "abc", "key": b"1234", "inner": {"number": 3}}
inners = st.builds(Inner, st.integers(0, 10), st.floats(0, 1))
outers = st.builds(
    Outer,
    name=st.from_regex("[a-z]{1,8}", fullmatch=True),
    key=st.binary(min_size=4, max_size=4),
    inner=inners,
    rows=st.lists(inners, max_size=3).map(tuple),
    counts=st.dictionaries(st.from_regex("[a-z]+", fullmatch=True), st.integers()),
    word=st.sampled_from(["red", "green"]),
    flag=st.booleans(),
    maybe=st.none() | st.text(min_size=1, max_size=3),
)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**5000, 10**5001)
    | st.floats()
    | st.text()
    | st.binary(),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.text() | st.integers() | st.sampled_from(sorted(GOOD)), children)
    ),
    max_leaves=8,
)


def refusal(table, **changes):
    with pytest.raises(ConfigError) as caught:
        from_plain(Outer, {**table, **changes}, ConfigError, "table")
    return str(caught.value)


@given(outers)
def test_what_is_written_reads_back(outer):
    plain = to_plain(outer)
    assert from_plain(Outer, {**plain, "folder": str(outer.folder)}, ConfigError) == outer


@given(anything)
def test_whatever_comes_only_the_asked_for_error_leaves(plain):
    try:
        from_plain(Outer, plain, RecordError)
    except RecordError as error:
        assert len(str(error)) < 2_000


@given(
    st.sampled_from(["name", "key", "inner", "rows", "counts", "word", "flag", "folder"]), anything
)
def test_an_error_in_a_field_names_the_field(name, value):
    try:
        from_plain(Outer, {**GOOD, name: value}, RecordError, "table")
    except RecordError as error:
        assert str(error).startswith(f"table.{name}")


def test_missing_and_unknown_keys_are_named():
    for name in GOOD:
        table = {key: value for key, value in GOOD.items() if key != name}
        with pytest.raises(ConfigError, match=f"^table.{name} is missing$"):
            from_plain(Outer, table, ConfigError, "table")
    assert refusal(GOOD, colour=1).startswith("table.colour is not known; known here: counts, ")
    assert refusal(GOOD, inner={"number": 1, "nr": 2}).startswith("table.inner.nr is not known")


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"name": "ABC"}, "table.name is 'ABC', must match [a-z]{1,8}"),
        ({"name": "abc\n"}, "table.name is 'abc\\n', must match"),
        ({"name": 5}, "table.name is 5 (a whole number), must be text"),
        ({"key": b"123"}, "table.key has length 3, must have 4"),
        ({"inner": {"number": 11}}, "table.inner.number is 11, must lie between 0 and 10"),
        (
            {"inner": {"number": True}},
            "table.inner.number is True (true or false), must be a whole",
        ),
        ({"inner": {"number": 1.0}}, "table.inner.number is 1.0 (a number), must be a whole"),
        ({"inner": {"number": 1, "share": math.nan}}, "table.inner.share is nan, must be finite"),
        ({"inner": {"number": 1, "share": 10**400}}, "table.inner.share is a number of 1329 bits"),
        ({"inner": []}, "table.inner is list, must be a table"),
        ({"rows": [{"number": 1}, {"number": -1}]}, "table.rows[1].number is -1"),
        ({"rows": [{"number": 1}] * 4}, "table.rows has length 4, must have 0 to 3"),
        ({"rows": "abc"}, "table.rows is 'abc' (text), must be a list"),
        ({"counts": {"A": 1}}, "table.counts key is 'A', must match"),
        ({"counts": {"a": "b"}}, "table.counts.a is 'b' (text), must be a whole number"),
        ({"counts": 7}, "table.counts is 7 (a whole number), must be a table"),
        ({"word": "blue"}, "table.word is 'blue', must be one of red, green"),
        ({"flag": 1}, "table.flag is 1 (a whole number), must be true or false"),
        ({"maybe": "long"}, "table.maybe has length 4, must have 1 to 3"),
        ({"folder": "a\0b"}, "table.folder is 'a\\x00b', a path has no zero bytes"),
    ],
)
def test_each_fault_has_its_sentence(changes, wanted):
    assert refusal(GOOD, **changes).startswith(wanted)


def test_a_number_type_of_another_library_is_no_number_of_ours():
    assert "float64" in refusal(GOOD, inner={"number": 1, "share": np.float64(0.5)})


def test_messages_stay_short_and_on_one_line():
    assert len(refusal(GOOD, name="x" * 10**6)) < 300
    assert len(refusal(GOOD, **{"y" * 10**6: 1})) < 500
    assert "\n" not in refusal(GOOD, **{"a\nforged line": 1})
    assert refusal(GOOD, inner={"number": 10**5000}).startswith(
        "table.inner.number is a number of 16610 bits"
    )


def test_whole_numbers_serve_as_numbers_and_nothing_else_is_converted():
    read = from_plain(Outer, {**GOOD, "inner": {"number": 1, "share": 1}}, ConfigError)
    assert read.inner.share == 1.0
    assert isinstance(read.inner.share, float)
