"""The steps of `vitalring bench utility` as sentences and tables."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from vitalring.tools.measuring.machine import in_words
from vitalring.tools.measuring.table import Table

METRICS: Final = {"accuracy": "accuracy", "macro_f1": "macro-F1", "auroc": "AUROC"}

_NOT_BUILT: Final = (
    (
        "matrix factorisation, DP-FTRL (Kairouz et al. 2021, Denisov et al. 2022)",
        "where every device can take all its records in every round, independent noise has the "
        "least error; correlated noise pays where records come seldom and cannot be sampled in "
        "secret",
    ),
    (
        "tempered sigmoids (Papernot et al. 2021)",
        "they bound the activations of hidden layers, and the networks that do best here have none",
    ),
    (
        "hidden layers trained on public data (De et al. 2022)",
        "the public sets of these sensors are the sets that are measured here; fixed formulas "
        "take the place of trained filters; no data had a part in `har_bank`'s, and `ecg_bank`'s "
        "are centred and scaled by the records that train",
    ),
)


def ladder_facts(result: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know before the figures mean anything."""
    metric = METRICS[result["metric"]]
    if result["validation_rows"] is None:
        who = (
            f"{result['people']} people with {result['rows']:,} records take turns: in each of "
            f"{result['folds']} folds a part of them is held back and measured, and the others "
            "train. So fewer people learn than in the study itself, and the same noise weighs "
            "more. The data set's held-out people had no part in any of this."
        )
    else:
        who = (
            f"{result['people']} sites train on {result['rows']:,} records; the "
            f"{result['validation_rows']:,} validation rows of the data set measure, its test "
            "rows had no part in any of this."
        )
    return [
        in_words(result["machine"]) + f" One process, {result['seconds'] / 60:.0f} minutes.",
        f"Data set {result['dataset']}: {who}",
        f"Each step is a whole study at epsilon {result['epsilon']:g}, delta {result['delta']:g} "
        "for a record, by the functions of devices and server; encryption, which changes no field "
        "of a sum, is left out. Steps set in with ↳ change the study above them, and the next "
        "step does not build on them.",
        f"A figure is the {metric}, mean over folds and over {result['seeds']} "
        f"seed{'s' * (result['seeds'] != 1)}, with the least and the greatest seed in brackets; a "
        "step without brackets had one seed. Without noise: the same clips, rates and rounds, one "
        "seed; – where clip or noise changes from round to round.",
        *_luck(result),
        "Settings of later steps were chosen on such held-back people too, in earlier runs, so "
        "the last steps flatter themselves a little. Figures of held-out people are in the "
        "papers' tables.",
    ]


def _luck(result: Mapping[str, Any]) -> list[str]:
    """Return what the noise of single runs makes of a gain, where there are runs to tell."""
    several = [figures(step, result["metric"]) for step in result["steps"]]
    several = [values for values in several if len(values) > 1]
    if not several:
        return ["One seed: how much of a difference is luck cannot be told."]
    variance = _mean([statistics.variance(values) for values in several])
    error = math.sqrt(2.0 * variance / result["seeds"])
    return [
        f"Noise alone moves a gain between two steps of {result['seeds']} seeds by about "
        f"{error:.3f} (standard error, pooled over steps). That says nothing of who was held "
        "back: where few people have the rare classes, another division may order steps anew."
    ]


def ladder_tables(result: Mapping[str, Any]) -> list[Table]:
    """Return the steps, what is not among them, and what arithmetic says."""
    tables = [_steps(result), _rounds(result)]
    tables += [_grid(result)] if result["grid"] else []
    return [*tables, _correlated(result), _not_built(result)]


def figures(step: Mapping[str, Any], metric: str) -> list[float]:
    """Return the metric of each seed."""
    return [run[metric] for run in step["runs"]]


