"""`vitalring agent predict`, as a person calls it."""

import io
import json

import numpy as np
import pytest
from wearer_fixture import input_shape, int8_of, put_in_use, weights_of, windows

from vitalring.edge_agent import model_in_use
from vitalring.edge_agent.inference import Int8Model
from vitalring.tools.cli import main

CONFIG = """
federation = "federation.cbor"
authority_key = "{key}"
cohort = "ward"
ring_keys = "keys"
data = "data"
device = "d1"
state_dir = "state"
[broker]
url = "mqtt://127.0.0.1"
"""
DATASET = """
name = "beats"
kind = "windows"
classes = {classes}
sampling_hz = 360
test_fraction = 0.2
"""


@pytest.fixture
def device(tmp_path):
    """A device's folder: a configuration and a data set of eight windows."""
    (tmp_path / "agent.toml").write_text(CONFIG.format(key="0" * 64))
    data = tmp_path / "data"
    (data / "devices").mkdir(parents=True)
    (data / "dataset.toml").write_text(DATASET.format(classes='["N", "S", "V"]'))
    np.savez(data / "devices" / "d1.npz", x=windows(8), y=np.arange(8) % 3)
    return tmp_path


@pytest.fixture
def predict(device, capsys):
    """Run the command; returns its code, its lines and what it said of errors."""

    def run(*words):
        code = main(["agent", "predict", "--config", str(device / "agent.toml"), *words])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return run


def labels_of(x):
    model = Int8Model(int8_of(weights_of()), input_shape(), 3)
    return [model.predict(row).label for row in x]


def test_without_a_model_it_says_so(predict):
    code, lines, err = predict()
    assert code == 2
    assert lines == []
    assert "no verified model yet" in err


def test_the_devices_own_windows_are_predicted_and_summed_up(predict, device):
    about = put_in_use(device / "state")
    code, lines, _ = predict("--json")
    assert code == 0
    *results, last = map(json.loads, lines)
    labels = labels_of(windows(8))
    assert [line["window"] for line in results] == list(range(8))
    assert [line["class"] for line in results] == ["NSV"[label] for label in labels]
    summary = last["summary"]
    assert (summary["study"], summary["round"], summary["head"]) == ("study", 3, "global")
    assert summary["model"] == about.int8
    assert summary["verification"] == model_in_use.in_words(about)
    assert (summary["windows"], summary["labelled"]) == (8, 8)
    assert summary["accuracy"] == np.mean(np.array(labels) == np.arange(8) % 3)
    times = [line["latency_ms"] for line in results]
    assert min(times) <= summary["latency_ms_median"] <= summary["latency_ms_95"]
    assert summary["latency_ms_95"] <= max(times) + 0.001
    assert summary["peak_memory_bytes"] > 10_000_000


def test_a_person_reads_the_model_and_its_verification(predict, device):
    put_in_use(device / "state")
    code, lines, _ = predict("--limit", "3")
    assert code == 0
    assert len([line for line in lines if line.split()[:1] in (["0"], ["1"], ["2"], ["3"])]) == 3
    text = "\n".join(lines)
    for words in ("after round 3", "global head", "signed by 2 aggregators", "median", "peak"):
        assert words in text


def test_a_file_of_windows_needs_no_labels(predict, device):
    put_in_use(device / "state")
    x = windows(5, seed=9)
    np.savez(device / "new.npz", x=x)
    _, lines, _ = predict("--json", "--input", str(device / "new.npz"))
    *results, last = map(json.loads, lines)
    assert [line["class"] for line in results] == ["NSV"[label] for label in labels_of(x)]
    assert "accuracy" not in last["summary"]


def test_windows_come_through_a_pipe(predict, device, monkeypatch):
    put_in_use(device / "state")
    x = windows(3, seed=9)
    lines = [
        json.dumps({"start_ms": 1000, "x": x[0].tolist()}),
        json.dumps(x[1].tolist()),
        "",
        json.dumps([[1.0]]),
        json.dumps(x[2].tolist()).replace("[[", "[[NaN, ", 1),
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    code, out, err = predict("--json", "--input", "-")
    # The last window has a ragged row: it is no array at all.
    assert code == 2
    assert "line 5 of standard input" in err
    first, second, third = map(json.loads, out)
    labels = labels_of(x)
    assert (first["start_ms"], first["class"]) == (1000, "NSV"[labels[0]])
    assert (second["window"], second["class"]) == (1, "NSV"[labels[1]])
    assert third["class"] is None
    assert "has shape (1, 1)" in third["reason"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not an archive", b"\x93NUMPY"])
def test_a_file_that_is_no_npz_is_refused(predict, device, content):
    put_in_use(device / "state")
    (device / "new.npz").write_bytes(content)
    code, _, err = predict("--input", str(device / "new.npz"))
    assert code == 2
    assert "new.npz" in err


@pytest.mark.parametrize(
    "arrays",
    [
        {"y": np.zeros(3, int)},
        {"x": np.array(["a"])},
        {"x": np.zeros(3)},
        {"x": windows(3), "y": np.array([0, 1, 3])},
        {"x": windows(3), "y": np.zeros(2, int)},
        {"x": np.array([object()])},
    ],
)
def test_arrays_that_do_not_fit_are_refused(predict, device, arrays):
    put_in_use(device / "state")
    np.savez(device / "new.npz", **arrays)
    code, _, err = predict("--input", str(device / "new.npz"))
    assert code == 2
    assert "new.npz" in err


def test_a_damaged_model_predicts_nothing(predict, device):
    put_in_use(device / "state")
    path = next((device / "state" / model_in_use.FOLDER).glob("model-int8*"))
    path.write_bytes(path.read_bytes()[:-1])
    code, lines, err = predict()
    assert code == 2
    assert lines == []
    assert path.name in err


def test_a_data_set_of_other_classes_is_refused(predict, device):
    put_in_use(device / "state")
    (device / "data" / "dataset.toml").write_text(DATASET.format(classes='["a", "b", "c"]'))
    code, _, err = predict()
    assert code == 2
    assert "N, S, V" in err


def test_a_limit_that_predicts_nothing_is_refused(predict, device):
    put_in_use(device / "state")
    code, _, err = predict("--limit", "0")
    assert code == 2
    assert "--limit 0" in err
