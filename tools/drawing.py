"""How every figure is drawn: palette, style, rows with names, and one SVG text out.

Rules kept here: the same numbers give the same bytes (fixed hash salt, no
date); text is drawn as outlines, so a figure looks the same on every machine,
and is never parsed as mathematics, so a class called `$x$` is just a name.
Figures are built without pyplot: there is no current figure that two threads
could share.
"""

import io
from collections.abc import Sequence
from typing import Any, Final

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart; its yellow, too pale on
# white, is left out.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, INK, GREY = "#E69F00", "#56B4E9", "#1F2933", "#7B8794"
PALETTE: Final = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, INK)
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")

STYLE: Any = {
    "svg.hashsalt": "vitalring",
    "svg.fonttype": "path",
    "text.parse_math": False,
    "text.usetex": False,
    "axes.unicode_minus": False,
    "font.family": ["DejaVu Sans"],  # ships with matplotlib
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E4E7EB",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
}


def draw(figure: Figure) -> str:
    """Return a figure as SVG, the same text for the same figure."""
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", dpi=200, metadata=nothing)
    return buffer.getvalue()


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Give each of so many rows, from the top down, its name and a line to the next."""
    for border in range(1, len(names)):
        axes.axhline(border - 0.5, color=GREY, linewidth=0.5)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)


def legend_below(figure: Figure, columns: int | None = None) -> None:
    """Name what is drawn, once for all of the figure's panels; in one line, or in `columns`."""
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=columns or len(handles),
    )
