"""The figures of a run's report: numbers in, one SVG text out. None is a gap, never a zero."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vitalring.tools import report_text as text
from vitalring.tools.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MARKERS,
    ORANGE,
    PALETTE,
    PURPLE,
    SKY,
    STYLE,
    VERMILION,
    draw,
    legend_below,
)

STAGES: Final = ("train", "encode", "encrypt", "sign", "admit", "aggregate")
STAGE_COLOURS: Final = dict(zip(STAGES, (BLUE, SKY, VERMILION, ORANGE, GREEN, PURPLE), strict=True))

MAX_LINES: Final = len(PALETTE)
"""Most classes that are drawn as lines; more become a heat map."""

MAX_MARKED: Final = 40
"""Most points on a line that are marked one by one."""

MAX_NAMED: Final = 60
"""Most devices that are named on an axis; more are a row of points without names."""

MAX_OUTLINED: Final = 500
"""Most points that are drawn as outlines; more become an embedded picture."""

Metric = float | None
Interval = tuple[Metric, Metric, Metric]
"""A figure's value and the bounds of its interval."""

_HALF_IN: Final = 5.6
_FULL_IN: Final = 10.0


def _number(value: Metric) -> float:
    """Turn a gap into not-a-number, where matplotlib draws nothing."""
    return math.nan if value is None else float(value)


def _share_axis(axes: Axes) -> None:
    axes.set_ylim(0.0, 1.02)
    axes.set_yticks([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])


def _round_axis(axes: Axes, rounds: Sequence[int]) -> None:
    first, last = min(rounds), max(rounds)
    pad = max(0.5, (last - first) * 0.02)
    axes.set_xlim(first - pad, last + pad)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
    axes.set_xlabel("round")


def _mark_skipped(axes: Axes, skipped: Sequence[int]) -> None:
    for position, number in enumerate(skipped):
        axes.axvspan(
            number - 0.5,
            number + 0.5,
            facecolor="#E4E7EB",
            edgecolor="none",
            zorder=0.5,
            label="below min_cohort: no model" if position == 0 else None,
        )


def learning_curve(
    rounds: Sequence[int],
    accuracy: Sequence[Metric],
    macro_f1: Sequence[Metric],
    alone: tuple[Metric, Metric] | None,
    skipped: Sequence[int],
) -> str:
    """Draw accuracy and macro-F1 by round; `alone` is the single devices' (median, best)."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_HALF_IN, 3.7), layout="constrained")
        axes = figure.add_subplot()
        marked = len(rounds) <= MAX_MARKED
        for values, name, colour, marker in (
            (accuracy, "accuracy", BLUE, "o"),
            (macro_f1, "macro-F1", VERMILION, "s"),
        ):
            heights = [_number(value) for value in values]
            axes.plot(rounds, heights, color=colour, marker=marker if marked else "", label=name)
        for value, name, dash in zip(alone or (), ("median", "best"), ("--", ":"), strict=False):
            if value is not None:
                label = f"{name} single device, macro-F1"
                axes.axhline(value, color=INK, linestyle=dash, linewidth=1.3, label=label)
        _mark_skipped(axes, skipped)
        _share_axis(axes)
        _round_axis(axes, rounds)
        legend_below(figure, 2)
        return draw(figure)


def clip_by_round(
    rounds: Sequence[int],
    clip: Sequence[Metric],
    unclipped: Sequence[Metric],
    quantile: Metric,
    skipped: Sequence[int],
) -> str:
    """Draw a clip that follows a quantile, and below it the noisy share that it left as it was."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_HALF_IN, 3.7), layout="constrained")
        above, below = figure.subplots(2, sharex=True)
        marker = "o" if len(rounds) <= MAX_MARKED else ""
        above.plot(rounds, [_number(value) for value in clip], color=BLUE, marker=marker)
        above.set_ylim(bottom=0.0)
        above.set_ylabel("clip")
        shares = [_number(value) for value in unclipped]
        below.plot(rounds, shares, color=VERMILION, marker=marker, label="share within, noisy")
        if quantile is not None:
            label = f"quantile {quantile:g}"
            below.axhline(quantile, color=INK, linestyle="--", linewidth=1.3, label=label)
        below.set_ylabel("share")
        for axes in (above, below):
            _mark_skipped(axes, skipped)
        _round_axis(below, rounds)
        legend_below(figure, 2)
        return draw(figure)


