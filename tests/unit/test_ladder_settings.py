"""Ladders of studies: which step changes which, and what a file may not say."""

from pathlib import Path

import pytest

from vitalring.errors import ConfigError
from vitalring.tools.bench.ladder_settings import load_ladder

STUDIES = Path(__file__).parents[2] / "docs" / "studies"

TEXT = """
metric = "macro_f1"
[study]
unit = "record"
epsilon = 1.0
rounds = 10
[[steps]]
name = "first"
[[steps]]
name = "second"
study = { lr = 0.5, rounds = 20 }
[[steps]]
name = "aside"
beside = true
seeds = 1
study = { server = { name = "adam", learning_rate = 0.1, momentum = 0.9 } }
[[steps]]
name = "third"
study = { bits = 12 }
"""


def load(tmp_path, text):
    (tmp_path / "ladder.toml").write_text(text)
    return load_ladder(tmp_path / "ladder.toml")


def test_steps_build_on_each_other_and_those_beside_do_not(tmp_path):
    ladder = load(tmp_path, TEXT)
    assert (ladder.metric, ladder.folds) == ("macro_f1", 3)
    first, second, aside, third = ladder.steps
    assert [step.on for step in ladder.steps] == [None, 0, 1, 1]
    assert [step.beside for step in ladder.steps] == [False, False, True, False]
    assert (first.study.rounds, first.study.lr, first.changes) == (10, None, {})
    assert (second.study.rounds, second.study.lr) == (20, 0.5)
    assert second.changes == {"rounds": 20, "lr": 0.5}
    assert (aside.study.lr, aside.study.server.name, aside.seeds) == (0.5, "adam", 1)
    assert (third.study.server, third.study.lr, third.study.bits) == (None, 0.5, 12)


def test_a_value_that_is_the_default_is_a_change_too(tmp_path):
    text = TEXT.replace("rounds = 10", "rounds = 10\nbits = 12").replace("lr = 0.5", "bits = 8")
    assert load(tmp_path, text).steps[1].study.bits == 8


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"third"', '"first"', "one name"),
        ("beside = true", "beside = 1", "beside"),
        ('name = "first"', 'name = "first"\nbeside = true', "none to be beside"),
        ("lr = 0.5", "speed = 0.5", "speed is not known"),
        ("lr = 0.5", "lr = -1.0", r"steps\[1\]\.study\.lr"),
        ('"macro_f1"', '"f1"', "metric"),
        ("[[steps]]", "[[stages]]", "stages"),
        ("lr = 0.5", "epsilon = 2.0", "'second' has another epsilon"),
        ("lr = 0.5", "delta = 1e-6", "'second' has another delta"),
        ("lr = 0.5", 'unit = "device"', "a ladder is for records"),
    ],
)
def test_mistakes_name_file_and_field(tmp_path, old, new, message):
    with pytest.raises(ConfigError, match=message) as found:
        load(tmp_path, TEXT.replace(old, new))
    assert "ladder.toml" in str(found.value)


@pytest.mark.parametrize("name", ["har-windows", "mitbih", "diabetes130"])
def test_the_ladders_of_the_pages_can_be_read(name):
    ladder = load_ladder(STUDIES / f"utility-{name}.toml")
    assert all(step.study.epsilon == 1.0 for step in ladder.steps)
    assert {step.study.unit for step in ladder.steps} == {"record"}
