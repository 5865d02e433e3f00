"""Pictures of typical windows: traces shaded by importance, whole channels as bars beside them.

One signal, such as an electrocardiogram with constant channels, makes one sheet with a row for
each class; several signals make a sheet of strips for each class.
"""

from collections.abc import Sequence
from typing import Final

import matplotlib as mpl
import numpy as np

from vitalring.tools import report_text as text
from vitalring.tools.explain import paper
from vitalring.tools.explain.channels import MILLIVOLT, Channel
from vitalring.tools.explain.layout import MAX_NAME, Sheet
from vitalring.tools.explain.windows import ShownExample, WindowFindings
from vitalring.tools.plots import _STYLE, _draw

Pair = tuple[ShownExample | None, ShownExample | None]

MAX_STRIPS: Final = 12
"""Most signals of a strip sheet; of more the most important are shown."""

_WIDTH: Final = 10.0
_CELL: Final = 4.95  # a right example, and a wrong one beside it
_AXIS: Final = 0.5  # left of a trace, for its numbers
_TRACE: Final = 2.05
_BARS: Final = 0.9
_TALLEST: Final = 3.4
_HEAD, _FOOT, _SCALE = 0.5, 0.5, 0.62
_STRIP, _LINE, _STRIP_GAP = 0.78, 0.42, 0.1
_STRIP_NAMES: Final = 1.65
_STRIP_CELL: Final = 4.4
_STRIP_WIDE: Final = 2.8


def is_one_signal(found: WindowFindings) -> bool:
    """Tell whether all examples go on one sheet: one signal, and short windows."""
    return len(found.searched) == 1 and found.time / found.sampling_hz <= paper.SHORT_S


def draw_sheet(found: WindowFindings) -> str:
    """Draw the examples of every class that has any, as SVG; for one signal."""
    signal = found.searched[0]
    pairs = [pair for pair in found.examples if any(pair)]
    scale = _scale(found)
    sizes = [_trace_size(found, pair, signal) for pair in pairs]
    height = sum(_HEAD + size[1] + _FOOT for size in sizes) + _SCALE
    with mpl.rc_context(_STYLE):
        sheet = Sheet.of(_WIDTH, height)
        top = _HEAD
        for pair, size in zip(pairs, sizes, strict=True):
            for place, example in enumerate(pair):
                if example:
                    _draw_cell(sheet, found, example, (place * _CELL, top), size, scale)
                else:
                    sheet.head(place * _CELL + _AXIS, top - 0.27, absent_title(found, pair))
            top += size[1] + _FOOT + _HEAD
        place_ = sheet.box(_WIDTH / 2 - 1.9, height - 0.36, 3.8, 0.12)
        paper.draw_scale(sheet.figure, place_, scale.shade)
        return _draw(sheet.figure)


def _scale(found: WindowFindings) -> paper.Scale:
    """Return one scale for all sheets: what is faint for one class may be all for another."""
    shown = [example for pair in found.examples for example in pair if example]
    return paper.scale_of([e.patches for e in shown], [e.channels for e in shown])


def _trace_size(
    found: WindowFindings, pair: Pair, signal: int
) -> tuple[float, float, tuple[float, float]]:
    """Return a row's width and height in inches, and its axis' ends."""
    traces = [example.x[:, signal] for example in pair if example]
    channel = found.channels[signal]
    if channel.unit != MILLIVOLT:
        spread = max(float(np.ptp(trace)) for trace in traces) or 1.0
        return _TRACE, 1.5, paper.span_of(traces, spread / 8)
    low, high = paper.span_of(traces, 0.5)
    seconds = found.time / found.sampling_hz
    wide, tall = seconds * paper.speed_of(seconds), (high - low) * paper.MM_PER_MV
    inch = min(_TRACE / wide, _TALLEST / tall)
    return inch * wide, inch * tall, (low, high)


def _draw_cell(
    sheet: Sheet,
    found: WindowFindings,
    example: ShownExample,
    corner: tuple[float, float],
    size: tuple[float, float, tuple[float, float]],
    scale: paper.Scale,
) -> None:
    (left, top), (width, height, span) = corner, size
    signal = found.searched[0]
    channel = found.channels[signal]
    sheet.head(left + _AXIS, top - 0.27, title_of(found, example), note_of(example))
    axes = sheet.axes(left + _AXIS, top, width, height)
    axes.set_ylim(*span)
    paper.style_signal(axes, channel, found.time / found.sampling_hz)
    paper.draw_trace(
        axes, example.x[:, signal], example.patches[:, signal], found.sampling_hz, scale.shade
    )
    axes.set_xlabel("seconds")
    axes.set_ylabel(channel.unit or channel.name)
    names = [_bar_name(found, example, place) for place in range(len(found.channels))]
    bars_height = min(height, 0.1 + 0.42 * len(names))
    bars = sheet.axes(left + _CELL - _BARS - 0.12, top, _BARS, bars_height)
    paper.draw_bars(bars, names, [float(value) for value in example.channels], scale.bar)
    bars.tick_params(labelsize=8)
    bars.set_xlabel("drop of log-odds", fontsize=8)


