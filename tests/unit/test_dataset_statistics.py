"""The feature schema, and how sites agree on it from sums alone."""

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.errors import DataError
from vitalring.models.dataset import Column, DatasetInfo, FeatureSchema, Table
from vitalring.models.dataset.features import CLIP, Buckets, Category, Number, buckets_of
from vitalring.models.dataset.statistics import Question, answer, count, question_of
from vitalring.protocol.limbs import from_limbs, to_limbs

INFO = DatasetInfo("ward", "tabular", ("no", "yes"), 0.0, None, 0.2, None, label="ill")


def table(columns: dict[str, Sequence[str]], category: Sequence[str] = ()) -> Table:
    cells = {}
    for name, texts in columns.items():
        different = tuple(dict.fromkeys(texts))
        codes = np.array([different.index(text) for text in texts], np.int32)
        cells[name] = Column(different, codes, name in category)
    rows = len(next(iter(columns.values())))
    return Table("a", "a.csv", cells, np.zeros(rows, np.int64), np.arange(rows) + 2)


def total(question: Question, sites: Sequence[Table]) -> list[int]:
    """Add the sites' numbers as the secure sum does, limb by limb."""
    answers = [to_limbs(count(question, site), question.widths) for site in sites]
    return from_limbs(np.sum(answers, axis=0, dtype=np.uint64), question.widths, len(sites))


numbers = st.floats(-(2.0**32), 2.0**32).map(repr) | st.integers(-(2**32), 2**32).map(str)
cell = st.sampled_from(["", "a", "b", "1", "-2.5"]) | numbers
number_cell = st.just("") | numbers
mostly = st.one_of(st.just(number_cell), st.just(cell))


@st.composite
def partitions(draw: st.DrawFn) -> tuple[Table, list[Table]]:
    rows = draw(st.integers(1, 30))
    kinds = draw(st.lists(mostly, min_size=1, max_size=3))
    columns = {
        f"c{place}": draw(st.lists(kind, min_size=rows, max_size=rows))
        for place, kind in enumerate(kinds)
    }
    owners = np.array(draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows)))
    pooled = table(columns)
    return pooled, [pooled.take(np.flatnonzero(owners == site)) for site in range(4)]


@settings(deadline=None)
@given(partitions(), st.integers(1, 4), st.sampled_from([1, 7, 256]))
def test_any_partition_agrees_on_what_the_pooled_table_says(
    case: tuple[Table, list[Table]], min_count: int, buckets: int
) -> None:
    pooled, sites = case
    question = question_of(INFO, pooled.columns, buckets, min_count)
    agreed = answer(question, total(question, sites))
    assert agreed == answer(question, count(question, pooled))
    assert agreed.to_json() == answer(question, total(question, sites[::-1])).to_json()
    for feature in agreed.features:
        column = pooled.cells[feature.column]
        texts = [column.texts[code] for code in column.codes if column.texts[code]]
        if not isinstance(feature, Number):
            continue
        values = [float(text) for text in texts]
        if values:
            assert feature.mean == pytest.approx(math.fsum(values) / len(values), abs=2**-16)
            spread = math.sqrt(math.fsum((v - feature.mean) ** 2 for v in values) / len(values))
            assert feature.std == pytest.approx(spread, abs=2**-15, rel=1e-9)


def test_a_text_anywhere_makes_a_category_everywhere() -> None:
    question = question_of(INFO, ["x"], min_count=2)
    sites = [table({"x": ["1", "2", "2", ""]}), table({"x": ["2", "u", "u"]})]
    agreed = answer(question, total(question, sites))
    one, two, word = buckets_of("x", ["1", "2", "u"], 256)
    assert agreed == FeatureSchema((Buckets("x", 256, tuple(sorted((two, word))), two),))
    x = agreed.encode(sites[0])
    place = agreed.names.index(f"x#{two}")
    assert x[:, place].tolist() == [0, 1, 1, 1]  # the missing cell counts as the mode
    assert x[0].tolist() == [0, 0, 1]  # "1" stands once in all: any other
    assert one not in (two, word)


