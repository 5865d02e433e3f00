"""The figures of `vitalring bench inference` as tables, for a terminal and for Markdown."""

from collections.abc import Iterator, Mapping
from typing import Any

from vitalring.tools.measuring.spread import megabytes
from vitalring.tools.measuring.table import Table

_MOST_LOST = 1.0  # points of accuracy; what an int8 model may lose and be called as good
_Measured = Mapping[str, Any]


def inference_facts(result: _Measured) -> list[str]:
    """Return what was measured, and on what."""
    about = [
        f"`{network['model']}`, {network['parameters']:,} parameters, after round "
        f"{network['round']}, from the {network['origin']}: {network['rows']:,} held-out rows of "
        f"{network['devices']} device{'s' * (network['devices'] != 1)} of {network['dataset']}."
        for network in result["networks"]
    ]
    newest = result["networks"][-1]["runtimes"]
    facts = newest[-1]["machine"]
    versions = (
        f"{found['runtime']} with Python {found['machine']['python']} and numpy "
        f"{found['machine']['numpy']}"
        for found in newest
    )
    return [
        *about,
        f"{facts['date']}, {facts['processor']} ({facts['architecture']}), {facts['cores']} cores "
        f"of which each figure uses one, {facts['memory']}, {facts['system']}.",
        f"Load average over the last 1, 5 and 15 minutes, at the end: {facts['load']}. Where it is "
        f"above {facts['cores']}, other programs lengthened the times.",
        f"vitalring {facts['vitalring']}; {'; '.join(versions)}.",
    ]


def inference_tables(result: _Measured) -> list[Table]:
    """Return all tables, in the order of reading."""
    return [_accuracy(result), _size(result), _time(result), _memory(result)]


def _accuracy(result: _Measured) -> Table:
    rows, lost = [], []
    for name, found in _each(result):
        graph, single, int8 = (found["models"][key] for key in ("training", "float", "int8"))
        points = 100 * (int8["accuracy"] - graph["accuracy"])
        if points < -_MOST_LOST:
            lost.append(f"{name} in {found['runtime']}")
        rows.append(
            (
                name,
                found["runtime"],
                f"{graph['accuracy']:.4f}",
                f"{single['accuracy']:.4f}",
                f"{int8['accuracy']:.4f}",
                f"{round(points, 2) + 0.0:+.2f}",
                f"{int8['agreement']:.4f}",
                f"{graph['macro_f1']:.4f}",
                f"{int8['macro_f1']:.4f}",
            )
        )
    titles = (
        "network", "runtime", "training graph", "float", "int8", "points", "agrees",
        "macro-F1, training graph", "macro-F1, int8",
    )  # fmt: skip
    verdict = (
        f"More than {_MOST_LOST:g} point is lost by the int8 model of: {', '.join(lost)}."
        if lost
        else f"No int8 model loses more than {_MOST_LOST:g} point."
    )
    notes = (
        verdict,
        "The training graph is what devices train; float and int8 are `model.tflite` and "
        "`model-int8.tflite`. Points: accuracy of int8 less that of the training graph, in "
        "percent. Agrees: share of rows to which int8 gives the training graph's class.",
    )
    return Table("Accuracy on held-out rows", titles, tuple(rows), notes)


def _size(result: _Measured) -> Table:
    rows = tuple(
        (network["model"], *(f"{size / 1000:.1f}" for size in network["bytes"].values()))
        for network in result["networks"]
    )
    titles = ("network", "training graph", "float", "int8")
    return Table("Size, kB", titles, rows, ("A kB is a thousand bytes.",))


def _time(result: _Measured) -> Table:
    rows = []
    for name, found in _each(result):
        graph, single, int8 = (
            found["models"][key]["seconds"] for key in ("training", "float", "int8")
        )
        batch = found["models"]["training"]["batch"]
        alone = found["models"]["int8"]["alone"]["median"]
        times = (int8["median"], int8["high"], alone, single["median"], single["high"])
        graph_time = f"{1000 * graph['median']:.2f} of {batch}"
        rows.append((name, found["runtime"], *(f"{1e6 * each:.0f}" for each in times), graph_time))
    titles = (
        "network", "runtime", "int8, µs", "95 %", "of it the model", "float, µs", "95 %",
        "training graph, ms a batch",
    )  # fmt: skip
    notes = (
        "int8 and float: median of one row, and the time that 95 % stay below, on one thread, once "
        "warm. Of int8 it is what a device takes for a row: check, the way from numbers to int8, "
        "the model, and the way back. The training graph takes rows in batches of one size only: "
        "median of a batch.",
    )
    return Table("Time", titles, tuple(rows), notes)


def _memory(result: _Measured) -> Table:
    rows = tuple(
        (
            name,
            found["runtime"],
            megabytes(found["start_bytes"]),
            megabytes(found["peak_bytes"]),
            megabytes(found["peak_bytes"] - found["start_bytes"]),
        )
        for name, found in _each(result)
    )
    titles = ("network", "runtime", "before", "peak", "more")
    notes = (
        "A process that predicts with the int8 model alone, one row after another: its peak "
        "(VmHWM) before it loads runtime and model, when it holds Python, numpy and the agent's "
        "code, and after all predictions. MB are a million bytes.",
    )
    return Table("Memory, MB", titles, rows, notes)


def _each(result: _Measured) -> Iterator[tuple[str, _Measured]]:
    """Yield each network's name with what each runtime said of it."""
    for network in result["networks"]:
        for found in network["runtimes"]:
            yield network["model"], found
