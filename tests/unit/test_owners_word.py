"""Files that are written for devices say of their records what an owner said, never a plan."""

from dataclasses import replace

import pytest

from vitalring.config import load_config
from vitalring.edge_agent.config import AgentConfig
from vitalring.tools.cli import main
from vitalring.tools.settings import SimulationSettings, StudySettings
from vitalring.tools.simulate import layout

HEART, STEPS = "heart-rhythm", "step-count"
STUDY = """
unit = "none"
secure_sum = "single-he"
records = 50
rounds = 3
min_cohort = 3
n_max = 9
"""
CURE = f'write data_class = "{HEART}" into its agent.toml'


def command(folder, action, *words):
    broker = ("--broker-url", "mqtt://127.0.0.1:1883")
    return main(["federation", action, str(folder / "fed"), *map(str, words), *broker])


def init(folder, *words, about=HEART):
    said = f'data_class = "{about}"\n' if about else ""
    (folder / "study.toml").write_text(STUDY + said)
    return command(folder, "init", "--config", folder / "study.toml", "--devices", 5, *words)


def written(folder):
    """The class that each device's file says."""
    paths = folder.glob("**/devices/*/agent.toml")
    return {load_config(AgentConfig, path).data_class for path in paths}


def test_a_plan_is_no_word_of_the_owners(tmp_path, capsys):
    assert init(tmp_path) == 0
    assert written(tmp_path) == {""}
    said = capsys.readouterr().out
    assert CURE in said
    # Nor for devices that come later.
    key = next(line for line in said.splitlines() if line.startswith("auth")).split()[-1]
    (tmp_path / "new.txt").write_text("anna")
    words = ("--authority", key, "--devices", tmp_path / "new.txt")
    assert command(tmp_path, "tickets", *words, "--data-class", STEPS) == 2
    assert not (tmp_path / "fed" / "devices" / "anna").exists()
    assert command(tmp_path, "tickets", *words) == 0
    assert CURE in capsys.readouterr().out
    assert written(tmp_path) == {""}


def test_a_founder_may_hand_on_what_all_owners_say(tmp_path, capsys):
    assert init(tmp_path, "--data-class", HEART) == 0
    assert written(tmp_path) == {HEART}
    assert CURE not in capsys.readouterr().out


def test_a_study_of_no_class_asks_owners_for_nothing(tmp_path, capsys):
    assert init(tmp_path, about="") == 0
    assert written(tmp_path) == {""}
    assert "data_class" not in capsys.readouterr().out


@pytest.mark.parametrize("about", [STEPS, ""])
def test_files_with_which_devices_would_refuse_the_study_are_not_written(tmp_path, capsys, about):
    assert init(tmp_path, "--data-class", HEART, about=about) == 2
    assert f"--data-class is {HEART}, the study's {about or 'none'}" in capsys.readouterr().err
    assert not (tmp_path / "fed").exists()


@pytest.mark.parametrize(("said", "wanted"), [("data set", HEART), ("owner", STEPS), ("", "")])
def test_a_simulation_says_what_its_data_set_says(tmp_path, said, wanted):
    """Or what whoever simulates says, who owns all devices; the plan's own word is not read."""
    study = StudySettings(unit="none", data_class=STEPS if said == "owner" else "")
    settings = SimulationSettings(study=study, devices=3)
    fleet = layout.choose_fleet(settings)
    if said != "data set":
        fleet = replace(fleet, info=replace(fleet.info, data_class=""))
    plan, objects = layout.draw_training(settings, fleet, b"")
    assert plan.data_class == wanted
    plan = replace(plan, data_class="sleep")
    made = layout.write_federation(settings, fleet, plan, objects, tmp_path)
    layout.write_configs(settings, fleet, made, tmp_path, "mqtt://127.0.0.1:1883")
    assert written(tmp_path) == {wanted}
