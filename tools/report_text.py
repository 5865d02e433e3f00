"""A report's numbers and guarantees in words.

Rules kept here: a number that is not there is a dash, never a zero; a
guarantee that is incomplete or not known is called none at all.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Final

DASH: Final = "–"

_GUARANTEES: Final = {
    ("record", "local"): "each device's own noise protects every single record",
    ("record", "distributed"): "the devices' noise together protects every single record",
    ("device", "local"): "each device's own noise protects all records of that device",
    ("device", "distributed"): "the devices' noise together protects all records of a device",
}

_NEIGHBOURS: Final = {
    "record": "one record of a device is added or removed",
    "device": "one device with all its records is added or removed",
}

_SECURE_SUMS: Final = {
    "threshold-he": "If as many hospitals as the key needs work together, they can decrypt "
    "single updates.",
    "single-he": "One party holds the decryption key; together with the gateway it could "
    "decrypt single updates.",
    "two-server": "If both gateways work together, they can read single updates.",
    "plain": "Updates travelled without encryption: the gateway could read each of them.",
}


def short(text: str, limit: int) -> str:
    """Cut a name to `limit` characters; what cannot be printed becomes a question mark."""
    clean = "".join(letter if letter.isprintable() else "?" for letter in text)
    return clean if len(clean) <= limit else f"{clean[: limit - 1]}…"


def fraction(value: float | None) -> str:
    """Write a metric between 0 and 1 with three decimals."""
    return DASH if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """Write a difference of two metrics with its sign."""
    return DASH if value is None else f"{value:+.3f}".replace("-", "−")


def count(value: float | None) -> str:
    """Write a whole number with separators for thousands."""
    return DASH if value is None else f"{value:,.0f}"


def general(value: float | str | None) -> str:
    """Write any number as short as four significant digits allow, and text as it is."""
    if value is None:
        return DASH
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return count(value)
    return re.sub(r"e([+-])0*", lambda found: "e" + found[1].strip("+"), f"{value:.4g}")


def byte_count(value: float | None) -> str:
    """Write a size in bytes, exact up to a million."""
    if value is None:
        return DASH
    return f"{value:,.0f} B" if value < 1e6 else f"{value / 1e6:,.2f} MB"


def duration(seconds: float | None) -> str:
    """Write a time in the unit that suits it, from microseconds to hours."""
    if seconds is None:
        return DASH
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1.0:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 120.0:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def plural(number: int, noun: str) -> str:
    """Write a count with its noun: 1 device, 22 devices."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def guaranteed(privacy: Mapping[str, Any]) -> bool:
    """Tell whether unit, noise, epsilon and delta together are a guarantee.

    A plan without privacy writes epsilon 0, which must never read as a perfect guarantee.
    """
    known = (privacy["unit"], privacy["noise"]) in _GUARANTEES
    return known and bool(privacy["epsilon"]) and bool(privacy["delta"])


def guarantee(privacy: Mapping[str, Any]) -> str:
    """Say in half a sentence what is protected by whose noise."""
    if not guaranteed(privacy):
        return "no differential privacy"
    return _GUARANTEES[privacy["unit"], privacy["noise"]]


def epsilon_line(privacy: Mapping[str, Any]) -> str:
    """Write epsilon and delta, or that there is none."""
    if not guaranteed(privacy):
        return "none"
    return f"ε {general(privacy['epsilon'])} at δ {general(privacy['delta'])}"


def meaning(privacy: Mapping[str, Any]) -> str:
    """Say in one plain sentence what the guarantee means (Dwork and Roth 2014, definition 2.4)."""
    if not guaranteed(privacy):
        return (
            "This run has no differential privacy: the published models may reveal "
            "single records of the devices, and nothing here bounds how much."
        )
    try:
        factor = f"{math.exp(privacy['epsilon']):,.4g}"
    except OverflowError:
        factor = "more than 1e308"
    who = (
        "a device's updates, even decrypted,"
        if privacy["noise"] == "local"
        else "the decrypted sums and the models"
    )
    return (
        f"If {_NEIGHBOURS[privacy['unit']]}, the probability of anything that can be concluded "
        f"from {who} over all rounds changes by a factor of at most e^ε = {factor}, "
        f"plus at most δ = {general(privacy['delta'])}."
    )


def not_protected(privacy: Mapping[str, Any], secure_sum: str) -> list[str]:
    """List what the guarantee does not cover, one sentence each."""
    gaps = []
    if guaranteed(privacy):
        if privacy["unit"] == "record":
            gaps.append(
                "The guarantee is for one record. Many records of one person together are "
                "protected less."
            )
        if privacy["noise"] == "distributed":
            gaps.append(
                "The noise suffices only while at least min_cohort devices add their share of it."
            )
    else:
        gaps.append("Records: without noise, nothing bounds what the models reveal about them.")
    gaps.append(
        "The network address of a device, and when it sends, unless the connection runs "
        "through a relay."
    )
    gaps.append("That a device belongs to the study: the roster is public.")
    gaps.append(
        _SECURE_SUMS.get(
            secure_sum, f"What the secure sum {short(secure_sum, 40)} hides is unknown."
        )
    )
    gaps.append(
        "This report: the results of devices trained alone and of held-out devices are "
        "exact figures without noise."
    )
    return gaps
