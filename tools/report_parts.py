"""What the page shows of a report's optional parts: rows of tables and their figures.

Rules kept here: a part that the report does not have has no view; numbers are those of the
report, and nothing but counts, medians and orders is computed from them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from vitalring.tools import plots, report_text

OVERALL: Final = (
    ("accuracy", "accuracy"),
    ("balanced_accuracy", "balanced accuracy"),
    ("macro_f1", "macro-F1"),
    ("auroc", "AUROC"),
)
_MANY: Final = 24
"""Most held-out devices in one column of names."""

_NONE: Final[Mapping[str, None]] = {"value": None, "low": None, "high": None}


def view(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page needs of the parts; None for each that is not there."""
    return {
        "test": _test(report),
        "personal": _personal(report.get("personal") or []),
        "labels": _labels(report),
    }


def figures(report: Mapping[str, Any]) -> dict[str, str]:
    """Draw what there are numbers for, as SVG by name."""
    drawn: dict[str, str] = {}
    test, central = report.get("test"), report.get("centralised")
    if test:
        models = ["federated", "centralised"] if central else ["federated"]
        sources = [test, central] if central else [test]
        rows = {label: [_interval(source.get(key)) for source in sources] for key, label in OVERALL}
        for name in report["classes"]:
            recalls = [(source.get("recall") or {}).get(name) for source in sources]
            rows[f"recall {name}"] = [_interval(recall) for recall in recalls]
        drawn["intervals"] = plots.intervals(rows, models)
        held = sorted(test.get("by_device") or [], key=lambda row: -_score(row["accuracy"]))
        if len(held) > 1:
            drawn["by_device"] = plots.pairs(
                [row["device"] for row in held],
                [row["balanced_accuracy"] for row in held],
                [row["accuracy"] for row in held],
                ("mean recall of its classes", "accuracy"),
                "on the device's own rows",
                2 if _is_long(held) else 1,
            )
    personal = _sorted_personal(report.get("personal") or [])
    if personal:
        drawn["personal"] = plots.pairs(
            [row["device"] for row in personal],
            [row["global"]["macro_f1"] for row in personal],
            [row["personal"]["macro_f1"] for row in personal],
            ("global head", "personal head"),
            "macro-F1 on the device's own rows",
        )
    return drawn


def _is_long(held: Sequence[Any]) -> bool:
    return _MANY < len(held) <= plots.MAX_NAMED


def _interval(figure: Mapping[str, Any] | None) -> plots.Interval:
    found = figure or _NONE
    return found["value"], found["low"], found["high"]


def _score(value: float | None) -> float:
    return -1.0 if value is None else value


def _test(report: Mapping[str, Any]) -> dict[str, Any] | None:
    test = report.get("test")
    if not test:
        return None
    central = report.get("centralised") or {}
    difference = central.get("difference") or {}
    sources = (test, central, difference)
    overall = [
        {"name": label, "figures": [source.get(key) or _NONE for source in sources]}
        for key, label in OVERALL
    ]
    by_class = [
        {
            "name": name,
            **(test["classes"].get(name) or {"rows": None, "devices": None}),
            "precision": (test.get("precision") or {}).get(name) or _NONE,
            "recalls": [(source.get("recall") or {}).get(name) or _NONE for source in sources],
        }
        for name in report["classes"]
    ]
    return {
        "overall": overall,
        "classes": by_class,
        "centralised": bool(central),
        "compared": bool(difference),
        "training": central.get("training"),
        "long": _is_long(test.get("by_device") or []),
        "method": report_text.method(test),
        "rounds_on": report_text.rounds_on(report.get("rounds_on")),
    }


def _sorted_personal(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(rows, key=lambda row: -_score(row["global"]["macro_f1"]))


def _personal(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not rows:
        return None
    own = [row for row in rows if row["used"]]
    groups = [("use their own head", own)] if own else []
    return {
        "rows": _sorted_personal(rows),
        "used": len(own),
        "medians": [
            {
                "name": name,
                "devices": len(group),
                **{key: report_text.head_medians(group, key) for key in ("accuracy", "macro_f1")},
            }
            for name, group in (*groups, ("all", rows))
        ],
    }


def _labels(report: Mapping[str, Any]) -> dict[str, Any] | None:
    labels = report.get("labels")
    if not labels:
        return None
    parts = list(labels)
    return {
        "parts": parts,
        "rows": [
            {"name": name, "counts": [labels[part].get(name) for part in parts]}
            for name in report["classes"]
        ],
        "totals": [sum(labels[part].values()) for part in parts],
    }
