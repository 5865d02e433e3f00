"""Gradient matching in TensorFlow, on gradients whose records are known."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vitalring.tools.attack
from vitalring.models.artefact import initial_weights
from vitalring.models.catalogue import find_artefact
from vitalring.models.runtime import TrainableModel
from vitalring.tools import cli

pytestmark = pytest.mark.tensorflow

SCRIPT = Path(vitalring.tools.attack.__file__).with_name("inversion_tensorflow.py")


def invert(folder, model, shape, classes, groups, iterations, **more):
    arrays, found = folder / "arrays.npz", folder / "found.npz"
    np.savez(arrays, mean=np.zeros(shape[-1]), spread=np.ones(shape[-1]), **groups)
    request = {
        "arrays": str(arrays),
        "found": str(found),
        "model": model,
        "input_shape": shape,
        "classes": classes,
        "groups": sorted({name.split()[0] for name in groups}),
        "iterations": iterations,
        "variation": 0.0,
        "bound": 6.0,
        **more,
    }
    command = [sys.executable, "-P", str(SCRIPT), json.dumps(request)]
    ended = subprocess.run(command, capture_output=True, check=True)
    with np.load(found) as rows:
        return json.loads(ended.stdout.splitlines()[-1]), dict(rows)


def given(model, start, x, y):
    """Single records' gradients as a device's own network gives them."""
    gradients = [
        model.gradient_sum(start, x[n : n + 1], y[n : n + 1], 1e6)[0] for n in range(len(x))
    ]
    return np.stack([start] * len(x)), np.stack(gradients), y[:, None]


def test_a_record_is_rebuilt_from_its_gradient_and_not_from_noise(tmp_path):
    generator = np.random.default_rng(0)
    artefact = find_artefact("har_mlp", (265,), tuple("abcdef"))
    model, start = TrainableModel(artefact), initial_weights(artefact, bytes(32))
    x = generator.uniform(-0.9, 0.9, (2, 265)).astype(np.float32)
    weights, gradients, labels = given(model, start, x, np.array([1, 4]))
    starts = 0.1 * generator.normal(size=(2, 1, 265))
    noise = generator.normal(size=gradients.shape)
    groups = {}
    for group, seen in (("clear", gradients), ("noise", noise)):
        parts = (weights, seen, labels, starts)
        for name, part in zip(("weights", "gradients", "labels", "starts"), parts, strict=True):
            groups[f"{group} {name}"] = part
    answer, found = invert(tmp_path, "har_mlp", [265], 6, groups, 150)
    assert answer["first_dense"] == [265, 30]
    assert min(answer["alike"]["clear"]) > 0.95
    for n in range(2):
        assert np.corrcoef(found["clear"][n, 0], x[n])[0, 1] > 0.9
        assert abs(np.corrcoef(found["noise"][n, 0], x[n])[0, 1]) < 0.4


def test_windows_come_closer_in_gradient(tmp_path):
    generator = np.random.default_rng(1)
    artefact = find_artefact("cnn1d_small", (40, 2), ("a", "b", "c"))
    model, start = TrainableModel(artefact), initial_weights(artefact, bytes(32))
    x = generator.normal(size=(2, 40, 2)).astype(np.float32)
    weights, gradients, labels = given(model, start, x, np.array([0, 2]))
    starts = generator.normal(size=(2, 1, 40, 2))
    groups = {
        "g weights": weights,
        "g gradients": gradients,
        "g labels": labels,
        "g starts": starts,
    }
    before, _ = invert(tmp_path, "cnn1d_small", [40, 2], 3, groups, 1)
    after, found = invert(tmp_path, "cnn1d_small", [40, 2], 3, groups, 80, variation=0.01)
    assert after["first_dense"] == []
    assert found["g"].shape == (2, 1, 40, 2)
    assert all(a > b + 0.1 for a, b in zip(after["alike"]["g"], before["alike"]["g"], strict=True))


def test_inversion_is_run_from_the_command_line(tmp_path):
    arguments = "--devices 4 --rows 12 --seeds 1 --targets 2 --dummies 2 --iterations 3"
    code = cli.main(
        [
            "attack",
            "inversion",
            *arguments.split(),
            "--tensorflow",
            sys.executable,
            "--out",
            str(tmp_path),
        ]
    )
    assert code == 0
    content = json.loads((tmp_path / "inversion-mitbih.json").read_text())
    assert [(view["view"], view["defence"]) for view in content["views"]] == [
        ("gradient", ""),
        ("update", "none"),
        ("sum", "none"),
        ("step", "record/local/8"),
        ("update", "record/local/8"),
        ("sum", "record/local/8"),
    ]
    for view in content["views"]:
        figures = view["figures"]["descent"]
        assert set(figures) == {"attack", "others", "class"}
        assert all(len(values) == 2 for values in figures["attack"].values())
    assert "inversion-mitbih.svg" in (tmp_path / "inversion-mitbih.md").read_text()
