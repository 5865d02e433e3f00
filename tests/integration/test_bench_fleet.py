"""The price of privacy in a fleet: the same devices, clip and server on every side."""

import json
from dataclasses import replace

import numpy as np
import pytest
from shipped_fixture import shipped_part

from vitalring.edge_agent.contribution import learn
from vitalring.errors import ConfigError
from vitalring.models.artefact import load_artefact
from vitalring.protocol.guarantee import noise_of
from vitalring.tools import cli
from vitalring.tools.bench import fleet
from vitalring.tools.bench.fleet import NO_CLIP, FleetSettings, deal, measure_fleet
from vitalring.tools.bench.fleet_text import fleet_facts
from vitalring.tools.bench.skew_devices import load_people
from vitalring.tools.bench.trial import central, federated, score, stage_of
from vitalring.tools.data.dealing import DealOptions, deal_data
from vitalring.tools.settings import SERVERS, SimulationSettings, StudySettings

STUDY = StudySettings(
    model="ecg_bank",
    unit="device",
    noise="distributed",
    epsilon=8.0,
    rounds=4,
    lr=0.5,
    update_clip=0.5,
    keep=1.0,
    server=SERVERS["momentum"],
)


@pytest.fixture(scope="module")
def people(folder):
    return load_people(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    train = ("r106", "r109", "r114", "r118")
    return shipped_part(tmp_path_factory.mktemp("data"), train, ("r200",), every=3)


@pytest.fixture(scope="module")
def stage(people):
    whole = stage_of(load_artefact("ecg_bank"), people.train, [people.held_out])
    return replace(whole, devices=deal(whole.devices, 60))


def test_the_fleet_is_the_one_that_the_command_deals(folder, people, tmp_path):
    deal_data(folder, tmp_path / "fleet", DealOptions(60))
    written = load_people(tmp_path / "fleet").train
    dealt = deal(people.train, 60)
    assert len(dealt) == 60
    for mine, theirs in zip(dealt, written, strict=True):
        assert np.array_equal(mine.x, theirs.x)
        assert np.array_equal(mine.y, theirs.y)


def test_fleet_and_trusted_server_learn_the_same_but_for_noise_and_grid(stage):
    plan = stage.plan(replace(STUDY, rounds=1, server=SERVERS["fedavg"]))
    still = central(stage, plan, plan.codec.clip, 0.0, 0)
    added = federated(stage, plan, 0) - still
    # All 60 give noise, where the guarantee counts on 43; it is that of the mean on a coordinate.
    noise = noise_of(plan.terms)
    step = plan.codec.clip / (noise.total / plan.privacy.noise_multiplier)
    wanted = noise.deviation * 60**0.5 * step / 60
    assert 0.7 * wanted < added.std() < 1.4 * wanted
    # And nothing beside it: what both learn from the same records is what is left of a mean.
    many = [federated(stage, plan, seed) for seed in range(30)]
    assert np.linalg.norm(np.mean(many, axis=0) - still) < 0.5 * np.linalg.norm(added)


def test_the_trusted_server_clips_updates_and_adds_the_noise_that_it_says(stage):
    plan = stage.plan(replace(STUDY, rounds=1, server=SERVERS["fedavg"]))
    start = np.zeros(stage.artefact.info.dimension, np.float32)
    coins = np.random.default_rng(0)
    updates = [learn(stage.model, start, each, plan.terms, coins) for each in stage.devices]
    clip = float(np.median([np.linalg.norm(each) for each in updates]))
    short = [each * min(1.0, clip / np.linalg.norm(each)) for each in updates]
    assert np.allclose(central(stage, plan, clip, 0.0, 0), np.mean(short, axis=0), atol=1e-6)
    assert np.allclose(central(stage, plan, NO_CLIP, 0.0, 0), np.mean(updates, axis=0), atol=1e-6)
    added = central(stage, plan, clip, 30.0, 1) - np.mean(short, axis=0)
    wanted = 30.0 * clip / len(updates)
    assert 0.7 * wanted < added.std() < 1.3 * wanted
    assert not np.array_equal(added, central(stage, plan, clip, 30.0, 2) - np.mean(short, axis=0))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"clip_quantile": 0.5}, r"clip_quantile is 0\.5: a trusted server has one clip"),
        ({"noise_schedule": (2.0, 1.0)}, r"noise_schedule is \(2\.0, 1\.0\): a trusted server"),
    ],
)
def test_a_trusted_server_takes_no_clip_and_no_noise_that_changes(folder, changes, names):
    settings = FleetSettings(devices=60, epsilons=(8.0,), seeds=1)
    with pytest.raises(ConfigError, match=names):
        measure_fleet(folder, SimulationSettings(study=replace(STUDY, **changes)), settings)


