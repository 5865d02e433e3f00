"""The steps of `vitalring bench utility` as one picture."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from vitalring.tools.bench.ladder_text import METRICS, figures
from vitalring.tools.drawing import BLUE, GREY, INK, STYLE, draw, legend_below

_ROW_IN = 0.32


def ladder_plot(result: Mapping[str, Any]) -> str:
    """Draw a row for each step: seeds as points, their mean, and a mark without noise."""
    metric, steps = result["metric"], result["steps"]
    with mpl.rc_context(STYLE):
        size = (8.0, 1.3 + _ROW_IN * len(steps))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        for row, step in enumerate(steps):
            values = figures(step, metric)
            face = "white" if step["beside"] else BLUE
            first = row == 0
            axes.plot(values, [row] * len(values), ".", color=BLUE, alpha=0.5)
            if step["without_noise"]:
                axes.plot(
                    [step["without_noise"][metric]],
                    [row],
                    "|",
                    color=INK,
                    markersize=11.0,
                    markeredgewidth=1.6,
                    label="without noise" if first else None,
                )
            axes.plot(
                [float(np.mean(values))],
                [row],
                "o",
                color=BLUE,
                markerfacecolor=face,
                markersize=7.0,
                label=f"epsilon {result['epsilon']:g}" if first else None,
            )
        for border in range(1, len(steps)):
            axes.axhline(border - 0.5, color=GREY, linewidth=0.3)
        names = [("   " if step["beside"] else "") + step["name"] for step in steps]
        axes.set_yticks(range(len(steps)), names)
        axes.set_ylim(len(steps) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"{METRICS[metric]}, people held back; white: beside the steps")
        legend_below(figure, 2)
        return draw(figure)
