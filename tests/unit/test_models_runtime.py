"""The runtime that devices have, against what TensorFlow computed (tests/vectors/*.npz)."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vitalring.errors import ModelError
from vitalring.models.artefact import Artefact, initial_weights, load_artefact
from vitalring.models.catalogue import find_artefact
from vitalring.models.export import export, int8_model
from vitalring.models.runtime import TrainableModel, interpreter

ARTEFACT = load_artefact("ecg_cnn")
FOLDER = Path(__file__).resolve().parents[1] / "vectors"
VECTORS = dict(np.load(FOLDER / "ecg_cnn.npz"))
NETWORKS = dict(np.load(FOLDER / "networks.npz"))
W, X, Y, CLIP = VECTORS["w"], VECTORS["x"], VECTORS["y"], float(VECTORS["clip"])


@pytest.fixture(scope="module")
def model() -> TrainableModel:
    return TrainableModel(ARTEFACT)


def test_gradients_are_those_of_tensorflow(model: TrainableModel) -> None:
    grad, loss, norms = model.gradient_sum(W, X, Y, CLIP)
    np.testing.assert_allclose(grad, VECTORS["grad_sum"], atol=2e-5, rtol=1e-3)
    np.testing.assert_allclose(norms, VECTORS["norms"], rtol=1e-4)
    assert loss == pytest.approx(float(VECTORS["loss_sum"]), rel=1e-4)
    assert (norms > CLIP).any()
    np.testing.assert_allclose(model.probabilities(W, X), VECTORS["probs"], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "classes"), [("har_mlp", 6), ("har_cnn", 6), ("ehr_mlp", 2), ("cnn1d_small", 3)]
)
def test_every_network_computes_what_tensorflow_does(name: str, classes: int) -> None:
    x, y = NETWORKS[f"{name}.x"], NETWORKS[f"{name}.y"]
    artefact = find_artefact(name, x.shape[1:], tuple("abcdef"[:classes]))
    weights = initial_weights(artefact, b"vector")
    weights += np.resize(np.linspace(-0.1, 0.1, 101, dtype=np.float32), weights.shape)
    model = TrainableModel(artefact)
    grad, loss, norms = model.gradient_sum(weights, x, y, 1.0)
    np.testing.assert_allclose(grad, NETWORKS[f"{name}.grad_sum"], atol=2e-5, rtol=1e-3)
    np.testing.assert_allclose(norms, NETWORKS[f"{name}.norms"], rtol=1e-4)
    assert loss == pytest.approx(float(NETWORKS[f"{name}.loss_sum"]), rel=1e-4)
    probs = model.probabilities(weights, x)
    np.testing.assert_allclose(probs, NETWORKS[f"{name}.probs"], atol=1e-5)


def test_a_sum_is_the_sum_of_its_parts(model: TrainableModel) -> None:
    whole, loss, norms = model.gradient_sum(W, X, Y, CLIP)
    parts = [model.gradient_sum(W, X[i : i + 1], Y[i : i + 1], CLIP) for i in range(len(X))]
    np.testing.assert_allclose(sum(part[0] for part in parts), whole, atol=1e-5)
    assert sum(part[1] for part in parts) == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(np.concatenate([part[2] for part in parts]), norms, rtol=1e-5)
    for grad, _, norm in parts:
        assert np.linalg.norm(grad) <= CLIP * (1 + 1e-5)
        assert norm.shape == (1,)


def test_no_row_gives_no_gradient(model: TrainableModel) -> None:
    grad, loss, norms = model.gradient_sum(W, X[:0], Y[:0], CLIP)
    assert not grad.any()
    assert loss == 0
    assert norms.shape == (0,)
    assert model.probabilities(W, X[:0]).shape == (0, 3)


def test_calls_leave_nothing_behind(model: TrainableModel) -> None:
    before = model.gradient_sum(W, X, Y, CLIP)[0].copy()
    kept = model.gradient_sum(W, X, Y, CLIP)[0]
    model.gradient_sum(W * 0, X, Y, CLIP)
    np.testing.assert_array_equal(before, model.gradient_sum(W, X, Y, CLIP)[0])
    np.testing.assert_array_equal(before, kept)  # results are not views of the runtime's memory


def test_predictions_of_many_rows_are_those_of_each(model: TrainableModel) -> None:
    many = np.tile(X, (40, 1, 1))
    np.testing.assert_allclose(
        model.probabilities(W, many), np.tile(VECTORS["probs"], (40, 1)), atol=1e-5
    )


def nan_at(array: np.ndarray, *where: int) -> np.ndarray:
    spoilt = array.copy()
    spoilt[where] = np.nan
    return spoilt


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((W[:-1], X, Y, 1.0), r"weights have shape \(4095,\)"),
        ((W.astype(np.float64), X, Y, 1.0), "type float64"),
        ((nan_at(W, 7), X, Y, 1.0), r"weights holds nan at \[7\]"),
        ((W, nan_at(X, 1, 2, 3), Y, 1.0), r"x holds nan at \[1, 2, 3\]"),
        ((W, X[:, :100], Y, 1.0), r"takes \(n, 216, 4\)"),
        ((W, X[0], Y, 1.0), r"takes \(n, 216, 4\)"),
        ((W, X.astype(np.int16), Y, 1.0), "convert it to float32"),
        ((W, X, Y[:-1], 1.0), "must be 5 integers below 3"),
        ((W, X, Y + 1, 1.0), "must be 5 integers below 3"),
        ((W, X, Y.astype(float), 1.0), "must be 5 integers below 3"),
        ((W, X, Y, 0.0), "clip is 0"),
        ((W, X, Y, float("inf")), "clip is inf"),
        ((W, X, Y, float("nan")), "clip is nan"),
        ((W, np.tile(X, (13, 1, 1)), np.tile(Y, 13), 1.0), "physical batch of 64"),
        ((W * np.float32(1e38), X, Y, 1.0), "not finite"),
    ],
)
def test_wrong_inputs_are_named(
    model: TrainableModel, arguments: tuple[np.ndarray, np.ndarray, np.ndarray, float], match: str
) -> None:
    with pytest.raises(ModelError, match=match):
        model.gradient_sum(*arguments)
    np.testing.assert_allclose(  # and the model still works
        model.gradient_sum(W, X, Y, CLIP)[0], VECTORS["grad_sum"], atol=2e-5, rtol=1e-3
    )


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"physical_batch": 32}, "inputs of 'grads' are"),
        ({"input_shape": (108, 8)}, "inputs of 'grads' are"),
        ({"classes": ("N", "S")}, "inputs of 'grads' are"),
        ({"dimension": 4000, "blocks": ((4000, 0.1),)}, "inputs of 'grads' are"),
    ],
)
def test_an_info_that_does_not_fit_its_model_is_refused(
    changes: dict[str, object], match: str
) -> None:
    with pytest.raises(ModelError, match=match):
        TrainableModel(Artefact(replace(ARTEFACT.info, **changes), ARTEFACT.model))


@pytest.mark.parametrize("data", [b"", b"no model at all, but forty bytes of text"])
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    info = replace(ARTEFACT.info, sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(ModelError, match="cannot be loaded"):
        TrainableModel(Artefact(info, data))


def test_a_model_with_other_signatures_is_refused() -> None:
    other = export(ARTEFACT, W)["model.tflite"]
    info = replace(ARTEFACT.info, sha256=hashlib.sha256(other).hexdigest())
    with pytest.raises(ModelError, match=r"has signatures \['infer'\]"):
        TrainableModel(Artefact(info, other))


def test_exported_models_run_and_agree(model: TrainableModel) -> None:
    files = export(ARTEFACT, W)
    assert set(files) == {"model.tflite", "model-int8.tflite", "model.onnx"}
    wanted = model.probabilities(W, X)
    float_model = interpreter(files["model.tflite"]).get_signature_runner("infer")
    int8 = interpreter(files["model-int8.tflite"])
    int8_runner = int8.get_signature_runner("infer")
    scale, zero = int8.get_input_details()[0]["quantization"]
    for row, probs in zip(X, wanted, strict=True):
        np.testing.assert_allclose(float_model(x=row[None])["probs"][0], probs, atol=0.1)
        levels = np.clip(np.rint(row[None] / scale) + zero, -128, 127).astype(np.int8)
        found = (int8_runner(x=levels)["probs"][0].astype(float) + 128) / 256
        np.testing.assert_allclose(found, probs, atol=0.08)


def test_export_refuses_other_weights() -> None:
    for weights in (W[:-1], W.astype(np.float64), nan_at(W, 0)):
        with pytest.raises(ModelError):
            int8_model(ARTEFACT, weights)
    interpreter(int8_model(ARTEFACT, np.zeros_like(W)))  # no scale of 0