def test_colluders_and_spare_devices_cost_noise(folder):
    settings = FleetSettings(devices=60, epsilons=(8.0,), seeds=2)
    result = measure_fleet(folder, SimulationSettings(study=STUDY), settings)
    sides = {(side["side"], side["terms"].get("colluders")): side for side in result["sides"]}
    assert set(sides) == {
        ("no privacy", None),
        ("clipped, no noise", None),
        ("trusted server", None),
        ("fleet", 0),
        ("fleet", 5),
    }
    all_there, some = sides["fleet", 0]["terms"], sides["fleet", 5]["terms"]
    assert (all_there["min_cohort"], some["min_cohort"]) == (60, 48)
    assert all_there["noise_there"] == pytest.approx(all_there["noise_multiplier"], rel=1e-6)
    # 60 shares where the guarantee counts on 43.
    extra = some["noise_there"] / some["noise_multiplier"]
    assert extra == pytest.approx((60 / 43) ** 0.5, rel=1e-6)
    alone = sides["trusted server", None]["terms"]["noise_multiplier"]
    assert all_there["noise_multiplier"] == pytest.approx(alone, rel=0.05)
    assert (result["people"], result["devices"], result["records"][2]) == (4, 60, 400)
    assert result["own_rate"] in [each["lr"] for each in result["rates_tried"]]
    for side in result["sides"]:
        runs = 1 if side["epsilon"] is None else 2
        assert [0 <= run["accuracy"] <= 1 for run in side["runs"]] == [True] * runs
    assert "dealt at random to 60 virtual devices" in fleet_facts(result)[1]
    # Devices as they are: nothing was dealt, and nothing is virtual.
    facts = fleet_facts({**result, "settings": {**result["settings"], "devices": 0}})
    assert "60 devices of 6 to 7 records, 400 together" in facts[1]
    assert not any("virtual" in fact for fact in facts)


def test_what_is_measured_is_measured_on_held_out_people(stage, people):
    weights = np.zeros(stage.artefact.info.dimension, np.float32)
    # Weights of zero take the first class for everything.
    assert score(stage, weights)["accuracy"] == np.mean(people.held_out.y == 0)


def test_an_epsilon_that_cannot_be_planned_is_refused_before_anything_trains(folder, monkeypatch):
    monkeypatch.setattr(fleet, "central", lambda *_: pytest.fail("a side was trained"))
    settings = FleetSettings(devices=60, epsilons=(8.0, 1e-9), seeds=1)
    with pytest.raises(ConfigError, match="epsilon"):
        measure_fleet(folder, SimulationSettings(study=STUDY), settings)


def test_the_command_writes_page_figures_and_picture(folder, tmp_path):
    lines = ["[study]", 'model = "ecg_bank"', 'unit = "device"', "rounds = 2", "keep = 1.0"]
    (tmp_path / "study.toml").write_text("\n".join([*lines, ""]))
    words = ["--data", str(folder), "--config", str(tmp_path / "study.toml"), "--seeds", "2"]
    more = ["--devices", "40", "--epsilon", "4,8", "--out", str(tmp_path / "out")]
    assert cli.main(["bench", "fleet", *words, *more]) == 0
    result = json.loads((tmp_path / "out" / "fleet-mitbih.json").read_text())
    assert [side["epsilon"] for side in result["sides"]] == [None, None, *[4] * 3, *[8] * 3]
    page = (tmp_path / "out" / "fleet-mitbih.md").read_text()
    assert "--config docs/studies/study.toml --devices 40 --epsilon 4,8 --seeds 2" in page
    assert "4 colluders, sums of 32 or more" in page
    assert str(tmp_path) not in page
    assert (tmp_path / "out" / "fleet-mitbih.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("study", "settings", "message"),
    [
        (StudySettings(unit="record"), FleetSettings(), "unit is record"),
        (replace(STUDY, noise="local"), FleetSettings(), "its noise local"),
        (STUDY, FleetSettings(seeds=0), "--seeds 1"),
        (STUDY, FleetSettings(epsilons=()), "--epsilon"),
        (STUDY, FleetSettings(devices=3), "4 people"),
    ],
)
def test_what_cannot_be_measured_is_refused(folder, study, settings, message):
    with pytest.raises(ConfigError, match=message):
        measure_fleet(folder, SimulationSettings(study=study), settings)
