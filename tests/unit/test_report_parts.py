"""The optional parts of a report: from what a run measured to what its page shows."""

import copy
import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from report_fixture import HOSTILE, Page, assert_alone_in_the_world, make_report, page_of

from vitalring.aggregator.evaluate import HeldOut
from vitalring.errors import DataError
from vitalring.models.dataset import DatasetInfo, FeatureSchema
from vitalring.models.dataset.features import Category, Number
from vitalring.tools import plots, report_text
from vitalring.tools.report import render
from vitalring.tools.simulate import comparison
from vitalring.tools.simulate.final import FinalEvaluation, evaluation_of
from vitalring.tools.simulate.pooled import Centralised, PooledTraining

TRAINING = PooledTraining(
    rows=7415,
    devices=21,
    passes=50.02,
    batch=64.3,
    steps=5_800,
    learning_rate=0.1,
    clip=1.0,
    seconds=93.0,
)


def evaluated(
    classes: Sequence[str], devices: int, skill: float, *, by_device: bool = True
) -> FinalEvaluation:
    """A model that is right about `skill` of the time, better on some devices than on others."""
    generator = np.random.default_rng(devices)
    names = tuple(f"patient-{n}" for n in range(devices))
    owner = np.repeat(np.arange(devices), 30)
    y = generator.integers(0, len(classes), len(owner))
    p = generator.random((len(y), len(classes))).astype(np.float32)
    p[np.arange(len(y)), y] += (skill * generator.uniform(0.5, 1.5, devices))[owner]
    info = DatasetInfo("d", "windows", tuple(classes), 1.0, names if by_device else None, 0.2, None)
    held_out = HeldOut(np.zeros((len(y), 1), np.float32), y, owner, None, names)
    return evaluation_of(info, held_out, p, seed=1, draws=60)


def personal(devices: int) -> list[dict[str, Any]]:
    return [
        {
            "device": f"patient-{n}",
            "rows": 20 + n,
            "global": {"accuracy": 0.5 + n / 1000, "macro_f1": 0.4 + n / 1000},
            "personal": {"accuracy": 0.6, "macro_f1": 0.7},
            "used": n % 3 > 0,
            "reason": "better than the global head",
        }
        for n in range(devices)
    ]


SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 2"><rect width="4" height="2"/></svg>'
EXPLANATION = {"title": "What the model looks at", "text": "One beat of class V.", "svg": SVG}
SCHEMA = FeatureSchema((Number("age", 60.0, 12.0), Category("ward", ("a", "b"))))


def full_report(
    classes: tuple[str, ...] = ("N", "S", "V"),
    devices: int = 9,
    *,
    central: bool = True,
    by_device: bool = True,
    **changes: object,
) -> dict[str, Any]:
    test = evaluated(classes, devices, 0.6, by_device=by_device)
    pooled = Centralised(evaluated(classes, devices, 0.7, by_device=by_device), TRAINING)
    arguments: dict[str, Any] = {
        "personal": personal(devices),
        "features": SCHEMA,
        "declared": False,
        "explanations": [EXPLANATION],
        "labels": {"train": [10 * n for n in range(len(classes))], "test": test.rows},
        **changes,
    }
    parts = comparison.parts(test, pooled if central else None, classes=classes, **arguments)
    return {**make_report(classes), **parts}


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """A report to read, not to change."""
    return full_report()


@pytest.fixture(scope="module")
def page(report: dict[str, Any]) -> Page:
    return page_of(report)


def test_a_run_that_was_asked_for_nothing_more_has_no_more_parts() -> None:
    found = comparison.parts(
        None,
        None,
        classes=("N", "S"),
        personal=(),
        features=None,
        declared=False,
        explanations=(),
        labels=None,
    )
    assert found == {}


def test_the_test_part_says_what_was_measured() -> None:
    test = evaluated(("N", "S", "V"), 9, 0.6)
    part = comparison.test_dict(test)
    assert part["rows"] == 9 * 30 == sum(map(sum, part["confusion"]))
    assert (part["resampled"], part["clusters"], part["level"]) == ("devices", 9, 0.95)
    confusion = np.array(part["confusion"])
    assert part["accuracy"]["value"] == pytest.approx(np.trace(confusion) / 270)
    for place, name in enumerate(("N", "S", "V")):
        row, column = confusion[place], confusion[:, place]
        recall, precision = part["recall"][name], part["precision"][name]
        assert recall["value"] == pytest.approx(confusion[place, place] / row.sum())
        assert precision["value"] == pytest.approx(confusion[place, place] / column.sum())
        assert recall["low"] < recall["value"] < recall["high"]
        assert part["classes"][name] == {"rows": row.sum(), "devices": 9}
    shares = [row["accuracy"] * row["rows"] for row in part["by_device"]]
    assert sum(shares) == pytest.approx(np.trace(confusion))


