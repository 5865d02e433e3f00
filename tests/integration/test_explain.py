"""`vitalring model explain` and `vitalring simulate --explain` as their users meet them."""

import json
from pathlib import Path

import numpy as np
import pytest
from report_fixture import Page, assert_alone_in_the_world
from rich.console import Console

import vitalring
from vitalring.models.artefact import initial_weights
from vitalring.models.catalogue import find_artefact
from vitalring.tools.cli import main
from vitalring.tools.simulate.api import Simulation


@pytest.fixture(scope="module")
def explained_run(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    folder = tmp_path_factory.mktemp("explained")
    with (folder / "printed.txt").open("w") as printed:
        return vitalring.simulate(
            console=Console(file=printed),
            out=folder / "out",
            devices=4,
            min_cohort=4,
            rounds=2,
            local_epochs=0.34,
            alone=False,
            window_s=0.0,
            explain=True,
        )


def test_a_report_shows_what_its_model_looks_at(explained_run: Simulation) -> None:
    report = json.loads((explained_run.folder / "report.json").read_text())
    titles = [row["title"] for row in report["explanations"]]
    assert titles == [
        "What the model looks at: typical windows",
        "What the model looks at: averages by class",
    ]
    assert all(set(row) == {"title", "text", "svg"} for row in report["explanations"])
    page = (explained_run.folder / "report.html").read_text()
    assert_alone_in_the_world(page)
    images = {image.decode() for image in Page(page).images}
    for row in report["explanations"]:
        assert row["svg"] in images
        assert "18 samples (50 ms) at 360 Hz" in report["explanations"][0]["text"]


def test_the_command_shows_the_same_of_the_runs_folder(
    explained_run: Simulation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "explain", str(explained_run.folder), "--out", str(tmp_path)]) == 0
    assert "round 2, log of study arrhythmia" in capsys.readouterr().out
    for number, row in enumerate(explained_run.report["explanations"], 1):
        assert (tmp_path / f"explain-{number}.svg").read_text() == row["svg"]
    assert_alone_in_the_world((tmp_path / "explain.html").read_text())
    assert not (tmp_path / "explain.log").exists()
    table = json.loads((tmp_path / "explain.json").read_text())
    typical, averages = table["explanations"]
    for example in typical["examples"]:
        assert len(example["patches"]["0"]) == 216
        assert len(example["channels"]) == 4
    assert averages["classes"]["N"]["windows"] == 100
    assert abs(averages["likeness_to_shuffled_weights"]) <= 1
    assert averages["channels"][:2] == ["ECG lead, mV", "RR before vs mean, × 12.5 %"]


def test_nothing_is_written_over(
    explained_run: Simulation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "explain.html"
    kept.write_text("of another run")
    assert main(["model", "explain", str(explained_run.folder), "--out", str(tmp_path)]) == 2
    assert "is not empty: name a new folder with --out" in capsys.readouterr().err
    assert kept.read_text() == "of another run"
    assert list(tmp_path.iterdir()) == [kept]


def tables(folder: Path) -> Path:
    """Two sites of 150 patients, whose outcome is their age and nothing else."""
    (folder / "devices").mkdir(parents=True)
    (folder / "dataset.toml").write_text(
        'name = "wards"\nkind = "tabular"\nclasses = ["no", "yes"]\nlabel = "outcome"\n'
        "test_fraction = 0.4\n[features]\nage = {mean = 60, std = 15}\n"
        'ward = {categories = ["a", "b", "c"]}\n'
    )
    generator = np.random.default_rng(0)
    for site in "pq":
        rows = [
            f"{age:.1f},{'abc'[k % 3]},{'yes' if age > 60 else 'no'}"
            for k, age in enumerate(generator.normal(60, 15, 150))
        ]
        text = "\n".join(["age,ward,outcome", *rows]) + "\n"
        (folder / "devices" / f"{site}.csv").write_text(text)
    return folder


def test_a_networks_weights_are_explained_on_tables(tmp_path: Path) -> None:
    data = tables(tmp_path / "data")
    weights = initial_weights(find_artefact("ehr_mlp", (5,), ("no", "yes")), bytes(32))
    (tmp_path / "w.bin").write_bytes(weights.astype("<f4").tobytes())
    out = tmp_path / "out"
    words = ["model", "explain", "ehr_mlp", "--weights", str(tmp_path / "w.bin")]
    assert main([*words, "--data", str(data), "--out", str(out), "--records", "60"]) == 0
    (found,) = json.loads((out / "explain.json").read_text())["explanations"]
    assert found["rows"] == 60
    # Inputs of one column count as one column.
    assert {row["column"] for row in found["columns"]} == {"age", "ward"}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["ecg_cnn"], "a network needs its --weights too"),
        (["ecg_cnn", "--weights", "none.bin"], "none.bin cannot be read"),
        ([".", "--records", "0"], "--records 0 explains nothing"),
        (["{run}", "--data", "{data}"], "name the data that it was trained for"),
        (["{run}", "--patch", "3"], "cannot be hidden in windows of 0.6 s"),
        (["{run}", "--channels", "ECG:mV"], "names 1 channels, the windows have 4"),
        (["{data}"], "holds no trained model"),
    ],
)
def test_what_cannot_be_explained_is_said_in_one_line(
    explained_run: Simulation,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    complaint: str,
) -> None:
    data = tables(tmp_path / "data")
    given = [word.format(run=explained_run.folder, data=data) for word in words]
    assert main(["model", "explain", *given, "--out", str(tmp_path / "out")]) == 2
    assert complaint in capsys.readouterr().err
    # With other options the same command finds the folder free.
    assert not (tmp_path / "out").exists()