def test_numbers_that_are_codes_make_a_category() -> None:
    question = question_of(INFO, ["unit"], min_count=1)
    sites = [table({"unit": ["1", "7"]}, category=["unit"]), table({"unit": ["1"]})]
    (feature,) = answer(question, total(question, sites)).features
    assert isinstance(feature, Buckets)
    assert len(feature.kept) == 2


def test_what_nobody_knows_is_an_input_that_says_nothing() -> None:
    question = question_of(INFO, ["x", "y"])
    site = table({"x": ["", ""], "y": ["4", "4"]})
    agreed = answer(question, total(question, [site, site]))
    assert agreed == FeatureSchema((Number("x", 0.0, 0.0), Number("y", 4.0, 0.0)))
    assert not agreed.encode(table({"x": ["", "9"], "y": ["5", ""]})).any()


def test_rare_values_share_an_input() -> None:
    question = question_of(INFO, ["x"], min_count=3)
    site = table({"x": ["a", "b", "b"]})
    agreed = answer(question, total(question, [site]))
    assert agreed == FeatureSchema((Buckets("x", 256, (), None),))
    assert agreed.encode(site).tolist() == [[1], [1], [1]]


def test_a_site_with_a_text_tells_no_moments() -> None:
    question = question_of(INFO, ["x"], buckets=1)
    assert count(question, table({"x": ["5", "a", "7"]})) == [2, 1, 0, 0, 0, 3]
    assert count(question, table({"x": ["-1", "0.5"]})) == [
        2, 0, 0, 2 * 2**48 - 2**15, 2**32 + 2**30, 2,
    ]  # fmt: skip


def test_ten_thousand_sites_of_the_largest_numbers_agree() -> None:
    question = question_of(INFO, ["x"], buckets=2)
    site = table({"x": [repr(2.0**32)] * 3 + [repr(-(2.0**32))] * 3})
    limbs = to_limbs(count(question, site), question.widths) * np.uint64(10_000)
    agreed = answer(question, from_limbs(limbs, question.widths, 10_000))
    assert agreed == FeatureSchema((Number("x", 0.0, 2.0**32),))


def test_the_widths_hold_the_largest_site() -> None:
    question = question_of(INFO, ["x"], buckets=1)
    rows = 2**24 - 1
    largest = [rows, rows, rows, rows * 2**49, rows * 2**96, rows]
    assert from_limbs(to_limbs(largest, question.widths), question.widths, 1) == largest


@pytest.mark.parametrize("text", ["4294967297", "-1e10", "1e999"])
def test_numbers_beyond_fixed_point_are_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"a\.csv: line 3: column 'x' holds .* larger unit"):
        count(question_of(INFO, ["x"]), table({"x": ["1", text]}))
    # Where the site knows that it is no number, there is nothing to refuse.
    count(question_of(INFO, ["x"]), table({"x": ["a", text]}))


@pytest.mark.parametrize("text", ["nan", "inf", "-Infinity", "1_000", "0x10", "١٢", "1,5", "--1"])
def test_words_are_no_numbers(text: str) -> None:
    question = question_of(INFO, ["x"], buckets=1)
    assert count(question, table({"x": [text]})) == [0, 1, 0, 0, 0, 1]


def test_columns_must_be_the_studys() -> None:
    question = question_of(INFO, ["age", "sex", "ill"])
    assert question.columns == ("age", "sex")
    with pytest.raises(DataError, match=r"a\.csv: line 1: column 'sex' is missing.*add it"):
        count(question, table({"age": ["1"]}))
    extra = table({"age": ["1"], "sex": ["f"], "zip": ["9"]})
    with pytest.raises(DataError, match=r"column 'zip' is none of this study's.*ignore"):
        count(question, extra)
    schema = FeatureSchema((Number("age", 0.0, 1.0), Category("sex", ("f",))))
    with pytest.raises(DataError, match=r"column 'zip' is none of this study's.*ignore"):
        schema.encode(extra)


