"""`vitalring model`: lists, inspects, exports from a run and from a running service, and builds."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import vitalring
from vitalring.aggregator import store
from vitalring.aggregator.optimisers import ServerState
from vitalring.database import transaction
from vitalring.models.artefact import load_artefact, shipped_names
from vitalring.models.export import export
from vitalring.tools import cli

MODELS = {"model.tflite", "model-int8.tflite", "model.onnx"}
RNG = np.random.default_rng(2)


def run(*words: object) -> int:
    return cli.main(["model", *map(str, words)])


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert run(*words) == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, from which an export must give the run's own models."""
    folder = tmp_path_factory.mktemp("run") / "out"
    vitalring.simulate(
        console=Console(file=(folder.parent / "printed.txt").open("w")),
        out=folder,
        devices=4,
        min_cohort=4,
        rounds=1,
        local_epochs=0.2,
        alone=False,
        window_s=0.0,
        unit="none",
        noise="none",
    )
    return folder


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """A hospital's folder whose aggregator has ended round 3 of a study."""
    study = tmp_path / "study.toml"
    study.write_text(
        'study = "beats"\nrounds = 4\nmin_cohort = 3\nrecords = 200\nmodel = "ecg_cnn"\n'
    )
    url = "mqtts://server.example:8883"
    words = [tmp_path / "study", "--config", study, "--devices", 4, "--broker-url", url]
    assert cli.main(["federation", "init", *map(str, words)]) == 0
    return tmp_path / "study" / "hospitals" / "hospital-1"


def save_round(hospital: Path, number: int, weights: np.ndarray) -> None:
    db = store.open_store(hospital / "aggregator")
    with transaction(db):
        store.save_state(db, number, ServerState(weights.astype(np.float64), ()))
    db.close()


def test_every_shipped_network_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    out = capsys.readouterr().out
    for name in shipped_names():
        assert name in out
    assert f"{load_artefact('ecg_cnn').info.dimension:,}" in out


@pytest.mark.parametrize("name", shipped_names())
def test_a_network_is_described_and_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", name) == 0
    out = capsys.readouterr().out
    artefact = load_artefact(name)
    for said in (artefact.digest.hex(), artefact.info.sha256, "grads", "probs", "model-int8"):
        assert said in out
    assert "runs grads in" in out
    assert f"{artefact.info.head:,} of them the head" in out


def test_a_runs_model_file_is_described(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", finished / "model-int8.tflite") == 0
    out = capsys.readouterr().out
    assert "(x 1x216x4 int8 from -4 in steps of 0.03125) -> probs 1x3 int8" in out
    assert "CONV_2D 2" in out
    assert "runs infer in" in out


def test_a_damaged_model_file_does_not_take_the_command_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = export(load_artefact("har_mlp"), np.zeros(8166, np.float32))["model.tflite"]
    refused = 0
    for place in range(40, len(good) - 8, len(good) // 9):
        path = tmp_path / "model.tflite"
        path.write_bytes(good[:place] + b"\xff\xff\xff\x7f" + good[place + 4 :])
        code = run("inspect", path)
        said = capsys.readouterr()
        refused += code == 2 or "FAILED" in said.out
        assert code in (0, 2)
    assert refused


def test_export_of_a_run_gives_the_runs_models(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source in (finished, finished / "log"):
        assert run("export", source, "--out", tmp_path / source.name) == 0
        assert {path.name for path in (tmp_path / source.name).iterdir()} == MODELS
        for name in MODELS:
            made = (tmp_path / source.name / name).read_bytes()
            assert made == (finished / name).read_bytes()
    said = capsys.readouterr().out
    assert "ecg_cnn after round 1, from the log of study" in said
    assert "verified with the key in its folder" in said


def test_export_of_a_log_checks_it(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    key = (folder / "log" / "authority").read_text().strip()
    assert run("export", folder, "--authority", key, "--out", tmp_path / "out") == 0
    assert "verified with the given key" in capsys.readouterr().out
    assert "not the given" in refusal(
        capsys, "export", folder, "--authority", "0" * 64, "--out", tmp_path / "other"
    )
    weights = np.fromfile(folder / "weights.bin", "<f4")
    (folder / "weights.bin").write_bytes((weights + 1).tobytes())
    said = refusal(capsys, "export", folder, "--out", tmp_path / "other")
    assert "weights.bin: these are not the weights of the log's newest model" in said
    assert not (tmp_path / "other").exists()


def test_export_of_a_running_aggregator(
    hospital: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "has not run yet" in refusal(capsys, "export", hospital, "--out", tmp_path / "models")
    weights = RNG.normal(0, 0.2, 4096)
    save_round(hospital, 0, weights * 0)
    assert "no model yet" in refusal(capsys, "export", hospital, "--out", tmp_path / "models")
    save_round(hospital, 3, weights)
    wanted = export(load_artefact("ecg_cnn"), weights.astype(np.float32))
    for source in (hospital / "aggregator.toml", hospital, hospital / "aggregator"):
        assert run("export", source, "--out", tmp_path / "models") == 0
        assert "after round 3" in capsys.readouterr().out
        for name in MODELS:
            assert (tmp_path / "models" / name).read_bytes() == wanted[name]


def test_a_source_without_a_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, "export", tmp_path, "--out", tmp_path / "out")
    assert "holds no trained model" in said
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "aggregator.sqlite").write_bytes(b"")
    said = refusal(capsys, "export", tmp_path / "state", "--out", tmp_path / "out")
    assert "name the aggregator.toml" in said


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("inspect", "ecg"), "'ecg' is no network: name one of cnn1d_small"),
        (("inspect", "none.tflite"), "none.tflite cannot be read"),
        (("import", "net.pt", "--out", "x"), "must end in .onnx, .keras, .h5"),
        (("import", "net.onnx", "--out", "x"), "net.onnx cannot be read"),
        (("build", "ecg_cnn", "--input", "6 by 7", "--out", "x"), "write time x channels as 128x6"),
        (("build", "ehr_mlp", "--classes", "yes", "--out", "x"), "two or more different classes"),
        (("export", "x", "--authority", "abc", "--out", "x"), "64 hexadecimal digits"),
    ],
)
def test_options_that_cannot_be_are_refused(
    words: tuple[str, ...], match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert match in refusal(capsys, *words)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None,
    reason="LEFT OUT: TensorFlow is installed here, so nothing says that it is missing",
)
def test_what_needs_tensorflow_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.onnx").write_bytes(b"")
    (tmp_path / "net.keras").write_bytes(b"")
    for words in (("build", "ecg_cnn"), ("import", tmp_path / "net.onnx"),
                  ("import", tmp_path / "net.keras")):  # fmt: skip
        said = refusal(capsys, *words, "--out", tmp_path / "out")
        assert "not installed here: pip install 'vitalring[models]'" in said
