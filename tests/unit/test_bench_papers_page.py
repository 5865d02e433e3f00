"""The papers' tables: what the page says of what was measured, and of what was not."""

import dataclasses
import json

import pytest

from vitalring.tools.bench.papers.command import write_page
from vitalring.tools.bench.papers.settings import FULL, QUICK
from vitalring.tools.bench.papers.shown import BUSY, NO_FIGURE
from vitalring.tools.bench.papers.store import DISTURBED, FAILED, MEASURED, WAITING

SCORE = {"value": 0.8, "low": 0.7, "high": 0.9}
MACHINE = {
    "date": "2026-01-02",
    "processor": "P",
    "architecture": "x86_64",
    "cores": "2",
    "system": "S",
    "python": "3.11",
    "vitalring": "0.1.0",
}


def study(**changes):
    return {
        "status": MEASURED,
        "reason": "",
        "result": {
            "accuracy": SCORE,
            "macro_f1": SCORE,
            "confusion": [[8, 2], [2, 8]],
            "curve": [0.7, 0.8],
            "parameters": 4096,
            "update_bytes": 21620,
            "privacy": {
                "unit": "record",
                "noise": "local",
                "epsilon": 1.0,
                "delta": 1e-5,
                "spent": 0.97,
                "note": "such a fleet is too small",
            },
            **changes,
        },
    }


def timing(**changes):
    result = {
        "round_seconds": 1.25,
        "update_seconds": 0.04,
        "peak_bytes": {"agent": 90e6, "gateway": 80e6, "aggregator": 70e6},
        "disturbed": False,
    }
    return {"status": MEASURED, "reason": "", "result": {**result, **changes}}


def pace(**changes):
    """Where all rows are in one place there is no update to time."""
    made = timing(**changes)
    del made["result"]["update_seconds"]
    return made


def failed(reason):
    return {"status": FAILED, "reason": reason, "result": {}}


@pytest.fixture
def result():
    figure = {"auc": SCORE, "tpr": [SCORE, SCORE]}
    weak = {"auc": {**SCORE, "value": 0.5}, "tpr": [{**SCORE, "value": 0.1}] * 2}
    views = {view: {"weak": weak, "strong": figure} for view in ("updates", "models", "final")}
    named = {"random device": [0.1], "named/device, all rounds": [0.3, 0.5], "sum/device": [0.1]}
    made = {
        "command": "vitalring bench papers --quick --out FOLDER",
        "form": dataclasses.asdict(QUICK),
        "sets": [{"name": "mitbih", "title": "Beats", "judged_by": "macro_f1"}],
        "epsilons": [0.5, 1.0],
        "sites_rows": 4321,
        "left_out": {"hapt": "no --data names its folder."},
        "refused_units": {"device/local": "not in this version"},
        "cells": {
            "ledger": {
                "status": DISTURBED,
                "reason": "others had 60% of the cores",
                "result": {
                    "leaves": 1530,
                    "leaves_per_second": 20000.0,
                    "commit_seconds": 0.004,
                    "slowest_commit_seconds": 0.01,
                    "bytes": 4_200_000,
                    "disturbed": True,
                },
            },
            "a/mitbih/centralised/pooled": study(),
            "a/mitbih/centralised/time": timing(
                round_seconds=9.0, disturbed=True, peak_bytes={"self": 120e6}
            ),
            "a/mitbih/plain/study": study(),
            "a/mitbih/plain/time": timing(),
            "a/mitbih/all/study": study(),
            "a/mitbih/all/time": timing(),
            "a/mitbih/dp/study": failed("the plan | was refused"),
            "a/mitbih/dp/time": {"status": WAITING, "reason": "not run yet", "result": {}},
            "a/mitbih/source": {
                "status": MEASURED,
                "reason": "",
                "result": {"figures": {"0": named, "1": named}},
            },
            "a/mitbih/membership/none": {
                "status": MEASURED,
                "reason": "",
                "result": {"figures": views, "members": 10, "others": 11, "studies": 5},
            },
            "b/centralised/pooled/0": study(),
            "b/centralised/time": pace(round_seconds=2.0),
            "b/federated/study/0": study(),
            "b/federated/study/1": study(confusion=[[9, 1], [1, 9]]),
            "b/federated/time": timing(),
            "f/mitbih/none/0/0": study(),
            "f/mitbih/record-local/0.5/0": study(missing_updates=3),
            "f/mitbih/record-local/1/0": failed("no noise is enough"),
            "f/mitbih/device-local/0.5/0": failed("too few devices"),
            "f/mitbih/central/0.5/0": {
                "status": MEASURED,
                "reason": "",
                "result": {
                    "accuracy": SCORE,
                    "macro_f1": SCORE,
                    "noise_multiplier": 1.5,
                    "steps": 120,
                    "sampling_rate": 0.05,
                    "statement": {"RDP": 0.51, "PLD": "failed"},
                },
            },
        },
    }
    for found in made["cells"].values():
        found["machine"] = MACHINE
    return made


