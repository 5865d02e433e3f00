"""The wearer's event button on the command line."""

import argparse
import sqlite3
from contextlib import closing

import pytest

from vitalring.edge_agent.sensing.buffer import FILE
from vitalring.errors import ConfigError
from vitalring.tools import mark

COMMON = f"""
federation = "f"
authority_key = "{"0" * 64}"
cohort = "c"
ring_keys = "k"
state_dir = "state"
"""
LIVE = f"""{COMMON}
[broker]
url = "mqtt://localhost"
[sensor]
sampling_hz = 50
channels = 1
window = 10
stride = 5
lines.path = "port"
[labels]
classes = ["rest", "walk"]
mark_s = 4
mark_before_s = 6
"""
STILL = f'{COMMON}data = "d"\ndevice = "x"\n[broker]\nurl = "mqtt://localhost"\n'


def run(folder, text, *words):
    (folder / "agent.toml").write_text(text)
    parser = argparse.ArgumentParser()
    mark.add_arguments(parser)
    return mark.run(parser.parse_args([*words, "--config", str(folder / "agent.toml")]))


def annotations(folder):
    with closing(sqlite3.connect(folder / "state" / FILE)) as db:
        return db.execute(
            "SELECT origin, start_ms, end_ms, label FROM annotations ORDER BY id"
        ).fetchall()


def test_a_mark_is_kept_whether_or_not_the_agent_runs(tmp_path, capsys):
    assert run(tmp_path, LIVE, "walk", "--at", "100000") == 0
    assert run(tmp_path, LIVE, "rest", "--at", "1970-01-01T00:05:00Z", "--for", "2.5") == 0
    assert annotations(tmp_path) == [
        ("mark", 94_000, 104_000, "walk"),
        ("mark", 300_000, 302_500, "rest"),
    ]
    assert "walk from 94000 ms on for 10 s; 0 windows" in capsys.readouterr().out
    # Said twice, it stands once.
    run(tmp_path, LIVE, "walk", "--at", "100000")
    assert len(annotations(tmp_path)) == 2


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["run"], "not one of rest, walk"),
        (["walk", "--at", "noon"], "neither milliseconds"),
        (["walk", "--for", "-1"], "not a length of time"),
    ],
)
def test_a_mark_that_says_nothing_clear_is_refused(tmp_path, words, why):
    with pytest.raises(ConfigError, match=why):
        run(tmp_path, LIVE, *words)


def test_a_device_without_a_sensor_has_nothing_to_mark(tmp_path):
    with pytest.raises(ConfigError, match="no live sensor"):
        run(tmp_path, STILL, "walk")
