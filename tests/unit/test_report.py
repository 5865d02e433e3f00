"""The report of a run: its file, its page and its figures."""

import copy
import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_fixture import HOSTILE, Page, assert_alone_in_the_world, make_report, page_of

from vitalring.errors import StorageError
from vitalring.tools import plots, report_text
from vitalring.tools.report import REQUIRED, render, write_report


def test_both_files_are_written_and_the_json_is_the_report(tmp_path: Path) -> None:
    report = make_report()
    write_report(report, tmp_path / "out")
    text = (tmp_path / "out" / "report.json").read_text()
    assert json.loads(text) == report
    assert text == json.dumps(report, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.html",
        "report.json",
    ]


def test_design_names_the_keys_that_every_report_has(tmp_path: Path) -> None:
    """The contract's own list, written out again: a renamed key fails here."""
    write_report(make_report(skipped=(2,)), tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    top = "dataset model parameters devices hospitals secure_sum privacy rounds final log"
    assert set(top.split()) <= set(report)
    assert {"unit", "noise", "epsilon", "delta"} <= set(report["privacy"])
    assert {"accuracy", "macro_f1"} <= set(report["final"])
    assert {"checkpoint", "leaves"} <= set(report["log"])
    row = "round accuracy macro_f1 loss expected admitted refused seconds bytes_up_per_device"
    assert all(set(row.split()) <= set(line) for line in report["rounds"])


@pytest.mark.parametrize(
    ("part", "key"), [(part, key) for part in REQUIRED for key in sorted(REQUIRED[part])]
)
def test_a_missing_key_is_named_and_nothing_is_written(part: str, key: str, tmp_path: Path) -> None:
    report = make_report(rounds=1)
    holder = {"report": report, "round": report["rounds"][0]}.get(part) or report[part]
    del holder[key]
    with pytest.raises(StorageError, match=rf"its {part} lacks {key};"):
        write_report(report, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(make_report(), tmp_path / name)
    for file in ("report.html", "report.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_numbers_of_numpy_and_numbers_that_are_not_finite(tmp_path: Path) -> None:
    report = make_report()
    report["rounds"][0]["loss"] = math.nan
    report["rounds"][1]["accuracy"] = np.float64("inf")
    report["final"]["confusion"] = np.arange(9).reshape(3, 3)
    report["parameters"] = np.int64(2_345)
    write_report(report, tmp_path)
    written = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert written["rounds"][0]["loss"] is None
    assert written["rounds"][1]["accuracy"] is None
    assert written["final"]["confusion"] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert written["parameters"] == 2_345


def test_what_json_does_not_have_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="bytes"):
        write_report({**make_report(), "command": b"raw"}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_report(make_report(), tmp_path / "file")


def test_a_clip_that_follows_a_quantile_is_shown_by_round() -> None:
    report = make_report(rounds=3, skipped=(2,))
    fixed = page_of(report)
    for row, clip, share in zip(
        report["rounds"], (2.0, 1.75, 1.75), (0.812, None, 0.498), strict=True
    ):
        row |= {"clip": clip, "unclipped": share}
    report["privacy"] |= {"clip_quantile": 0.5, "clip_note": "the noise is too large"}
    page = page_of(report)
    assert "clip within it time" in page.text
    assert "2 0.812" in page.text
    assert "1.75 0.498" in page.text
    assert "quantile that the clip follows 0.5" in page.text
    assert "follows its quantile unsteadily: the noise is too large." in page.text
    assert len(page.images) == len(fixed.images) + 1
    assert "clip within it" not in fixed.text
    assert "quantile" not in fixed.text


def test_the_page_shows_the_numbers_of_the_dictionary() -> None:
    report = make_report()
    text = page_of(report).text
    final, alone = report["final"], report["alone"]
    for shown in (
        f"accuracy {final['accuracy']:.3f}",
        f"macro-F1 {final['macro_f1']:.3f}",
        f"gain in macro-F1 +{final['macro_f1'] - alone['median']:.3f}",
        "upload a device a round 57,344 B",
        "24.4 bytes a parameter",
        "a round 3.2 s",
        "devices 22",
        "ε 8 at δ 1e-5",
        "ε spent so far 7.891",
        "each device's own noise protects every single record",
        f"Median {alone['median']:.3f}, mean {alone['mean']:.3f}, best {alone['best']:.3f}",
        "train 1.5 s",
        "encode 25 ms",
        "aggregate 440 ms",
        "321 leaves",
        "vitalring verify FOLDER",
        "vitalring simulate --seed 1",
        report["log"]["root"],
        report["log"]["authority"],
        "noise multiplier 3.125",
        "network address",
    ):
        assert shown in text, shown
    for line in report["log"]["checkpoint"].split("\n"):
        assert line in text


def test_every_round_and_every_cell_of_the_matrix_is_shown() -> None:
    report = make_report(rounds=4, skipped=(3,))
    text = page_of(report).text
    for row in report["rounds"]:
        if row["status"] == "summed":
            line = f"{row['round']} summed 22 20 none {row['accuracy']:.3f} {row['macro_f1']:.3f}"
        else:
            line = f"{row['round']} below min cohort 22 3 17 bad signature, 2 too late – – –"
        assert line in text, line
    assert "19 refusals in all; 1 round below min_cohort" in text
    for i, row in enumerate(report["final"]["confusion"]):
        for n in row:
            assert re.search(rf"(?<![\d,]){n:,} {100 * n / sum(row):.1f}\s%", text), (i, n)


def test_a_loss_against_single_devices_is_called_one() -> None:
    report = make_report()
    report["alone"]["median"] = report["final"]["macro_f1"] + 0.1
    text = page_of(report).text
    assert "−0.100" in text
    assert "0.100 below the median" in text


def test_without_privacy_no_epsilon_is_shown() -> None:
    """Epsilon 0, which such a plan carries, would read as perfect privacy."""
    text = page_of(make_report(unit="none")).text
    assert "no differential privacy" in text
    assert "differential privacy none" in text
    assert "ε" not in text


@pytest.mark.parametrize(
    "change",
    [{"epsilon": None}, {"epsilon": 0.0}, {"delta": None}, {"unit": "patient"}, {"noise": "none"}],
)
def test_an_incomplete_or_unknown_guarantee_is_called_none(change: dict[str, Any]) -> None:
    report = make_report()
    report["privacy"].update(change)
    text = page_of(report).text
    assert "This run has no differential privacy" in text
    assert "protects every" not in text


def test_more_spent_than_planned_is_told_at_the_top() -> None:
    report = make_report()
    assert "More privacy was spent" not in page_of(report).text
    report["privacy"]["spent"] = 8.5
    assert "More privacy was spent than planned: ε 8.5 of 8." in page_of(report).text


def test_a_stopped_run_says_so_before_any_figure() -> None:
    text = page_of(make_report(rounds=3, status="stopped")).text
    notice = "This run did not finish: stopped. The figures below cover the 3 rounds"
    assert 0 < text.index(notice) < text.index("gain in macro-F1")
    assert "did not finish" not in page_of(make_report(rounds=3)).text


@pytest.mark.parametrize("mode", ["threshold-he", "single-he", "two-server", "plain", "a-new-mode"])
def test_every_secure_sum_says_who_could_read_updates(mode: str) -> None:
    sentences = report_text.not_protected(make_report()["privacy"], mode)
    assert any("updates" in line.lower() or mode in line for line in sentences)


WIDE = tuple(f"activity number {i}" for i in range(20))


@pytest.mark.parametrize(
    ("report", "images"),
    [
        (make_report(), 5),
        (make_report(rounds=0), 2),
        (make_report(rounds=0, alone=False, status="stopped"), 1),
        (make_report(rounds=1), 5),
        (make_report(rounds=1, alone=False), 4),
        (make_report(rounds=200, skipped=(1, 90, 200)), 5),
        (make_report(rounds=3, skipped=(1, 2, 3)), 4),
        (make_report(WIDE, rounds=200, skipped=(4,)), 5),
        (make_report(WIDE, rounds=1), 5),
        (make_report(("yes", "no")), 5),
        (make_report(WIDE[: plots.MAX_LINES]), 5),
        (make_report(WIDE[: plots.MAX_LINES + 1]), 5),
    ],
)
def test_every_shape_of_run_renders(report: dict[str, Any], images: int) -> None:
    source = render(report)
    assert_alone_in_the_world(source)
    page = Page(source)
    assert len(page.images) == images
    for word in ("None", "nan", "inf ", "Undefined"):
        assert word not in page.text.replace("None was signed", ""), word


def test_a_report_of_nulls_renders() -> None:
    report = make_report()
    for row in report["rounds"]:
        for key in ("accuracy", "macro_f1", "loss", "recall", "seconds", "bytes_up_per_device"):
            row[key] = None
        row["stages"] = {"train": None}
    report["final"] = {"accuracy": None, "macro_f1": None}
    report["bytes"] = {"update": None, "float32": None}
    report["alone"] = {"macro_f1": [None], "median": None}
    report["log"] = {"checkpoint": "", "leaves": 0}
    for key in ("version", "command", "started", "seconds"):
        del report[key]
    page = page_of(report)
    assert "no model was evaluated" in page.text
    assert len(page.images) == 1


def test_ten_thousand_single_devices_stay_a_small_page() -> None:
    report = make_report()
    report["alone"]["macro_f1"] = [i / 10_000 for i in range(10_000)]
    assert len(render(report)) < 1_000_000


def test_hostile_text_stays_text() -> None:
    report = make_report((HOSTILE, "$\\frac{$", "-->]]>\x00\x1b"))
    for key in ("version", "command", "started", "status", "dataset", "model", "secure_sum"):
        report[key] = HOSTILE
    for row in report["rounds"]:
        row["status"], row["refused"] = HOSTILE, {HOSTILE: 1}
    for key in ("checkpoint", "root", "authority"):
        report["log"][key] = HOSTILE
    source = render(report)
    assert_alone_in_the_world(source)
    page = Page(source)
    assert page.tags.count("img") == len(page.images) == 5
    assert page.text.count(HOSTILE) >= 8
    assert "49" not in re.findall(r"\d+", page.text.replace(HOSTILE, ""))


@settings(max_examples=25, deadline=None)
@given(
    name=st.text(max_size=30),
    key=st.sampled_from(["dataset", "model", "command", "status", "secure_sum"]),
)
def test_any_text_is_written_and_read_back(
    name: str, key: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    report = make_report(rounds=0, alone=False)
    report[key] = name
    folder = tmp_path_factory.mktemp("report")
    write_report(report, folder)
    assert json.loads((folder / "report.json").read_bytes()) == report
    assert_alone_in_the_world((folder / "report.html").read_text())


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning", "ignore:Matplotlib currently:UserWarning")
@settings(max_examples=15, deadline=None)
@given(names=st.lists(st.text(min_size=1, max_size=25), min_size=2, max_size=4, unique=True))
def test_figures_are_valid_for_any_class_name(names: list[str]) -> None:
    svg = plots.recall_by_class([1, 2], {name: [0.5, None] for name in names}, [2])
    ElementTree.fromstring(svg.encode())


def test_the_report_is_not_changed_by_writing_it(tmp_path: Path) -> None:
    report = make_report(skipped=(1,))
    before = copy.deepcopy(report)
    write_report(report, tmp_path)
    assert report == before


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "–"),
        (0.0, "0 µs"),
        (0.00002, "20 µs"),
        (0.0123, "12.3 ms"),
        (3.14, "3.1 s"),
        (125.0, "2 min 5 s"),
        (7_260.0, "2 h 1 min"),
    ],
)
def test_durations(seconds: float | None, words: str) -> None:
    assert report_text.duration(seconds) == words


@pytest.mark.parametrize(
    ("unit", "noise", "words"),
    [
        ("record", "distributed", ("the decrypted sums and the models", "one record of a device")),
        ("device", "distributed", ("the decrypted sums and the models", "teaches nothing")),
        ("device", "local", ("a device's updates, even decrypted,", "teaches nothing")),
    ],
)
def test_each_unit_and_place_of_the_noise_is_explained(
    unit: str, noise: str, words: tuple[str, ...]
) -> None:
    report = make_report()
    report["privacy"] |= {"unit": unit, "noise": noise, "shares": 9, "note": "over 5 rounds …"}
    page = render(report)
    assert all(each in report_text.meaning(report["privacy"]) for each in words)
    assert "The fleet is small for this guarantee: over 5 rounds …." in page
    gaps = " ".join(report_text.not_protected(report["privacy"], "threshold-he"))
    assert ("in each sum, 9, add their shares" in gaps) == (noise == "distributed")


def test_the_meaning_of_epsilon_is_its_definition() -> None:
    privacy = make_report()["privacy"]
    assert f"e^ε = {math.exp(8.0):,.4g}" in report_text.meaning(privacy)
    assert "δ = 1e-5" in report_text.meaning(privacy)
    assert "more than" in report_text.meaning({**privacy, "epsilon": 1e6})
