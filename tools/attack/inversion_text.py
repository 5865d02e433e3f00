"""The figures of `vitalring attack inversion` as sentences, tables and a picture."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from vitalring.tools.attack.inversion import BASELINES, METHODS, VIEWS
from vitalring.tools.drawing import MARKERS, PALETTE, STYLE, draw, legend_below, name_rows
from vitalring.tools.measuring.intervals import interval
from vitalring.tools.measuring.machine import in_words
from vitalring.tools.measuring.table import Table

MEANING: Final = """
## How to read this

- **Likeness alone proves nothing.** Heartbeats are like each other, and so are windows of one activity. An attack has learnt something of this very record only where it comes closer than as many records of other people do, and than the mean of the class.
- **The first round.** Weights are the first ones, where gradients tell most. Labels are given to the attacker, and records of other people.
- **A cosine near 1 with another record** says that many records have this gradient: pooling over time forgets where in the window something was.
- **Sums and noise are different protections.** A sum hides a record among the others, which who knows those can undo; noise cannot be undone.
- **Other attacks.** A server that chooses the weights to make records stand out does better; here weights come from sums that several hospitals sign. A generative model of such signals as prior may do better too. Only the noise bounds what any attack can find.
"""  # noqa: E501 - paragraphs of a page

_WHO: Final = {"attack": "rebuilt", **BASELINES}


def inversion_facts(result: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know before the figures mean anything."""
    settings = result["settings"]
    asked = settings["seeds"] * settings["targets"]
    return [
        in_words(result["machine"]) + f" {result['cpu_seconds'] / 60:.1f} minutes of CPU; "
        f"TensorFlow {result['tensorflow']}.",
        f"Data set {result['dataset']}: {result['people']} people are attacked, of "
        f"{result['public']} others the attacker has records. Model {result['model']}, "
        f"{result['parameters']:,} parameters.",
        f"{settings['seeds']} cohorts of {settings['devices']} devices with {settings['rows']} "
        f"records each; {settings['targets']} records of each cohort are asked about, each of "
        f"another device: {asked} in all. Mean over them, and its 95 % interval by Student's t.",
        "Gradient matching: Geiping et al. (2020), the angle between gradients and a prior for "
        f"small total variation, {settings['iterations']} steps, once from the mean of the class "
        "and once from another person's record; whichever gradient comes closer counts. From "
        f"updates and sums {settings['dummies']} records are rebuilt at once, one of them with "
        "the label of what is asked about.",
        "Closed form, for networks that begin with a dense layer: a unit's kernel gradient "
        "divided by its bias's is its input (Phong et al. 2017). Each unit is a guess.",
        "With several guesses the closest counts, for the attack as for as many records of other "
        "people, of the same class. Correlation: of windows each channel without its mean, of "
        "rows what is left without the mean row. PSNR: in dB, with the data's range as peak.",
    ]


def inversion_tables(result: Mapping[str, Any]) -> list[Table]:
    """Return correlation and signal-to-noise ratio by view, method and defence."""
    tables = []
    for measure, title, digits in (("correlation", "Correlation", 2), ("psnr", "PSNR in dB", 1)):
        rows = [
            (
                f"{VIEWS[view['view']]}: {METHODS[method]}",
                _trained(result, view),
                *(_cell(figures[who][measure], digits) for who in _WHO),
            )
            for view in _ordered(result)
            for method, figures in view["figures"].items()
        ]
        titles = ("the attacker has", "trained", *_WHO.values())
        tables.append(Table(f"{title} with the true record", titles, tuple(rows)))
    cosines = [
        (VIEWS[view["view"]], _trained(result, view), _cell(view["alike"], 3))
        for view in _ordered(result)
    ]
    note = "Of the gradient of what gradient matching rebuilt with the one that was given to it."
    titles = ("the attacker has", "trained", "cosine")
    return [*tables, Table("How far gradients were matched", titles, tuple(cosines), (note,))]


def inversion_plot(result: Mapping[str, Any]) -> str:
    """Draw correlations by view and defence, a panel for each method."""
    views = _ordered(result)
    methods = list(views[0]["figures"])
    names = [f"{VIEWS[view['view']]}\n{_trained(result, view)}" for view in views]
    with mpl.rc_context(STYLE):
        size = (3.4 + 3.2 * len(methods), 1.4 + 0.42 * len(views))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(methods), squeeze=False, sharey=True)[0]
        for axes, method in zip(panels, methods, strict=True):
            for place, (who, label) in enumerate(_WHO.items()):
                rows = [view["figures"][method][who]["correlation"] for view in views]
                found = [interval(values) for values in rows]
                shift = 0.22 * (place - 1)
                for row, each in enumerate(found):
                    if each.low is not None and each.high is not None:
                        axes.plot([each.low, each.high], [row + shift] * 2, color=PALETTE[place])
                axes.plot(
                    [each.mean for each in found],
                    [row + shift for row in range(len(found))],
                    color=PALETTE[place],
                    marker=MARKERS[place],
                    linestyle="",
                    label=label,
                )
            name_rows(axes, names)
            axes.set_title(METHODS[method])
            axes.set_xlim(-1.05, 1.05)
            axes.set_xlabel("correlation with the true record")
        legend_below(figure)
        return draw(figure)


def _ordered(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return sorted(result["views"], key=lambda view: list(VIEWS).index(view["view"]))


def _trained(result: Mapping[str, Any], view: Mapping[str, Any]) -> str:
    return str(result["names"].get(view["defence"], "no noise"))


def _cell(values: Sequence[float], digits: int) -> str:
    found = interval(values)
    if found.low is None or found.high is None:
        return f"{found.mean:.{digits}f}"
    return f"{found.mean:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"
