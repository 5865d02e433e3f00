"""Success of source inference as one picture."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitalring.tools.attack.gateway_attack import WHERE
from vitalring.tools.attack.source_inference import privacy_name
from vitalring.tools.drawing import INK, MARKERS, PALETTE, STYLE, draw, legend_below, name_rows
from vitalring.tools.measuring.intervals import interval

_STEP: float = 0.2
"""Distance of two guarantees on one row, of 1."""

_ROWS = (
    ("with names", "named/device"),
    ("anonymous: the slot", "anonymous/slot"),
    ("anonymous: the device", "anonymous/device"),
    ("anonymous, 1 known", "known 1/device, chained"),
    ("anonymous, 5 known", "known 5/device, chained"),
    ("opened sums alone", "sum/device"),
    ("opened sums, 5 known", "sum, known 5/device"),
    ("no update, 5 known", "no update, known 5/device"),
    ("no update, label mix", "label mix known"),
)


def attack_plot(result: Mapping[str, Any]) -> str:
    """Draw a panel for each division of the rows, and one for the gateway."""
    gateway = result["gateway"]
    with mpl.rc_context(STYLE):
        panels = len(result["cases"]) + bool(gateway)
        figure = Figure(figsize=(3.5 * panels + 0.6, 4.6), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        chance = 1.0 / result["settings"]["devices"]
        for panel, case in zip(axes, result["cases"], strict=False):
            names = [name for name, _ in _ROWS]
            found = [
                [study["figures"][figure_name] for _, figure_name in _ROWS]
                for study in case["studies"]
            ]
            _panel(panel, names, [study["epsilon"] for study in case["studies"]], found, chance)
            panel.set_title(f"records: devices {case['name']}")
        for panel in axes[1 : len(result["cases"])]:
            panel.set_yticklabels([])
        if gateway:
            _gateway(axes[-1], gateway, chance)
        legend_below(figure)
        return draw(figure)


def _gateway(axes: Axes, gateway: list[Mapping[str, Any]], chance: float) -> None:
    short = {"open": "disk, open", "closed": "disk, closed", "done": "disk, done", "live": "live"}
    known = [where for where in WHERE if all(where in run["attacks"] for run in gateway)]
    names = [*(short[where] for where in known), "control: in clear"]
    found = [
        [
            *(run["attacks"][where]["strongest features"]["shares"] for where in known),
            run["control"]["strongest features"],
        ]
        for run in gateway
    ]
    _panel(axes, names, [run["epsilon"] for run in gateway], found, chance)
    axes.set_title("slots of a real gateway")
    axes.set_xlabel("share of slots named")


def _panel(
    axes: Axes,
    names: list[str],
    epsilons: list[float],
    found: list[list[list[float]]],
    chance: float,
) -> None:
    axes.axvline(chance, color=INK, linestyle="--", linewidth=1.2, label="at random")
    for place, (epsilon, values) in enumerate(zip(epsilons, found, strict=True)):
        shift = _STEP * (place - (len(epsilons) - 1) / 2)
        intervals = [interval(each) for each in values]
        for row, each in enumerate(intervals):
            low, high = each.low, each.high
            if low is not None and high is not None:
                axes.plot([max(0.0, low), min(1.0, high)], [row + shift] * 2, color=PALETTE[place])
        axes.plot(
            [each.mean for each in intervals],
            [row + shift for row in range(len(names))],
            color=PALETTE[place],
            marker=MARKERS[place],
            markersize=5.0,
            linestyle="",
            label=privacy_name(epsilon),
        )
    name_rows(axes, names)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("share of records attributed")