def _steps(result: Mapping[str, Any]) -> Table:
    metric, steps = result["metric"], result["steps"]
    rows = []
    for step in steps:
        there = figures(step, metric)
        gain = "–"
        if step["on"] is not None:
            gain = _signed(_mean(there) - _mean(figures(steps[step["on"]], metric)))
        rows.append(
            (
                ("↳ " if step["beside"] else "") + step["name"],
                _settings(step),
                f"{step['parameters']:,}",
                _spread(there),
                gain,
                f"{step['without_noise'][metric]:.3f}" if step["without_noise"] else "–",
            )
        )
    return Table(
        "What each step brings",
        (
            "step",
            "settings",
            "parameters",
            f"{METRICS[metric]} at epsilon {result['epsilon']:g}",
            "gain",
            "without noise",
        ),
        tuple(rows),
        ("gain: against the step that it changes.",),
    )


def _rounds(result: Mapping[str, Any]) -> Table:
    rows = tuple(
        (f"{each['rounds']}", f"{each['noise_multiplier']:.2f}", f"{each['share']:.3f}")
        for each in result["rounds"]
    )
    return Table(
        "Rounds, by arithmetic",
        ("rounds", "noise of a round, in clips", "noise of all rounds ÷ √rounds"),
        rows,
        (
            f"At epsilon {result['epsilon']:g} with all records in every round, by loss "
            "distributions. The noise of a round grows as the root of their number, so the sum of "
            "all rounds has the same noise for each clip of signal: rounds cost bytes, not "
            "privacy, and few of them are enough.",
        ),
    )


def _grid(result: Mapping[str, Any]) -> Table:
    rows = tuple(
        (
            f"{each['bits']}" + (" (the study's)" if each["taken"] else ""),
            f"{each['sensitivity']:.4f}",
        )
        for each in result["grid"]
    )
    return Table(
        "Bits of the grid, by arithmetic",
        ("bits", "sensitivity after rounding, in clips"),
        rows,
        (
            "Noise has to grow by as much as the sensitivity. Plans take more bits than a study "
            "asks for until it is within 1.5 %, so a coarse grid costs bytes, never the guarantee. "
            "A step that asks for no more than that is the same study with other noise.",
        ),
    )


def _correlated(result: Mapping[str, Any]) -> Table:
    rows = tuple(
        (
            f"every {each['every']}" if each["every"] > 1 else "every round",
            f"{each['bands']}" if each["bands"] else "all",
            f"{each['error']:.2f}",
        )
        for each in result["factorisation"]
    )
    return Table(
        "Correlated noise, by arithmetic",
        ("a record takes part in", "bands", "error of prefix sums"),
        rows,
        (
            "Root mean square error over the rounds, with the square root of the prefix sums as "
            "factor, relative to independent noise and all records in every round (1.00: one "
            "band is independent noise). Each round divides by the records in it.",
        ),
    )


def _not_built(result: Mapping[str, Any]) -> Table:
    whole = result["factorisation"][0]["error"]
    rows = [
        (_NOT_BUILT[0][0], f"{_NOT_BUILT[0][1]}: error {whole:.2f} times, above"),
        *_NOT_BUILT[1:],
    ]
    return Table("Not built", ("technique", "why"), tuple(rows))


def _settings(step: Mapping[str, Any]) -> str:
    """Return what a step changes, or of the first what it is; bits with those that it gets."""
    changes = step["changes"] or {"model": step["model"], "rounds": step["rounds"]}
    said = [f"{name} {_value(value)}" for name, value in changes.items()]
    if "bits" in changes and changes["bits"] != step["bits"]:
        said.append(f"of which the noise makes {step['bits']}")
    return ", ".join(said)


def _value(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, Mapping):
        rate, momentum = value["learning_rate"], value["momentum"]
        return f"{value['name']} at {rate:g}, momentum {momentum:g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "/".join(_value(each) for each in value)
    if isinstance(value, int | float):
        return f"{value:,}" if value >= 10_000 else f"{value:g}"
    return str(value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _signed(gain: float) -> str:
    return f"{gain:+.3f}"


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{_mean(values):.3f} ({min(values):.3f}–{max(values):.3f})"
