"""The pictures of explanations: whole, alone in the world, the same for the same numbers."""

from xml.etree import ElementTree

import numpy as np
import pytest
from report_fixture import HOSTILE, Page, assert_alone_in_the_world

from vitalring.aggregator.evaluate import HeldOut
from vitalring.tools.explain import paper, profile_pictures, table_pictures, texts, window_pictures
from vitalring.tools.explain.api import Explanation
from vitalring.tools.explain.channels import Channel
from vitalring.tools.explain.examples import Example
from vitalring.tools.explain.occlusion import Patch
from vitalring.tools.explain.page import render_page
from vitalring.tools.explain.permutation import Drop, Permuted, Reliance
from vitalring.tools.explain.windows import WindowFindings, explain_windows

HEART = (
    Channel("ECG lead", "mV"),
    Channel("RR before vs mean", "× 12.5 %"),
    Channel("RR after vs mean", "× 12.5 %"),
    Channel("RR before vs median", "× 12.5 %"),
)


def findings(
    channels: tuple[Channel, ...] = HEART,
    classes: tuple[str, ...] = ("N", "S", "V"),
    *,
    constant: tuple[int, ...] = (1, 2, 3),
    time: int = 60,
    hz: float = 100.0,
    present: int = 3,
    always: int | None = None,
) -> WindowFindings:
    """What is found of a model that judges by the first sample; `present` classes are held out."""
    generator = np.random.default_rng(1)
    x = generator.normal(0, 0.5, (40, time, len(channels))).astype(np.float32)
    x[:, :, constant] = x[:, :1, constant]
    y = np.arange(40) % present
    size = len(classes)

    def predict(rows: np.ndarray) -> np.ndarray:
        score = np.outer(rows[:, :8].sum(axis=(1, 2)), np.linspace(-1, 1, size))
        if always is not None:
            score = np.zeros((len(rows), size)) + 9.0 * (np.arange(size) == always)
        p = np.exp(score - score.max(axis=1, keepdims=True))
        return (p / p.sum(axis=1, keepdims=True)).astype(np.float32)

    rows = HeldOut(x, y, np.arange(40) % 3, None, ("a", "b", HOSTILE))
    return explain_windows(predict, predict, rows, classes, channels, hz, Patch(2), 9)


def drawn(found: WindowFindings) -> list[str]:
    if window_pictures.is_one_signal(found):
        sheets = [window_pictures.draw_sheet(found)]
    else:
        pair = next(pair for pair in found.examples if any(pair))
        sheets = [window_pictures.draw_strips(found, pair)]
    return [*sheets, profile_pictures.draw_profiles(found)]


