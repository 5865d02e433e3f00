"""Which network a study gets, and that it is one that runs."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.errors import ModelError
from vitalring.models.artefact import (
    SHIPPED,
    Artefact,
    initial_weights,
    load_artefact,
    read_artefact,
    shipped_names,
)
from vitalring.models.catalogue import find_artefact, read_sizing, sized, suggest_model
from vitalring.models.export import export_graph
from vitalring.models.runtime import TrainableModel
from vitalring.models.sizing import Sizing, first_limits

SIX = tuple("abcdef")
EHR, EHR_SIZING = load_artefact("ehr_mlp"), read_sizing(SHIPPED, "ehr_mlp")
CNN, CNN_SIZING = load_artefact("cnn1d_small"), read_sizing(SHIPPED, "cnn1d_small")


@pytest.mark.parametrize(
    ("shape", "classes", "name"),
    [
        ((216, 4), ("N", "S", "V"), "ecg_cnn"),
        ((128, 6), SIX, "har_cnn"),
        ((265,), SIX, "har_mlp"),
        ((128, 6), ("fall", "none"), "cnn1d_small"),
        ((1000, 1), SIX, "cnn1d_small"),
        ((265,), ("no", "yes"), "ehr_mlp"),
        ((1,), SIX, "ehr_mlp"),
    ],
)
def test_every_data_set_gets_a_network_that_runs(
    shape: tuple[int, ...], classes: tuple[str, ...], name: str
) -> None:
    assert suggest_model(shape, "windows", classes) == name
    artefact = find_artefact(name, shape, classes)
    info = artefact.info
    assert (info.name, info.input_shape, info.classes) == (name, shape, classes)
    assert info.sha256 == load_artefact(name).info.sha256
    assert export_graph(artefact).dimension == info.dimension
    weights = initial_weights(artefact, b"seed")
    x = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    y = np.arange(3) % len(classes)
    grad, _, norms = TrainableModel(artefact).gradient_sum(weights, x, y, 1.0)
    assert grad.shape == (info.dimension,)
    assert (norms > 0).all()
    assert grad[-info.head :].any()


@pytest.mark.parametrize(
    ("shape", "classes", "name"),
    [
        ((216, 4), ("N", "S", "V"), "ecg_bank"),
        ((128, 6), SIX, "har_bank"),
        ((265,), SIX, "linear"),
        ((128, 6), ("fall", "none"), "cnn1d_small"),
    ],
)
def test_with_a_guarantee_the_network_of_fewest_weights_is_suggested(shape, classes, name) -> None:
    assert suggest_model(shape, "windows", classes, private=True) == name
    fewest = find_artefact(name, shape, classes).info.dimension
    assert (
        fewest <= find_artefact(suggest_model(shape, "w", classes), shape, classes).info.dimension
    )


def test_no_network_is_suggested_for_what_none_takes() -> None:
    with pytest.raises(ModelError, match=r"takes tabular of shape \(2, 3, 4\) and 2 classes"):
        suggest_model((2, 3, 4), "tabular", ("a", "b"))


@pytest.mark.parametrize(
    ("model", "shape", "classes", "match"),
    [
        ("nothing", (1,), SIX, "no network is called 'nothing'.*there are cnn1d_small, ecg_bank"),
        ("ecg_cnn", (216, 4), ("N", "S"), r"3 classes, but the data.*that fit: cnn1d_small"),
        ("har_cnn", (128, 3), SIX, r"takes input \(128, 6\).*that fit: cnn1d_small"),
        ("har_mlp", (2, 2, 2), SIX, "none that is shipped"),
        ("ehr_mlp", (128, 6), SIX, r"takes \(inputs\), but the data has shape \(128, 6\)"),
        ("cnn1d_small", (128,), SIX, r"takes \(time, channels\), but"),
        ("cnn1d_small", (0, 3), SIX, r"has shape \(0, 3\)"),
        ("ehr_mlp", (8,), ("one",), "the data has 1; name two"),
        ("ehr_mlp", (10**6,), SIX, "dimension is 128"),
    ],
)
def test_what_does_not_fit_is_refused(
    model: str, shape: tuple[int, ...], classes: tuple[str, ...], match: str
) -> None:
    with pytest.raises(ModelError, match=match):
        find_artefact(model, shape, classes)


def test_classes_take_the_names_of_the_data() -> None:
    info = find_artefact("har_cnn", (128, 6), SIX).info
    assert info.classes == SIX
    assert replace(info, classes=load_artefact("har_cnn").info.classes) == (
        load_artefact("har_cnn").info
    )


def copied(name: str, folder: Path, *, without: str = "") -> Path:
    for file in SHIPPED.iterdir():
        if file.name.startswith(name) and file.name != name + without:
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_network_in_a_folder_is_found_by_folder_and_by_file(tmp_path: Path) -> None:
    folder = copied("ehr_mlp", tmp_path)
    wanted = find_artefact("ehr_mlp", (9,), SIX)
    assert find_artefact(str(folder), (9,), SIX) == wanted
    assert find_artefact(str(folder / "ehr_mlp.json"), (9,), SIX) == wanted
    copied("ecg_cnn", folder)
    with pytest.raises(ModelError, match=r"holds 2 networks \(ecg_cnn, ehr_mlp\)"):
        find_artefact(str(folder), (9,), SIX)
    assert find_artefact(str(folder / "ehr_mlp.json"), (9,), SIX) == wanted


def test_a_folder_without_a_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds 0 networks"):
        find_artefact(str(tmp_path), (9,), SIX)


@pytest.mark.parametrize("missing", [".tflite", "-export.json"])
def test_missing_files_are_named(tmp_path: Path, missing: str) -> None:
    folder = copied("ecg_cnn", tmp_path, without=missing)
    with pytest.raises(ModelError, match=f"ecg_cnn{missing}"):
        read_artefact(folder, "ecg_cnn")


def test_another_export_table_is_refused(tmp_path: Path) -> None:
    folder = copied("ecg_cnn", tmp_path)
    (folder / "ecg_cnn-export.json").write_bytes(b"{}\n")
    with pytest.raises(ModelError, match="no companion file with SHA-256"):
        find_artefact(str(folder), (216, 4), ("N", "S", "V"))


def test_given_initial_weights_are_read_from_the_folder(tmp_path: Path) -> None:
    folder = copied("ecg_cnn", tmp_path)
    given = np.linspace(-1, 1, 4096).astype("<f4")
    (folder / "ecg_cnn-initial.bin").write_bytes(given.tobytes())
    info = load_artefact("ecg_cnn").info
    info = replace(info, initial=hashlib.sha256(given.tobytes()).hexdigest())
    (folder / "ecg_cnn.json").write_bytes(info.to_json())
    artefact = find_artefact(str(folder), (216, 4), ("N", "S", "V"))
    np.testing.assert_array_equal(initial_weights(artefact, b""), given)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 20), st.integers(2, 30))
def test_weights_are_counted_by_the_rule(time: int, channels: int, classes: int) -> None:
    names = tuple(f"class {place}" for place in range(classes))
    window = sized(CNN, CNN_SIZING, (time, channels), names).info
    assert window.dimension == 8 * channels * 16 + 16 + (
        5 * 16 + 16 + 16 * 32 + 32 + 5 * 32 + 32 + 32 * 64 + 64 + 65 * classes
    )
    assert window.head == 65 * classes
    assert window.blocks[0] == (8 * channels * 16, first_limits([(8, channels, 16), (5, 16)])[0])
    row = sized(EHR, EHR_SIZING, (time,), names).info
    assert row.dimension == 129 + (time - 1) * 128 + 127 + 129 * 64 + 65 * 32 + 33 * classes
    assert row.head == 33 * classes


def test_first_weights_are_bound_by_their_inputs() -> None:
    found = first_limits([(5, 3, 7), (7,), (9, 2)])
    assert found == pytest.approx(((6 / 15) ** 0.5, 0, (6 / 9) ** 0.5))


def test_one_dense_layer_starts_from_zero() -> None:
    assert first_limits([(9, 2), (2,)]) == (0, 0)
    linear = find_artefact("linear", (9,), ("no", "yes"))
    assert not initial_weights(linear, b"seed").any()
    assert linear.info.dimension == 20
    assert find_artefact("har_bank", (128, 6), SIX).info.blocks == ((360, 0.0), (6, 0.0))


@pytest.mark.parametrize(
    ("axes", "blocks", "match"),
    [
        (("width",), (("width", "2"),), "cannot be"),
        (("inputs",), (("2",),), "cannot be"),
        (("inputs",), (("inputs", "outputs"),), "'outputs' is no length"),
        (("inputs",), (("inputs", "0"),), "'0' is no length"),
        (("inputs",), (("inputs", "-3"),), "'-3' is no length"),
        (("inputs",), (("inputs", "2"), ()), "'' is no length"),
    ],
)
def test_impossible_sizings_are_refused(
    axes: tuple[str, ...], blocks: tuple[tuple[str, ...], ...], match: str
) -> None:
    with pytest.raises(ModelError, match=match):
        Sizing(axes, blocks)


def test_a_sizing_has_one_text() -> None:
    text = EHR_SIZING.to_json()
    assert Sizing.from_json(text) == EHR_SIZING
    for other in (text + b"\n", json.dumps(json.loads(text)).encode(), b"[", b"[]", b'{"axes": 3}'):
        with pytest.raises(ModelError):
            Sizing.from_json(other)


@pytest.mark.parametrize(
    "changes",
    [
        {"dimension": -1},
        {"dimension": 1},
        {"dimension": 33},
        {"classes": ("a", "b", "c", "d")},
        {"input_shape": (20,)},
        {"input_shape": (1,)},
        {"input_shape": (19, 1)},
        {"physical_batch": 32},
    ],
)
def test_a_wrong_size_is_found_when_the_model_is_loaded(changes: dict[str, object]) -> None:
    good = find_artefact("ehr_mlp", (19,), ("a", "b", "c"))
    if "dimension" in changes:
        dimension = good.info.dimension + changes["dimension"]
        changes = {"dimension": dimension, "blocks": ((dimension, 0.1),)}
    with pytest.raises(ModelError, match="build the artefact again"):
        TrainableModel(Artefact(replace(good.info, **changes), good.model))


def test_every_shipped_network_is_small() -> None:
    for name in shipped_names():
        artefact = load_artefact(name)
        assert len(artefact.model) < 125_000
        assert artefact.info.dimension < 20_000