def test_the_difference_is_federated_less_centralised(report: dict[str, Any]) -> None:
    test, central = report["test"], report["centralised"]
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "auroc"):
        gap = central["difference"][name]
        assert gap["value"] == pytest.approx(test[name]["value"] - central[name]["value"])
        assert gap["low"] < gap["value"] < gap["high"] < 0
    assert central["training"]["passes"] == 50.02


def test_models_that_were_evaluated_on_different_rows_are_not_compared() -> None:
    test = evaluated(("N", "S"), 5, 0.6)
    other = Centralised(evaluated(("N", "S"), 6, 0.6), TRAINING)
    with pytest.raises(DataError, match="different rows"):
        comparison.centralised_dict(other, test)


def test_features_and_labels(report: dict[str, Any], page: Page) -> None:
    assert report["features"] == {
        "inputs": 4,
        "columns": 2,
        "numbers": 1,
        "categories": 1,
        "how": "agreed",
        "digest": SCHEMA.digest.hex(),
    }
    assert report["labels"]["train"] == {"N": 0, "S": 10, "V": 20}
    text = page.text
    assert "columns 2: 1 of numbers, 1 of categories" in text
    assert "agreed on them through the secure sum" in text
    assert "N 0 " in text
    assert "all 30 270" in text
    assert comparison.features_dict(SCHEMA, declared=True)["how"] == "declared"
    assert set(report_text.FEATURES) == {"declared", "agreed"}


def test_the_page_shows_every_figure_with_its_interval(report: dict[str, Any], page: Page) -> None:
    text = page.text
    test, central = report["test"], report["centralised"]
    for key, label in (("accuracy", "accuracy"), ("macro_f1", "macro-F1"), ("auroc", "AUROC")):
        cells = [
            f"{figure['value']:.3f} {figure['low']:.3f} to {figure['high']:.3f}"
            for figure in (test[key], central[key])
        ]
        gap = report_text.signed(central["difference"][key]["value"])
        assert f"{label} {cells[0]} {cells[1]} {gap} " in text, label
    for name in report["classes"]:
        figure = test["recall"][name]
        assert f"{figure['value']:.3f} {figure['low']:.3f} to {figure['high']:.3f}" in text
        assert f"{name} {test['classes'][name]['rows']} 9 " in text
    for line in (
        "95 % of 60 draws of 9 held-out devices with replacement",
        "With so few to draw from they are rough",
        "the records: 7,415 rows of 21 devices",
        "50.0 passes over them, in batches of 64",
        "learning rate 0.1, gradients clipped at 1",
        "5,800 gradient steps one after another;",
        "no noise",
    ):
        assert line in text, line


def test_the_headline_names_both_comparisons(report: dict[str, Any], page: Page) -> None:
    gap = report["final"]["macro_f1"] - report["centralised"]["macro_f1"]["value"]
    both = f"above the median of single devices and {-gap:.3f} below centralised training"
    assert both in page.text
    report = {**report, "alone": None}
    assert f"0.319, {-gap:.3f} below centralised training" in page_of(report).text


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ("validation", "Rounds were evaluated on validation rows; the test rows were touched once"),
        ("test", "The data set declares no validation rows, so the rounds were evaluated on these"),
        (None, "The data set declares no validation rows"),
    ],
)
def test_the_page_says_which_rows_the_rounds_saw(part: str | None, sentence: str) -> None:
    report = full_report()
    if part:
        report["rounds_on"] = part
    page = page_of(report).text
    assert sentence in page
    assert ("Every round's model on the validation rows" in page) == (part == "validation")


@pytest.mark.parametrize(("by_device", "noun"), [(True, "devices"), (False, "rows")])
def test_what_was_resampled_is_named(by_device: bool, noun: str) -> None:
    report = full_report(by_device=by_device)
    page = page_of(report).text
    assert f"draws of {report['test']['clusters']} held-out {noun} with replacement" in page
    assert f"of the final model on held-out {noun}" in page
    # Only where rows stand for themselves is it said that they resemble one another.
    assert ("as if rows did not resemble one another" in page) == (not by_device)


def test_global_and_personal_heads_side_by_side() -> None:
    text = page_of(full_report(personal=personal(7))).text
    assert "4 of 7 devices use their own head" in text
    # Best global head first; the seventh device's own head is not used.
    order = re.findall(r"(patient-\d) (\d+) (\d\.\d{3}) 0\.600 (\d\.\d{3}) 0\.700 (\w+)", text)
    assert [row[0] for row in order] == [f"patient-{n}" for n in range(6, -1, -1)]
    assert order[0] == ("patient-6", "26", "0.506", "0.406", "global")
    assert order[1] == ("patient-5", "25", "0.505", "0.405", "personal")
    assert "use their own head 4 0.503 0.600 0.403 0.700" in text
    assert "all 7 0.503 0.600 0.403 0.700" in text


