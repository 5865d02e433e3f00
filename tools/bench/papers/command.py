"""`vitalring bench papers`: the tables of two papers, measured on public data.

Resumable: each run is kept in `--out` as soon as it is measured, and the same command goes on
from there.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vitalring.errors import ConfigError
from vitalring.files import write_atomic
from vitalring.tools.measuring.table import markdown, print_tables

DEFAULT_PLAN = Path(__file__).resolve().parents[3] / "docs" / "studies" / "papers.toml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.add_argument(
        "--data",
        type=_named,
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="folder of a data set that the plan names; once for each",
    )
    parser.add_argument(
        "--plan", type=Path, default=DEFAULT_PLAN, help="data sets, studies and epsilons, as TOML"
    )
    parser.add_argument("--quick", action="store_true", help="minutes instead of hours")
    parser.add_argument(
        "--tensorflow", metavar="PYTHON", help="interpreter with vitalring[models], for central DP"
    )
    parser.add_argument(
        "--tables", default="a,b,f,ledger", help="which: a, b, f (epsilon), ledger; as a,b"
    )
    parser.add_argument("--rows", type=int, help="most rows of a device; default: the form's")
    parser.add_argument("--seeds", type=int, help="runs of table b; default: the form's")
    parser.add_argument("--no-times", action="store_true", help="leave times for a machine at rest")
    parser.add_argument(
        "--no-run", action="store_true", help="write the page of what is measured already"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of what is measured")
    parser.add_argument("--page", type=Path, help="folder for page and pictures; default: --out")


def run(options: argparse.Namespace) -> int:
    """Run the command; exit code 1 where a cell is not measured."""
    # Networks are of no use to the other measurements, which run many small processes.
    from vitalring.tools.bench.papers.cells import TABLES, Setup, cells_of  # noqa: PLC0415
    from vitalring.tools.bench.papers.data import prepare, refuse_unfit  # noqa: PLC0415
    from vitalring.tools.bench.papers.measuring import (  # noqa: PLC0415
        known_cells,
        measure_cells,
    )
    from vitalring.tools.bench.papers.settings import FULL, QUICK, load_papers  # noqa: PLC0415
    from vitalring.tools.bench.papers.store import Store  # noqa: PLC0415

    papers, form = load_papers(options.plan), QUICK if options.quick else FULL
    for name in ("rows", "seeds"):
        if (value := getattr(options, name)) is not None:
            if value < 1:
                raise ConfigError(f"--{name} {value}: give 1 or more")
            form = replace(form, **{name: value})
    tables = tuple(part for part in options.tables.split(",") if part)
    unknown = sorted(set(tables) - set(TABLES))
    if unknown or not tables:
        raise ConfigError(f"--tables {options.tables}: name some of {', '.join(TABLES)}")
    folders = dict(options.data)
    names = [each.name for each in papers.sets]
    foreign = sorted(set(folders) - set(names))
    if foreign:
        raise ConfigError(f"--data {foreign[0]}=…: the plan names {', '.join(names)}")
    out: Path = options.out.absolute()
    (out / "data").mkdir(parents=True, exist_ok=True)
    data = {name: prepare(folder, form.rows, out / "data") for name, folder in folders.items()}
    sites = None
    if (hospitals := folders.get(papers.sites.data)) is not None:
        sites = prepare(hospitals, papers.sites.rows_in(form), out / "data")
    left_out = {name: "no --data names its folder." for name in names if name not in folders}
    if options.tensorflow is None:
        left_out["central DP-SGD"] = "no --tensorflow names an interpreter."
    setup = Setup(papers, form, data, sites, out, options.tensorflow, tables, left_out)
    cells, store = cells_of(setup), Store(out / "cells")
    console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    if not options.no_run:
        refuse_unfit(cells.values())
        try:
            measure_cells(cells, store, out / "runs", console.print, times=not options.no_times)
        except KeyboardInterrupt:
            # What was measured is worth its page; the cell that was running begins anew.
            _write(options, setup, known_cells(cells, store))
            raise
    known = known_cells(cells, store)
    _write(options, setup, known)
    return 0 if all(found.whole for found in known.values()) else 1


def _write(options: argparse.Namespace, setup: Any, known: Mapping[str, Any]) -> None:  # noqa: ANN401
    from vitalring.tools.bench.papers.settings import offered  # noqa: PLC0415

    result = {
        "command": _command(options),
        "form": asdict(setup.form),
        "sets": [
            {"name": each.name, "title": each.title, "judged_by": each.judged_by}
            for each in setup.papers.sets
            if each.name in setup.data
        ],
        "epsilons": list(setup.papers.epsilons),
        "sites_rows": setup.papers.sites.rows_in(setup.form),
        "left_out": dict(setup.left_out),
        "refused_units": offered()[1],
        "cells": {label: asdict(found) for label, found in known.items()},
    }
    write_page(options.page or options.out, result)


def write_page(folder: Path, result: Mapping[str, Any]) -> None:
    """Print a result, and write it as Markdown with pictures and as JSON."""
    from vitalring.tools.bench.papers.plots import epsilon_plot, rows_plot  # noqa: PLC0415
    from vitalring.tools.bench.papers.text import papers_facts, papers_tables  # noqa: PLC0415

    facts, tables = papers_facts(result), papers_tables(result)
    print_tables(facts, tables, Console())
    for start, name, what, picture in (
        ("Paper A, Table 1", "papers-rows", "Accuracy by training", rows_plot(result)),
        ("Paper B, Figure 2", "papers-epsilon", "Accuracy by epsilon", epsilon_plot(result)),
    ):
        if picture is None:
            continue
        write_atomic(folder / f"{name}.svg", picture.encode())
        # Below the last of its tables.
        place = max(n for n, table in enumerate(tables) if table.title.startswith(start))
        notes = (*tables[place].notes, f"![{what}]({name}.svg)")
        tables[place] = replace(tables[place], notes=notes)
    title = "The papers' tables on public data"
    if result["form"]["name"] == "quick":
        title += " (quick figures)"
    page = markdown(title, result["command"], facts, tables)
    write_atomic(folder / "papers.md", page.encode())
    content = json.dumps(result, indent=1, allow_nan=False) + "\n"
    write_atomic(folder / "papers.json", content.encode())


def _command(options: argparse.Namespace) -> str:
    """Return the command that makes such a page; places are one machine's business."""
    command = "vitalring bench papers"
    command += "".join(f" --data {name}=FOLDER" for name, _ in options.data)
    command += " --quick" if options.quick else ""
    command += " --tensorflow PYTHON" if options.tensorflow else ""
    command += f" --rows {options.rows}" if options.rows else ""
    command += f" --seeds {options.seeds}" if options.seeds else ""
    command += f" --tables {options.tables}" if options.tables != "a,b,f,ledger" else ""
    return f"{command} --out FOLDER --page docs/results"


def _named(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER")
    return name, Path(folder)
