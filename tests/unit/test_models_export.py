"""Exports of every shipped network, in the runtime installed here, on real windows where there are.

UCI HAR's windows are not shipped: VITALRING_HAR names a folder with raw_windows_int16.npz.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from vitalring.models import dataset
from vitalring.models.artefact import Artefact, initial_weights, load_artefact, shipped_names
from vitalring.models.export import export, int8_model
from vitalring.models.runtime import TrainableModel, interpreter
from vitalring.models.tflite_model import read_signatures

MITBIH = Path(__file__).resolve().parents[2] / "tools" / "datasets" / "mitbih"


class Rows(NamedTuple):
    x: np.ndarray
    y: np.ndarray


def run_int8(model: bytes, x: np.ndarray) -> np.ndarray:
    (signature,) = read_signatures(model)
    (source,), (result,) = signature.inputs, signature.outputs
    infer = interpreter(model).get_signature_runner("infer")
    levels = np.clip(np.rint(x / source.quant.scale) + source.quant.zero, -128, 127)
    found = np.concatenate([infer(x=row[None])["probs"] for row in levels.astype(np.int8)])
    return (found.astype(float) - result.quant.zero) * result.quant.scale


def run_float(model: bytes, x: np.ndarray) -> np.ndarray:
    infer = interpreter(model).get_signature_runner("infer")
    return np.concatenate([infer(x=row[None])["probs"] for row in x])


def train(artefact: Artefact, rows: Rows, epochs: int, rate: float) -> np.ndarray:
    """Plain stochastic gradient descent with momentum, by the artefact's own signatures."""
    model, rng = TrainableModel(artefact), np.random.default_rng(0)
    weights = initial_weights(artefact, b"seed")
    moving = np.zeros_like(weights)
    for _ in range(epochs):
        order = rng.permutation(len(rows.y))
        for start in range(0, len(order) - 63, 64):
            taken = order[start : start + 64]
            grad, _, _ = model.gradient_sum(weights, rows.x[taken], rows.y[taken], 1e6)
            moving = 0.9 * moving + grad / 64
            weights = (weights - rate * moving).astype(np.float32)
    return weights


@pytest.mark.parametrize("name", shipped_names())
def test_the_int8_model_computes_what_training_does(name: str) -> None:
    artefact = load_artefact(name)
    info, rng = artefact.info, np.random.default_rng(6)
    limits = np.concatenate([np.full(size, limit or 0.1) for size, limit in info.blocks])
    weights = (rng.uniform(-1, 1, info.dimension) * limits).astype(np.float32)
    weights[-info.head :] *= 3
    x = np.cumsum(rng.normal(0, 0.12, (60, *info.input_shape)), axis=1).astype(np.float32)
    x = np.clip(x, -0.9, 0.9) if len(info.input_shape) == 1 else x
    trained = TrainableModel(artefact).probabilities(weights, x)
    found = run_int8(int8_model(artefact, weights), x)
    assert np.abs(found - trained).mean() < 0.01
    assert np.quantile(np.abs(found - trained).max(1), 0.95) < 0.1


def wild(artefact: Artefact, times: float) -> np.ndarray:
    """Weights that take activations and logits far beyond their ranges."""
    rng = np.random.default_rng(7)
    limits = np.concatenate([np.full(size, limit or 0.1) for size, limit in artefact.info.blocks])
    return (times * rng.uniform(-1, 1, artefact.info.dimension) * limits).astype(np.float32)


@pytest.mark.parametrize("name", shipped_names())
def test_exports_agree_where_activations_and_logits_are_large(name: str) -> None:
    artefact = load_artefact(name)
    weights, rng = wild(artefact, 4.0), np.random.default_rng(8)
    x = rng.uniform(-0.9, 0.9, (200, *artefact.info.input_shape)).astype(np.float32)
    trained = TrainableModel(artefact).probabilities(weights, x).argmax(1)
    files = export(artefact, weights)
    int8 = run_int8(files["model-int8.tflite"], x).argmax(1)
    assert (int8 == trained).mean() >= 0.95
    assert (run_float(files["model.tflite"], x).argmax(1) == trained).mean() >= 0.9


def check(artefact: Artefact, learnt: Rows, held_out: Rows, epochs: int, least: float) -> None:
    """Train, then compare all on people whom training has not seen."""
    weights = train(artefact, learnt, epochs, 0.05)
    trained = TrainableModel(artefact).probabilities(weights, held_out.x)
    files = export(artefact, weights)
    probs = {
        "int8": run_int8(files["model-int8.tflite"], held_out.x),
        "float": run_float(files["model.tflite"], held_out.x),
    }
    accuracy = (trained.argmax(1) == held_out.y).mean()
    assert accuracy > least
    for found in probs.values():
        assert abs((found.argmax(1) == held_out.y).mean() - accuracy) <= 0.01
    assert (probs["int8"].argmax(1) == trained.argmax(1)).mean() > 0.985
    assert np.abs(probs["int8"] - trained).mean() < 0.01


def test_exports_agree_on_heartbeats_of_people_held_out() -> None:
    info = dataset.load_dataset(MITBIH)
    parts = []
    for names in dataset.devices(MITBIH, info):
        records = [dataset.load_device(MITBIH, name, info) for name in names]
        parts.append(Rows(*(np.concatenate([getattr(r, k)[::4] for r in records]) for k in "xy")))
    check(load_artefact("ecg_cnn"), *parts, epochs=4, least=0.8)


@pytest.mark.har
def test_exports_agree_on_activities_of_people_held_out() -> None:
    with np.load(Path(os.environ["VITALRING_HAR"]) / "raw_windows_int16.npz") as data:
        scale = np.repeat([float(data["acc_g_per_lsb"]), float(data["gyro_rad_s_per_lsb"])], 3)
        known = data["y"] <= 6
        x = (data["X"] * scale).astype(np.float32)[known]
        y = data["y"].astype(np.int64)[known] - 1
        learns = data["is_train"].astype(bool)[known]
    parts = [Rows(x[part], y[part]) for part in (learns, ~learns)]
    check(load_artefact("har_cnn"), *parts, epochs=6, least=0.85)


def test_the_sizes_of_exports_are_what_devices_can_hold() -> None:
    for name in shipped_names():
        artefact = load_artefact(name)
        files = export(artefact, np.zeros(artefact.info.dimension, np.float32))
        if artefact.info.dimension < 1_000:  # one dense layer; formulas are float32 in both
            assert len(files["model-int8.tflite"]) < 20_000
            continue
        assert len(files["model-int8.tflite"]) < 0.7 * len(files["model.tflite"])
        assert len(files["model-int8.tflite"]) < artefact.info.dimension + 10_000
