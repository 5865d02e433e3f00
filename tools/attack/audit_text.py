"""The figures of `vitalring attack audit` as sentences, tables and a picture."""

from collections.abc import Mapping
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from vitalring.tools.attack.audit import KINDS, VIEWS
from vitalring.tools.drawing import INK, MARKERS, PALETTE, STYLE, draw, legend_below, name_rows
from vitalring.tools.measuring.machine import in_words
from vitalring.tools.measuring.table import Table

MEANING: Final = """
## What this does and does not show

- **A bound above its claim** would prove a broken mechanism: noise, clip, sampling, encoding or accounting.
- **A bound far below its claim** proves nothing more. One training with so many canaries shows a part of what there is; an accountant bounds all of it. Single releases are audited in the tests, closer to their claims and with faults put in on purpose.
- **Updates in clear** under noise `distributed` are outside of its claim: each has one share of the noise. The figure is what encryption keeps back.
- **Unit `device`** is left out: a canary would be a whole device, and an audit takes hundreds.
"""  # noqa: E501 - paragraphs of a page

_VIEW: Final = {"final": "final model", "models": "opened sums", "updates": "updates in clear"}


def audit_facts(result: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know before the figures mean anything."""
    settings = result["settings"]
    return [
        in_words(result["machine"]) + f" {result['cpu_seconds'] / 60:.1f} minutes of CPU.",
        f"Data set {result['dataset']}: {result['people']} people or sites, one device each, "
        f"{result['records']:,} records together. Model {result['model']}, "
        f"{result['parameters']:,} parameters.",
        f"One training of {settings['rounds']} rounds for each row, by the toolkit's own planning, "
        "training, noise, encoding and server, without encryption and signatures.",
        "Canaries are there by one coin each. The auditor knows all but the coins: plan, records, "
        "canaries, and what each view shows. It ranks canaries by their part in what it sees, "
        "along each one's own gradient, and guesses the highest in and the lowest out.",
        "Lower bounds on epsilon at the plan's delta (10⁻⁵ where nothing is claimed) with 95 % "
        "confidence, by Theorem 5.2 of Steinke, Nasr and Jagielski (2023); of five numbers of "
        "guesses the best counts, at a fifth of the risk each.",
        *(f"ABOVE ITS CLAIM: {each}." for each in broken_claims(result)),
    ]


def broken_claims(result: Mapping[str, Any]) -> list[str]:
    """Name each bound above a claim that is about what was seen."""
    return [
        f"{case['name']}, {_VIEW[view]}, {KINDS[kind]}: epsilon {bound:g} or more, "
        f"{case['privacy']['epsilon']:g} is claimed"
        for case in result["cases"]
        for kind in KINDS
        for view in case["protects"]
        if (bound := case["found"][kind][view]["epsilon"]) > case["privacy"]["epsilon"]
    ]


def audit_tables(result: Mapping[str, Any]) -> list[Table]:
    """Return the bounds beside the claims, for each kind of canary, and how studies trained."""
    cases = result["cases"]
    titles = ("trained", "claim", *(f"bound: {_VIEW[view]}" for view in VIEWS))
    tables = [
        Table(
            f"Canaries: {words}",
            titles,
            tuple(
                (case["name"], _claim(case), *(_cell(case, kind, view) for view in VIEWS))
                for case in cases
            ),
            (
                f"{cases[0]['found'][kind]['canaries']:,} canaries. In brackets how many guesses "
                "were right. A star: the claim is not about this view.",
            ),
        )
        for kind, words in KINDS.items()
    ]
    trained = tuple(
        (
            case["name"],
            str(case["training"]["steps"]),
            f"{case['training']['sampling_rate']:.3g}",
            f"{case['privacy']['noise_multiplier']:.3g}" if case["privacy"]["epsilon"] else "–",
        )
        for case in cases
    )
    return [
        *tables,
        Table("How they trained", ("trained", "steps a round", "rate", "noise"), trained, ()),
    ]


def audit_plot(result: Mapping[str, Any]) -> str:
    """Draw the bounds of each training beside its claim, a panel for each kind of canary."""
    cases = result["cases"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.0, 1.8 + 0.42 * len(cases)), layout="constrained")
        panels = figure.subplots(1, len(KINDS), sharex=True, sharey=True)
        for axes, (kind, words) in zip(panels, KINDS.items(), strict=True):
            for row, case in enumerate(cases):
                if case["privacy"]["epsilon"]:
                    claim = [case["privacy"]["epsilon"]] * 2
                    label = "claim" if case is _first_claim(cases) else None
                    axes.plot(claim, [row - 0.4, row + 0.4], color=INK, linewidth=2.0, label=label)
            for place, view in enumerate(VIEWS):
                axes.plot(
                    [case["found"][kind][view]["epsilon"] for case in cases],
                    [row + 0.2 * (place - 1) for row in range(len(cases))],
                    color=PALETTE[place],
                    marker=MARKERS[place],
                    linestyle="",
                    label=_VIEW[view],
                )
            name_rows(axes, [case["name"] for case in cases])
            axes.set_title(words)
            axes.set_xlabel("epsilon")
        legend_below(figure)
        return draw(figure)


def _first_claim(cases: list[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return next((case for case in cases if case["privacy"]["epsilon"]), None)


def _claim(case: Mapping[str, Any]) -> str:
    privacy = case["privacy"]
    return f"{privacy['epsilon']:g} at {privacy['delta']:g}" if privacy["epsilon"] else "none"


def _cell(case: Mapping[str, Any], kind: str, view: str) -> str:
    found = case["found"][kind][view]
    outside = bool(case["privacy"]["epsilon"]) and view not in case["protects"]
    return (
        f"{found['epsilon']:.2f} ({found['right']} of {found['guesses']}){'*' if outside else ''}"
    )
