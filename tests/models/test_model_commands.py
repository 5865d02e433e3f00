"""Building and importing on the command line, each in a process of its own as a user has it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from vitalring.models.artefact import initial_weights  # noqa: E402
from vitalring.models.catalogue import find_artefact  # noqa: E402

pytestmark = pytest.mark.tensorflow

MITBIH = Path(__file__).resolve().parents[2] / "tools" / "datasets" / "mitbih"
K = tf.keras.layers


def run(*words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "vitalring.tools.cli", "model", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_network_is_built_at_a_size_and_runs(tmp_path: Path) -> None:
    words = ("build", "cnn1d_small", "--input", "40x2", "--classes", "a,b,c", "--out", tmp_path)
    done = run(*words)
    assert (done.returncode, done.stderr) == (0, "")
    path = tmp_path / "cnn1d_small.json"
    artefact = find_artefact(str(path), (40, 2), ("a", "b", "c"))
    assert artefact.info.input_shape == (40, 2)
    said = run("inspect", path)
    assert "runs grads in" in said.stdout, said
    assert "classes         3: a, b, c" in said.stdout


def test_what_tensorflow_says_at_its_start_is_shown_where_it_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = (
        "import os\nos.write(2, b'said at the start\\n')\nraise ImportError('a broken library')\n"
    )
    (tmp_path / "tensorflow.py").write_text(broken)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = run("build", "ecg_cnn", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "said at the start" in done.stderr
    assert "a broken library" in done.stderr


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("ecg_cnn", "--input", "100x4"), "ecg_cnn takes input (216, 4) alone, not (100, 4)"),
        (("har_mlp", "--classes", "a,b"), "har_mlp tells 6 classes apart, but 2 are named"),
        (("ehr_mlp", "--input", "10x3"), "ehr_mlp takes (inputs), but the data has shape (10, 3)"),
    ],
)
def test_a_size_that_cannot_be_is_refused(
    words: tuple[str, ...], match: str, tmp_path: Path
) -> None:
    done = run("build", *words, "--out", tmp_path)
    assert done.returncode == 2
    assert match in done.stderr
    assert not list(tmp_path.iterdir())


def keras_file(path: Path) -> Any:
    model = tf.keras.Sequential(
        [
            K.InputLayer(input_shape=(216, 4)),
            K.Conv1D(8, 9, strides=4, activation="relu"),
            K.GlobalAveragePooling1D(),
            K.Dense(3, activation="softmax"),
        ]
    )
    model.save(path)
    return model


def test_a_keras_file_is_imported_with_ranges_and_classes_of_a_data_set(tmp_path: Path) -> None:
    model = keras_file(tmp_path / "My net.keras")
    out = tmp_path / "out"
    done = run(
        "import", tmp_path / "My net.keras", "--calibrate", MITBIH, "--train", "head", "--out", out
    )
    assert done.returncode == 0, done.stderr
    assert "range" in done.stdout
    artefact = find_artefact(str(out), (216, 4), ("N", "S", "V"))
    info = artefact.info
    assert (info.name, info.classes, info.dimension) == ("my_net", ("N", "S", "V"), 8 * 3 + 3)
    head = np.concatenate([one.numpy().reshape(-1) for one in model.layers[-1].weights])
    np.testing.assert_array_equal(initial_weights(artefact, b""), head)
    said = run("inspect", out / "my_net.json").stdout
    assert "runs grads in" in said
    assert f"start           given weights {info.initial}" in said
    assert "296 constants" in said  # of the trunk: 9 · 4 · 8 and 8


def test_a_file_that_cannot_be_imported_leaves_nothing(tmp_path: Path) -> None:
    keras_file(tmp_path / "net.keras")
    done = run("import", tmp_path / "net.keras", "--classes", "a,b", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "net has 3 outputs, but 2 classes are named: a, b" in done.stderr
    assert not (tmp_path / "out").exists()
