"""What is written is read again, aligned as the format wants; what is damaged is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.errors import ModelError
from vitalring.models.artefact import load_artefact
from vitalring.models.export import export
from vitalring.models.flatbuffer import Bytes, Scalar, Table, View, read, write
from vitalring.models.tflite_model import read_signatures

MODEL = export(load_artefact("har_mlp"), np.zeros(8166, np.float32))["model-int8.tflite"]
IDENTIFIER = b"TEST"

SCALARS = st.one_of(
    st.tuples(st.just("b"), st.integers(-128, 127)),
    st.tuples(st.just("B"), st.integers(0, 255)),
    st.tuples(st.just("?"), st.booleans()),
    st.tuples(st.just("i"), st.integers(-(2**31), 2**31 - 1)),
    st.tuples(st.just("I"), st.integers(0, 2**32 - 1)),
    st.tuples(st.just("q"), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just("f"), st.floats(width=32, allow_nan=False)),
).map(lambda pair: Scalar(*pair))
ARRAYS = st.tuples(st.sampled_from(["i4", "f4", "i8"]), st.lists(st.integers(-99, 99))).map(
    lambda pair: np.array(pair[1], pair[0])
)
PLAIN = st.one_of(
    SCALARS,
    ARRAYS,
    st.text(max_size=20),
    st.tuples(st.binary(max_size=40), st.sampled_from([1, 4, 16])).map(lambda p: Bytes(*p)),
)
TREES = st.recursive(
    st.dictionaries(st.integers(0, 9), PLAIN, max_size=5).map(Table),
    lambda inner: st.dictionaries(
        st.integers(0, 9), PLAIN | inner | st.lists(inner, max_size=3), max_size=5
    ).map(Table),
    max_leaves=8,
)


def compare(view: View, table: Table) -> None:
    assert view.position % 4 == 0
    for slot, value in table.fields.items():
        if isinstance(value, Scalar):
            assert view.scalar(slot, value.kind) == value.value
        elif isinstance(value, str):
            assert view.text(slot) == value
        elif isinstance(value, Bytes):
            assert view.array(slot, "u1").tobytes() == value.data
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(view.array(slot, value.dtype.str), value)
        elif isinstance(value, Table):
            inner = view.table(slot)
            assert inner is not None
            compare(inner, value)
        else:
            for one, wanted in zip(view.tables(slot), value, strict=True):
                compare(one, wanted)
    for slot in set(range(12)) - set(table.fields):
        assert view.scalar(slot, "i", 7) == 7
        assert view.table(slot) is None
        assert not view.tables(slot)


@given(TREES)
def test_a_tree_of_tables_is_read_as_it_was_written(tree: Table) -> None:
    compare(read(write(tree, IDENTIFIER), IDENTIFIER), tree)


@given(st.integers(0, 40), st.binary(min_size=1, max_size=20), st.sampled_from([4, 16]))
def test_bytes_lie_where_they_should(before: int, data: bytes, align: int) -> None:
    text = write(Table({0: "x" * before, 1: Bytes(data, align)}), IDENTIFIER)
    assert any(text[at : at + len(data)] == data for at in range(0, len(text), align))


@settings(max_examples=400)
@given(st.integers(0, len(MODEL) - 5), st.binary(min_size=1, max_size=4))
def test_a_damaged_model_is_refused_or_described(place: int, junk: bytes) -> None:
    try:
        read_signatures(MODEL[:place] + junk + MODEL[place + len(junk) :])
    except ModelError as error:
        assert str(error)


@given(st.integers(0, len(MODEL)))
def test_a_model_cut_short_is_refused_or_described(length: int) -> None:
    try:
        read_signatures(MODEL[:length])
    except ModelError as error:
        assert str(error)


def test_other_files_are_refused() -> None:
    for data in (b"", b"short", b"PK\3\4 a zip file", bytes(64)):
        with pytest.raises(ModelError, match="not a buffer of kind TFL3"):
            read_signatures(data)


def test_a_model_says_what_is_in_it() -> None:
    (signature,) = read_signatures(MODEL)
    assert signature.name == "infer"
    (source,), (result,) = signature.inputs, signature.outputs
    assert (source.name, source.kind, source.shape) == ("x", "int8", (1, 265))
    assert source.quant is not None
    assert (source.quant.scale, source.quant.zero) == (1 / 128, 0)
    assert (result.name, result.kind, result.shape) == ("probs", "int8", (1, 6))
    # Logits and softmax are of 16 bits, so two steps lead there and back.
    steps = {"FULLY_CONNECTED": 2, "SOFTMAX": 1, "CAST": 1, "QUANTIZE": 1}
    assert signature.operations == steps
