"""What each technique brings: whole studies, on people held back from those who train."""

import json

import pytest
from shipped_fixture import shipped_part

from vitalring.errors import ConfigError, DataError, ModelError
from vitalring.models.artefact import load_artefact
from vitalring.models.runtime import TrainableModel
from vitalring.tools import cli
from vitalring.tools.bench import ladder as ladder_module
from vitalring.tools.bench import trial
from vitalring.tools.bench.ladder import load_subject, measure_ladder
from vitalring.tools.bench.ladder_settings import load_ladder
from vitalring.tools.bench.skew_devices import load_people

TRAIN, TEST = ("r106", "r109", "r114", "r118", "r119", "r124"), ("r200",)

LADDER = """
metric = "macro_f1"
folds = 2
[study]
model = "ecg_cnn"
unit = "record"
noise = "local"
epsilon = 8.0
rounds = 2
keep = 1.0
spare = 0.0
[[steps]]
name = "small network"
seeds = 1
[[steps]]
name = "shared noise, one layer"
study = { model = "ecg_bank", noise = "distributed", rounds = 5, lr = 0.5 }
[[steps]]
name = "class weights"
beside = true
study = { class_weights = [0.2, 1.0, 0.5] }
[[steps]]
name = "another clip every round"
beside = true
seeds = 1
study = { clip_quantile = 0.5 }
[[steps]]
name = "less noise at the end"
beside = true
seeds = 1
study = { noise_schedule = [1.3, 0.8] }
"""


@pytest.fixture
def folder(tmp_path):
    return shipped_part(tmp_path / "data", TRAIN, TEST, every=4)


@pytest.fixture
def ladder(tmp_path):
    (tmp_path / "ladder.toml").write_text(LADDER)
    return tmp_path / "ladder.toml"


def test_a_ladder_is_measured_from_the_command_line(folder, ladder, tmp_path):
    words = ["--data", str(folder), "--ladder", str(ladder), "--seeds", "2"]
    assert cli.main(["bench", "utility", *words, "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "utility-mitbih.json").read_text())
    first, second, beside, *_ = result["steps"]
    assert [step["on"] for step in result["steps"]] == [None, 0, 1, 1, 1]
    assert [len(step["runs"]) for step in result["steps"]] == [1, 2, 2, 1, 1]
    assert [step["parameters"] for step in result["steps"]] == [4096, 63, 63, 63, 63]
    assert (first["rounds"], second["rounds"], beside["rounds"]) == (2, 5, 5)
    # Where clip or noise changes from round to round, no run without noise has the same clips.
    assert [step["without_noise"] is None for step in result["steps"]] == [False] * 3 + [True] * 2
    for step in result["steps"]:
        for run in filter(None, (*step["runs"], step["without_noise"])):
            assert all(0 <= value <= 1 for value in run.values())
    # A seed's noise is its own; without noise nothing depends on luck.
    assert second["runs"][0] != second["runs"][1]
    # The grid's price falls with its bits, and the study's own is among those shown.
    prices = [each["sensitivity"] for each in result["grid"]]
    assert prices == sorted(prices, reverse=True)
    assert [each["bits"] for each in result["grid"] if each["taken"]] == [second["bits"]]
    page = (tmp_path / "out" / "utility-mitbih.md").read_text()
    for text in (
        "↳ class weights",
        "class_weights 0.2/1/0.5",
        "noise_schedule 1.3/0.8",
        "6 people",
    ):
        assert text in page
    assert "--ladder docs/studies/ladder.toml --seeds 2 --out docs/results" in page
    assert (tmp_path / "out" / "utility-mitbih.svg").read_text().startswith("<?xml")


def test_held_out_people_are_not_even_read(folder):
    (folder / "devices" / "r200.npz").write_bytes(b"no array")
    subject = load_subject(folder)
    assert tuple(each.device for each in subject.people) == TRAIN
    with pytest.raises(DataError, match="r200"):
        load_people(folder)


def test_validation_rows_measure_where_there_are_some(folder, ladder):
    path = folder / "dataset.toml"
    path.write_text(
        path.read_text().replace("test_devices", 'validation_devices = ["r106"]\ntest_devices')
    )
    subject = load_subject(folder)
    assert tuple(each.device for each in subject.people) == TRAIN[1:]
    assert len(subject.validation) == 75
    result = measure_ladder(subject, load_ladder(ladder), 1)
    assert (result["folds"], result["validation_rows"]) == (1, len(subject.validation))


def test_windows_held_out_by_place_are_refused_since_a_ladder_is_for_records(folder):
    path = folder / "dataset.toml"
    path.write_text(
        path.read_text().replace("test_devices", "validation_fraction = 0.3\ntest_devices")
    )
    with pytest.raises(DataError, match=r"validation_fraction of windows .* unit device"):
        load_subject(folder)


def test_what_cannot_be_measured_is_refused(folder, ladder):
    subject = load_subject(folder)
    with pytest.raises(ConfigError, match="--seeds 0"):
        measure_ladder(subject, load_ladder(ladder), 0)
    ladder.write_text(LADDER.replace("folds = 2", "folds = 4"))
    with pytest.raises(ConfigError, match="6 people who train are too few for 4 folds"):
        measure_ladder(subject, load_ladder(ladder), 1)


def test_a_step_that_cannot_be_planned_is_refused_before_hours_of_training(
    folder, ladder, monkeypatch
):
    monkeypatch.setattr(ladder_module, "federated", lambda *_: pytest.fail("a step was trained"))
    ladder.write_text(LADDER.replace("class_weights =", "min_cohort = 30, class_weights ="))
    with pytest.raises(ConfigError, match="cannot make a sum of min_cohort = 30"):
        measure_ladder(load_subject(folder), load_ladder(ladder), 1)


def test_a_network_that_is_no_layer_on_features_goes_the_long_way(folder, monkeypatch):
    def refuse(*_):
        raise ModelError("no dense layer")

    monkeypatch.setattr(trial, "with_features", refuse)
    people, artefact = load_subject(folder).people, load_artefact("ecg_bank")
    stage = trial.stage_of(artefact, people[:2], people[2:3])
    assert isinstance(stage.model, TrainableModel)
    assert (stage.devices, stage.aside) == (people[:2], people[2:3])
