"""The comparison of sums measures real sums; what it prints of them is what was measured."""

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from vitalring.errors import ConfigError
from vitalring.protocol.secure_sum import SECURE_SUMS, sum_scheme
from vitalring.protocol.two_server import LINK_BYTES, SEED_BYTES
from vitalring.tools.bench import secure_sum, secure_sum_peers
from vitalring.tools.bench import secure_sum_hospital as hospital
from vitalring.tools.bench.secure_sum import SIDES, measure_sums
from vitalring.tools.bench.secure_sum_cell import Cell, Sizes
from vitalring.tools.bench.secure_sum_plots import sum_plot
from vitalring.tools.bench.secure_sum_text import sides_at, sum_facts, sum_tables
from vitalring.tools.measuring.child import run_child

DIMENSION, DEVICES = 300, 3
PEERS = ("nvflare", "flower")


def interpreter(name):
    """Return an interpreter with a peer: `make bench-peers` makes one, a variable names another."""
    made = Path(__file__).parents[2] / f".venv-{name}/bin/python"
    return os.environ.get(f"VITALRING_{name.upper()}") or (str(made) if made.exists() else None)


@pytest.fixture(scope="module")
def measured():
    return measure_sums(Sizes((DIMENSION,), (DEVICES,), 1), None, None, lambda _: None)


