"""`federation init`: what it writes, each party takes; what they would not, it refuses first."""

import pytest

from vitalring.config import load_config
from vitalring.edge_agent.config import AgentConfig
from vitalring.models.dataset import FeatureSchema
from vitalring.models.dataset.features import Number
from vitalring.tools.cli import main

STUDY = """
unit = "none"
secure_sum = "plain"
records = 50
rounds = 3
"""


class Founder:
    """A folder with a study, and what the command said of it."""

    def __init__(self, folder, capsys):
        self.folder, self.capsys = folder, capsys
        self.made = folder / "fed"

    def init(self, *words, about=STUDY, code=0):
        (self.folder / "study.toml").write_text(about)
        arguments = ["federation", "init", self.made, "--config", self.folder / "study.toml"]
        arguments += ["--devices", 5, "--broker-url", "mqtt://127.0.0.1:1883", *words]
        assert main([*map(str, arguments)]) == code
        said = self.capsys.readouterr()
        return said.out if code == 0 else said.err


@pytest.fixture
def founder(tmp_path, capsys):
    return Founder(tmp_path, capsys)


@pytest.mark.parametrize("retry", ["nan", "inf", "-1", "0", "0.09", "86401"])
def test_a_retry_that_each_device_would_refuse_is_not_written(founder, retry):
    said = founder.init(f"--retry={retry}", code=2)
    assert f"--retry is {float(retry)!r}, must lie between 0.1 and 86400 seconds" in said
    assert not founder.made.exists()


@pytest.mark.parametrize("patience", ["-1", "100001"])
def test_a_patience_that_the_aggregator_would_refuse_is_not_written(tmp_path, capsys, patience):
    key = "00" * 32
    words = ["configure", str(tmp_path), "--authority", key, f"--patience={patience}"]
    assert main(["federation", *words, "--broker-url", "mqtt://127.0.0.1:1883"]) == 2
    assert f"--patience is {patience}, must lie between 0 and" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ("--timeout=inf",),
        ("--timeout=nan",),
        ("--timeout=0.0001", "--window=0"),
        ("--window=-1",),
        ("--window=inf",),
        ("--window=20", "--timeout=10"),
    ],
)
def test_times_that_no_round_can_have_are_not_written(founder, words):
    assert "use 0 <= window <= timeout" in founder.init(*words, code=2)
    assert not founder.made.exists()


@pytest.mark.parametrize("retry", [0.1, 86_400.0])
def test_devices_read_what_was_written_for_them(founder, retry):
    founder.init(f"--retry={retry}")
    files = list(founder.made.glob("devices/*/agent.toml"))
    assert len(files) == 5
    assert {load_config(AgentConfig, path).retry_s for path in files} == {retry}


WINDOWS = "input = [128, 6]\n"
ROWS = 'features = "features.json"\n'
SIX = 'classes = ["walk", "up", "down", "sit", "stand", "lie"]\n'
TWO = 'classes = ["no", "yes"]\n'
RECORD = 'noise = "local"\nepsilon = 8.0\nmin_cohort = 5\n'


@pytest.mark.parametrize(
    ("unit", "about", "name"),
    [
        ("none", WINDOWS + SIX, "har_cnn"),
        ("record", WINDOWS + SIX + RECORD, "har_bank"),
        ("none", WINDOWS + TWO, "cnn1d_small"),
        ("none", "input = [265]\n" + SIX, "har_mlp"),
        ("none", ROWS + TWO, "ehr_mlp"),
        ("record", ROWS + TWO + RECORD, "linear"),
        ("none", "", "ecg_cnn"),
        ("record", RECORD, "ecg_bank"),
        ("none", 'model = "linear"\ninput = [3]\n' + TWO, "linear"),
    ],
)
def test_a_study_that_names_no_network_has_one_for_its_data(founder, unit, about, name):
    names = (f"vital-{number}" for number in range(3))
    schema = FeatureSchema(tuple(Number(name, 0.0, 1.0) for name in names))
    (founder.folder / "features.json").write_bytes(schema.to_json())
    said = founder.init(about=STUDY.replace('"none"', f'"{unit}"') + about)
    assert f"model       {name}, " in said


@pytest.mark.parametrize(
    ("about", "why"),
    [
        (WINDOWS, "study.toml says only one of input and classes: classes is missing"),
        (SIX, "study.toml says only one of input and classes: input is missing"),
        (ROWS, "study.toml does not say classes"),
        ("input = [2, 3, 4]\n" + TWO, "no shipped network takes"),
        ('model = "ecg_bank"\n' + WINDOWS + SIX, "networks that fit: har_cnn, har_bank"),
    ],
)
def test_a_size_that_no_network_has_is_refused(founder, about, why):
    schema = FeatureSchema((Number("age", 0.0, 1.0),))
    (founder.folder / "features.json").write_bytes(schema.to_json())
    assert why in founder.init(about=STUDY + about, code=2)
    assert not founder.made.exists()
