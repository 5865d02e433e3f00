"""A measurement's page: printed, and written as Markdown, JSON and a picture."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vitalring.files import write_atomic
from vitalring.tools.measuring.table import Table, markdown, print_tables

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Page:
    """What a page of `kind` on a data set says, and the command that makes it.

    `caption` is that of the picture, which stands below the first table; `ending` is Markdown.
    With `model` the page says one thing of one network, so that pages of several have room.
    """

    kind: str
    title: str
    command: str
    facts: Sequence[str]
    tables: Sequence[Table]
    caption: str
    draw: Callable[[], str]
    ending: str = ""
    model: str = ""


def show(page: Page, result: Mapping[str, Any], out: Path | None) -> None:
    """Print a result on `result["dataset"]`, and write its files to the folder `out`.

    One folder may hold the pages of several data sets. Raises OSError.
    """
    console = Console()
    print_tables(page.facts, page.tables, console)
    if page.ending:
        console.print(page.ending, highlight=False, markup=False)
    if out is None:
        return
    parts = (part for part in (result["dataset"], page.model) if _FILE_NAME.fullmatch(part))
    name = "-".join([page.kind, *parts])
    first, *others = page.tables
    first = replace(first, notes=(*first.notes, f"![{page.caption}]({name}.svg)"))
    text = markdown(page.title, page.command, page.facts, [first, *others]) + page.ending
    content = json.dumps({"command": page.command, **result}, indent=2) + "\n"
    write_atomic(out / f"{name}.md", text.encode())
    write_atomic(out / f"{name}.json", content.encode())
    write_atomic(out / f"{name}.svg", page.draw().encode())
