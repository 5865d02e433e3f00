"""Parts of the pictures of signals: millimetre paper, shading by importance, bars of channels.

Colours of importance: orange spoke for the class, blue against it, white neither. Colour-blind
readers can tell them apart, and the scale beside says which is which.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator

from vitalring.tools.drawing import BLUE, GREY, INK, VERMILION
from vitalring.tools.explain.channels import MILLIVOLT, Channel
from vitalring.tools.explain.occlusion import Array, Real

SHADES: Final = LinearSegmentedColormap.from_list(
    "importance", [BLUE, "#9CC9E3", "#FFFFFF", "#F4B58F", VERMILION]
)
MM_PER_MV: Final = 10.0
SPEEDS: Final = (50.0, 25.0)
"""Millimetres a second, as electrocardiographs write: the fast one for short windows."""
SHORT_S: Final = 2.0

_FINE, _COARSE = "#F3DEDA", "#E2B9B2"
_LEAST: Final = 0.05  # of log-odds: a model that hangs on nothing shows no colour
_BAR: Final = 0.62
LEAST_OF_BARS: Final = 0.35
"""Inches that a bar with a name of two lines needs."""
_MOST_NUMBERS: Final = 10  # below a trace


@dataclass(frozen=True)
class Scale:
    """The log-odds that the strongest colour and the longest bar stand for, by figure."""

    shade: float
    bar: float


def scale_of(patches: Sequence[Real], channels: Sequence[Real]) -> Scale:
    """Return one scale for all windows of a figure."""
    most = [
        max((float(np.abs(v).max()) for v in values), default=0.0) for values in (patches, channels)
    ]
    return Scale(max(most[0], _LEAST), max(most[1], _LEAST))


def speed_of(seconds: float) -> float:
    """Return the paper speed, in mm/s, for windows of this length."""
    return SPEEDS[0] if seconds <= SHORT_S else SPEEDS[1]


def span_of(traces: Sequence[Array], step: float) -> tuple[float, float]:
    """Return an axis' ends: whole steps around all traces, two steps apart at least."""
    low = math.floor(min(float(trace.min()) for trace in traces) / step - 0.1) * step
    high = math.ceil(max(float(trace.max()) for trace in traces) / step + 0.1) * step
    return low, max(high, low + 2 * step)


def draw_paper(axes: Axes, seconds: float, tall: float) -> None:
    """Rule the axes like millimetre paper: thin lines each mm, thick ones each 5 mm.

    The axis of millivolts, `tall` inches long, must have its ends already.
    """
    across, up = 1 / speed_of(seconds), 1 / MM_PER_MV
    low, high = axes.get_ylim()
    axes.grid(visible=False)
    # Lines of their own: hundreds of ticks would take a second to draw. Above the shading (0.2),
    # below the trace (3).
    for every, colour, width in ((1, _FINE, 0.5), (5, _COARSE, 0.8)):
        columns = np.arange(0.0, seconds, every * across)
        rows = np.arange(
            math.ceil(low / (every * up) - 1e-6), math.floor(high / (every * up) + 1.000001)
        )
        axes.vlines(columns, low, high, color=colour, linewidth=width, zorder=0.5 + every / 10)
        axes.hlines(
            rows * every * up, 0.0, seconds, color=colour, linewidth=width, zorder=0.5 + every / 10
        )
    axes.set_ylim(low, high)
    axes.xaxis.set_major_locator(MultipleLocator(_few(seconds, 5 * across, _MOST_NUMBERS)))
    axes.yaxis.set_major_locator(MultipleLocator(_few(high - low, 5 * up, 5.5 * tall)))
    axes.tick_params(which="both", length=0, pad=5)
    for side in axes.spines.values():
        side.set(visible=True, color=_COARSE, linewidth=0.8)


def draw_trace(
    axes: Axes,
    x: Array,
    importance: Real,
    sampling_hz: float,
    shade: float,
    width: float = 1.4,
) -> None:
    """Draw one channel (time,) over seconds, shaded by its importance (time,)."""
    seconds = np.arange(len(x)) / sampling_hz
    half = 0.5 / sampling_hz
    low, high = axes.get_ylim()
    axes.imshow(
        importance[None, :],
        cmap=SHADES,
        norm=Normalize(-shade, shade),
        extent=(-half, seconds[-1] + half, low, high),
        aspect="auto",
        interpolation="bilinear",
        zorder=0.2,
    )
    axes.plot(seconds, x, color=INK, linewidth=width, zorder=3, solid_joinstyle="round")
    axes.set_xlim(-half, seconds[-1] + half)
    axes.set_ylim(low, high)


def style_signal(axes: Axes, channel: Channel, seconds: float, tall: float) -> None:
    """Rule the axes as suits the channel's unit."""
    if channel.unit == MILLIVOLT:
        draw_paper(axes, seconds, tall)
    else:
        axes.grid(visible=True, axis="x")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))


def bars_height(count: int, most: float) -> float:
    """Return how high so many bars are drawn: not above `most`, unless their names need it."""
    return max(LEAST_OF_BARS * count, min(most, 0.1 + 0.42 * count))


def draw_bars(
    axes: Axes,
    names: Sequence[str],
    values: Sequence[float],
    most: float,
    spread: Sequence[tuple[float, float]] | None = None,
) -> None:
    """Draw what hiding whole channels costs, one bar below the other; `spread` are whiskers."""
    places = range(len(names))
    colours = [VERMILION if value > 0 else BLUE for value in values]
    axes.barh(places, values, height=_BAR, color=colours)
    if spread:
        for place, (low, high) in zip(places, spread, strict=True):
            axes.plot([low, high], [place] * 2, color=INK, linewidth=1.1)
    axes.axvline(0.0, color=GREY, linewidth=0.8)
    axes.set_xlim(-1.08 * most, 1.08 * most)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", length=0, pad=4)
    round_one = _round_below(most)
    axes.set_xticks([-round_one, 0.0, round_one], [f"-{round_one:g}", "0", f"{round_one:g}"])
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)


def _few(length: float, thick: float, most: float) -> float:
    """Return how far apart numbers stand: so many thick lines that there are at most `most`."""
    steps = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)
    return next((thick * n for n in steps if length / (thick * n) <= most), length)


def _round_below(value: float) -> float:
    """Return the greatest of 1, 2 and 5 times a power of ten up to a value."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(n * power for n in (5.0, 2.0, 1.0) if n * power <= value * 1.0001)


def draw_scale(figure: Figure, place: tuple[float, float, float, float], shade: float) -> None:
    """Draw the scale of colours, in figure coordinates (left, bottom, width, height)."""
    axes = figure.add_axes(place)
    ramp: Any = np.linspace(-shade, shade, 201)[None, :]
    axes.imshow(
        ramp,
        cmap=SHADES,
        norm=Normalize(-shade, shade),
        extent=(-shade, shade, 0, 1),
        aspect="auto",
    )
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, symmetric=True))
    axes.tick_params(axis="x", length=2, labelsize=8)
    for side in axes.spines.values():
        side.set(visible=True, color=GREY, linewidth=0.6)
    axes.set_title("drop of the log-odds when hidden:  against  ◂  0  ▸  for", fontsize=8.5, pad=4)
