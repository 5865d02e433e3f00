"""The comparison of `vitalring bench fleet` as one picture."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from vitalring.tools.bench.fleet_text import accuracies, label
from vitalring.tools.drawing import GREY, INK, MARKERS, PALETTE, STYLE, draw, legend_below

_STEP = 0.09
"""Distance of two sides at one epsilon, of 1."""


def fleet_plot(result: Mapping[str, Any]) -> str:
    """Draw accuracy by epsilon: every run a point, a side's mean a marker, no privacy a line."""
    noisy = [side for side in result["sides"] if side["epsilon"] is not None]
    epsilons = sorted({side["epsilon"] for side in noisy})
    names = list(dict.fromkeys(label(side) for side in noisy))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for side, dash in zip(result["sides"][:2], ("-", "--"), strict=True):
            mean = float(np.mean(accuracies(side)))
            axes.axhline(mean, color=GREY, linestyle=dash, linewidth=1.2, label=side["side"])
        for place, name in enumerate(names):
            shift = _STEP * (place - (len(names) - 1) / 2)
            colour = PALETTE[place % len(PALETTE)]
            for side in (each for each in noisy if label(each) == name):
                values = accuracies(side)
                at = epsilons.index(side["epsilon"]) + shift
                axes.plot([at] * len(values), values, ".", color=colour, alpha=0.45)
                axes.plot(
                    [at],
                    [float(np.mean(values))],
                    MARKERS[place % len(MARKERS)],
                    color=colour,
                    markersize=7.5,
                    markeredgecolor=INK,
                    markeredgewidth=0.6,
                    label=name if side["epsilon"] == epsilons[0] else None,
                )
        axes.set_xticks(range(len(epsilons)), [f"{epsilon:g}" for epsilon in epsilons])
        axes.set_xlim(-0.5, len(epsilons) - 0.5)
        axes.set_xlabel("epsilon of the study, for a device")
        axes.set_ylabel("accuracy, held-out people")
        legend_below(figure, 2)
        return draw(figure)
