"""A measurement's page: printed, and written as Markdown, JSON and a picture."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vitalring.files import write_atomic
from vitalring.tools.bench.table import Table, markdown, print_tables

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def show(
    kind: str,
    title: str,
    command: str,
    result: Mapping[str, Any],
    facts: Sequence[str],
    tables: Sequence[Table],
    caption: str,
    draw: Callable[[], str],
    out: Path | None,
) -> None:
    """Print a result of `kind` on `result["dataset"]`, and write its files to the folder `out`.

    One folder may hold the pages of several data sets. Raises OSError.
    """
    print_tables(facts, tables, Console())
    if out is None:
        return
    data = result["dataset"]
    name = f"{kind}-{data}" if _FILE_NAME.fullmatch(data) else kind
    first = replace(tables[0], notes=(*tables[0].notes, f"![{caption}]({name}.svg)"))
    page = markdown(title, command, facts, [first, *tables[1:]])
    content = json.dumps({"command": command, **result}, indent=2) + "\n"
    write_atomic(out / f"{name}.md", page.encode())
    write_atomic(out / f"{name}.json", content.encode())
    write_atomic(out / f"{name}.svg", draw().encode())