def recall_by_class(
    rounds: Sequence[int],
    recall: Mapping[str, Sequence[Metric]],
    skipped: Sequence[int],
) -> str:
    """Draw each class's recall by round: lines, or a heat map for more than MAX_LINES classes."""
    with mpl.rc_context(STYLE):
        if len(recall) > MAX_LINES:
            return _recall_map(rounds, recall)
        figure = Figure(figsize=(_HALF_IN, 3.7), layout="constrained")
        axes = figure.add_subplot()
        marked = len(rounds) <= MAX_MARKED
        for position, (name, values) in enumerate(recall.items()):
            axes.plot(
                rounds,
                [_number(value) for value in values],
                color=PALETTE[position],
                marker=MARKERS[position] if marked else "",
                linestyle="-" if position % 2 == 0 else (0, (5, 1.2)),
                label=text.short(name, 20),
            )
        _mark_skipped(axes, skipped)
        _share_axis(axes)
        _round_axis(axes, rounds)
        axes.set_ylabel("recall")
        legend_below(figure, min(4, len(recall) + bool(skipped)))
        return draw(figure)


def _recall_map(rounds: Sequence[int], recall: Mapping[str, Sequence[Metric]]) -> str:
    figure = Figure(figsize=(_FULL_IN, 1.2 + 0.24 * len(recall)), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(visible=False)
    axes.set_facecolor("#E4E7EB")
    table = [[_number(value) for value in values] for values in recall.values()]
    first, last = min(rounds), max(rounds)
    picture = axes.imshow(
        table,
        aspect="auto",
        cmap="cividis",
        vmin=0.0,
        vmax=1.0,
        interpolation="nearest",
        extent=(first - 0.5, last + 0.5, len(recall) - 0.5, -0.5),
    )
    axes.set_yticks(range(len(recall)), [text.short(name, 20) for name in recall])
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
    axes.set_xlabel("round")
    figure.colorbar(picture, ax=axes, label="recall", shrink=0.9, pad=0.01)
    return draw(figure)


def single_devices(alone: Sequence[float], federated: Metric, median: Metric) -> str:
    """Draw every single device's macro-F1, sorted, against the federated model's."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_HALF_IN, 3.7), layout="constrained")
        axes = figure.add_subplot()
        ranks = range(1, len(alone) + 1)
        axes.scatter(
            sorted(alone),
            ranks,
            s=30 if len(alone) <= MAX_MARKED else 8,
            color=SKY,
            edgecolors=BLUE,
            linewidths=0.8,
            zorder=3,
            label="one device trained alone",
            rasterized=len(alone) > MAX_OUTLINED,
        )
        if median is not None:
            axes.axvline(median, color=INK, linestyle="--", linewidth=1.3, label="their median")
        if federated is not None:
            axes.axvline(federated, color=VERMILION, linewidth=2.2, label="federated model")
        axes.set_xlim(0.0, 1.02)
        axes.set_ylim(0.0, len(alone) + 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.set_xlabel("macro-F1 on the held-out devices")
        axes.set_ylabel("devices, sorted")
        legend_below(figure, 3)
        return draw(figure)


def _tenths_around(figures: Sequence[Interval]) -> tuple[float, float]:
    """Return an axis from the tenth below all bounds to the one above, 0.2 wide at least."""
    known = [bound for figure in figures for bound in figure if bound is not None]
    low = max(0.0, math.floor(10 * min(known, default=0.0) - 0.1) / 10)
    high = min(1.0, math.ceil(10 * max(known, default=1.0) + 0.1) / 10)
    return min(low, high - 0.2), high + 0.005


def intervals(rows: Mapping[str, Sequence[Interval]], models: Sequence[str]) -> str:
    """Draw figures by name, each with one interval for each model, one figure below the other."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_HALF_IN, 1.1 + 0.32 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        gap = 0.26 if len(models) > 1 else 0.0
        for place, name in enumerate(models):
            colour, marker = PALETTE[place], MARKERS[place]
            shift = gap * (place - (len(models) - 1) / 2)
            for row, figures in enumerate(rows.values()):
                value, low, high = figures[place]
                if value is None:
                    continue
                if low is not None and high is not None:
                    axes.plot([low, high], [row + shift] * 2, color=colour, linewidth=2.2)
                axes.plot(
                    [value],
                    [row + shift],
                    color=colour,
                    marker=marker,
                    markersize=6,
                    linestyle="",
                    label=name if row == 0 else None,
                )
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [text.short(name, 28) for name in rows])
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(*_tenths_around([value for row in rows.values() for value in row]))
        if len(models) > 1:
            legend_below(figure, len(models))
        return draw(figure)


