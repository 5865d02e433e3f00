"""Tables of several sites, laid out by hand: features agreed through the sum, then trained on."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import vitalring
from vitalring.errors import ConfigError, LogError
from vitalring.models.dataset import FeatureSchema, load_dataset, load_table, split
from vitalring.models.dataset.statistics import answer, count, question_of
from vitalring.tools import verify
from vitalring.tools.simulate.api import Simulation

TOML = """\
name = "ward"
kind = "tabular"
classes = ["no", "yes"]
label = "ill"
missing = ["?"]
test_fraction = 0.2
validation_fraction = 0.1
"""
SITES = ("north", "south", "west")
SETTINGS = {
    "unit": "none",
    "noise": "none",
    "rounds": 12,
    "local_epochs": 2.0,
    "batch": 32,
    "update_clip": 5.0,
    "alone": False,
    "window_s": 0.0,
}


def write_site(folder: Path, place: int) -> None:
    """Missing values, text among numbers, and a category that only some sites have."""
    rng = np.random.default_rng(place)
    wards = ["a", "b", "c"][: place + 1]
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["age", "ward", "score", "ill"])
    for row in range(150):
        ill = rng.integers(0, 2)
        age = "?" if row % 17 == 0 else f"{50 + 20 * ill + 5 * rng.normal():.1f}"
        # A number at two sites, and a word now and then at the third.
        score = "high" if place == 2 and row % 10 == 0 else int(rng.integers(0, 9))
        table.writerow([age, rng.choice(wards), score, "yes" if ill else "no"])
    (folder / "devices" / f"{SITES[place]}.csv").write_text(text.getvalue())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables") / "ward"
    (folder / "devices").mkdir(parents=True)
    (folder / "dataset.toml").write_text(TOML)
    for place in range(len(SITES)):
        write_site(folder, place)
    return folder


def simulate(data: Path, out: Path, **changes: object) -> Simulation:
    quiet = Console(file=io.StringIO())
    return vitalring.simulate(console=quiet, data=data, out=out, **{**SETTINGS, **changes})


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return simulate(data, tmp_path_factory.mktemp("run") / "out")


def test_sites_agree_on_what_their_pooled_training_rows_say(data, run):
    info = load_dataset(data)
    tables = [split(load_table(data, site, info), info).train for site in SITES]
    question = question_of(info, tables[0].columns)
    pooled = [sum(each) for each in zip(*(count(question, t) for t in tables), strict=True)]
    agreed = FeatureSchema.from_json((run.folder / "features.json").read_bytes())
    assert agreed == answer(question, pooled)
    # The age is a number, the wards and the score with words in it are categories.
    assert agreed.inputs > 1 + 3


def test_a_network_for_just_these_inputs_learns_from_them(run):
    report = json.loads((run.folder / "report.json").read_text())
    assert report["model"] == "ehr_mlp"
    assert report["devices"] == 3
    assert report["test"]["auroc"]["value"] > 0.9
    assert report["features"]["inputs"] > 4


def test_both_logs_of_the_run_verify_and_belong_together(run):
    assert verify.verify_folder(run.folder, None).plan.study == "arrhythmia"
    assert verify.verify_log(run.folder / "statistics", None).plan.study == "arrhythmia-statistics"


def test_other_features_than_those_agreed_on_are_found(run):
    path = run.folder / "features.json"
    honest = path.read_bytes()
    try:
        path.write_bytes(honest.replace(b"age", b"agf"))
        with pytest.raises(LogError, match=r"features.json: these are not the features"):
            verify.verify_folder(run.folder, None)
    finally:
        path.write_bytes(honest)


def test_a_guarantee_for_records_forbids_exact_statistics(data, tmp_path):
    with pytest.raises(ConfigError, match=r"declares no features.*declare \[features\]"):
        simulate(data, tmp_path / "out", unit="record", noise="local", epsilon=8.0)
    assert not (tmp_path / "out").exists()


def test_the_schema_of_an_earlier_study_serves_a_private_one(data, run, tmp_path):
    settings = {"unit": "record", "noise": "local", "epsilon": 8.0, "rounds": 2}
    features = run.folder / "features.json"
    later = simulate(data, tmp_path / "out", features=features, **settings)
    assert later.report["privacy"]["unit"] == "record"
    assert not (tmp_path / "out" / "statistics").exists()