def _bar_name(found: WindowFindings, example: ShownExample, place: int) -> str:
    channel = found.channels[place]
    name = text.short(channel.name, MAX_NAME)
    if place in found.searched:
        return f"whole {name}"
    return f"{name}\n{text.short(channel.shown(float(example.x[0, place])), MAX_NAME)}"


def draw_strips(found: WindowFindings, pair: Pair) -> str:
    """Draw one class's examples as SVG, a strip for each signal and a line for each constant."""
    scale = _scale(found)
    signals = _most_important(found.searched, [example for example in pair if example])
    constant = [place for place in range(len(found.channels)) if place not in found.searched]
    rows = [(place, _STRIP) for place in signals] + [(place, _LINE) for place in constant]
    height = _HEAD + sum(tall for _, tall in rows) + _FOOT + _SCALE
    with mpl.rc_context(_STYLE):
        sheet = Sheet.of(_WIDTH, height)
        for side, example in enumerate(pair):
            left = _STRIP_NAMES + side * _STRIP_CELL
            if example:
                sheet.head(left, _HEAD - 0.27, title_of(found, example), note_of(example))
            else:
                sheet.head(left, _HEAD - 0.27, absent_title(found, pair))
            top = _HEAD
            for row, (place, tall) in enumerate(rows):
                if side == 0:
                    _name(sheet, found.channels[place], top + (tall - _STRIP_GAP) / 2)
                if example:
                    last = row == len(rows) - 1, row == len(signals) - 1
                    _draw_strip(sheet, found, example, place, (left, top, tall), scale, last)
                top += tall
        place_ = sheet.box(_WIDTH / 2 - 1.9, height - 0.36, 3.8, 0.12)
        paper.draw_scale(sheet.figure, place_, scale.shade)
        return _draw(sheet.figure)


def _draw_strip(
    sheet: Sheet,
    found: WindowFindings,
    example: ShownExample,
    place: int,
    corner: tuple[float, float, float],
    scale: paper.Scale,
    last: tuple[bool, bool],
) -> None:
    """Draw a channel and its bar; `last` says whether it is the last row, and the last signal."""
    left, top, tall = corner
    channel, trace = found.channels[place], example.x[:, place]
    if place in found.searched:
        axes = sheet.axes(left, top, _STRIP_WIDE, tall - _STRIP_GAP)
        step = 0.5 if channel.unit == MILLIVOLT else max(float(np.ptp(trace)), 0.2) / 4
        axes.set_ylim(*paper.span_of([trace], step))
        paper.style_signal(axes, channel, found.time / found.sampling_hz)
        maps = example.patches[:, place]
        paper.draw_trace(axes, trace, maps, found.sampling_hz, scale.shade, 1.1)
        axes.tick_params(labelsize=7.5)
        axes.tick_params(axis="x", labelbottom=last[1])
        if last[1] and last[0]:
            axes.set_xlabel("seconds")
    else:
        x, y, _, _ = sheet.box(left, top + (tall - _STRIP_GAP) / 2, 0.0, 0.0)
        words = channel.shown(float(trace[0]))
        sheet.figure.text(x, y, words, va="center", fontsize=8.5)
    bars = sheet.axes(left + _STRIP_WIDE + 0.15, top, _BARS, tall - _STRIP_GAP)
    paper.draw_bars(bars, [""], [float(example.channels[place])], scale.bar)
    bars.tick_params(labelsize=7.5, labelbottom=last[0], bottom=last[0])
    bars.spines["bottom"].set_visible(last[0])
    if last[0]:
        bars.set_xlabel("whole channel", fontsize=8)


def _most_important(searched: Sequence[int], shown: Sequence[ShownExample]) -> list[int]:
    most = {
        place: max(float(np.abs(e.patches[:, place]).max()) for e in shown) for place in searched
    }
    return sorted(sorted(searched, key=lambda place: -most[place])[:MAX_STRIPS])


def _name(sheet: Sheet, channel: Channel, top: float) -> None:
    x, y, _, _ = sheet.box(0.05, top, 0.0, 0.0)
    words = text.short(channel.name, MAX_NAME)
    if channel.unit:
        words += f"\n{text.short(channel.unit, MAX_NAME)}"
    sheet.figure.text(x, y, words, va="center", fontsize=8.5)


def title_of(found: WindowFindings, example: ShownExample) -> str:
    """Say what a record is and what the model makes of it."""
    of = example.example
    label, said = (text.short(found.classes[c], MAX_NAME) for c in (of.label, of.said))
    return f"{label}, recognised" if of.right else f"{label}, taken for {said}"


def absent_title(found: WindowFindings, pair: Pair) -> str:
    """Say that a class has no right example, or no wrong one; the other is there."""
    (there,) = (example for example in pair if example)
    name = text.short(found.classes[there.example.label], MAX_NAME)
    return f"{name}, never {'mistaken' if there.example.right else 'recognised'}"


def note_of(example: ShownExample) -> str:
    """Say which record it is and how sure the model was."""
    of = example.example
    device = text.short(example.device, 20)
    kind = "recognised" if of.right else "mistaken"
    return f"of {device}, probability {of.probability:.2f}: the median of {of.of:,} {kind}"