def line(page, start):
    (found,) = [each for each in page.splitlines() if each.startswith(start)]
    return found


def test_the_page_says_what_was_measured_beside_what_the_papers_report(result, tmp_path):
    write_page(tmp_path, result)
    page = (tmp_path / "papers.md").read_text()
    assert page.startswith("# The papers' tables on public data (quick figures)\n")
    assert "QUICK FIGURES" in page
    assert "- 2026-01-02; P (x86_64), 2 cores, S, Python 3.11, vitalring 0.1.0." in page
    assert "At most 4,321 rows of each site" in page
    plain = line(page, "| plain FL |")
    assert "| 0.800 (0.700–0.900) | 91.7 % | 0.800 (0.700–0.900) | 21,620 | 1.25 |" in plain
    assert "| 90 / 80 / 70 |" in plain
    # Mean of 0.3 and 0.5 over two studies; the strongest attack's area, not the first one's.
    assert "| 0.40 (" in plain
    assert "| 0.800 (0.700–0.900) | 0.800 (0.700–0.900) | moderate / medium / high |" in plain
    federated = line(page, "| accuracy, % |")
    # 80 and 90 per cent: mean 85, and an interval of one degree of freedom.
    assert "| 80.0 | 87.1 ± 0.5 | 85.0 (21.5–100.0) | not measured | 85.3 ± 0.6 |" in federated
    assert "| 2.0 (2–2) of 2 | not measured | 50 epochs |" in line(page, "| rounds until")
    # Two rounds of 1.25 s.
    assert "| 4 | 5 h | 2 | not measured | 7 h |" in line(page, "| seconds of training |")
    assert "| 0.5 | 80.0 | not measured | 80.0 | 83.2 |" in page
    assert "| mitbih | 0.5 | 0 | 1.5 | 120 at 0.0500 | 0.510 | failed |" in page
    assert (tmp_path / "papers-epsilon.svg").read_text().startswith("<?xml")
    assert page.count("](papers-epsilon.svg)") == page.count("](papers-rows.svg)") == 1
    assert json.loads((tmp_path / "papers.json").read_text())["cells"] == result["cells"]


def test_nothing_is_made_up_where_nothing_was_measured(result, tmp_path):
    write_page(tmp_path, result)
    page = (tmp_path / "papers.md").read_text()
    assert line(page, "| DP-FL |").count(NO_FIGURE) == 7
    assert line(page, "| HE-FL |").count(NO_FIGURE) == 5
    # Times of a busy machine are none; what else was measured there stands.
    assert f"| {BUSY} | 120 |" in line(page, "| centralised |")
    assert BUSY in line(page, "| latency of a round's commit |")
    assert "| 4.20 MB | 30 MB |" in line(page, "| on disk after 10 rounds |")
    for reason in ("the plan / was refused", "no noise is enough", "too few devices"):
        assert reason in page
    # The figure that the data is judged by has a table of its own, without the paper's accuracies.
    assert "## Paper B, Figure 2: Beats, macro-F1" in page
    # What waits is counted, what failed is named.
    assert "1 are not run yet" in page
    assert "a/mitbih/dp/time" not in page
    assert "Left out: hapt, no --data names its folder." in page
    assert "device/local: not in this version." in page
    assert "by cell: f/mitbih/record-local/0.5/0 3." in page
    assert "record, noise local, epsilon 0.5: such a fleet is too small." in page
    assert "of which 0.97 is spent (such a fleet is too small)" in page
    assert str(tmp_path) not in page


def test_a_full_form_is_not_called_quick(result, tmp_path):
    result["form"] = dataclasses.asdict(FULL)
    write_page(tmp_path, result)
    assert "quick" not in (tmp_path / "papers.md").read_text().lower().replace("--quick", "")
