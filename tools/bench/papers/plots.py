"""Figure 2 of paper B and the accuracies of paper A's table, as pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitalring.tools.bench.papers.reported import FIGURE_B, TABLE_A
from vitalring.tools.bench.papers.store import MEASURED
from vitalring.tools.bench.papers.text_b import curve_name, figure_points
from vitalring.tools.drawing import GREY, INK, MARKERS, PALETTE, STYLE, draw

_PANEL_IN = 4.2


def epsilon_plot(result: Mapping[str, Any]) -> str | None:
    """Return Figure 2 as SVG, one panel for each data set; None where nothing is there to draw."""
    panels = [
        (each["title"], points)
        for each in result["sets"]
        if (points := figure_points(result["cells"], each["name"]))
    ]
    if not panels:
        return None
    curves = sorted({curve for _, points in panels for curve in points} - {"none"})
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_PANEL_IN * len(panels), 3.9), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for each, (title, points) in zip(axes, panels, strict=True):
            _epsilons(each, points, curves)
            each.set_title(title, fontsize=9.5)
        axes[0].set_ylabel("accuracy, %")
        _legend(figure, axes)
        return draw(figure)


def _epsilons(
    axes: Axes, points: Mapping[str, Mapping[float, Sequence[float]]], curves: Sequence[str]
) -> None:
    for place, curve in enumerate(curves):
        if curve not in points:
            continue
        colour = PALETTE[place % len(PALETTE)]
        x = sorted(points[curve])
        y = [100 * np.asarray(points[curve][epsilon]) for epsilon in x]
        middle = [each.mean() for each in y]
        axes.plot(x, middle, color=colour, marker=MARKERS[place], label=curve_name(curve))
        low, high = [each.min() for each in y], [each.max() for each in y]
        axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
    if "none" in points:
        level = 100 * float(np.mean(points["none"][0.0]))
        axes.axhline(level, color=INK, linestyle="--", linewidth=1.2, label="no privacy")
    paper_x, paper_y = zip(*FIGURE_B, strict=True)
    axes.plot(paper_x, paper_y, color=GREY, linestyle=":", marker="x", label="paper, on its data")
    axes.set_xscale("log")
    axes.set_xticks(paper_x, [f"{value:g}" for value in paper_x])
    axes.minorticks_off()
    axes.set_xlabel("epsilon")


def rows_plot(result: Mapping[str, Any]) -> str | None:
    """Return the accuracies of paper A's table as SVG; None where nothing is there to draw."""
    panels = [
        (each, found)
        for each in result["sets"]
        if (found := _accuracies(result["cells"], each["name"]))
    ]
    if not panels:
        return None
    names = [row.name for row in TABLE_A.values()]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.6 + 2.9 * len(panels), 3.4), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for each, (data, found) in zip(axes, panels, strict=True):
            for place, row in enumerate(TABLE_A):
                if row in found:
                    value, low, high = (100 * found[row][key] for key in ("value", "low", "high"))
                    each.plot([low, high], [place, place], color=PALETTE[0], linewidth=1.6)
                    each.plot(
                        [value],
                        [place],
                        color=PALETTE[0],
                        marker="o",
                        linestyle="",
                        label="measured, 95 % interval" if row == next(iter(found)) else None,
                    )
            paper = [row.accuracy for row in TABLE_A.values()]
            each.plot(
                paper,
                range(len(paper)),
                color=GREY,
                marker="x",
                linestyle="",
                label="paper, on its data",
            )
            each.set_title(data["title"], fontsize=9.5)
            each.set_xlabel("accuracy, %")
        axes[0].set_yticks(range(len(names)), names)
        axes[0].set_ylim(len(names) - 0.5, -0.5)
        _legend(figure, axes)
        return draw(figure)


def _accuracies(known: Mapping[str, Any], name: str) -> dict[str, Mapping[str, float]]:
    found = {}
    for row in TABLE_A:
        kind = "pooled" if row == "centralised" else "study"
        cell = known.get(f"a/{name}/{row}/{kind}")
        if cell is not None and cell["status"] == MEASURED:
            found[row] = cell["result"]["accuracy"]
    return found


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    handles: dict[str, Any] = {}
    for each in axes:
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=2 * len(axes)
    )
