"""The export table is read strictly; no table makes a model that does not hold together."""

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.errors import ModelError
from vitalring.models.artefact import load_artefact, shipped_names
from vitalring.models.export import export, export_graph, int8_model
from vitalring.models.graph_node import Node, Weight, constant, folded, padding_of, steps_of
from vitalring.models.inference_graph import InferenceGraph, resized
from vitalring.models.runtime import interpreter
from vitalring.models.tflite_forms import int8_levels
from vitalring.models.write_onnx import write_onnx
from vitalring.models.write_tflite import write_tflite

GRAPH = export_graph(load_artefact("ecg_cnn"))


@pytest.mark.parametrize("name", shipped_names())
def test_reading_gives_back_what_was_written(name: str) -> None:
    graph = export_graph(load_artefact(name))
    assert InferenceGraph.from_json(graph.to_json()) == graph


def test_another_encoding_is_refused() -> None:
    text = GRAPH.to_json()
    for other in (text + b"\n", text.replace(b"  ", b" "), b"", b"[]", b"{}", b"\xff", b"["):
        with pytest.raises(ModelError):
            InferenceGraph.from_json(other)


@pytest.mark.parametrize(
    ("place", "changes", "match"),
    [
        (2, {"op": "fold"}, "operation 2, fold, does not fit: it is no operation"),
        (2, {"stride": 0}, "width 15 and stride 0"),
        (2, {"width": 14}, "a kernel"),
        (2, {"inputs": (9,)}, "comes later or not at all"),
        (2, {"inputs": ()}, "comes later or not at all"),
        (2, {"weights": (Weight((15, 1, 16), 4000),)}, "weights 4000 to 4240 are not all"),
        (2, {"weights": (Weight((15, 1, 0), 0),)}, "a weight has shape"),
        (2, {"weights": (Weight((15, 1, 16), -1, "AAAA"),)}, "has other bytes"),
        (2, {"weights": ()}, "weights of shapes"),
        (0, {"low": 1.0}, "is no range around 0"),
        (1, {"begin": (0, 4)}, "has nothing at"),
        (6, {"axes": (2,)}, "there are no axes"),
        (9, {"shape": (-1, -1)}, "cannot be"),
        (13, {"weights": (Weight((32, 3), 4000), Weight((4,), 0))}, "weights of shapes"),
    ],
)
def test_an_operation_that_does_not_fit_is_named(
    place: int, changes: dict[str, Any], match: str
) -> None:
    nodes = list(GRAPH.nodes)
    nodes[place] = replace(nodes[place], **changes)
    with pytest.raises(ModelError, match=match):
        replace(GRAPH, nodes=tuple(nodes))


def test_the_logits_must_be_the_classes() -> None:
    with pytest.raises(ModelError, match=r"the logits have shape \(3,\), not \(4,\)"):
        replace(GRAPH, classes=4)
    with pytest.raises(ModelError, match="0 operations"):
        replace(GRAPH, nodes=())


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_table_is_refused_or_holds_together(data: st.DataObject) -> None:
    """Whatever stands in a table, what is read of it can be written in every format."""
    table = json.loads(GRAPH.to_json())
    node = data.draw(st.sampled_from(table["nodes"]))
    key = data.draw(st.sampled_from([*node, "width", "keep", "same", "shape", "axes"]))
    node[key] = data.draw(JUNK | st.sampled_from([n.get(key) for n in table["nodes"]]))
    text = (json.dumps(table, indent=1) + "\n").encode()
    try:
        graph = InferenceGraph.from_json(text)
    except ModelError:
        return
    assert graph.to_json() == text
    weights = np.zeros(graph.dimension, np.float32)
    write_onnx(graph, weights)
    interpreter(write_tflite(graph, weights, int8=False))


