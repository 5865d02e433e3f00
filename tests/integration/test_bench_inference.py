"""`vitalring bench inference`: figures that follow from what the models really say."""

import argparse
import json
import sys

import numpy as np
import pytest
from rich.console import Console
from wearer_fixture import NETWORK, int8_of, weights_of, windows

import vitalring
from vitalring.errors import ConfigError, DataError
from vitalring.models.artefact import load_artefact
from vitalring.models.runtime import TrainableModel
from vitalring.tools.bench import inference
from vitalring.tools.bench.inference_text import inference_tables


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
    assert measured["bytes"]["int8"] == len(int8_of(weights_of()))
    assert measured["bytes"]["training"] == len(load_artefact(NETWORK).model)
    for model in found["models"].values():
        seconds = model["seconds"]
        assert 0 < seconds["low"] <= seconds["median"] <= seconds["high"]
    assert found["models"]["int8"]["alone"]["median"] > 0
    assert found["runtime"].split()[0] in ("tflite-runtime", "ai-edge-litert")
    assert 10_000_000 < found["start_bytes"] < found["peak_bytes"]


def test_a_model_that_loses_too_much_is_named(measured):
    network = json.loads(json.dumps(measured)) | {"model": "lossy"}
    models = network["runtimes"][0]["models"]

    def verdict(lost):
        models["int8"]["accuracy"] = models["training"]["accuracy"] - lost
        return inference_tables({"networks": [network]})[0].notes[0]

    assert verdict(0.0099) == "No int8 model loses more than 1 point."
    assert verdict(0.0101).startswith("More than 1 point is lost by the int8 model of: lossy in ")


def test_an_interpreter_without_the_project_is_named(tmp_path):
    lone = tmp_path / "python"
    lone.write_text("#!/bin/sh\nexit 1\n")
    lone.chmod(0o755)
    with pytest.raises(ConfigError, match="lacks one of vitalring"):
        inference.run(parsed("--run", tmp_path, tmp_path, "--python", lone))


def parsed(*words):
    parser = argparse.ArgumentParser()
    inference.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run's folder, and small data of the same kind on which its model is measured."""
    folder = tmp_path_factory.mktemp("inference")
    vitalring.simulate(
        console=Console(file=(folder / "printed.txt").open("w")),
        out=folder / "run",
        devices=4,
        min_cohort=4,
        rounds=1,
        local_epochs=0.2,
        alone=False,
        window_s=0.0,
        unit="none",
        noise="none",
    )
    data = folder / "data"
    (data / "devices").mkdir(parents=True)
    (data / "dataset.toml").write_text(
        'name = "noise"\nkind = "windows"\nclasses = ["N", "S", "V"]\nsampling_hz = 360\n'
        'test_devices = ["b"]\n'
    )
    for name in ("a", "b"):
        np.savez(data / "devices" / f"{name}.npz", x=windows(70), y=np.arange(70) % 3)
    return folder


def test_the_command_prints_and_writes_the_tables(finished, tmp_path, capsys):
    run, data = finished / "run", finished / "data"
    words = ["--run", run, data, "--run", run / "log", data, "--out", tmp_path / "out"]
    assert inference.run(parsed(*words)) == 0
    page = (tmp_path / "out" / "inference.md").read_text()
    about = "`ecg_cnn`, 4,096 parameters, after round 1, from the log of study arrhythmia, verified"
    assert page.count(about) == 2
    assert page.count(": 70 held-out rows of 1 device of noise.") == 2
    printed = capsys.readouterr().out
    for title in ("Accuracy on held-out rows", "Size, kB", "Time", "Memory, MB"):
        assert page.count(f"## {title}\n") == 1
        assert title in printed
    assert page.count("| ecg_cnn |") == 2 * 4
    result = json.loads((tmp_path / "out" / "inference.json").read_text())
    assert [network["rows"] for network in result["networks"]] == [70, 70]
    assert str(finished) not in page + json.dumps(result)


def test_data_of_another_kind_are_refused(finished, tmp_path):
    data = tmp_path / "data"
    (data / "devices").mkdir(parents=True)
    (data / "dataset.toml").write_text(
        'name = "two"\nkind = "windows"\nclasses = ["N", "V"]\nsampling_hz = 360\n'
        "test_fraction = 0.5\n"
    )
    np.savez(data / "devices" / "a.npz", x=windows(20), y=np.arange(20) % 2)
    with pytest.raises(DataError, match="name the data that it was trained for"):
        inference.run(parsed("--run", finished / "run", data))
