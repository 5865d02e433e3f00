import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.errors import ModelError
from vitalring.models.artefact import (
    Artefact,
    ArtefactInfo,
    artefact_from_bytes,
    initial_weights,
    load_artefact,
)

SHIPPED = load_artefact("ecg_cnn")


def test_the_shipped_artefact_says_what_it_is() -> None:
    info = SHIPPED.info
    assert info.classes == ("N", "S", "V")
    assert info.input_shape == (216, 4)
    assert info.dimension == 4096
    assert len(SHIPPED.model) < 100_000
    assert hashlib.sha256(SHIPPED.model).hexdigest() == info.sha256
    assert SHIPPED.digest == hashlib.sha256(info.to_json()).digest()
    assert b"SHA" not in repr(SHIPPED).encode()[2000:]  # the model's bytes stay out of it


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ModelError, match=r"there are cnn1d_small, ecg_bank, "):
        load_artefact("nothing")
    with pytest.raises(ModelError, match="no network is called"):
        load_artefact("../../LICENSE")


def test_bytes_from_outside_are_checked() -> None:
    text, model = SHIPPED.info.to_json(), SHIPPED.model
    assert artefact_from_bytes(text, model, SHIPPED.companions, SHIPPED.digest) == SHIPPED
    with pytest.raises(ModelError, match="SHA-256 is"):
        artefact_from_bytes(text, model[:-1] + bytes([model[-1] ^ 1]))
    with pytest.raises(ModelError, match="the plan names"):
        artefact_from_bytes(text, model, digest=bytes(32))
    with pytest.raises(ModelError, match="one encoding"):
        artefact_from_bytes(text + b"\n", model)
    with pytest.raises(ModelError, match="does not have the keys"):
        artefact_from_bytes(b"{}", model)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "../x"),
        ("classes", ["N"]),
        ("classes", "NSV"),
        ("input_shape", [216, 0]),
        ("input_shape", []),
        ("physical_batch", 0),
        ("physical_batch", True),
        ("dimension", 4095),
        ("dimension", 10**12),
        ("blocks", [[4096, -1.0]]),
        ("blocks", [[4096, float("inf")]]),
        ("blocks", [4096]),
        ("sha256", 3),
        ("sha256", "G" * 64),
        ("head", 0),
        ("head", 4097),
        ("initial", "00"),
        ("export", None),
    ],
)
def test_impossible_info_is_refused(key: str, value: object) -> None:
    table = json.loads(SHIPPED.info.to_json())
    table[key] = value
    with pytest.raises(ModelError):
        ArtefactInfo.from_json((json.dumps(table, indent=2) + "\n").encode())


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=60)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=5,
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_text_is_refused_by_name(text: bytes) -> None:
    with pytest.raises(ModelError):
        ArtefactInfo.from_json(text)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(SHIPPED.info.to_json()) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_another_record(position: int, flip: int) -> None:
    text = bytearray(SHIPPED.info.to_json())
    text[position] ^= flip
    try:
        info = ArtefactInfo.from_json(bytes(text))
    except ModelError:
        return
    assert info.to_json() == bytes(text)
    assert info != SHIPPED.info


def test_initial_weights_are_the_same_everywhere() -> None:
    first = initial_weights(SHIPPED, b"seed")
    assert first.dtype == np.float32
    assert first.shape == (4096,)
    np.testing.assert_array_equal(first, initial_weights(SHIPPED, b"seed"))
    assert (first != initial_weights(SHIPPED, b"seed2"))[:240].all()
    digest = hashlib.sha256(first.astype("<f4").tobytes()).hexdigest()
    assert digest == "d2dbf69247495cadc00a29e7425a7eba2f717fd4a7ad2382dc77e55e2d076db3"


def test_initial_weights_fill_their_limits() -> None:
    weights = initial_weights(SHIPPED, b"x")
    start = 0
    for size, limit in SHIPPED.info.blocks:
        own = weights[start : start + size]
        assert np.abs(own).max() <= limit
        if limit:
            assert np.abs(own).max() > 0.9 * limit
            assert abs(own.mean()) < 4 * limit / np.sqrt(3 * size)
            assert len(np.unique(own)) > 0.99 * size
        start += size


def test_an_artefact_cannot_be_made_from_other_bytes() -> None:
    with pytest.raises(ModelError):
        Artefact(replace(SHIPPED.info, sha256="0" * 64), SHIPPED.model)


def test_companions_are_found_by_their_digest() -> None:
    table = SHIPPED.companion(SHIPPED.info.export)
    assert hashlib.sha256(table).hexdigest() == SHIPPED.info.export
    assert json.loads(table)["dimension"] == SHIPPED.info.dimension
    with pytest.raises(ModelError, match="no companion file with SHA-256 '00'"):
        SHIPPED.companion("00")


def test_given_weights_are_the_initial_ones_whatever_the_seed() -> None:
    given = np.linspace(-1, 1, 4096).astype("<f4")
    info = replace(SHIPPED.info, initial=hashlib.sha256(given.tobytes()).hexdigest())
    artefact = Artefact(info, SHIPPED.model, (given.tobytes(),))
    np.testing.assert_array_equal(initial_weights(artefact, b"seed"), given)
    with pytest.raises(ModelError, match="no companion file"):
        initial_weights(replace(artefact, companions=()), b"seed")


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (np.zeros(4095, "<f4"), "have 16380 bytes, not 16384"),
        (np.full(4096, np.nan, "<f4"), "are not finite"),
    ],
)
def test_given_weights_that_cannot_be_are_refused(given: np.ndarray, match: str) -> None:
    info = replace(SHIPPED.info, initial=hashlib.sha256(given.tobytes()).hexdigest())
    with pytest.raises(ModelError, match=match):
        initial_weights(Artefact(info, SHIPPED.model, (given.tobytes(),)), b"seed")