@given(
    st.integers(1, 300), st.integers(1, 20), st.integers(1, 10), st.booleans(), st.integers(1, 4)
)
def test_slices_cover_what_tensorflows_rule_says(
    time: int, width: int, stride: int, same: bool, channels: int
) -> None:
    node = Node("max_pool", (0,), width=width, stride=stride, same=same)
    if time < width and not same:
        return
    before, after = padding_of(time, node)
    steps = steps_of(time, node)
    assert 0 <= before <= after <= before + 1
    assert steps >= 1
    assert (steps - 1) * stride + width <= before + time + after
    if same:
        assert steps == -(-time // stride)
        assert not after or (steps - 1) * stride + width == before + time + after


@given(st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_int8_levels_are_what_training_rounds_to(seed: int, zeros: int) -> None:
    rng = np.random.default_rng(seed)
    kernel = (rng.normal(size=(4, 3, 5)) * 10.0 ** rng.integers(-4, 3)).astype(np.float32)
    kernel[..., :zeros] = 0
    levels, scales = int8_levels(kernel, (0, 1))
    assert levels.dtype == np.int8
    assert np.abs(levels.astype(int)).max(initial=0) <= 127
    assert scales.shape == (1, 1, 5)
    assert (np.abs(levels * scales - kernel) <= scales / 2 * (1 + 1e-5)).all()
    assert not np.any(levels[..., :zeros])


def test_scales_that_are_folded_in_apply_one_after_the_other() -> None:
    rng = np.random.default_rng(1)
    w = rng.normal(size=12 + 6 * 3).astype(np.float32)
    starts = [12 + 3 * i for i in range(6)]
    weights = (Weight((4, 3), 0), *(Weight((3,), start) for start in starts[:5]))
    kernel, bias = folded(Node("dense", (0,), (*weights, constant(np.ones(3)))[:6]), w)
    b, s1, t1, s2, t2 = (w[start : start + 3] for start in starts[:5])
    a = rng.normal(size=(7, 4)).astype(np.float32)
    wanted = ((a @ w[:12].reshape(4, 3) + b) * s1 + t1) * s2 + t2
    np.testing.assert_allclose(a @ kernel + bias, wanted, rtol=1e-4, atol=1e-5)


def test_an_affine_operation_with_a_large_shift_keeps_it_in_int8() -> None:
    """A scale near 0 beside a shift: the bias of a step that small would not fit 32 bits."""
    scale, shift = np.array([1e-9, 0.5, -2.0]), np.array([1.5, -0.25, 0.75])
    nodes = (
        Node("range", (0,), low=-4.0, high=4 - 1 / 32),
        Node("affine", (1,), (constant(scale), constant(shift))),
        Node("range", (2,), low=-4.0, high=4 - 1 / 32),
        Node("dense", (3,), (Weight((3, 2), 0),)),
        Node("range", (4,), low=-16.0, high=16 - 1 / 8),
    )
    graph = InferenceGraph("net", (3,), 2, 6, nodes)
    w = np.array([1, -1, 2, 0.5, -1, 0.25], np.float32)
    x = np.array([[0.5, 1.0, -1.0]], np.float32)
    logits = (x * scale + shift) @ w.reshape(3, 2)
    wanted = np.exp(logits) / np.exp(logits).sum()
    infer = interpreter(write_tflite(graph, w, int8=True)).get_signature_runner("infer")
    found = (infer(x=np.rint(x * 32).astype(np.int8))["probs"].astype(float) + 128) / 256
    np.testing.assert_allclose(found, wanted, atol=0.03)


def test_a_graph_at_another_size_has_the_weights_of_that_size() -> None:
    graph = export_graph(load_artefact("ehr_mlp"))
    assert graph.input_shape == (64,)
    shapes = [(9, 128), (128,), (128, 64), (64,), (64, 32), (32,), (32, 5), (5,)]
    starts = [0, 8192, 8320, 16512, 16576, 18624, 18656, 18720]
    other = resized(graph, dict(zip(starts, shapes, strict=True)), (9,), 5)
    assert other.dimension == sum(int(np.prod(shape)) for shape in shapes)
    assert [w.shape for node in other.nodes for w in node.weights] == shapes
    with pytest.raises(ModelError, match="no run of their own"):
        resized(graph, {0: (9, 128)}, (9,), 5)


def test_weights_that_do_not_fit_are_refused() -> None:
    artefact = load_artefact("ecg_cnn")
    good = np.zeros(4096, np.float32)
    bad = good.copy()
    bad[7] = np.nan
    for weights in (good[:-1], good.astype(np.float64), bad):
        for make in (export, int8_model):
            with pytest.raises(ModelError, match="weights"):
                make(artefact, weights)


def test_an_artefact_without_its_table_cannot_be_exported() -> None:
    artefact = load_artefact("ecg_cnn")
    good = np.zeros(4096, np.float32)
    with pytest.raises(ModelError, match="names no export table"):
        export(replace(artefact, info=replace(artefact.info, export="")), good)
    with pytest.raises(ModelError, match="no companion file"):
        export(replace(artefact, companions=()), good)
    other = load_artefact("har_mlp")
    info = replace(artefact.info, export=other.info.export)
    with pytest.raises(ModelError, match="its export table is for input"):
        export(replace(artefact, info=info, companions=other.companions), good)


def test_int8_needs_a_range_for_the_input() -> None:
    graph = replace(GRAPH, nodes=(Node("relu", (0,)), *GRAPH.nodes[1:]))
    artefact = load_artefact("ecg_cnn")
    text = graph.to_json()
    info = replace(artefact.info, export=hashlib.sha256(text).hexdigest())
    with pytest.raises(ModelError, match="does not begin with a quantise layer"):
        int8_model(replace(artefact, info=info, companions=(text,)), np.zeros(4096, np.float32))
