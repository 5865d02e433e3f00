"""The explanations as one page that needs no network, no script and no other file."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import jinja2

from vitalring.tools.explain.api import Explanation

_TEMPLATES: Final = Path(__file__).resolve().parent.parent / "templates"


def render_page(about: Mapping[str, str], explanations: Sequence[Explanation]) -> str:
    """Return the page; `about` says which model, of what origin, on which data set."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    rows = [
        {"title": one.title, "text": one.text, "image": _image(one.svg)} for one in explanations
    ]
    return environment.get_template("explain.html.j2").render(about=about, explanations=rows)


def _image(svg: str) -> str:
    """Return an SVG as a data address: in an image, its names cannot meet the page's."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
