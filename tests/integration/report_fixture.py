"""A report to show, and what a browser would make of its page."""

import base64
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

from vitalring.tools.report import render

HOSTILE = '<script>alert("1")</script>\'"><img src=http://example.org/x onerror=alert(2)> {{ 7*7 }}'


def make_report(
    classes: tuple[str, ...] = ("N", "S", "V"),
    rounds: int = 5,
    *,
    skipped: tuple[int, ...] = (),
    alone: bool = True,
    unit: str = "record",
    status: str = "finished",
) -> dict[str, Any]:
    rows = []
    for number in range(1, rounds + 1):
        score = 0.3137 + 0.0011 * number
        low = number in skipped
        rows.append(
            {
                "round": number,
                "status": "below_min_cohort" if low else "summed",
                "accuracy": None if low else score + 0.2,
                "macro_f1": None if low else score,
                "loss": None if low else 1.0 / number,
                "recall": None if low else dict.fromkeys(classes, score),
                "expected": 22,
                "admitted": 3 if low else 20,
                "refused": {"bad_signature": 17, "too_late": 2} if low else {},
                "seconds": 3.25,
                "bytes_up_per_device": 57_344,
                "stages": {"train": 1.5, "encode": 0.025, "encrypt": 0.31, "aggregate": 0.44},
            }
        )
    last: dict[str, Any] = (
        rows[-1] if rows else {"accuracy": None, "macro_f1": None, "recall": None}
    )
    size = len(classes)
    return {
        "version": "0.1.0",
        "command": "vitalring simulate --seed 1",
        "started": "2026-01-01T00:00:00Z",
        "seconds": 93.2,
        "status": status,
        "dataset": "mitbih",
        "model": "ecg_cnn",
        "classes": list(classes),
        "parameters": 2_345,
        "devices": 22,
        "hospitals": 1,
        "secure_sum": "single-he",
        "privacy": {
            "unit": unit,
            "noise": "none" if unit == "none" else "local",
            "epsilon": 0.0 if unit == "none" else 8.0,
            "delta": 0.0 if unit == "none" else 1e-5,
            "spent": None if unit == "none" else 7.891,
            "noise_multiplier": 3.125,
            "clip": 0.5,
            "sampling_rate": 0.25,
            "steps": 4,
            "rounds": 15,
        },
        "rounds": rows,
        "final": {
            **{key: last[key] for key in ("accuracy", "macro_f1", "recall")},
            "confusion": [[1000 * i + j for j in range(size)] for i in range(size)]
            if rows
            else None,
        },
        "alone": {
            "macro_f1": [0.2, 0.25, 0.3],
            "accuracy": [0.5, 0.6, 0.7],
            "median": 0.25,
            "mean": 0.2516,
            "best": 0.3,
        }
        if alone
        else None,
        "bytes": {"update": 57_344, "per_parameter": 24.4, "float32": 9_380},
        "log": {
            "checkpoint": "example.org/log\n321\nCsUYapGGPo4=\n\n— example.org Az3grlgt\n",
            "leaves": 321,
            "root": "ab" * 32,
            "authority": "cd" * 32,
        },
    }


class Page(HTMLParser):
    """What a browser would see: text, tags and attributes."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.pieces: list[str] = []
        self.style = ""
        self._inside = ""
        self.feed(source)
        self.close()
        self.text = re.sub(r"\s+", " ", " ".join(self.pieces))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._inside = tag
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.style += data
        else:
            self.pieces.append(data)

    @property
    def images(self) -> list[bytes]:
        head = "data:image/svg+xml;base64,"
        sources = [value for tag, name, value in self.attributes if (tag, name) == ("img", "src")]
        assert all(source.startswith(head) for source in sources)
        return [base64.b64decode(source.removeprefix(head), validate=True) for source in sources]


def assert_alone_in_the_world(source: str) -> None:
    """Nothing on the page, or in its images, asks for anything outside of it."""
    page = Page(source)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in {"src", "href", "srcset", "poster", "action", "background", "data"}:
            assert value.startswith("data:"), (tag, name, value)
        if name == "style":
            assert "url(" not in value
    assert "url(" not in page.style
    assert "@import" not in page.style
    for image in page.images:
        for element in ElementTree.fromstring(image).iter():
            assert not element.tag.endswith(("script", "foreignObject"))
            for name, value in element.attrib.items():
                if name.endswith("href"):
                    assert value.startswith(("#", "data:")), value
                assert all(found == "#" for found in re.findall(r"url\((.)", value)), value


def page_of(report: dict[str, Any]) -> Page:
    return Page(render(report))
