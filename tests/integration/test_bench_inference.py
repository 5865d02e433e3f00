"""`vitalring bench inference`: figures that follow from what the models really say."""

import argparse
import json
import sys

import numpy as np
import pytest
from wearer_fixture import NETWORK, int8_of, weights_of, windows

from vitalring.errors import ConfigError
from vitalring.models.artefact import load_artefact
from vitalring.models.runtime import TrainableModel
from vitalring.protocol.weights import pack_weights
from vitalring.tools.bench import inference


@pytest.fixture(scope="module")
def measured():
    """Noise, labelled as the training graph sees it but for every fourth window."""
    x, artefact = windows(80), load_artefact(NETWORK)
    y = TrainableModel(artefact).probabilities(weights_of(), x).argmax(axis=1)
    y[::4] = (y[::4] + 1) % 3
    return inference.measure_inference(artefact, weights_of(), x, y, [sys.executable])


def test_accuracy_is_against_the_labels_and_agreement_against_the_graph(measured):
    (found,) = measured["runtimes"]
    graph, int8 = found["models"]["training"], found["models"]["int8"]
    assert graph["accuracy"] == 0.75
    assert graph["agreement"] == 1.0
    assert int8["agreement"] > 0.8
    assert abs(int8["accuracy"] - 0.75) <= 1 - int8["agreement"]


def test_sizes_are_those_of_the_files_and_times_were_taken(measured):
    (found,) = measured["runtimes"]
    assert found["models"]["int8"]["bytes"] == len(int8_of(weights_of()))
    assert found["models"]["training"]["bytes"] == len(load_artefact(NETWORK).model)
    for model in found["models"].values():
        seconds = model["seconds"]
        assert 0 < seconds["low"] <= seconds["median"] <= seconds["high"]
    assert found["runtime"].split()[0] in ("tflite-runtime", "ai-edge-litert")
    assert found["peak_bytes"] > 10_000_000


def test_a_model_that_loses_too_much_is_told(measured):
    found = json.loads(json.dumps(measured))
    models = found["runtimes"][0]["models"]
    models["int8"]["accuracy"] = models["training"]["accuracy"] - 0.0099
    inference.check_close(found)
    models["int8"]["accuracy"] = models["training"]["accuracy"] - 0.0101
    with pytest.raises(ConfigError, match=r"loses 1\.01 points"):
        inference.check_close(found)


def test_an_interpreter_without_the_project_is_named(tmp_path):
    lone = tmp_path / "python"
    lone.write_text("#!/bin/sh\nexit 1\n")
    lone.chmod(0o755)
    with pytest.raises(ConfigError, match="lacks one of vitalring"):
        inference.measure_inference(
            load_artefact(NETWORK), weights_of(), windows(2), np.zeros(2, int), [str(lone)]
        )


def test_the_command_prints_and_writes_the_table(tmp_path, capsys):
    data = tmp_path / "data"
    (data / "devices").mkdir(parents=True)
    (data / "dataset.toml").write_text(
        'name = "noise"\nkind = "windows"\nclasses = ["N", "S", "V"]\nsampling_hz = 360\n'
        'test_devices = ["b"]\n'
    )
    for name in ("a", "b"):
        np.savez(data / "devices" / f"{name}.npz", x=windows(70), y=np.arange(70) % 3)
    (tmp_path / "weights.bin").write_bytes(pack_weights(weights_of()))
    parser = argparse.ArgumentParser()
    inference.add_arguments(parser)
    words = ["--data", data, "--model", NETWORK, "--weights", tmp_path / "weights.bin"]
    options = parser.parse_args([str(word) for word in [*words, "--out", tmp_path / "out"]])
    assert inference.run(options) == 0
    page = (tmp_path / "out" / "inference.md").read_text()
    assert "ecg_cnn on 70 held-out rows of 1 devices of noise." in page
    printed = capsys.readouterr().out
    for name in ("training", "float", "int8"):
        assert page.count(f"| {name} |") == 1
        assert f"│ {name} " in printed
    result = json.loads((tmp_path / "out" / "inference.json").read_text())
    assert result["windows"] == 70
    assert str(tmp_path) not in page + json.dumps(result)
