"""The figures of `vitalring attack membership` as sentences, tables and a picture."""

from collections.abc import Mapping
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from vitalring.tools.attack.membership import ATTACKS, VIEWS
from vitalring.tools.attack.roc import FALSE_POSITIVES
from vitalring.tools.drawing import INK, MARKERS, PALETTE, STYLE, draw, legend_below, name_rows
from vitalring.tools.measuring.machine import in_words
from vitalring.tools.measuring.table import Table

LIMITS: Final = """
## What this does not show

- **Other attacks.** A better attack, or one with more shadows, finds more. Only the noise bounds what any attack can find; the figures are what these found.
- **Worst cases.** The figures are of ordinary records. A record that is unlike all others, or a false label, can be found where these are not.
- **People.** Members and others are records of the same people. That a person takes part at all is public in the roster, and an attack on that is another question.
- **Neighbours.** Records of one person are alike; where windows overlap, half of a non-member may have been trained on as its neighbour's. That makes exact membership harder to tell, not the person's data safer.
"""  # noqa: E501 - paragraphs of a page

_SHORT: Final = {
    "threshold": "threshold",
    "by_record": "by record",
    "by_difficulty": "by difficulty",
}
_VIEW: Final = {
    "final": "final model",
    "models": "opened sums",
    "update": "one update, clear",
    "updates": "all updates, clear",
}


def membership_facts(result: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know before the figures mean anything."""
    settings = result["settings"]
    least = min(result["members"], result["others"])
    return [
        in_words(result["machine"]) + f" {result['cpu_seconds'] / 60:.1f} minutes of CPU.",
        f"Data set {result['dataset']}: {result['people']} people or sites, one device each, "
        f"{settings['rows']} records at most of each. Model {result['model']}, "
        f"{result['parameters']:,} parameters.",
        f"In each study a random half of every device's records is trained on "
        f"({result['members']:,} members) and the other half is not ({result['others']:,}). "
        + (
            ""
            if least >= result["least_each_side"]
            else f"This data, so limited, has fewer than {result['least_each_side']:,} on a side. "
        )
        + "Members and others are of the same people and differ by lot alone.",
        f"{settings['studies']} studies of {settings['rounds']} rounds for each defence, by the "
        "toolkit's own planning, training, noise, encoding and server. Each is attacked with the "
        f"{settings['studies'] - 1} others as shadow studies. The attacker knows the plan, the "
        "first weights, the network, and for its shadows the records.",
        "Area under the ROC curve (0.5: a coin), and the share of members found where 0.1 % or "
        "1 % of the others are taken for members: means over the studies, with the 95 % interval "
        f"of a bootstrap over records ({settings['resamples']} draws). Of equal scores all or "
        "none count: a rate of 0 says that more records than that share the highest score.",
        "Attacks: the threshold of Yeom et al. (2018), on the loss, or on how much an update "
        "lowers it; the likelihood ratio of Carlini et al. (2022) with each record's own "
        "Gaussians; the same with the shift that membership makes taken from all records about "
        "as difficult, which is better with few shadows. Several looks at a record are one vector.",
    ]


def membership_tables(result: Mapping[str, Any]) -> list[Table]:
    """Return area and rates by view and attack, for each defence."""
    cases = result["cases"]
    names = tuple(case["name"] for case in cases)
    tables = [_figures("Area under the ROC curve", cases, names, None)] + [
        _figures(f"Members found at {100 * rate:g} % false alarms", cases, names, place)
        for place, rate in enumerate(FALSE_POSITIVES)
    ]
    if all("peer" in case for case in cases):
        tables.append(_peer(cases, names))
    trained = [
        (
            case["name"],
            f"{case['right']['members']:.3f}",
            f"{case['right']['others']:.3f}",
            f"{case['training']['steps']}",
            f"{case['training']['sampling_rate']:.3g}",
            f"{case['privacy']['noise_multiplier']:.3g}" if case["privacy"]["epsilon"] else "–",
        )
        for case in cases
    ]
    titles = ("trained", "right on members", "right on others", "steps a round", "rate", "noise")
    note = (
        "Share of records whose class has more than half of the probability. Rate: the chance of "
        "a record to be in a step. Noise: its multiplier."
    )
    return [*tables, Table("What the studies learnt", titles, tuple(trained), (note,))]


def membership_plot(result: Mapping[str, Any]) -> str:
    """Draw the area of every attack, a panel for each view."""
    cases = result["cases"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.0, 1.7 + 0.42 * len(cases)), layout="constrained")
        panels = figure.subplots(1, len(VIEWS), sharex=True, sharey=True)
        for axes, view in zip(panels, VIEWS, strict=True):
            axes.axvline(0.5, color=INK, linestyle="--", linewidth=1.2, label="a coin")
            for place, attack in enumerate(ATTACKS):
                shift = 0.24 * (place - 1)
                areas = [case["figures"][view][attack]["auc"] for case in cases]
                for row, area in enumerate(areas):
                    axes.plot([area["low"], area["high"]], [row + shift] * 2, color=PALETTE[place])
                axes.plot(
                    [area["value"] for area in areas],
                    [row + shift for row in range(len(areas))],
                    color=PALETTE[place],
                    marker=MARKERS[place],
                    linestyle="",
                    label=_SHORT[attack],
                )
            name_rows(axes, [case["name"] for case in cases])
            axes.set_title(_VIEW[view])
            axes.set_xlabel("ROC area")
        legend_below(figure)
        return draw(figure)


def _figures(
    title: str, cases: list[Mapping[str, Any]], names: tuple[str, ...], rate: int | None
) -> Table:
    """Return the areas, or what is found at one of FALSE_POSITIVES."""

    def cell(case: Mapping[str, Any], view: str, attack: str) -> str:
        roc = case["figures"][view][attack]
        return _estimate(roc["auc"], 3) if rate is None else _estimate(roc["tpr"][rate], 4)

    rows = [
        (f"{seen}: {words}", *(cell(case, view, attack) for case in cases))
        for view, seen in VIEWS.items()
        for attack, words in ATTACKS.items()
    ]
    return Table(title, ("the attacker has", *names), tuple(rows))


def _peer(cases: list[Mapping[str, Any]], names: tuple[str, ...]) -> Table:
    attacks = list(cases[0]["peer"]["attacks"])
    rows = [
        (name.lower().replace("_", " "), *(_peer_cell(case, name) for case in cases))
        for name in attacks
    ]
    return Table(
        f"tensorflow-privacy {cases[0]['peer']['version']} on the final model of the first study",
        ("its attack", *names),
        tuple(rows),
        (
            "Area, and members found at 0.1 % and 1 % false alarms, of one study only: an area "
            "of 5,000 records on each side is uncertain by 0.011. Its logistic regression is "
            "trained on a part of the answers, and its likelihood ratio has the same shadows as "
            "ours.",
        ),
    )


def _peer_cell(case: Mapping[str, Any], name: str) -> str:
    found = case["peer"]["attacks"][name]
    low, high = found["tpr"]
    return f"{found['auc']:.3f}; {low:.4f}, {high:.4f}"


def _estimate(found: Mapping[str, float], digits: int) -> str:
    value, low, high = (f"{found[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low}–{high})"
