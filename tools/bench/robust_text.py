"""The comparison of `vitalring bench robust` as sentences and tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from vitalring.tools.bench.robust import LAST, SERVER, hostile_count
from vitalring.tools.bench.robust_devices import BITS, LEARNING_RATE, UPDATE_CLIP
from vitalring.tools.measuring.machine import in_words
from vitalring.tools.measuring.table import Table

_SIZES = (2, 3, 5, 10)


def robust_facts(result: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know before the figures mean anything."""
    settings = result["settings"]
    people = (
        f"{result['held_out_people']} held-out people"
        if result["held_out_people"]
        else "held-out rows of the same people"
    )
    seeds = (
        "One seed."
        if settings["seeds"] == 1
        else f"Mean of {settings['seeds']} seeds, with the least and the greatest in brackets."
    )
    return [
        in_words(result["machine"]) + f" One process, {result['seconds'] / 60:.0f} minutes.",
        f"Data set {result['dataset']}: {result['people']} people, whose rows are divided among "
        f"{settings['devices']} virtual devices of {settings['rows']} rows; {people} with "
        f"{result['held_out_rows']:,} rows test. Model {result['model']}, "
        f"{result['parameters']:,} parameters.",
        "No encryption, for speed: each group's fields are added modulo the radix of their places "
        "and decoded by the aggregator's own code, so a hostile device can do here what it can do "
        "with real encryptions of any values. Ciphertexts that are no encryptions are not "
        "measured: with a joint key they end the round whatever the groups (SPEC 5.20), and with "
        "one key holder they spoil the sum as garbage does.",
        f"{settings['rounds']} rounds of one step on all rows (learning rate {LEARNING_RATE:g}); "
        f"updates are clipped at norm {UPDATE_CLIP:g} and rounded to {BITS} bits; server "
        f"{SERVER.name}, learning rate {SERVER.learning_rate:g}. No noise.",
        f"A figure is the macro-F1 on the held-out rows, mean of the last {LAST} rounds. {seeds} "
        "First weights, devices and coins are the same for every defence and attack; differences "
        "of a few hundredths between cells are within what another seed does.",
        "Hostile devices are the same in all rounds; groups are drawn anew in each.",
        *(f"{name}: {does}." for name, does in result["attacks"].items()),
    ]


def robust_tables(result: Mapping[str, Any]) -> list[Table]:
    """Return what was learnt, what was left out, and how often groups are hit."""
    return [_learnt(result), _left_out(result), _odds(result)]


def _learnt(result: Mapping[str, Any]) -> Table:
    devices = result["settings"]["devices"]
    rows = [
        (
            _case(case, devices),
            *(_spread([seed["macro_f1"] for seed in runs]) for runs in case["defences"]),
        )
        for case in result["cases"]
    ]
    return Table(
        "What a study learns in spite of hostile devices",
        ("hostile devices", *(defence["name"] for defence in result["defences"])),
        tuple(rows),
        (
            "The first row is the price of a defence where nobody attacks. `none` is one sum with "
            "the checks of SPEC 4.9 alone; all others also have the norm limit of SPEC 11.13.",
        ),
    )


def _left_out(result: Mapping[str, Any]) -> Table:
    rounds, devices = result["settings"]["rounds"], result["settings"]["devices"]
    rows = [
        (_case(case, devices), *(_losses(runs, rounds) for runs in case["defences"]))
        for case in result["cases"]
    ]
    groups = ", ".join(
        f"{defence['name']} {runs[0]['groups']:.0f}"
        for defence, runs in zip(result["defences"], result["cases"][0]["defences"], strict=True)
    )
    return Table(
        "What was left out",
        ("hostile devices", *(defence["name"] for defence in result["defences"])),
        tuple(rows),
        (
            f"Rounds lost of {rounds}, because the sum, or half of the groups or more, could not "
            "be used; then groups left out in each of the other rounds, where there were any. "
            f"Sums opened a round: {groups}.",
        ),
    )


def _odds(result: Mapping[str, Any]) -> Table:
    shares = result["settings"]["shares"]
    rows = [(f"{size}", *(f"{1 - (1 - share) ** size:.0%}" for share in shares)) for size in _SIZES]
    return Table(
        "Groups with a hostile device among them",
        ("updates in a group", *(f"{share:.0%} hostile devices" for share in shares)),
        tuple(rows),
        (
            "1 - (1 - share)^size. A median needs less than half, a trimmed mean a quarter at "
            "most. Each group's sum is opened, so the size of a group is also what hides an "
            "update.",
        ),
    )


def _case(case: Mapping[str, Any], devices: int) -> str:
    hostile = hostile_count(devices, case["share"])
    return f"{hostile} of {devices}: {case['attack']}" if case["attack"] else "none"


def _losses(runs: Sequence[Mapping[str, float]], rounds: int) -> str:
    lost = sum(run["rounds_lost"] for run in runs) / len(runs)
    left = sum(run["left_out_a_round"] for run in runs) / len(runs)
    if lost == rounds:
        return "all rounds"
    parts = [f"{lost:g} round{'s' * (lost != 1)}"] if lost else []
    parts += [f"{left:.1f} groups"] if left else []
    return ", ".join(parts) or "–"


def _spread(values: Sequence[float]) -> str:
    middle = sum(values) / len(values)
    if len(values) == 1:
        return f"{middle:.3f}"
    return f"{middle:.3f} ({min(values):.3f}–{max(values):.3f})"