def pairs(
    names: Sequence[str],
    first: Sequence[Metric],
    second: Sequence[Metric],
    labels: tuple[str, str],
    axis: str,
    columns: int = 1,
) -> str:
    """Draw two figures of each device on one line, joined, in the order given.

    With several `columns` the list goes on at the top of the next one.
    """
    with mpl.rc_context(STYLE):
        named = len(names) <= MAX_NAMED
        length = -(-len(names) // columns)
        height = 1.2 + (0.21 * length if named else 6.0)
        width = _HALF_IN if columns == 1 else _FULL_IN
        figure = Figure(figsize=(width, max(height, 2.2)), layout="constrained")
        left, right = ([_number(value) for value in values] for values in (first, second))
        for column in range(columns):
            axes = figure.add_subplot(1, columns, column + 1)
            part = slice(column * length, (column + 1) * length)
            _joined(axes, left[part], right[part], labels, len(names))
            axes.set_ylim(length - 0.4, -0.6)
            shown = [text.short(name, 20) for name in names[part]] if named else []
            axes.set_yticks(range(len(shown)), shown)
            if not named:
                axes.set_ylabel(f"{len(names):,} devices, sorted")
            axes.tick_params(axis="y", length=0)
            axes.set_xlim(0.0, 1.02)
            axes.set_xlabel(axis)
        legend_below(figure, 2)
        return draw(figure)


def _joined(
    axes: Axes, left: Sequence[float], right: Sequence[float], labels: tuple[str, str], total: int
) -> None:
    places = range(len(left))
    picture = total > MAX_OUTLINED
    axes.hlines(places, left, right, color=GREY, linewidth=1.2, rasterized=picture)
    for values, label, colour, face, marker in (
        (left, labels[0], GREY, "white", "o"),
        (right, labels[1], VERMILION, VERMILION, "s"),
    ):
        axes.scatter(
            values,
            places,
            s=26 if total <= MAX_NAMED else 8,
            edgecolors=colour,
            facecolors=face,
            marker=marker,
            linewidths=1.2,
            zorder=3,
            label=label,
            rasterized=picture,
        )


def stage_bar(seconds: Mapping[str, float]) -> str:
    """Draw the stages of the path as one stacked bar, in the order of STAGES."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_FULL_IN, 1.05), layout="constrained")
        axes = figure.add_subplot()
        left, total = 0.0, sum(seconds.values())
        for stage, width in seconds.items():
            axes.barh(
                0, width, left=left, color=STAGE_COLOURS[stage], edgecolor="white", linewidth=1.0
            )
            if width > 0.08 * total:
                dark = stage in {"train", "encrypt"}
                axes.text(
                    left + width / 2,
                    0,
                    stage,
                    ha="center",
                    va="center",
                    color="white" if dark else INK,
                )
            left += width
        axes.set_xlim(0.0, total)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False)
        axes.set_xlabel("seconds")
        return draw(figure)


def byte_bars(update: float, float32: float) -> str:
    """Draw the bytes of one protected update above those of the bare float32 weights."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_FULL_IN, 1.15), layout="constrained")
        axes = figure.add_subplot()
        bars = axes.barh([1, 0], [update, float32], color=[BLUE, GREY], height=0.62)
        labels = [text.byte_count(update), text.byte_count(float32)]
        axes.bar_label(bars, labels, padding=5)
        axes.set_yticks([1, 0], ["one update, protected", "weights as float32, in clear"])
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0.0, 1.16 * max(update, float32, 1.0))
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.grid(visible=False)
        return draw(figure)
