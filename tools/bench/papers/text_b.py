"""Paper B's Table I and Figure 2 with what was measured, beside what the paper reports."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from vitalring.tools.bench.papers.cells import SIDES
from vitalring.tools.bench.papers.reported import (
    FIGURE_B,
    TABLE_B,
    WITHIN,
    convergence,
    scores_of,
)
from vitalring.tools.bench.papers.shown import (
    NO_FIGURE,
    Found,
    Known,
    claim,
    measured,
    percent,
    timed,
)
from vitalring.tools.measuring.table import Table


def table_b(result: Mapping[str, Any]) -> Table:
    """Return centralised and federated training of the sites."""
    known, columns = result["cells"], []
    for side in SIDES:
        kind = "pooled" if side == "centralised" else "study"
        labels = [label for label in known if label.startswith(f"b/{side}/{kind}/")]
        runs = [known[label]["result"] for label in labels if measured(known[label])]
        columns.append(_column_b(runs, known.get(f"b/{side}/time")))
    ours = dict(zip(SIDES, columns, strict=True))
    ours["centralised"] |= {"update": "–", "bytes": "–"}  # there is no update
    titles = (
        "",
        "centralised",
        "paper",
        "federated, no noise",
        "federated, noise",
        "paper: federated, noise",
    )
    names = {
        "runs": "runs",
        "network": "weights of the network",
        "accuracy": "accuracy, %",
        "precision": "precision, %",
        "recall": "recall, %",
        "f1": "F1, %",
        "convergence": f"rounds until within {100 * WITHIN:g} points of the best",
        "time": "seconds of training",
        "bytes": "bytes an update",
        "update": "seconds an update, besides training",
        "privacy": "guarantee",
    }
    rows = tuple(
        (
            title,
            ours["centralised"][key],
            "10" if key == "runs" else TABLE_B["centralised"].get(key, "–"),
            ours["federated"][key],
            ours["private"][key],
            "10" if key == "runs" else TABLE_B["federated"].get(key, "–"),
        )
        for key, title in names.items()
    )
    most = result["sites_rows"]
    limit = (f"At most {most:,} rows of each site, drawn at random.",) if most else ()
    notes = (
        *limit,
        "Precision, recall and F1 are plain means over the classes. Convergence is that of the "
        "accuracy on validation rows, the mean with the least and the greatest; a round of "
        "centralised training is as many passes as a device makes in a round.",
        "Seconds of training: those of one timed round times the rounds. An update's seconds: "
        "encoding, encrypting and signing on the device.",
    )
    return Table("Paper B, Table I: three sites", titles, rows, notes)


def _column_b(runs: Sequence[Found], time: Found | None) -> dict[str, str]:
    keys = ("accuracy", "precision", "recall", "f1", "convergence", "bytes", "privacy")
    column = {"runs": str(len(runs)), "network": NO_FIGURE, **dict.fromkeys(keys, NO_FIGURE)}
    rounds = len(runs[0]["curve"]) if runs else 0
    if runs:
        scores = [scores_of(run["confusion"]) for run in runs]
        for key in ("accuracy", "precision", "recall", "f1"):
            column[key] = percent([getattr(score, key) for score in scores])
        reached = [convergence(run["curve"]) for run in runs]
        column["convergence"] = (
            f"{statistics.fmean(reached):.1f} ({min(reached)}–{max(reached)}) of {rounds}"
        )
        column["network"] = f"{runs[0]['parameters']:,}"
        size, privacy = runs[0].get("update_bytes"), runs[0].get("privacy", {"unit": "none"})
        column["bytes"] = f"{size:,}" if size else "–"
        column["privacy"] = "none" if privacy["unit"] == "none" else claim(privacy)
    column["time"] = timed(time, lambda found: f"{rounds * found['round_seconds']:.0f}")
    column["update"] = timed(time, _update_seconds)
    return column


def _update_seconds(found: Found) -> str:
    # Where all rows are in one place no update is made.
    return f"{found['update_seconds']:.3f}" if "update_seconds" in found else "–"


MEASURES: Final = {"accuracy": "accuracy", "macro_f1": "macro-F1", "auroc": "AUROC"}


def figures_b(result: Mapping[str, Any], each: Mapping[str, Any]) -> tuple[Table, ...]:
    """Return accuracy by epsilon on one data set, and the figure that it is judged by."""
    measures = dict.fromkeys(("accuracy", each["judged_by"]))
    return tuple(_figure(result, each, measure) for measure in measures)


def _figure(result: Mapping[str, Any], each: Mapping[str, Any], measure: str) -> Table:
    points = figure_points(result["cells"], each["name"], measure)
    # A curve of which nothing could be measured stands there all the same, as such.
    wanted = {
        label.split("/")[2]: None
        for label in result["cells"]
        if label.startswith(f"f/{each['name']}/")
    }
    curves = [curve for curve in wanted if curve != "none"]
    reported = dict(FIGURE_B)
    rows = []
    for epsilon in result["epsilons"]:
        cells = [
            percent(points[curve][epsilon]) if epsilon in points.get(curve, {}) else NO_FIGURE
            for curve in curves
        ]
        paper = f"{reported[epsilon]:g}" if epsilon in reported else "–"
        rows.append((f"{epsilon:g}", *cells, paper if measure == "accuracy" else "–"))
    none = points.get("none", {}).get(0.0)
    rows.append(
        ("no privacy", *[percent(none) if none else NO_FIGURE, *["–"] * (len(curves) - 1)], "–")
    )
    titles = ("epsilon", *map(curve_name, curves), "paper")
    notes: tuple[str, ...] = (f"{MEASURES[measure]} in per cent, of each point's runs.",)
    if measure == "accuracy":
        refused = [f"{unit}: {why}." for unit, why in result["refused_units"].items()]
        notes = (
            "Accuracy in per cent; the paper says `up to 86.8` for epsilon 2 and 5. Each point is "
            "a study played in one process by what devices and server compute, without what "
            "changes no sum: encryption, signatures, messages.",
            *refused,
            *_too_small(result["cells"], each["name"]),
        )
    title = f"Paper B, Figure 2: {each['title']}"
    title += "" if measure == "accuracy" else f", {MEASURES[measure]}"
    return Table(title, titles, tuple(rows), notes)


def _too_small(known: Known, name: str) -> list[str]:
    """Return what studies say of fleets that are too small, once for each unit and noise."""
    said: dict[str, str] = {}
    for label, found in known.items():
        kind, *parts = label.split("/")
        note = found["result"].get("privacy", {}).get("note") if measured(found) else None
        if kind == "f" and parts[0] == name and note:
            said.setdefault(parts[1], f"{curve_name(parts[1])}, epsilon {parts[2]}: {note}.")
    return list(said.values())


def figure_points(
    known: Known, name: str, measure: str = "accuracy"
) -> dict[str, dict[float, list[float]]]:
    """Return what Figure 2 measures by curve and epsilon; `none` has epsilon 0."""
    points: dict[str, dict[float, list[float]]] = {}
    for label, found in known.items():
        kind, *parts = label.split("/")
        if kind == "f" and parts[0] == name and measured(found):
            curve = points.setdefault(parts[1], {})
            curve.setdefault(float(parts[2]), []).append(found["result"][measure]["value"])
    return points


def curve_name(curve: str) -> str:
    """Return what a curve of Figure 2 is called."""
    if curve == "central":
        return "central DP-SGD"
    return "no privacy" if curve == "none" else curve.replace("-", ", noise ")