def test_medians_of_heads_tell_those_that_use_theirs_from_all() -> None:
    rows = [{**row, "used": row["device"] == "patient-5"} for row in personal(7)]
    report = full_report(personal=rows)
    text = page_of(report).text
    assert "1 of 7 devices use their own head" in text
    assert "use their own head 1 0.505 0.600 0.405 0.700" in text
    assert "all 7 0.503 0.503 0.403 0.403" in text
    report["personal"] = [{**row, "used": False} for row in rows]
    text = page_of(report).text
    assert "0 of 7 devices use their own head" in text
    assert "use their own head 0" not in text
    line = report_text.closing_lines(report)[-1]
    assert line == (
        "personal   0 of 7 devices use a head of their own; median macro-F1 0.403 with the global "
        "head"
    )


def test_explanations_are_pictures_with_words(page: Page) -> None:
    assert "One beat of class V." in page.text
    assert SVG.encode() in page.images
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert "What the model looks at" in alts


@pytest.mark.parametrize(
    ("classes", "devices"), [(2, 3), (3, 24), (7, 25), (12, 60), (8, 61), (12, 2)]
)
def test_every_size_of_study_renders(classes: int, devices: int) -> None:
    names = tuple(f"a class with a rather long name, number {n}" for n in range(classes))
    report = full_report(names, devices)
    source = render(report)
    assert_alone_in_the_world(source)
    page = Page(source)
    # As without the parts, and: intervals, devices one by one, personal heads, an explanation.
    assert len(page.images) == 5 + 4
    for word in ("None", "nan", "Undefined"):
        assert word not in page.text
    for image in page.images:
        ElementTree.fromstring(image)


def test_a_part_of_nulls_renders() -> None:
    nothing = {"value": None, "low": None, "high": None}
    report = full_report(central=False)
    for key in ("accuracy", "balanced_accuracy", "macro_f1", "auroc"):
        report["test"][key] = nothing
    for row in report["test"]["by_device"]:
        row["accuracy"] = None
    report["personal"][0]["personal"] = {"accuracy": None, "macro_f1": None}
    del report["test"]["precision"], report["features"]["digest"]
    report["test"]["recall"]["N"] = nothing
    page = page_of(report)
    assert "AUROC – –" in page.text
    assert "centralised" not in page.text


def test_one_site_has_no_intervals_and_no_list_of_sites() -> None:
    report = full_report(devices=1, personal=(), explanations=())
    page = page_of(report)
    assert "draws of 1 held-out device with" in page.text
    assert "Held-out devices" not in page.text
    assert report["test"]["accuracy"]["low"] is None


def test_hostile_names_in_the_parts_stay_text() -> None:
    report = full_report((HOSTILE, "b"), explanations=[{**EXPLANATION, "title": HOSTILE}])
    for row in report["test"]["by_device"] + report["personal"]:
        row["device"] = HOSTILE
    report["features"]["how"] = HOSTILE
    report["test"]["resampled"] = HOSTILE
    source = render(report)
    assert_alone_in_the_world(source)
    assert "<script" not in source


def test_the_parts_are_not_changed_by_showing_them() -> None:
    report = full_report()
    before = copy.deepcopy(report)
    render(report)
    assert report == before


def test_ten_thousand_personal_heads_stay_a_page() -> None:
    report = full_report(personal=personal(10_000))
    assert len(render(report)) < 8_000_000


def test_long_names_keep_their_ends() -> None:
    assert report_text.short("ward-3-north-device-17", 12) == "ward-3-…e-17"
    assert report_text.short("short", 12) == "short"
    assert len(report_text.short("x" * 99, 20)) == 20


def test_the_axis_of_intervals_holds_all_of_them() -> None:
    low, high = plots._tenths_around([(0.75, 0.71, 0.78), (0.97, None, None)])
    assert low <= 0.7
    assert high >= 1.0
    assert plots._tenths_around([(None, None, None)])[0] == 0.0
    narrow = plots._tenths_around([(0.85, 0.84, 0.86)])
    assert narrow[1] - narrow[0] >= 0.2


@pytest.mark.parametrize(
    ("report", "lines"),
    [
        (
            full_report(),
            [
                r"AUROC      0\.\d{3}",
                r" {11}95 %: accuracy 0\.\d{3} to 0\.\d{3}, macro-F1 0\.\d{3} to 0\.\d{3}, "
                r"AUROC 0\.\d{3} to 0\.\d{3}, over 9 held-out devices",
                r"pooled     centralised training reaches macro-F1 0\.\d{3} "
                r"\(federated −0\.\d{3}\), AUROC 0\.\d{3} \(federated −0\.\d{3}\)",
                r"personal   6 of 9 devices use a head of their own: median macro-F1 0\.40[45] "
                r"with the global head, 0\.700 with theirs;",
                r" {11}over all 9: 0\.404 with the global head, 0\.700 with the head that each "
                r"uses",
            ],
        ),
        (make_report(), []),
    ],
)
def test_the_closing_lines_name_the_parts(report: dict[str, Any], lines: list[str]) -> None:
    found = report_text.closing_lines(report)
    assert len(found) == len(lines)
    for line, pattern in zip(found, lines, strict=True):
        assert re.fullmatch(pattern, line), line
