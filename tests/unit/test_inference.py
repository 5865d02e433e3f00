"""The int8 model in the device's runtime: right answers, and nothing else gets in or out."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from wearer_fixture import NETWORK, input_shape, int8_of, weights_of, windows

from vitalring.edge_agent import inference
from vitalring.edge_agent.inference import Int8Model
from vitalring.errors import DataError, ModelError
from vitalring.models.artefact import load_artefact
from vitalring.models.export import export
from vitalring.models.runtime import TrainableModel

CLASSES = 3


@pytest.fixture(scope="module")
def model():
    return Int8Model(int8_of(weights_of()), input_shape(), CLASSES)


def test_it_says_what_the_training_graph_says(model):
    x = windows(60)
    said = np.array([model.predict(row).probabilities for row in x])
    trained = TrainableModel(load_artefact(NETWORK)).probabilities(weights_of(), x)
    # Random weights put classes close together, so the numbers count, not the winner alone. What
    # the runtimes round differently adds up over the layers.
    assert np.abs(said - trained).mean() < 0.01
    assert np.abs(said - trained).max() < 0.05
    assert np.abs(said.sum(axis=1) - 1).max() < 0.02
    assert model.predict(x[0]).label == int(np.argmax(said[0]))
    assert len({tuple(row) for row in said}) > 10


@pytest.mark.parametrize("shape", [(), (3,), (1, *input_shape()), input_shape()[::-1]])
def test_another_shape_is_refused(model, shape):
    with pytest.raises(DataError, match="has shape"):
        model.predict(np.zeros(shape, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused_with_its_place(model, value):
    x = windows(1)[0]
    x[5, 0] = value
    with pytest.raises(DataError, match=r"holds -?(nan|inf) at \[5, 0\]"):
        model.predict(x)


def test_numbers_beyond_the_range_count_as_its_ends(model):
    ends = np.where(windows(1)[0] > 0, np.float32(1e4), np.float32(-1e4))
    beyond = np.where(ends > 0, np.float32(3e38), np.float32(-3e38))
    assert np.array_equal(model.predict(ends).probabilities, model.predict(beyond).probabilities)


def test_the_latency_is_the_clocks(model, monkeypatch):
    ticks = itertools.count(10, 0.25)
    monkeypatch.setattr(inference.time, "perf_counter", lambda: next(ticks))
    assert model.predict(windows(1)[0]).latency_s == 0.25


@pytest.mark.parametrize(
    ("shape", "classes", "wrong"),
    [((3, 1), CLASSES, "input has shape"), (input_shape(), 2, "output has shape")],
)
def test_a_model_of_another_shape_is_refused(shape, classes, wrong):
    with pytest.raises(ModelError, match=wrong):
        Int8Model(int8_of(weights_of()), shape, classes)


def test_a_float_model_is_refused():
    model = export(load_artefact(NETWORK), weights_of())["model.tflite"]
    with pytest.raises(ModelError, match="not int8"):
        Int8Model(model, input_shape(), CLASSES)


def test_the_training_model_is_refused():
    with pytest.raises(ModelError):
        Int8Model(load_artefact(NETWORK).model, input_shape(), CLASSES)


@pytest.mark.parametrize("data", [b"", b"no model at all", bytes(1000)])
def test_bytes_that_are_no_model_are_refused(data):
    with pytest.raises(ModelError):
        Int8Model(data, input_shape(), CLASSES)


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_stays_flat_over_100_000_calls(model):
    x = windows(1)[0]
    for _ in range(1_000):
        model.predict(x)
    before = resident_bytes()
    for _ in range(100_000):
        model.predict(x)
    # A leak of three bytes a call would show.
    assert resident_bytes() - before < 300_000
