"""Permutation importance as bars, one for each column."""

from collections.abc import Sequence
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from vitalring.tools import report_text as text
from vitalring.tools.drawing import BLUE, GREEN, GREY, INK, STYLE, draw
from vitalring.tools.explain.layout import Sheet
from vitalring.tools.explain.permutation import Drop, Permuted

SHOWN: Final = 20
"""Most columns that are drawn; all are in the table of figures."""

_NAMES: Final = 2.6
_PANEL: Final = 3.4
_BAR: Final = 0.24


def draw_reliance(permuted: Permuted) -> str:
    """Draw the drops of AUROC and of macro-F1 as SVG, the most important columns first."""
    shown = permuted.columns[:SHOWN]
    height = 0.75 + _BAR * len(shown)
    with mpl.rc_context(STYLE):
        sheet = Sheet.of(_NAMES + 2 * _PANEL + 0.6, height)
        for place, (name, figure) in enumerate(
            (("AUROC", permuted.auroc), ("macro-F1", permuted.macro_f1))
        ):
            drops = [one.auroc if place == 0 else one.macro_f1 for one in shown]
            axes = sheet.axes(_NAMES + place * (_PANEL + 0.3), 0.3, _PANEL, _BAR * len(shown))
            _bars(axes, drops, BLUE if place == 0 else GREEN)
            axes.set_title(f"drop of {name}, from {text.fraction(_known(figure))}", fontsize=9)
            labels = [text.short(one.column, 40) for one in shown] if place == 0 else []
            axes.set_yticks(range(len(shown)) if place == 0 else [], labels)
        return draw(sheet.figure)


def _bars(axes: Axes, drops: Sequence[Drop], colour: str) -> None:
    places = range(len(drops))
    axes.barh(places, [drop.mean for drop in drops], color=colour, height=0.66)
    for place, drop in zip(places, drops, strict=True):
        axes.plot([drop.low, drop.high], [place] * 2, color=INK, linewidth=1.2)
    axes.axvline(0.0, color=GREY, linewidth=0.8)
    axes.set_ylim(len(drops) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)


def _known(value: float) -> float | None:
    return None if value != value else value  # noqa: PLR0124 - NaN alone differs from itself
