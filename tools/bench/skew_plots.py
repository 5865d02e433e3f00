"""The comparison of `vitalring bench skew` as one picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vitalring.tools.bench.skew import case_name, personal_name
from vitalring.tools.drawing import MARKERS, PALETTE, STYLE, draw, legend_below

_CASE_IN = 2.75
_LINES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1.2, 1, 1.2)))


def skew_plot(result: Mapping[str, Any]) -> str:
    """Draw a column for each case: macro-F1 by round on held-out rows, accuracy on own rows."""
    cases = result["cases"]
    names = [side["name"] for side in result["sides"]]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(0.9 + _CASE_IN * len(cases), 6.0), layout="constrained")
        grid = figure.subplots(2, len(cases), sharey="row", squeeze=False, height_ratios=(3, 2))
        for column, case in enumerate(cases):
            top, bottom = grid[0][column], grid[1][column]
            top.set_title(f"{case_name(case['alpha'])}, {case['devices']} devices")
            _curves(top, case["sides"])
            _own_rows(bottom, case, [*names, personal_name(result)])
        _limits(grid[0], cases)
        lowest = min(axes.get_xlim()[0] for axes in grid[1])
        for axes in grid[1]:
            axes.set_xlim(max(0.0, lowest), 1.02)
        grid[0][0].set_ylabel("macro-F1, held-out rows")
        legend_below(figure)
        return draw(figure)


def _curves(axes: Axes, sides: Sequence[Mapping[str, Any]]) -> None:
    """Draw each side's mean over seeds, and a band from the least to the greatest."""
    for place, side in enumerate(sides):
        curves = np.asarray(side["curves"])
        rounds = np.arange(1, curves.shape[1] + 1)
        colour = PALETTE[place]
        axes.fill_between(
            rounds, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.13, linewidth=0
        )
        axes.plot(
            rounds, curves.mean(axis=0), color=colour, linestyle=_LINES[place], label=side["name"]
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.set_xlabel("round")


def _limits(panels: Sequence[Axes], cases: Sequence[Mapping[str, Any]]) -> None:
    """Let the curves fill the panels: the first rounds may fall out below."""
    later = [
        value
        for case in cases
        for side in case["sides"]
        for curve in side["curves"]
        for value in curve[len(curve) // 4 :]
    ]
    low, high = min(later), max(later)
    pad = 0.05 * max(high - low, 0.01)
    for axes in panels:
        axes.set_ylim(max(0.0, low - pad), min(1.0, high + pad))


def _own_rows(axes: Axes, case: Mapping[str, Any], names: Sequence[str]) -> None:
    """Draw each side's accuracy on own rows: mean over devices, and the fifth that fare worst."""
    seeds = [*(side["own_rows"] for side in case["sides"])]
    seeds.append([seed["own_rows"] for seed in case["personal"]])
    for row, found in enumerate(seeds):
        colour = PALETTE[row]
        for key, face in (("accuracy", colour), ("worst_accuracy", "white")):
            values = [seed[key] for seed in found]
            axes.plot([min(values), max(values)], [row, row], color=colour, linewidth=1.4)
            axes.plot(
                [float(np.mean(values))],
                [row],
                color=colour,
                marker=MARKERS[row],
                markersize=6.5,
                markerfacecolor=face,
                linestyle="",
            )
    axes.set_ylim(len(seeds) - 0.5, -0.5)
    axes.set_yticks(range(len(seeds)), names)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    axes.set_xlabel("accuracy on own rows\nfilled: all devices, white: worst fifth")
