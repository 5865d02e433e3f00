"""The comparison of `vitalring bench robust` as one picture."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitalring.tools.bench.robust import hostile_count
from vitalring.tools.drawing import GREY, MARKERS, PALETTE, STYLE, draw, legend_below

_STEP: float = 0.13
"""Distance of two defences on one attack's row, of 1."""


def robust_plot(result: Mapping[str, Any]) -> str:
    """Draw a panel for each share of hostile devices: macro-F1 by attack and defence."""
    shares = result["settings"]["shares"]
    clean = next(case for case in result["cases"] if not case["attack"])
    names = [defence["name"] for defence in result["defences"]]
    with mpl.rc_context(STYLE):
        size = 1.6 + 0.62 * (1 + len(result["attacks"]))
        figure = Figure(figsize=(1.6 + 3.1 * len(shares), size), layout="constrained")
        panels = figure.subplots(1, len(shares), sharex=True, sharey=True, squeeze=False)[0]
        for axes, share in zip(panels, shares, strict=True):
            cases = [clean, *(case for case in result["cases"] if case["share"] == share)]
            _panel(axes, cases, names)
            count = result["settings"]["devices"]
            axes.set_title(f"{hostile_count(count, share)} of {count} devices hostile")
        legend_below(figure, 3)
        return draw(figure)


def _panel(axes: Axes, cases: list[Mapping[str, Any]], names: list[str]) -> None:
    for place, name in enumerate(names):
        seeds = [[run["macro_f1"] for run in case["defences"][place]] for case in cases]
        rows = np.arange(len(cases)) + _STEP * (place - (len(names) - 1) / 2)
        colour = PALETTE[place]
        axes.hlines(rows, [min(s) for s in seeds], [max(s) for s in seeds], color=colour)
        axes.plot(
            [float(np.mean(s)) for s in seeds],
            rows,
            color=colour,
            marker=MARKERS[place],
            markersize=6.0,
            markerfacecolor="white" if place < 2 else colour,
            linestyle="",
            label=name,
        )
    for border in range(1, len(cases)):
        axes.axhline(border - 0.5, color=GREY, linewidth=0.6)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.set_yticks(range(len(cases)), [case["attack"] or "no attack" for case in cases])
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(-0.03, 1.0)
    axes.set_xlabel("macro-F1, held-out rows")
