"""The comparison of `vitalring bench skew` as sentences and tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from vitalring.tools.bench.skew import (
    BITS,
    SAMPLING_RATE,
    STEPS,
    UPDATE_CLIP,
    case_name,
    personal_name,
)
from vitalring.tools.measuring.machine import in_words
from vitalring.tools.measuring.table import Table

_WHAT = {"server rate": "learning rate of the server", "mu": "mu"}


def skew_facts(result: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know before the figures mean anything."""
    settings = result["settings"]
    people = (
        f"{result['held_out_people']} held-out people"
        if result["held_out_people"]
        else "held-out rows of the same people"
    )
    return [
        in_words(result["machine"]) + f" One process, {result['seconds'] / 60:.0f} minutes.",
        f"Data set {result['dataset']}: {result['people']} people train, {people} with "
        f"{result['held_out_rows']:,} rows test. Model {result['model']}, "
        f"{result['parameters']:,} parameters, of which the head has {result['head']:,}.",
        "No privacy, no encryption: the sum is exact, so the weights are those of the whole path. "
        f"Updates are clipped at norm {UPDATE_CLIP:g} and rounded to {BITS} bits, as there.",
        f"{settings['rounds']} rounds; in each a device takes {STEPS} steps on batches of a "
        f"{SAMPLING_RATE:.0%} sample. Every figure is the mean of {settings['seeds']} seeds, with "
        "the least and the greatest in brackets; a seed decides the first weights, the division "
        "and the coins, and is the same for every side.",
        "By person: the data set's own devices. Dirichlet: all training rows divided anew among "
        "as many devices of equal size, with label skew by Hsu, Qi and Brown 2019; rows of one "
        "person then lie on many devices, so own rows are easier than they look.",
        "A fifth of each class on each device is never given to the device: its own rows, on which "
        "global and personal heads are measured. Of the others a device keeps a fifth back from "
        "the training of the global model, for all sides alike, to choose and judge its head.",
    ]


def skew_tables(result: Mapping[str, Any]) -> list[Table]:
    """Return the comparison, what the search tried, and how unlike the devices are."""
    return [_comparison(result), _searches(result), _devices(result)]


def _comparison(result: Mapping[str, Any]) -> Table:
    rows = []
    for case in result["cases"]:
        name = case_name(case["alpha"])
        rows += [
            (
                name,
                side["name"],
                _spread([seed["macro_f1"] for seed in side["held_out"]]),
                _spread([seed["accuracy"] for seed in side["held_out"]]),
                *_own_rows(side["own_rows"]),
                "",
            )
            for side in case["sides"]
        ]
        heads = case["personal"]
        used = sum(seed["used"] for seed in heads) / len(heads)
        rows.append(
            (
                name,
                personal_name(result),
                "–",
                "–",
                *_own_rows([seed["own_rows"] for seed in heads]),
                f"{used:.1f} of {case['devices']}",
            )
        )
    titles = (
        "devices",
        "side",
        "held out: macro-F1",
        "held out: accuracy",
        "own rows: accuracy",
        "own rows: worst fifth",
        "personal heads used",
    )
    always = [
        f"{case_name(case['alpha'])} "
        f"{_mean([seed['always']['accuracy'] for seed in case['personal']]):.3f}"
        for case in result["cases"]
    ]
    return Table(
        "Who learns what from unlike devices",
        titles,
        tuple(rows),
        (
            "Own rows: accuracy on each device's own rows, the mean over devices, and over the "
            "fifth of them that fare worst. Held-out people have no labelled rows on a device, so "
            "there are no personal heads for them.",
            "A device uses its personal head only where it was better on the rows that judge. "
            f"Used by every device, whatever they say, accuracy on own rows: {', '.join(always)}.",
        ),
    )


def _searches(result: Mapping[str, Any]) -> Table:
    sides = {side["name"]: side for side in result["sides"]}
    rows = []
    for case in result["cases"]:
        for side in case["sides"]:
            # A score below 0 stands for training that left the finite numbers.
            scores = sorted((point["macro_f1"] for point in side["tried"]), reverse=True)
            rows.append(
                (
                    case_name(case["alpha"]),
                    side["name"],
                    f"{side['device_rate']:g}",
                    f"{sides[side['name']]['own']} {side['own']:g}",
                    f"{scores[0]:.3f}",
                    f"{scores[-1]:.3f}" if scores[-1] >= 0 else "diverged",
                )
            )
    grids = "; ".join(
        f"{side['name']}, {_WHAT[side['own']]}: {', '.join(f'{v:g}' for v in side['values'])}"
        for side in result["sides"]
    )
    rates = ", ".join(f"{rate:g}" for rate in result["settings"]["rates"])
    points = len(result["settings"]["rates"]) * len(result["sides"][0]["values"])
    return Table(
        "The search",
        ("devices", "side", "rate on the device", "own number", "best", "worst"),
        tuple(rows),
        (
            f"Every side tries {points} settings in every case: learning rate on the device "
            f"{rates}, with each value of a number of its own. {grids}. FedProx has server rate 1, "
            "so where FedAvg chose another one they differ by that too; Adam and Yogi have beta_1 "
            "0.9, beta_2 0.99 and tau 0.001.",
            f"A setting trains for {result['settings']['search_rounds']} rounds without a fifth of "
            "the training people, and its macro-F1 on these is the score. The held-out people see "
            "the chosen setting alone. A chosen value at the end of its list, and a score from a "
            "few people, say that a longer search might serve a side better.",
            "Heads: learning rate "
            f"{result['settings']['heads']['learning_rate']:g}, at most "
            f"{result['settings']['heads']['epochs']} passes; each device chooses how many.",
        ),
    )


def _devices(result: Mapping[str, Any]) -> Table:
    rows = [
        (
            case_name(case["alpha"]),
            f"{case['devices']}",
            f"{case['records'][0]:,}–{case['records'][-1]:,}",
            f"{case['classes_a_device']:.1f} of {len(result['classes'])}",
            f"{case['commonest_class_share']:.0%}",
        )
        for case in result["cases"]
    ]
    titles = ("devices", "number", "rows that train", "classes on one", "share of its commonest")
    return Table("How unlike the devices are", titles, tuple(rows))


def _own_rows(seeds: Sequence[Mapping[str, float]]) -> tuple[str, str]:
    return (
        _spread([seed["accuracy"] for seed in seeds]),
        _spread([seed["worst_accuracy"] for seed in seeds]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _spread(values: Sequence[float]) -> str:
    middle, low, high = (f"{each:.3f}" for each in (_mean(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low}–{high})"