@pytest.fixture
def stub(tmp_path):
    """Return a stand-in for an interpreter that has every module and fails or answers so."""

    def make(answer: str, code: int = 0):
        path = tmp_path / "python"
        # `require_modules` runs it with -c, scripts are run by their path.
        path.write_text(f'#!/bin/sh\n[ "$2" = -c ] && exit 0\n{answer}\nexit {code}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


def test_every_mode_of_this_version_is_measured():
    assert {mode for mode, _, _ in SIDES} == set(SECURE_SUMS)


def test_every_side_and_precision_has_a_row(measured):
    rows = [(row["side"], row["bits"]) for row in measured["rows"]]
    names = ["plain", "two-server", "single-he", "threshold-he, 2 of 3", "threshold-he, 3 of 3"]
    assert rows == [(name, bits) for bits in (8, 16) for name in names]


def test_sizes_are_those_of_the_protocol(measured):
    for row, (mode, hospitals, threshold) in zip(measured["rows"], SIDES * 2, strict=True):
        cell = Cell(mode, hospitals, threshold, DIMENSION, DEVICES, row["bits"], 3, 3)
        scheme = sum_scheme(mode, cell.codec, DIMENSION, cell.joint)
        other = LINK_BYTES + SEED_BYTES if mode == "two-server" else 0
        assert row["update_bytes"] == scheme.update_bytes + other
        assert (row["released_bytes"] > 0) == (mode == "threshold-he")


def test_every_stage_was_measured(measured):
    for row in measured["rows"]:
        assert row["device"].keys() == {"encode", "encrypt"}
        assert row["server"].keys() == {"check", "add"}
        assert {figure["count"] for figure in row["server"].values()} == {DEVICES}
        decrypting = 3 if "3 of 3" in row["side"] else 2 if "2 of 3" in row["side"] else 1
        assert {figure["count"] for figure in row["release"].values()} == {decrypting}
        assert bool(row["combine"]) == (row["mode"] == "threshold-he")
        assert min(row["peak_bytes"].values()) > 1_000_000


def test_more_bits_give_a_smaller_error(measured):
    for coarse, fine in zip(measured["rows"][:5], measured["rows"][5:], strict=True):
        assert 100 * fine["error"] < coarse["error"] < 0.1


def test_a_sum_of_other_fields_is_no_measurement(tmp_path):
    cell = Cell("plain", 1, 1, 20, 3, 8, 3, 3)
    (tmp_path / "public.key").write_bytes(b"")
    request = {"cell": vars(cell), "folder": str(tmp_path), "repeats": 1}
    for party in ("device", "gateway"):
        run_child(f"secure_sum_{party}", request)
    assert hospital.measure(request)["error"] < 0.1
    assert (tmp_path / "sum").stat().st_size == 8 * 21
    fields = np.load(tmp_path / "1.npy")
    fields[3] += 1
    np.save(tmp_path / "1.npy", fields)
    with pytest.raises(AssertionError, match="sum of its updates"):
        hospital.measure(request)


def test_more_additions_than_updates_leave_a_sum_of_each_once(tmp_path):
    cell = Cell("plain", 1, 1, 20, 10, 8, 3, 10)
    (tmp_path / "public.key").write_bytes(b"")
    request = {"cell": vars(cell), "folder": str(tmp_path), "repeats": 1}
    run_child("secure_sum_device", request)
    assert len(run_child("secure_sum_gateway", request)["samples"]) == 10
    assert hospital.measure(request)["error"] < 0.1


def test_tables_say_what_was_left_out(measured):
    facts = " ".join(sum_facts(measured))
    assert "--nvflare and --flower" in facts
    tables = sum_tables(measured)
    for table in tables:
        assert all(len(row) == len(table.titles) for row in table.rows)
    # A target holds at the size it names: none of these was measured.
    assert [table.title for table in tables] == [
        "300 parameters, 8 bits",
        "300 parameters at 16 bits",
    ]


def test_targets_stand_beside_what_was_measured(measured):
    row = next(row for row in measured["rows"] if row["mode"] == "single-he")
    at_target = {**row, "dimension": 100_000, "devices": 1_000, "update_bytes": 664_000}
    table = sum_tables({**measured, "rows": [*measured["rows"], at_target]})[0]
    assert table.rows == (("single-he", "100,000", "1,000", "6.7", "6.64"),)


def test_a_page_holds_all_that_was_measured(measured, tmp_path):
    secure_sum.write_page(tmp_path, "vitalring bench secure-sum", measured)
    page = (tmp_path / "secure-sum.md").read_text()
    assert all(f"## {table.title}\n" in page for table in sum_tables(measured))
    assert (tmp_path / "secure-sum.svg").exists() and "(secure-sum.svg)" in page
    content = json.loads((tmp_path / "secure-sum.json").read_text())
    assert content["rows"] == measured["rows"]


def test_a_peer_for_any_number_of_devices_is_at_every_size(measured):
    peer = {**measured["rows"][0], "side": "NVFLARE", "devices": 1_000}
    del peer["mode"]
    rows = [*measured["rows"], peer]
    assert peer in sides_at({**measured, "rows": rows}, DIMENSION, DEVICES)
    assert "<svg" in sum_plot({**measured, "rows": rows})


def test_adding_is_shortened_for_large_updates_and_named(measured):
    cells = secure_sum._cells(Sizes((1_000_000,), (10, 1_000), 1))
    assert {(cell.devices, cell.additions) for cell in cells} == {(10, 10), (1_000, 20)}
    rows = [{**row, "additions": 2} for row in measured["rows"]]
    notes = " ".join(sum_tables({**measured, "rows": rows})[0].notes)
    assert "adding was measured on 2 updates" in notes


@pytest.mark.parametrize(
    "sizes", [((), (10,), 1), ((10,), (2,), 1), ((0,), (3,), 1), ((9,), (3,), 0)]
)
def test_sizes_that_measure_nothing_are_refused(sizes):
    with pytest.raises(ConfigError):
        Sizes(*sizes)


def test_an_interpreter_without_the_peer_is_refused_with_the_cure():
    with pytest.raises(ConfigError, match=r"install 'nvflare\[HE\]'"):
        measure_sums(Sizes((10,), (3,), 1), "/bin/false", None, lambda _: None)
    with pytest.raises(ConfigError, match="cannot be run as a Python interpreter"):
        measure_sums(Sizes((10,), (3,), 1), None, "/nowhere/python", lambda _: None)


def test_a_peer_that_fails_is_named_with_its_last_words(stub):
    python = stub("echo no such function >&2", code=1)
    sizes = Sizes((10,), (3,), 1)
    with pytest.raises(ConfigError, match="secure_sum_nvflare failed: no such function"):
        secure_sum_peers.nvflare_row(python, 10, sizes)
    with pytest.raises(ConfigError, match="secure_sum_flower failed: no such function"):
        secure_sum_peers.flower_rows(python, 10, sizes)


def test_a_peer_that_answers_nothing_is_an_error(stub):
    with pytest.raises(ConfigError, match="secure_sum_nvflare failed"):
        secure_sum_peers.nvflare_row(stub("true"), 10, Sizes((10,), (3,), 1))


@pytest.mark.parametrize("name", PEERS)
def test_a_real_peer_returns_the_mean(name):
    python = interpreter(name)
    if python is None:
        pytest.skip(f"LEFT OUT: the sum of {name}, because there is no .venv-{name}")
    sizes = Sizes((DIMENSION,), (DEVICES,), 1)
    found = {"nvflare": secure_sum_peers.nvflare_row, "flower": secure_sum_peers.flower_rows}[name](
        python, DIMENSION, sizes
    )
    for row in [found] if name == "nvflare" else found:
        assert row["error"] < 0.01
        assert row["update_bytes"] > 4 * DIMENSION
        assert json.dumps(row)
