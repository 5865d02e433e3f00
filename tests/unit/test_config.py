"""Configuration files: errors name the file and the field, paths follow the file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitalring.aggregator.config import AggregatorConfig
from vitalring.config import load_config
from vitalring.edge_agent.config import AgentConfig
from vitalring.errors import ConfigError
from vitalring.gateway.config import GatewayConfig
from vitalring.protocol.chunks import ChunkLimits
from vitalring.schema import Range


@dataclass(frozen=True)
class Place:
    folder: Path
    level: Annotated[int, Range(0, 9)] = 1


@dataclass(frozen=True)
class Config:
    name: str
    place: Place
    other: Path | None = None
    chunks: ChunkLimits = field(default_factory=ChunkLimits)


GOOD = 'name = "x"\n[place]\nfolder = "data"\n'


def load(tmp_path, text, cls=Config):
    path = tmp_path / "party.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(cls, path)


def refusal(tmp_path, text, cls=Config):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, cls)
    assert str(caught.value).startswith(str(tmp_path / "party.toml"))
    return str(caught.value).removeprefix(str(tmp_path / "party.toml"))


def test_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    config = load(tmp_path, GOOD)
    assert config.place.folder == tmp_path / "data"
    assert config.other is None
    assert load(tmp_path, f'other = "/abs"\n{GOOD}').other == Path("/abs")
    monkeypatch.chdir(tmp_path)
    assert load_config(Config, Path("party.toml")).place.folder == tmp_path / "data"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("name = ", " is not TOML: "),
        ('name = "a"\nname = "b"', " is not TOML: "),
        (b'name = "\xff"', " is not TOML: "),
        (f"name = {'9' * 5000}", " is not TOML: "),
        (f"name = {'[' * 5000}", " is not TOML: "),
        ("", ": name is missing"),
        ('name = "x"', ": place is missing"),
        (GOOD + "level = 10", ": place.level is 10, must lie between 0 and 9"),
        (GOOD + "level = nan", ": place.level is nan (a number), must be a whole number"),
        (GOOD + "levle = 1", ": place.levle is not known; known here: folder, level"),
        (GOOD + "[chunks]\nmax_open_transfers = 0", ": max_open_transfers is 0: use at least 1"),
        (GOOD.replace('"data"', '"a\\u0000b"'), ": place.folder is"),
        (GOOD.replace('"x"', "2024-01-01"), ": name is date, must be text"),
    ],
)
def test_errors_name_the_file_and_the_field(tmp_path, text, wanted):
    assert refusal(tmp_path, text).startswith(wanted)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent.toml cannot be read: No such file"):
        load_config(Config, tmp_path / "absent.toml")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=100) | st.text(max_size=100))
def test_random_files(tmp_path, text):
    with pytest.raises(ConfigError):
        load(tmp_path, text if isinstance(text, bytes) else text.encode("utf-8", "replace"))


@pytest.mark.parametrize("cls", [AgentConfig, GatewayConfig, AggregatorConfig])
def test_every_party_names_what_its_file_lacks(tmp_path, cls):
    assert refusal(tmp_path, "", cls).endswith(" is missing")
    assert ": colour is not known; known here: " in refusal(tmp_path, "colour = 1", cls)
