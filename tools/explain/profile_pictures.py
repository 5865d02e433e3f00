"""The average importance of each class, as curves over time and for whole channels."""

from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from vitalring.tools import report_text as text
from vitalring.tools.drawing import BLUE, GREY, INK, STYLE, VERMILION, draw
from vitalring.tools.explain import paper
from vitalring.tools.explain.channels import MILLIVOLT
from vitalring.tools.explain.layout import MAX_NAME, Sheet
from vitalring.tools.explain.window_pictures import is_one_signal
from vitalring.tools.explain.windows import ClassAverage, WindowFindings

MAX_CURVES: Final = 8
"""Most signals whose curves are drawn; of more, whole channels alone."""

_WIDTH: Final = 10.0
_HEAD, _FOOT, _SCALE = 0.5, 0.5, 0.62


def draw_profiles(found: WindowFindings) -> str:
    """Draw the averages of all classes as SVG."""
    return _one_signal(found) if is_one_signal(found) else _many_signals(found)


def _one_signal(found: WindowFindings) -> str:
    """Draw a row for each class: the mean trace, the importance over time, whole channels."""
    signal, averages = found.searched[0], found.averages
    channel = found.channels[signal]
    scale = paper.scale_of(
        [a.patches[0, :, signal] for a in averages], [a.channels for a in averages]
    )
    traces = [a.x[:, signal] for a in averages]
    seconds = found.time / found.sampling_hz
    is_ecg = channel.unit == MILLIVOLT
    spread = max(float(np.ptp(trace)) for trace in traces) or 1.0
    low, high = paper.span_of(traces, 0.5 if is_ecg else spread / 8)
    wide = 2.2
    tall = (
        wide * (high - low) * paper.MM_PER_MV / (seconds * paper.speed_of(seconds))
        if is_ecg
        else 1.4
    )
    tall = min(tall, 3.0)
    curves = [a.patches[:, :, signal] for a in averages]
    limits = _limits(curves)
    row = _HEAD + max(tall, paper.LEAST_OF_BARS * len(found.channels)) + _FOOT
    height = row * len(averages) + _SCALE
    names = [
        f"whole {text.short(c.name, MAX_NAME)}"
        if place in found.searched
        else _two_lines(c.name, c.unit)
        for place, c in enumerate(found.channels)
    ]
    with mpl.rc_context(STYLE):
        sheet = Sheet.of(_WIDTH, height)
        for place, average in enumerate(averages):
            top = _HEAD + row * place
            sheet.head(
                0.55, top - 0.27, text.short(found.classes[average.label], 40), _note(average)
            )
            axes = sheet.axes(0.55, top, wide, tall)
            axes.set_ylim(low, high)
            paper.style_signal(axes, channel, seconds, tall)
            paper.draw_trace(axes, traces[place], curves[place][0], found.sampling_hz, scale.shade)
            axes.set_xlabel("seconds")
            axes.set_ylabel(text.short(channel.unit or channel.name, MAX_NAME))
            axes = sheet.axes(3.55, top, 2.5, tall)
            axes.set_ylabel("drop of log-odds")
            _curve(axes, curves[place], found.sampling_hz)
            axes.set_ylim(*limits)
            axes.set_xlabel("seconds")
            if place == 0:
                axes.set_title("patches over time", fontsize=8.5, color=GREY, pad=4)
            bars = sheet.axes(8.0, top, 1.85, paper.bars_height(len(names), tall))
            spans = [(float(a), float(b)) for a, b in average.channels[1:].T]
            values = [float(value) for value in average.channels[0]]
            most = max(float(np.abs(a.channels).max()) for a in averages)
            paper.draw_bars(bars, names, values, max(most, scale.bar), spans)
            bars.set_xlabel("drop of log-odds")
            if place == 0:
                bars.set_title("whole channels", fontsize=8.5, color=GREY, pad=4)
        paper.draw_scale(sheet.figure, sheet.box(3.1, height - 0.36, 3.8, 0.12), scale.shade)
        return draw(sheet.figure)


