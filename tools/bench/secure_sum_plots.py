"""The comparison of `vitalring bench secure-sum` as one picture."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitalring.tools.bench.secure_sum_text import per_parameter, side_name, sides_at, total
from vitalring.tools.drawing import BLUE, GREY, INK, STYLE, VERMILION, draw
from vitalring.tools.measuring.spread import milliseconds

_FLOAT32_BYTES = 4.0


def sum_plot(result: Mapping[str, Any]) -> str:
    """Draw bytes a parameter and one device's processor time of every side, at one size."""
    dimension, devices = result["compared"]
    rows = sides_at(result, dimension, devices)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 1.3 + 0.3 * len(rows)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _bars(left, rows, per_parameter, lambda size: f"{size:.2f}")
        left.set_yticks(range(len(rows)), [side_name(row) for row in rows])
        left.set_title("bytes a parameter that a device sends")
        left.axvline(_FLOAT32_BYTES, color=INK, linestyle="--", linewidth=1.0, zorder=2)
        left.text(_FLOAT32_BYTES, -0.72, " float32 in clear", color=INK, fontsize=8, va="center")
        _bars(right, rows, lambda row: total(row["device"]), milliseconds)
        right.set_title("processor time of a device, ms")
        figure.supxlabel(f"{dimension:,} parameters, {devices:,} devices", fontsize=9)
        return draw(figure)


def _bars(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    figure_of: Callable[[Mapping[str, Any]], float],
    form: Callable[[float], str],
) -> None:
    values = [figure_of(row) for row in rows]
    bars = axes.barh(range(len(rows)), values, color=[_colour(row) for row in rows], height=0.66)
    labels = axes.bar_label(bars, [form(value) for value in values], padding=4, fontsize=8)
    for label in labels:
        # Legible where the line for float32 passes.
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8})
    axes.set_ylim(len(rows) - 0.5, -1.0)
    axes.set_xlim(0.0, 1.18 * max(values))
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False)


def _colour(row: Mapping[str, Any]) -> str:
    if "mode" not in row:
        return VERMILION
    return GREY if row["mode"] == "plain" else BLUE
