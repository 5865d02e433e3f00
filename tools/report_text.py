"""A report's numbers and guarantees in words.

Rules kept here: a number that is not there is a dash, never a zero; a
guarantee that is incomplete or not known is called none at all.
"""

import math
import re
import statistics
from collections.abc import Iterable, Mapping
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
    "device": "one device has all its records or, as if it had none, teaches nothing",
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
    """Cut a name to `limit` characters; what cannot be printed becomes a question mark.

    What is cut is the middle: names often begin alike and end in a number.
    """
    clean = "".join(letter if letter.isprintable() else "?" for letter in text)
    if len(clean) <= limit:
        return clean
    tail = limit // 3
    return f"{clean[: limit - 1 - tail]}…{clean[len(clean) - tail :]}"


def fraction(value: float | None) -> str:
    """Write a metric between 0 and 1 with three decimals."""
    return DASH if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """Write a difference of two metrics with its sign."""
    return DASH if value is None else f"{value:+.3f}".replace("-", "−")


def distance(difference: float) -> str:
    """Write a difference of two metrics as a distance above or below."""
    return f"{abs(difference):.3f} {'above' if difference >= 0 else 'below'}"


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


def interval(figure: Mapping[str, Any]) -> str:
    """Write the bounds of a figure's interval, or that there are none."""
    low, high = figure["low"], figure["high"]
    return DASH if low is None or high is None else f"{low:.3f} to {high:.3f}"


def signed_interval(figure: Mapping[str, Any]) -> str:
    """Write the bounds of a difference's interval, each with its sign."""
    low, high = figure["low"], figure["high"]
    return DASH if low is None or high is None else f"{signed(low)} to {signed(high)}"


def plural(number: int, noun: str) -> str:
    """Write a count with its noun: 1 device, 22 devices."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


_RESAMPLED: Final = {
    "devices": ("held-out device", "how far other devices could have moved a figure"),
    "groups": (
        "held-out group",
        "how far other patients or groups of the same sites could have moved a figure",
    ),
    "rows": (
        "held-out row",
        "how far other rows of the same devices could have moved a figure, "
        "as if rows did not resemble one another",
    ),
}

_FEW_CLUSTERS: Final = 15


def method(test: Mapping[str, Any]) -> str:
    """Say what the intervals of a final evaluation are over, and how good they can be."""
    noun, meaning = _RESAMPLED.get(test["resampled"], (test["resampled"], "their spread"))
    text = (
        f"Intervals hold {100 * test['level']:g} % of {count(test['draws'])} draws of "
        f"{plural(test['clusters'], noun)} with replacement: {meaning}."
    )
    if test["clusters"] < _FEW_CLUSTERS:
        text += " With so few to draw from they are rough, and rather too narrow."
    return text


def rounds_on(part: str | None) -> str:
    """Say which rows the rounds were evaluated on, and what follows for the final figures."""
    if part == "validation":
        return (
            "Rounds were evaluated on validation rows; the test rows were touched once, by the "
            "final model."
        )
    return (
        "The data set declares no validation rows, so the rounds were evaluated on these same "
        "test rows: settings that were chosen by them flatter the figures here."
    )


def same_as_federated(training: Mapping[str, Any]) -> list[str]:
    """List what centralised training had in common with the federated one."""
    clip = training["clip"]
    clipped = f", gradients clipped at {general(clip)}" if clip else ", gradients not clipped"
    return [
        "the network, its initial weights and the test rows",
        f"the records: {plural(training['rows'], 'row')} of "
        f"{plural(training['devices'], 'device')}",
        f"{training['passes']:.1f} passes over them, in batches of {training['batch']:.0f} on the "
        "average, as on a device",
        f"learning rate {general(training['learning_rate'])}{clipped}",
    ]


def other_than_federated(training: Mapping[str, Any]) -> list[str]:
    """List what centralised training had and the federated one had not."""
    return [
        "every batch mixes the records of all devices",
        f"{count(training['steps'])} gradient steps one after another; devices make theirs side "
        "by side, and the server averages",
        "no optimiser of a server, only the steps themselves",
        "no noise, no quantised updates, no device that misses a round",
    ]


FEATURES: Final = {
    "declared": "The data set declares them: the sites exchanged nothing to agree on them.",
    "agreed": "The sites agreed on them through the secure sum: only sums over all sites were "
    "decrypted, never one site's own.",
}


def closing_lines(report: Mapping[str, Any]) -> list[str]:
    """Return what a terminal shows of a report's optional parts, a line for each that is there."""
    test, central, personal = (report.get(name) for name in ("test", "centralised", "personal"))
    lines = []
    if test:
        noun = _RESAMPLED.get(test["resampled"], (test["resampled"], ""))[0]
        lines += [
            f"AUROC      {fraction(test['auroc']['value'])}",
            f"           {100 * test['level']:g} %: accuracy {interval(test['accuracy'])}, "
            f"macro-F1 {interval(test['macro_f1'])}, AUROC {interval(test['auroc'])}, "
            f"over {plural(test['clusters'], noun)}",
        ]
    if central:
        gaps = central.get("difference") or {}
        figures = [
            f"{label} {fraction(central[key]['value'])}"
            + (f" (federated {signed(gaps[key]['value'])})" if gaps else "")
            for key, label in (("macro_f1", "macro-F1"), ("auroc", "AUROC"))
        ]
        lines.append(f"pooled     centralised training reaches {', '.join(figures)}")
    if personal:
        own = [row for row in personal if row["used"]]
        start = (
            f"personal   {len(own):,} of {plural(len(personal), 'device')} use a head of their own"
        )
        of_all = map(fraction, head_medians(personal, "macro_f1"))
        if own:
            before, after = map(fraction, head_medians(own, "macro_f1"))
            all_before, all_after = of_all
            lines += [
                f"{start}: median macro-F1 {before} with the global head, {after} with theirs;",
                f"           over all {len(personal):,}: {all_before} with the global head, "
                f"{all_after} with the head that each uses",
            ]
        else:
            lines.append(f"{start}; median macro-F1 {next(of_all)} with the global head")
    return lines


def head_medians(rows: Iterable[Mapping[str, Any]], key: str) -> tuple[float | None, float | None]:
    """Return the medians over devices of a figure of the global head, and of the head in use."""
    pairs = [
        (row["global"][key], row["personal" if row["used"] else "global"][key]) for row in rows
    ]
    return median(before for before, _ in pairs), median(after for _, after in pairs)


def median(values: Iterable[float | None]) -> float | None:
    """Return the median of the known values, or None without any."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


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
            counted = privacy.get("shares") or "as many as were counted on"
            gaps.append(
                f"The noise suffices only while honest devices in each sum, {counted}, add their "
                "shares of it, and nobody decrypts single updates."
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