def _many_signals(found: WindowFindings) -> str:
    """Draw a row for each class: a curve for each signal, then a map of whole channels."""
    averages = found.averages
    signals = found.searched if len(found.searched) <= MAX_CURVES else ()
    left, tall, names_height = 1.85, 0.62, 1.3
    wide = 5.1 / max(len(signals), 1)
    map_left = left + (5.1 if signals else 0.0) + 0.45
    map_wide = _WIDTH - map_left - 0.2
    height = names_height + (tall + 0.12) * len(averages) + 0.5
    limits = _limits([average.patches[:, :, list(signals)] for average in averages])
    with mpl.rc_context(STYLE):
        sheet = Sheet.of(_WIDTH, height)
        for row, average in enumerate(averages):
            top = names_height + (tall + 0.12) * row
            _label(sheet, found, average, top + tall / 2)
            for column, signal in enumerate(signals):
                axes = sheet.axes(left + wide * column, top, wide - 0.1, tall)
                _curve(axes, average.patches[:, :, signal], found.sampling_hz)
                axes.set_ylim(*limits)
                axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
                axes.xaxis.set_major_locator(MaxNLocator(nbins=2))
                axes.tick_params(
                    labelsize=7,
                    labelleft=column == 0,
                    labelbottom=row == len(averages) - 1,
                )
                if row == 0:
                    _upright(axes, found.channels[signal].name)
        _map(sheet, found, (map_left, names_height, map_wide), (tall + 0.12) * len(averages))
        if signals:
            x, y, _, _ = sheet.box(left + 2.5, height - 0.16, 0.0, 0.0)
            sheet.figure.text(x, y, "drop of the log-odds over seconds", ha="center", fontsize=8.5)
        x, y, _, _ = sheet.box(map_left + map_wide / 2, height - 0.16, 0.0, 0.0)
        sheet.figure.text(x, y, "whole channels", ha="center", fontsize=8.5)
        return draw(sheet.figure)


def _map(
    sheet: Sheet, found: WindowFindings, place: tuple[float, float, float], tall: float
) -> None:
    left, top, wide = place
    values: Any = np.array([average.channels[0] for average in found.averages])
    most = max(float(np.abs(values).max()), 0.05)
    axes = sheet.axes(left, top, wide, tall - 0.12)
    axes.grid(visible=False)
    axes.imshow(values, cmap=paper.SHADES, norm=Normalize(-most, most), aspect="auto")
    axes.set_yticks([])
    axes.xaxis.tick_top()
    axes.set_xticks(
        range(len(found.channels)),
        [text.short(channel.name, MAX_NAME) for channel in found.channels],
        rotation=90,
    )
    axes.tick_params(length=0, labelsize=8.5)
    for side in axes.spines.values():
        side.set_visible(False)
    if values.size <= 100:
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if abs(value) > 0.75 * most else INK
            number = f"{round(value, 1) + 0.0:.1f}".replace("-", "−")
            axes.text(column, row, number, ha="center", va="center", fontsize=8, color=colour)


def _curve(axes: Axes, curve: Any, sampling_hz: float) -> None:  # noqa: ANN401
    """Draw mean and quartiles (3, time)."""
    mean, low, high = curve
    seconds = np.arange(len(mean)) / sampling_hz
    axes.axhline(0.0, color=GREY, linewidth=0.8)
    axes.fill_between(seconds, low, high, color=INK, alpha=0.13, linewidth=0)
    axes.plot(seconds, mean, color=INK, linewidth=1.1)
    axes.fill_between(seconds, 0, np.maximum(mean, 0), color=VERMILION, alpha=0.55, linewidth=0)
    axes.fill_between(seconds, 0, np.minimum(mean, 0), color=BLUE, alpha=0.55, linewidth=0)
    axes.set_xlim(0.0, float(seconds[-1]))


def _limits(curves: list[Any]) -> tuple[float, float]:
    low = min((float(curve.min()) for curve in curves if curve.size), default=0.0)
    high = max((float(curve.max()) for curve in curves if curve.size), default=0.0)
    pad = 0.06 * max(high - low, 0.1)
    return min(low, 0.0) - pad, max(high, 0.0) + pad


def _note(average: ClassAverage) -> str:
    return f"{text.plural(average.rows, 'window')} of {text.plural(average.devices, 'device')}"


def _label(sheet: Sheet, found: WindowFindings, average: ClassAverage, top: float) -> None:
    x, y, _, _ = sheet.box(0.05, top, 0.0, 0.0)
    name = text.short(found.classes[average.label], MAX_NAME)
    sheet.figure.text(x, y, name, va="bottom", fontsize=8.5, fontweight="bold")
    sheet.figure.text(x, y, _note(average), va="top", fontsize=7.5, color=GREY)


def _upright(axes: Axes, name: str) -> None:
    axes.annotate(
        text.short(name, MAX_NAME),
        (0.5, 1.0),
        xytext=(0, 5),
        xycoords="axes fraction",
        textcoords="offset points",
        rotation=90,
        ha="center",
        va="bottom",
        fontsize=8.5,
    )


def _two_lines(name: str, unit: str) -> str:
    name = text.short(name, MAX_NAME)
    return f"{name}\n{text.short(unit, MAX_NAME)}" if unit else name
