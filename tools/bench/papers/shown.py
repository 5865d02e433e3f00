"""How figures stand in the papers' tables, and that a missing one is said to be missing."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from vitalring.tools.bench.papers.store import MEASURED
from vitalring.tools.measuring.intervals import interval

NO_FIGURE: Final = "not measured"
BUSY: Final = "not measured: busy machine"

Found = Mapping[str, Any]
Known = Mapping[str, Found]
Form = Callable[[Found], str]


def measured(found: Found | None) -> bool:
    """Tell whether there are figures."""
    return found is not None and found["status"] == MEASURED


def of(found: Found | None, form: Form) -> str:
    """Return a figure of a cell as text."""
    return form(found["result"]) if found is not None and measured(found) else NO_FIGURE


def timed(found: Found | None, form: Form) -> str:
    """Return a time as text; one that was taken on a busy machine is none."""
    if found is not None and found["result"].get("disturbed"):
        return BUSY
    return of(found, form)


def untimed(found: Found | None, form: Form) -> str:
    """Return what a cell measured besides times: a busy machine does not spoil it."""
    return form(found["result"]) if found is not None and found["result"] else NO_FIGURE


def estimate(value: Mapping[str, float | None] | None) -> str:
    """Return `{value, low, high}` as text; what is None has no number."""
    if value is None or value["value"] is None:
        return "–"
    low, high = ("?" if value[key] is None else f"{value[key]:.3f}" for key in ("low", "high"))
    return f"{value['value']:.3f} ({low}–{high})"


def share(values: Sequence[float], form: Callable[[float], str]) -> str:
    """Return the mean of several runs' shares with its interval, which lies between 0 and 1."""
    mean = interval(list(values))
    if mean.low is None or mean.high is None:
        return form(mean.mean)
    return f"{form(mean.mean)} ({form(max(0.0, mean.low))}–{form(min(1.0, mean.high))})"


def percent(values: Sequence[float]) -> str:
    """Return the mean of shares in per cent, with its interval."""
    return share(values, lambda value: f"{100 * value:.1f}")


def claim(privacy: Mapping[str, Any]) -> str:
    """Return what a study claims."""
    return (
        f"unit {privacy['unit']}, noise {privacy['noise']}, epsilon {privacy['epsilon']:g} at "
        f"delta {privacy['delta']:g}"
    )
