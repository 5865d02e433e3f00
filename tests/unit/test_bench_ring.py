"""Ring measurements: sizes are those of the protocol, and all ways to add up agree."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.errors import ConfigError
from vitalring.protocol import group, limits, lsag
from vitalring.protocol.rings import statement
from vitalring.tools import cli
from vitalring.tools.bench import ring, ring_admission, ring_msm
from vitalring.tools.bench.ring_text import ring_facts, ring_tables
from vitalring.tools.measuring.table import markdown

SIZES = ring.RingSizes(rings=(3, 9), batch=4, repeats=1, admission=30, updates=9)
KEYS = [lsag.keygen().public for _ in range(6)]


@pytest.fixture(scope="module")
def measured():
    return ring.measure_rings(SIZES, None, lambda _: None)


def test_bytes_are_those_of_the_protocol(measured):
    for size, found in measured["rings"].items():
        assert found["lsag"]["bytes"] == lsag.signature_bytes(int(size))
        assert found["one-of-many"]["bytes"] == statement.signature_bytes(int(size))


def test_every_figure_was_measured(measured):
    for found in measured["rings"].values():
        for part in found.values():
            for figure in part.values():
                if isinstance(figure, dict):
                    assert figure["count"] >= 1
                    assert 0 < figure["low"] <= figure["median"] <= figure["high"]
        assert found["one-of-many"]["sign"]["count"] == SIZES.batch


def test_admission_is_measured_with_forgeries_and_without(measured):
    found = measured["admission"]
    assert found["forged"] == 1
    assert found["update_bytes"] > 2 * found["parameters"]
    assert list(found["seconds"]) == ["honest", "forged without a key", "forged with a key"]
    for stages in found["seconds"].values():
        parts = sum(stages[stage]["median"] for stage in ("screen", "verify", "count"))
        assert 0 < parts <= stages["all"]["median"]


def test_admission_takes_a_signer_for_each_update():
    with pytest.raises(ConfigError, match="a ring of as many keys"):
        ring_admission.measure_admission(10, 10, 1, lambda _: None)


def test_what_was_not_measured_is_said(measured):
    tables = ring_tables(measured)
    text = markdown("Title", "command", ring_facts(measured), tables)
    assert text.count("not measured") == 5
    for table in tables:
        assert table.rows
        assert all(len(row) == len(table.titles) for row in table.rows)


def test_a_ring_too_large_for_one_suite_is_measured_in_the_other(monkeypatch):
    monkeypatch.setattr(limits, "MAX_RING", 4)
    result = ring.measure_rings(SIZES, None, lambda _: None)
    assert result["rings"]["3"]["lsag"] is not None
    assert result["rings"]["9"]["lsag"] is None
    assert [row[:2] for row in ring_tables(result)[0].rows] == [
        ("3", "1 (LSAG)"),
        ("3", "2 (one of many)"),
        ("9", "2 (one of many)"),
    ]


@pytest.mark.parametrize(
    "sizes",
    [
        ring.RingSizes(rings=()),
        ring.RingSizes(rings=(1,)),
        ring.RingSizes(rings=(10**6,)),
        ring.RingSizes(batch=0),
        ring.RingSizes(repeats=0),
        ring.RingSizes(updates=0),
    ],
)
def test_settings_that_measure_nothing_are_refused(sizes):
    with pytest.raises(ConfigError):
        ring.measure_rings(sizes, None, lambda _: None)


def test_an_interpreter_without_the_package_is_refused_before_anything_is_measured():
    with pytest.raises(ConfigError, match="cannot be run"):
        ring.measure_rings(SIZES, "/no/such/python", lambda _: pytest.fail("measured"))


def test_the_command_writes_its_page(tmp_path):
    command = ["bench", "ring", "--rings", "3", "--batch", "2", "--repeats", "1"]
    command += ["--admission", "20", "--updates", "3"]
    assert cli.main([*command, "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "ring.json").read_text())
    sizes = {"rings": [3], "batch": 2, "repeats": 1, "admission": 20, "updates": 3}
    assert content["sizes"] == sizes
    assert (tmp_path / "ring.md").read_text().startswith("# Ring signatures\n")


scalars = st.lists(st.integers(1, group.ORDER - 1), min_size=len(KEYS), max_size=len(KEYS))


@given(scalars, st.integers(2, 6))
@settings(max_examples=10, deadline=None)
def test_all_ways_to_multiply_agree(numbers, bits):
    expected = ring_msm.by_libsodium(numbers, KEYS)
    assert ring_msm.by_buckets(numbers, KEYS, bits) == expected
    assert ring_msm.Tables.of(KEYS, bits).multiply(numbers) == expected


@pytest.mark.parametrize("number", [1, 2**252 - 1, group.ORDER - 1])
@pytest.mark.parametrize("bits", [2, 3, 6])
def test_windows_hold_the_largest_numbers(number, bits):
    expected = group.mul(number.to_bytes(32, "little"), KEYS[0])
    assert ring_msm.by_buckets([number], KEYS[:1], bits) == expected
    assert ring_msm.Tables.of(KEYS[:1], bits).multiply([number]) == expected
