"""The comparison of `vitalring bench fleet` as sentences and tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from vitalring.tools.measuring.intervals import interval
from vitalring.tools.measuring.machine import in_words
from vitalring.tools.measuring.table import Table

Side = Mapping[str, Any]


def fleet_facts(result: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know before the figures mean anything."""
    study, (least, most, total) = result["study"], result["records"]
    people = (
        f"{result['held_out_people']} held-out people"
        if result["held_out_people"]
        else "held-out rows of the same people"
    )
    sizes = f"{least}" if least == most else f"{least} to {most}"
    who = [
        f"Data set {result['dataset']}: {result['devices']:,} devices of {sizes} records, "
        f"{total:,} together"
    ]
    if result["settings"]["devices"]:
        who = [
            f"Data set {result['dataset']}: the {total:,} records of {result['people']} people are "
            f"dealt at random to {result['devices']:,} virtual devices of {sizes} records, each "
            "with records of one person (`vitalring data deal`)",
            f"The guarantee is for a virtual device and its {sizes} records, not for a person, "
            "whose records are on many of them. It shows what a fleet of so many devices pays; it "
            "is no fleet of so many people.",
        ]
    who[0] += (
        f"; {people} with {result['held_out_rows']:,} rows test. Model {result['model']}, "
        f"{result['parameters']:,} parameters."
    )
    return [
        in_words(result["machine"]) + f" One process, {result['seconds'] / 60:.0f} minutes.",
        *who,
        f"{study['rounds']} rounds of all devices. Each takes {study['steps']} "
        f"step{'s' * (study['steps'] != 1)} with {study['sampling_rate']:.0%} of its records at "
        f"learning rate {study['lr']:g}; the update is clipped at norm {study['update_clip']:g}. "
        f"Server {study['server']['name']}, learning rate {study['server']['learning_rate']:g}, "
        f"momentum {study['server']['momentum']:g}. delta {study['delta']:g}.",
        "fleet: unit device, noise distributed, by the functions of devices and server, without "
        "the encryption, which changes no field of a sum. trusted server: it sees clear updates, "
        "clips them alike and adds one Gaussian to their sum; its noise is found by the same "
        "accountant, nothing is rounded, nobody colludes, nobody may be missing.",
        f"Mean of {result['settings']['seeds']} runs with new noise, rotations and coins, on the "
        "same devices; in brackets the 95 % interval of the mean by Student's t. It covers the "
        "noise, not who was held out.",
    ]


def fleet_tables(result: Mapping[str, Any]) -> list[Table]:
    """Return what the sides reach, and what the fleet's noise rests on."""
    return [_reached(result), _rests(result)]


def label(side: Side) -> str:
    """Return how a side is called, its assumptions with it."""
    if side["side"] != "fleet":
        return str(side["side"])
    terms = side["terms"]
    return f"fleet, {terms['colluders']} colluders, sums of {terms['min_cohort']:,} or more"


def accuracies(side: Side) -> list[float]:
    """Return the accuracy of each run."""
    return [run["accuracy"] for run in side["runs"]]


def _reached(result: Mapping[str, Any]) -> Table:
    sides = result["sides"]
    trusted = {side["epsilon"]: side for side in sides if side["side"] == "trusted server"}
    free = accuracies(sides[0])
    rows = []
    for side in sides:
        there = accuracies(side)
        beside = trusted.get(side["epsilon"]) if side["side"] == "fleet" else None
        rows.append(
            (
                label(side),
                "–" if side["epsilon"] is None else f"{side['epsilon']:g}",
                _share(there),
                _points(there, free) if side is not sides[0] else "–",
                _points(there, accuracies(beside)) if beside else "–",
                _share([run["macro_f1"] for run in side["runs"]]),
            )
        )
    return Table(
        "What a fleet learns",
        (
            "side",
            "epsilon",
            "accuracy",
            "against no privacy, points",
            "against the trusted server, points",
            "macro-F1",
        ),
        tuple(rows),
        (
            "no privacy: the mean of the devices' updates as they are, neither clipped nor "
            f"rounded, at learning rate {result['own_rate']:g}, the best of "
            f"{', '.join(format(each['lr'], 'g') for each in result['rates_tried'])} on a fifth of "
            "the people who train. clipped, no noise: at the fleet's rate. Without noise all runs "
            "are the same where every record is in every step.",
        ),
    )


def _rests(result: Mapping[str, Any]) -> Table:
    rows = []
    for side in result["sides"]:
        terms = side["terms"]
        if side["side"] == "trusted server":
            multiplier = f"{terms['noise_multiplier']:.2f}"
            rows.append((label(side), f"{side['epsilon']:g}", multiplier, multiplier, "1", "–"))
        elif side["side"] == "fleet":
            rows.append(
                (
                    label(side),
                    f"{side['epsilon']:g}",
                    f"{terms['noise_multiplier']:.2f}",
                    f"{terms['noise_there']:.2f}",
                    f"{terms['sensitivity']:.4f}",
                    f"{terms['bits']} and {terms['summed_bits']}",
                )
            )
    return Table(
        "What the noise rests on",
        (
            "side",
            "epsilon",
            "noise the guarantee counts on",
            "noise in the sum of all",
            "enforced sensitivity",
            "bits of a field, and of a sum",
        ),
        tuple(rows),
        (
            "Noise and sensitivity in clips; noise is the standard deviation on one coordinate of "
            "the sum. The guarantee counts on the shares of the honest devices in the smallest "
            "sum alone: who may be missing (`spare`) or collude costs noise that is then there "
            "on top. A study's defaults are `colluders` 0.1 and `spare` 0.2.",
        ),
    )


def _share(values: Sequence[float]) -> str:
    mean = interval(values)
    if mean.low is None or mean.high is None:
        return f"{mean.mean:.3f}"
    return f"{mean.mean:.3f} ({mean.low:.3f}–{min(1.0, mean.high):.3f})"


def _points(values: Sequence[float], others: Sequence[float]) -> str:
    """Return a difference in points; with as many runs on both sides run by run."""
    if len(others) == 1:
        found = interval([100 * (value - others[0]) for value in values])
    else:
        pairs = zip(values, others, strict=True)
        found = interval([100 * (value - other) for value, other in pairs])
    if found.low is None or found.high is None:
        return f"{found.mean:+.2f}"
    return f"{found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f})"
