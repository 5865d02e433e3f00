"""A table of results, printed or written as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as RichTable


@dataclass(frozen=True)
class Table:
    """Rows of text as wide as `titles`, and sentences below them."""

    title: str
    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def print_tables(facts: Sequence[str], tables: Sequence[Table], console: Console) -> None:
    """Print what was measured, and on what."""
    for fact in facts:
        console.print(fact, highlight=False, markup=False)
    for table in tables:
        grid = RichTable(title=table.title, title_justify="left")
        for index, title in enumerate(table.titles):
            grid.add_column(title, justify="right" if index else "left")
        for row in table.rows:
            grid.add_row(*row)
        console.print("", grid, highlight=False)
        for note in table.notes:
            console.print(note, highlight=False, markup=False)


def markdown(title: str, command: str, facts: Sequence[str], tables: Sequence[Table]) -> str:
    """Return a page with the same tables."""
    parts = [f"# {title}", f"Made by `{command}`.", "\n".join(f"- {fact}" for fact in facts)]
    for table in tables:
        lines = [
            "| " + " | ".join(table.titles) + " |",
            "|" + "|".join([" --- ", *[" ---: "] * (len(table.titles) - 1)]) + "|",
            *("| " + " | ".join(row) + " |" for row in table.rows),
        ]
        parts += [f"## {table.title}", "\n".join(lines), *table.notes]
    return "\n\n".join(parts) + "\n"
