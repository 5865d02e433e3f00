"""The report of a run: `report.json` for programs and `report.html` for people.

Rules kept here: the page shows the numbers of the file beside it and computes
nothing but differences and medians; it needs no network, no script and no
other file; every string of the run is data and is escaped; the same report
gives the same bytes.
"""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2
import numpy as np

from vitalring.errors import StorageError
from vitalring.files import write_atomic
from vitalring.tools import plots, report_parts, report_text

REQUIRED: Final[dict[str, frozenset[str]]] = {
    "report": frozenset(
        {
            "dataset",
            "model",
            "classes",
            "parameters",
            "devices",
            "hospitals",
            "secure_sum",
            "status",
            "privacy",
            "rounds",
            "final",
            "bytes",
            "log",
        }
    ),
    "privacy": frozenset({"unit", "noise", "epsilon", "delta"}),
    "round": frozenset(
        {
            "round",
            "status",
            "accuracy",
            "macro_f1",
            "loss",
            "expected",
            "admitted",
            "refused",
            "seconds",
            "bytes_up_per_device",
        }
    ),
    "final": frozenset({"accuracy", "macro_f1"}),
    "bytes": frozenset({"update", "float32"}),
    "log": frozenset({"checkpoint", "leaves"}),
}
"""The keys without which there is no report; every other key may be absent."""

_TEMPLATES: Final = Path(__file__).parent / "templates"


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """Write `report.json` and `report.html` into `folder`, each whole or not at all.

    Numbers that are not finite become null: JSON has no others. Both files are
    made before the first is written.

    Raises StorageError for a report that lacks a key or a folder that cannot be written.
    """
    plain = _plain(report)
    _check(plain)
    page = render(plain)
    text = json.dumps(plain, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(folder / "report.json", f"{text}\n".encode())
    write_atomic(folder / "report.html", page.encode())


def render(report: Mapping[str, Any]) -> str:
    """Return the page for a report in plain JSON types."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2").render(_view(report))


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Reduce a value to JSON's own types; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):  # a lone surrogate has no bytes to write
        return str(value).encode("utf-8", "replace").decode()
    if value is None or isinstance(value, bool | int):
        return value
    raise StorageError(
        f"report.json cannot be written: {value!r} is a {type(value).__name__}, "
        "which JSON does not have; pass text, numbers, lists and tables alone"
    )


def _check(report: Mapping[str, Any]) -> None:
    parts = [("report", report)]
    parts += [(name, report.get(name) or {}) for name in ("privacy", "final", "bytes", "log")]
    parts += [("round", row) for row in report.get("rounds") or []]
    for name, part in parts:
        missing = sorted(REQUIRED[name] - set(part))
        if missing:
            raise StorageError(
                f"report.json cannot be written: its {name} lacks {', '.join(missing)}; "
                "pass null for what is not known"
            )


def _image(svg: str) -> str:
    """Return an SVG as a data address: in an image, its names cannot meet the page's."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    return [row[key] for row in rows]


def _stages(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return each known stage's median seconds over the rounds, in the order of the path."""
    medians = {
        stage: report_text.median((row.get("stages") or {}).get(stage) for row in rows)
        for stage in plots.STAGES
    }
    return {stage: seconds for stage, seconds in medians.items() if seconds is not None}


def _confusion(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each true class: its counts and their share of the row."""
    rows = []
    for name, counts in zip(
        report["classes"], report["final"].get("confusion") or [], strict=False
    ):
        total = sum(counts)
        cells = [{"count": n, "share": n / total if total else 0.0} for n in counts]
        rows.append({"name": name, "cells": cells, "total": total})
    return rows


def _figures(report: Mapping[str, Any], stages: Mapping[str, float]) -> dict[str, str]:
    """Draw what there are numbers for; what is absent has no figure."""
    rows, alone = report["rounds"], report.get("alone") or {}
    figures: dict[str, str] = {}
    if rows:
        numbers = _column(rows, "round")
        skipped = [row["round"] for row in rows if row["status"] != "summed"]
        figures["learning"] = plots.learning_curve(
            numbers,
            _column(rows, "accuracy"),
            _column(rows, "macro_f1"),
            (alone.get("median"), alone.get("best")),
            skipped,
        )
        recall = {
            name: [(row.get("recall") or {}).get(name) for row in rows]
            for name in report["classes"]
        }
        clips = [row.get("clip") for row in rows]
        if any(value is not None for value in clips):
            shares = [row.get("unclipped") for row in rows]
            quantile = report["privacy"].get("clip_quantile")
            figures["clip"] = plots.clip_by_round(numbers, clips, shares, quantile, skipped)
        if any(value is not None for values in recall.values() for value in values):
            figures["recall"] = plots.recall_by_class(numbers, recall, skipped)
    scores = [score for score in alone.get("macro_f1") or [] if score is not None]
    if scores:
        figures["alone"] = plots.single_devices(
            scores, report["final"]["macro_f1"], alone.get("median")
        )
    if sum(stages.values()) > 0:
        figures["stages"] = plots.stage_bar(stages)
    sizes = report["bytes"]
    if sizes["update"] is not None and sizes["float32"] is not None:
        figures["bytes"] = plots.byte_bars(sizes["update"], sizes["float32"])
    figures |= report_parts.figures(report)
    return {name: _image(svg) for name, svg in figures.items()}


def _gain(report: Mapping[str, Any]) -> float | None:
    median = (report.get("alone") or {}).get("median")
    final = report["final"]["macro_f1"]
    return None if median is None or final is None else final - median


def _headline(report: Mapping[str, Any]) -> str:
    """Say the result in one sentence."""
    who = (
        f"{report_text.plural(report['devices'], 'device')} "
        f"in {report_text.plural(report['hospitals'], 'hospital')}"
    )
    final, gain, privacy = report["final"]["macro_f1"], _gain(report), report["privacy"]
    if final is None:
        return f"{who}: no model was evaluated."
    text = f"{who} trained one model together: macro-F1 {report_text.fraction(final)}"
    if gain is not None:
        text += f", {report_text.distance(gain)} the median of single devices"
    central = ((report.get("centralised") or {}).get("macro_f1") or {}).get("value")
    if central is not None:
        joint = "," if gain is None else " and"
        text += f"{joint} {report_text.distance(final - central)} centralised training"
    if report_text.guaranteed(privacy):
        return f"{text}, with {report_text.epsilon_line(privacy)} for every {privacy['unit']}."
    return f"{text}, without differential privacy."


def _view(report: Mapping[str, Any]) -> dict[str, Any]:
    rows, privacy = report["rounds"], report["privacy"]
    stages = _stages(rows)
    spent, epsilon = privacy.get("spent"), privacy["epsilon"]
    return {
        "report": report,
        "text": report_text,
        "complete": report["status"] == "finished",
        "headline": _headline(report),
        "gain": _gain(report),
        "guaranteed": report_text.guaranteed(privacy),
        "overspent": spent is not None and epsilon is not None and spent > epsilon,
        "seconds_a_round": report_text.median(_column(rows, "seconds")),
        "skipped": sum(row["status"] != "summed" for row in rows),
        "refused": sum(sum(row["refused"].values()) for row in rows),
        "stages": stages,
        "colours": plots.STAGE_COLOURS,
        "confusion": _confusion(report),
        "wide": len(report["classes"]) > plots.MAX_LINES,
        "upright": all(len(name) <= 8 for name in report["classes"]),
        "figures": _figures(report, stages),
        "parts": report_parts.view(report),
        "explanations": [
            {**row, "image": _image(row["svg"])} for row in report.get("explanations") or []
        ],
    }
