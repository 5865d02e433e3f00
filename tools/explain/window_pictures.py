"""Pictures of typical windows: traces shaded by importance, whole channels as bars beside them.

One signal, such as an electrocardiogram with constant channels, makes one sheet with a row for
each class; several signals make a sheet of strips for each class.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import matplotlib as mpl
import numpy as np

from vitalring.tools import report_text as text
from vitalring.tools.drawing import STYLE, draw
from vitalring.tools.explain import paper
from vitalring.tools.explain.channels import MILLIVOLT, Channel
from vitalring.tools.explain.layout import MAX_NAME, Sheet
from vitalring.tools.explain.windows import ShownExample, WindowFindings

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
_STRIP, _LINE, _STRIP_GAP = 0.68, 0.32, 0.1
_STRIP_NAMES: Final = 1.65
_STRIP_CELL: Final = 4.4
_STRIP_WIDE: Final = 2.8
_LONG: Final = 7.1
_GAP: Final = 0.35


def is_one_signal(found: WindowFindings) -> bool:
    """Tell whether all examples go on one sheet: one signal, and short windows."""
    return len(found.searched) == 1 and found.time / found.sampling_hz <= paper.SHORT_S


def draw_sheet(found: WindowFindings) -> str:
    """Draw the examples of every class that has any, as SVG; for one signal."""
    signal = found.searched[0]
    pairs = [pair for pair in found.examples if any(pair)]
    scale = _scale(found)
    sizes = [_trace_size(found, pair, signal) for pair in pairs]
    least = paper.LEAST_OF_BARS * len(found.channels)
    rows = [max(size[1], least) for size in sizes]
    height = sum(_HEAD + row + _FOOT for row in rows) + _SCALE
    with mpl.rc_context(STYLE):
        sheet = Sheet.of(_WIDTH, height)
        top = _HEAD
        for pair, size, row in zip(pairs, sizes, rows, strict=True):
            for place, example in enumerate(pair):
                if example:
                    _draw_cell(sheet, found, example, (place * _CELL, top), size, scale)
                else:
                    sheet.head(place * _CELL + _AXIS, top - 0.27, absent_title(found, pair))
            top += row + _FOOT + _HEAD
        place_ = sheet.box(_WIDTH / 2 - 1.9, height - 0.36, 3.8, 0.12)
        paper.draw_scale(sheet.figure, place_, scale.shade)
        return draw(sheet.figure)


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
    paper.style_signal(axes, channel, found.time / found.sampling_hz, height)
    paper.draw_trace(
        axes, example.x[:, signal], example.patches[:, signal], found.sampling_hz, scale.shade
    )
    axes.set_xlabel("seconds")
    axes.set_ylabel(text.short(channel.unit or channel.name, MAX_NAME))
    names = [_bar_name(found, example, place) for place in range(len(found.channels))]
    bars_height = paper.bars_height(len(names), height)
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
    rows = _rows(found, pair)
    is_long = _is_long(found)
    tall = _HEAD + sum(row.tall + row.gap for row in rows) + _FOOT
    height = tall * (2 if is_long else 1) + _SCALE
    wide = _LONG if is_long else _STRIP_WIDE
    with mpl.rc_context(STYLE):
        sheet = Sheet.of(_WIDTH, height)
        for side, example in enumerate(pair):
            left = _STRIP_NAMES + (0.0 if is_long else side * _STRIP_CELL)
            top = _HEAD + (side * tall if is_long else 0.0)
            if example:
                sheet.head(left, top - 0.27, title_of(found, example), note_of(example))
            else:
                sheet.head(left, top - 0.27, absent_title(found, pair))
            for row in rows:
                if example:
                    _draw_strip(sheet, found, example, row, (left, top, wide), scale)
                if side == 0 or (is_long and example):
                    _name(sheet, found.channels[row.place], top + row.tall / 2)
                top += row.tall + row.gap
        place_ = sheet.box(_WIDTH / 2 - 1.9, height - 0.36, 3.8, 0.12)
        paper.draw_scale(sheet.figure, place_, scale.shade)
        return draw(sheet.figure)


def _is_long(found: WindowFindings) -> bool:
    """Tell whether examples need the whole width, one below the other: long electrocardiograms."""
    units = {found.channels[place].unit for place in found.searched}
    return MILLIVOLT in units and found.time / found.sampling_hz > paper.SHORT_S


@dataclass(frozen=True)
class _Row:
    """A channel's place, its height and the gap below it, in inches; and what stands below it."""

    place: int
    tall: float
    gap: float = _STRIP_GAP
    has_seconds: bool = False
    is_last: bool = False


def _rows(found: WindowFindings, pair: Pair) -> list[_Row]:
    """Return the channels from top to bottom, signals first."""
    shown = [example for example in pair if example]
    signals = _most_important(found.searched, shown)
    constant = [place for place in range(len(found.channels)) if place not in found.searched]
    rows = [_Row(place, _strip_height(found, shown, place)) for place in signals]
    if rows:
        gap = _GAP if constant else _STRIP_GAP
        rows[-1] = replace(rows[-1], has_seconds=True, gap=gap)
    rows += [_Row(place, _LINE) for place in constant]
    rows[-1] = replace(rows[-1], is_last=True)
    return rows


def _strip_height(found: WindowFindings, shown: Sequence[ShownExample], place: int) -> float:
    """Return a strip's height in inches; a long electrocardiogram's squares are square."""
    if not _is_long(found) or found.channels[place].unit != MILLIVOLT:
        return _STRIP
    spans = [paper.span_of([example.x[:, place]], 0.5) for example in shown]
    seconds = found.time / found.sampling_hz
    inch = _LONG / (seconds * paper.speed_of(seconds))
    tall = max(high - low for low, high in spans) * paper.MM_PER_MV * inch
    return min(max(tall, _STRIP), _TALLEST)


def _draw_strip(
    sheet: Sheet,
    found: WindowFindings,
    example: ShownExample,
    row: _Row,
    corner: tuple[float, float, float],
    scale: paper.Scale,
) -> None:
    """Draw a channel and its bar at a corner (left, top), so wide."""
    left, top, wide = corner
    place, tall = row.place, row.tall
    channel, trace = found.channels[place], example.x[:, place]
    if place in found.searched:
        axes = sheet.axes(left, top, wide, tall)
        step = 0.5 if channel.unit == MILLIVOLT else max(float(np.ptp(trace)), 0.2) / 4
        axes.set_ylim(*paper.span_of([trace], step))
        paper.style_signal(axes, channel, found.time / found.sampling_hz, tall)
        maps = example.patches[:, place]
        paper.draw_trace(axes, trace, maps, found.sampling_hz, scale.shade, 1.1)
        axes.tick_params(labelsize=7.5)
        axes.tick_params(axis="x", labelbottom=row.has_seconds)
        if row.has_seconds and row.is_last:
            axes.set_xlabel("seconds")
    else:
        x, y, _, _ = sheet.box(left, top + tall / 2, 0.0, 0.0)
        sheet.figure.text(x, y, channel.shown(float(trace[0])), va="center", fontsize=8.5)
    bars = sheet.axes(left + wide + 0.15, top, _BARS, tall)
    paper.draw_bars(bars, [""], [float(example.channels[place])], scale.bar)
    bars.tick_params(labelsize=7.5, labelbottom=row.is_last, bottom=row.is_last)
    bars.spines["bottom"].set_visible(row.is_last)
    if row.is_last:
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
