"""`federation init`: what it writes, each party takes; what they would not, it refuses first."""

import pytest

from vitalring.config import load_config
from vitalring.edge_agent.config import AgentConfig
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