@pytest.mark.parametrize(
    ("place", "change", "match"),
    [
        (0, 1, "different numbers of rows"),
        (3, -(2**49), "moments of column 'x' disagree"),
        (4, -10 * 2**32, "moments of column 'x' disagree"),
        (5, 1, "sums of column 'x' disagree"),
    ],
)
def test_sums_that_no_site_can_have_made_are_refused(place: int, change: int, match: str) -> None:
    question = question_of(INFO, ["x", "y"], buckets=1)
    totals = total(question, [table({"x": ["3", "4"], "y": ["1", "1"]})])
    totals[place] += change
    with pytest.raises(DataError, match=match):
        answer(question, totals)
    with pytest.raises(DataError, match="the sum has 11 numbers, the question asks for 12"):
        answer(question, totals[1:])


def test_a_schema_encodes_clips_and_names_its_inputs() -> None:
    schema = FeatureSchema((Number("age", 50.0, 10.0), Category("sex", ("f", "m"), "f")))
    assert schema.names == ("age", "sex=f", "sex=m", "sex=other")
    assert schema.inputs == 4
    site = table({"sex": ["m", "", "x", "f"], "age": ["60", "1e999", "-1e9", ""]})
    expected = [[1, 0, 1, 0], [CLIP, 1, 0, 0], [-CLIP, 0, 0, 1], [0, 1, 0, 0]]
    assert schema.encode(site).tolist() == expected


def test_texts_in_a_number_column_are_named() -> None:
    schema = FeatureSchema((Number("age", 50.0, 10.0),))
    with pytest.raises(DataError, match=r"a\.csv: line 3: column 'age' holds 'old'.*\(2 such"):
        schema.encode(table({"age": ["1", "old", "old"]}))
    # A text that only stands in rows of another part is nobody's fault.
    assert schema.encode(table({"age": ["50", "old"]}).take(slice(0, 1))).tolist() == [[0]]


names = st.text('abc é"\\', min_size=1, max_size=4)
finite = st.floats(allow_nan=False, allow_infinity=False)
features = st.one_of(
    st.builds(Number, names, finite, finite.map(abs)),
    st.builds(Category, names, st.lists(names, min_size=1, unique=True).map(tuple)),
    st.builds(
        Buckets, names, st.just(9), st.sets(st.integers(0, 8)).map(lambda s: tuple(sorted(s)))
    ),
)
schemas = st.lists(features, min_size=1, unique_by=lambda f: f.column).map(
    lambda found: FeatureSchema(tuple(sorted(found, key=lambda f: f.column)))
)


@given(schemas)
def test_a_schema_is_read_back_from_its_json(schema: FeatureSchema) -> None:
    text = schema.to_json()
    assert FeatureSchema.from_json(text) == schema
    assert FeatureSchema.from_json(text).digest == schema.digest
    assert len(schema.names) == schema.inputs


@given(schemas, st.data())
def test_changed_json_is_another_schema_or_refused(
    schema: FeatureSchema, data: st.DataObject
) -> None:
    raw = bytearray(schema.to_json())
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    for read in (FeatureSchema.from_json, Question.from_json):
        try:
            found = read(bytes(raw))
        except DataError:
            continue
        assert found.to_json() == bytes(raw)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["features", "clip", "kind", "column", "columns", "number", "mean"]),
            inner,
        )
    ),
    max_leaves=8,
)


@given(json_values)
def test_any_json_is_read_or_refused(value: object) -> None:
    for read in (FeatureSchema.from_json, Question.from_json):
        with pytest.raises(DataError):
            read(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("columns", "buckets", "match"),
    [
        ((), 1, "columns are"),
        (("b", "a"), 1, "columns are"),
        (("a", "a"), 1, "columns are"),
        (("a\n",), 1, "no name of a column"),
        (("a",), 0, "buckets"),
        (tuple(sorted(map(str, range(4000)))), 65_536, "bytes of answer"),
    ],
)
def test_questions_are_bounded(columns: tuple[str, ...], buckets: int, match: str) -> None:
    with pytest.raises(DataError, match=match):
        Question(columns, buckets)


def test_a_question_is_read_back() -> None:
    question = question_of(INFO, ["b", "a"])
    assert Question.from_json(question.to_json()) == question
    assert len(question.widths) == 2 * (5 + 256)
    other = question.to_json().replace(b'"min_count":10', b'"min_count":11')
    assert Question.from_json(other).digest != question.digest
