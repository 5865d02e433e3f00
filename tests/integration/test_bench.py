"""Measurements measure the real path: sizes agree with the protocol, nothing is made up."""

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitalring.errors import ConfigError
from vitalring.protocol import chunks, sealing
from vitalring.tools import cli
from vitalring.tools.bench import control_group as groups
from vitalring.tools.bench.path import NETWORK, measure_path
from vitalring.tools.bench.path_text import path_facts, path_tables
from vitalring.tools.bench.rounds import measure_rounds, rounds_tables
from vitalring.tools.measuring.child import require_modules, run_child
from vitalring.tools.measuring.spread import by_name, spread
from vitalring.tools.measuring.table import markdown
from vitalring.tools.settings import SimulationSettings
from vitalring.tools.simulate.api import apply_changes


@pytest.fixture(scope="module")
def measured():
    settings = apply_changes(SimulationSettings(), {**NETWORK, "devices": 10, "rounds": 1})
    return measure_path(settings, repeats=1, tensorflow=None)


def figures(value):
    """Every measured figure of a result."""
    if isinstance(value, dict) and set(value) == {"median", "low", "high", "count"}:
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from figures(item)


def test_every_figure_was_measured(measured):
    found = list(figures(measured))
    assert len(found) > 50
    for figure in found:
        assert figure["count"] >= 1
        assert 0 < figure["low"] <= figure["median"] <= figure["high"]


def test_every_party_took_every_update(measured):
    for mode in measured["modes"].values():
        stages = mode["stages"]
        assert {figure["count"] for figure in stages["gateway"].values()} == {10}
        # The first of a process pays for loading and is not counted among the later ones.
        assert {figure["count"] for figure in stages["device, later rounds"].values()} == {9}
        parts = ("unseal, decode", "check ciphertexts", "verify ring signature")
        assert stages["gateway"].keys() > set(parts)


def test_sent_bytes_are_those_of_the_protocol(measured):
    for mode in measured["modes"].values():
        sizes = mode["bytes"]
        frames = chunks.HEADER_BYTES * sizes["frames"]
        assert sizes["sent_bytes"] == sealing.sealed_bytes(sizes["update_bytes"]) + frames
        assert sizes["per_parameter"] * measured["work"]["parameters"] == sizes["sent_bytes"]
    assert (
        measured["modes"]["plain"]["bytes"]["sent_bytes"]
        < measured["float32_bytes"]
        < measured["modes"]["single-he"]["bytes"]["sent_bytes"]
    )


def test_memory_is_that_of_a_process_without_the_measuring_around_it(measured):
    agent = measured["modes"]["single-he"]["memory"]["process_peak_bytes"]["high"]
    training = measured["training"]["tflite"]["peak_bytes"]["low"]
    # The agent trains too, and SEAL, sqlite and MQTT come on top; scipy must not.
    assert training < agent <= 90e6


def test_what_was_not_measured_is_said_and_has_no_figure(measured):
    assert "tensorflow" not in measured["training"]
    tables = path_tables(measured)
    text = markdown("Title", "command", path_facts(measured), tables)
    assert "TensorFlow is left out: no interpreter was given" in text
    assert "training alone, TensorFlow" not in text
    if measured["modes"]["plain"]["memory"]["group_peak_bytes"] is None:
        assert "not measured" in text
    for table in tables:
        assert all(len(row) == len(table.titles) for row in table.rows)


def test_an_interpreter_without_tensorflow_is_refused_before_anything_is_measured():
    with pytest.raises(ConfigError, match="no_such_module"):
        require_modules(sys.executable, ("json", "no_such_module"))
    with pytest.raises(ConfigError, match="cannot be run"):
        require_modules("/no/such/python", ("json",))
    require_modules(sys.executable, ("json", "vitalring"))


def test_a_child_that_fails_is_an_error_with_its_last_words():
    with pytest.raises(ConfigError, match="KeyError: 'spends'"):
        run_child("accounting_process", {})


@given(st.lists(st.floats(0, 1e9), min_size=1))
def test_a_spread_holds_all_values(values):
    figure = spread(values)
    assert figure.low <= figure.median <= figure.high
    assert all(figure.low <= value <= figure.high for value in values)
    assert figure.count == len(values)


def test_no_values_give_no_figure():
    with pytest.raises(ConfigError, match="nothing was measured"):
        spread([])
    assert by_name([]) == {}


def test_a_group_is_made_only_where_memory_is_handed_down(tmp_path):
    own = tmp_path / "slice" / "service"
    own.mkdir(parents=True)
    membership = tmp_path / "membership"
    membership.write_text("0::/slice/service\n")
    # 1. No parent hands the memory controller down.
    (own / "cgroup.subtree_control").write_text("cpu pids\n")
    with groups.control_group(tmp_path, membership) as group:
        assert group is None
    # 2. One says so, but the kernel, here absent, does not count memory in the new group.
    (own.parent / "cgroup.subtree_control").write_text("cpu memory\n")
    with groups.control_group(tmp_path, membership) as group:
        assert group is None
    assert not list(tmp_path.rglob("vitalring-bench-*"))
    # 3. Version 1 alone.
    membership.write_text("4:memory:/elsewhere\n")
    with groups.control_group(tmp_path, membership) as group:
        assert group is None


def test_a_real_group_counts_a_child():
    with groups.control_group() as group:
        if group is None:
            pytest.skip("LEFT OUT: this system lets us make no control group that counts memory")
        request = {"spends": [], "delta": 1e-5}
        peak = run_child("accounting_process", request, group=group)["peak_bytes"]
        # A group is charged for what its processes touch first; a process shares pages too.
        assert groups.group_peak(group) > peak / 10
    assert not group.exists()


def test_the_log_is_measured_and_written(tmp_path, capsys):
    arguments = ["bench", "log", "--entries", "1000", "--repeats", "1", "--out", str(tmp_path)]
    assert cli.main([*arguments, "--disk", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "log.json").read_text())
    assert {key: value["transactions"] for key, value in result["batches"].items()} == {
        "1": 500,
        "50": 20,
        "1000": 1,
    }
    assert len(list(figures(result))) == 3
    assert "| batch | batches | leaves a second |" in (tmp_path / "log.md").read_text()
    assert "leaves a second" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.json", "log.md"]


def test_rounds_are_those_of_a_real_simulation():
    result = measure_rounds(devices=10, rounds=3, secure_sum="plain")
    # From the second round's opening to the third's: one time, and no update was missing.
    assert result["seconds"]["count"] == 1
    assert result["rounds_per_second"] == pytest.approx(1 / result["seconds"]["median"])
    assert result["update_bytes"] > result["parameters"]
    (table,) = rounds_tables(result)
    assert table.rows[0][:2] == ("10", "plain")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["log", "--entries", "10"], "less than one batch"),
        (["log", "--repeats", "0"], "measures nothing"),
        (["rounds", "--rounds", "2"], "leaves nothing to measure"),
        (["path", "--repeats", "-1"], "measures nothing"),
    ],
)
def test_what_measures_nothing_is_refused(arguments, message, capsys):
    assert cli.main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err