CASES = {
    "several signals": {
        "channels": (Channel("acceleration y", "g"), Channel("angular velocity x", "rad/s")),
        "constant": (),
    },
    "a signal without a unit, a class without windows": {
        "channels": (Channel("x"), *HEART[1:]),
        "present": 2,
    },
    "signals and constants, many classes": {
        "channels": HEART[1:],
        "constant": (2,),
        "classes": tuple(f"class {n}" for n in range(30)),
        "present": 30,
    },
    "a long electrocardiogram": {"time": 400, "channels": HEART[:1], "constant": ()},
    "nothing but constants": {"channels": HEART[1:], "constant": (0, 1, 2)},
    "more signals than strips": {
        "channels": tuple(Channel(f"lead {n}") for n in range(14)),
        "constant": (),
        "classes": ("a", "b"),
        "present": 2,
    },
    "hostile names, a model that says one thing, two samples": {
        "classes": (HOSTILE, "$x$", "V"),
        "channels": (Channel(HOSTILE), *HEART[1:]),
        "always": 1,
        "time": 2,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_every_shape_of_findings_is_drawn(case: str) -> None:
    found = findings(**CASES[case])
    pictures = drawn(found)
    for svg in pictures:
        root = ElementTree.fromstring(svg)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        assert width <= 721  # ten inches: a page shows it as wide as itself
        assert 60 < height < 6000
        for element in root.iter():
            for name in ("d", "x", "y", "transform"):
                assert "nan" not in element.attrib.get(name, "")
    explanations = [Explanation(HOSTILE, texts.of_examples(found), svg) for svg in pictures]
    about = {"model": HOSTILE, "origin": HOSTILE, "dataset": "d"}
    page = render_page(about, explanations)
    assert_alone_in_the_world(page)
    assert len(Page(page).images) == len(pictures)
    assert HOSTILE not in page


def test_the_same_numbers_give_the_same_bytes() -> None:
    svg = window_pictures.draw_sheet(findings())
    assert svg == window_pictures.draw_sheet(findings())


def test_millimetre_paper_keeps_its_scale() -> None:
    found = findings(time=216, hz=360.0)
    pair = found.examples[0]
    width, height, (low, high) = window_pictures._trace_size(found, pair, 0)
    # 50 mm a second and 10 mm a millivolt: squares are square.
    assert width / (0.6 * 50) == pytest.approx(height / ((high - low) * 10))
    for example in pair:
        assert low < example.x[:, 0].min() < example.x[:, 0].max() < high
    assert low % 0.5 == high % 0.5 == 0
    assert (paper.speed_of(0.6), paper.speed_of(10.0)) == (50.0, 25.0)


def test_titles_say_what_the_model_made_of_a_window() -> None:
    found = findings(always=1)
    assert [tuple(e is not None for e in pair) for pair in found.examples] == [
        (False, True),
        (True, False),
        (False, True),
    ]
    wrong, right = found.examples[0][1], found.examples[1][0]
    assert window_pictures.title_of(found, wrong) == "N, taken for S"
    assert window_pictures.title_of(found, right) == "S, recognised"
    assert window_pictures.absent_title(found, (None, wrong)) == "N, never recognised"
    assert window_pictures.absent_title(found, (right, None)) == "S, never mistaken"
    assert "the median of 14 mistaken" in window_pictures.note_of(wrong)
    assert right.example == Example(right.example.row, 1, 1, right.example.probability, 13)


def test_words_state_method_rows_and_limits() -> None:
    found = findings(time=216, hz=360.0)
    words = texts.of_examples(found)
    for part in (
        "40 held-out windows",
        "6 samples (17 ms) at 360 Hz",
        "every 2 samples (6 ms)",
        "median probability",
        "12 other held-out windows",
        texts.LIMITS,
    ):
        assert part in words
    average = texts.of_profiles(found, 9)
    assert "Up to 9 held-out windows of each class" in average
    # The same model twice: the maps are equal, and the words say so.
    assert "shuffled is 1.00" in average


def permuted(columns: int, auroc: float = 0.71) -> Permuted:
    drop = Drop(0.01, -0.002, 0.02)
    rows = tuple(Reliance(f"{HOSTILE} {n}", drop, drop) for n in range(columns))
    return Permuted(500, 10, auroc, 0.6, rows)


@pytest.mark.parametrize("columns", [1, 20, 300])
def test_reliance_is_drawn_for_any_number_of_columns(columns: int) -> None:
    found = permuted(columns)
    svg = table_pictures.draw_reliance(found)
    assert float(ElementTree.fromstring(svg).attrib["viewBox"].split()[2]) <= 721
    assert svg == table_pictures.draw_reliance(found)
    words = texts.of_reliance(found, "columns", 2_000)
    assert "on 500 of 2,000 held-out rows" in words
    assert "mean of 10 shuffles" in words
    assert ("the 20 of 300 columns" if columns > 20 else f"all {columns} columns") in words


def test_a_figure_that_is_not_defined_is_a_dash() -> None:
    nothing = Drop(float("nan"), float("nan"), float("nan"))
    found = Permuted(5, 2, float("nan"), 1.0, (Reliance("a", nothing, Drop(0.0, 0.0, 0.0)),))
    ElementTree.fromstring(table_pictures.draw_reliance(found))
