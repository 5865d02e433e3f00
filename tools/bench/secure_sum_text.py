"""The figures of `vitalring bench secure-sum` as tables, for a terminal and for Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vitalring.protocol.lsag import signature_bytes
from vitalring.protocol.sealing import sealed_bytes
from vitalring.tools.measuring.spread import milliseconds
from vitalring.tools.measuring.table import Table

TARGETS = (
    ("two-server", 100_000, 1_000, 2.3),
    ("single-he", 100_000, 1_000, 6.7),
    ("threshold-he", 100_000, 1_000, 11.7),
    ("threshold-he", 1_000_000, 1_000, 9.6),
)
"""Mode, parameters, devices, and the most bytes a parameter that an update of 8 bits may have."""

_RING = 32
_NONE = "–"
_Measured = Mapping[str, Any]


def sum_facts(result: _Measured) -> list[str]:
    """Return what a reader must know to compare the figures with others."""
    facts = result["machine"]
    versions = ", ".join(
        f"{name} {facts[name]}" for name in ("vitalring", "numpy", "tenseal") if name in facts
    )
    peers = {row["side"]: row["version"] for row in result["rows"] if "version" in row}
    extra = sealed_bytes(signature_bytes(_RING))
    lines = [
        f"{facts['date']}, {facts['processor']} ({facts['architecture']}), {facts['cores']} cores, "
        f"{facts['memory']}, {facts['system']}, Python {facts['python']}.",
        f"Load average over the last 1, 5 and 15 minutes, at the end: {facts['load']}. Times are "
        "processor time of all threads, which waiting for a busy machine does not lengthen; "
        "neighbours on its caches do.",
        f"{versions}; " + "; ".join(f"{side} {found}" for side, found in peers.items()) + "."
        if peers
        else f"{versions}.",
        "Every side takes the same vectors of norm 1 and returns their mean. Each party is a "
        "process of its own; a time is the median of its repeats, an update's time that of its "
        "stages together. MB are a million bytes, a process's peak is VmHWM, interpreter and "
        "libraries included.",
        "Without what carries an update: TLS and accounts on the peers' side; on ours sealing and "
        f"a signature in a ring of {_RING} keys, which add up to {extra / 1e3:.1f} kB and the "
        "times in [path.md](path.md). No noise for privacy on any side.",
        f"A joint key lasts {result['releases']} releases. Every sum of ours that was decrypted "
        "is exactly the sum of its updates' fields. It is of as many updates as devices, at most "
        f"{_most_made(result)}.",
    ]
    if result["left_out"]:
        options = " and ".join(f"--{name}" for name in result["left_out"])
        lines.append(f"Left out, because no interpreter was given: {options}.")
    return lines


def sum_tables(result: _Measured) -> list[Table]:
    """Return all tables, in the order of reading."""
    tables = [_targets(result)] if _target_rows(result) else []
    tables += [
        _costs(result, f"{dimension:,} parameters, 8 bits", dimension)
        for dimension in result["sizes"]["dimensions"]
    ]
    dimension, _ = result["compared"]
    fine = _costs(result, f"{dimension:,} parameters at 16 bits", dimension, fine=True)
    note = "The finest quantisation that a plan may choose; compare errors with the table above."
    tables.append(replace(fine, notes=(note,)))
    last = len(tables) - 2
    tables[last] = replace(tables[last], notes=_notes(result))
    return tables


def _most_made(result: _Measured) -> str:
    """Name how many updates were made at most, by dimension."""
    made: dict[int, int] = {}
    for row in result["rows"]:
        if "updates" in row:
            made[row["dimension"]] = max(row["updates"], made.get(row["dimension"], 0))
    return ", ".join(f"{count} at {dimension:,} parameters" for dimension, count in made.items())


def sides_at(result: _Measured, dimension: int, devices: int) -> list[_Measured]:
    """Return one row for each side and precision; NVFLARE's serves any number of devices."""
    return [
        row
        for row in result["rows"]
        if row["dimension"] == dimension and (row["devices"] == devices or _any_devices(row))
    ]


def side_name(row: _Measured) -> str:
    """Return a side with its precision."""
    return f"{row['side']}, {row['precision']}"


def total(stages: Mapping[str, Mapping[str, float]]) -> float:
    """Return the medians of all stages together, in seconds."""
    return sum(figure["median"] for figure in stages.values())


def per_parameter(row: _Measured) -> float:
    """Return the bytes that one device sends for each parameter."""
    return float(row["update_bytes"] / row["dimension"])


def _targets(result: _Measured) -> Table:
    return Table(
        "Bytes a parameter against the targets",
        ("mode", "parameters", "devices", "target, at most", "measured"),
        tuple(_target_rows(result)),
        ("Of one update of 8 bits, weight included.",),
    )


def _target_rows(result: _Measured) -> list[tuple[str, ...]]:
    return [
        (row["side"], f"{dimension:,}", f"{devices:,}", f"{most:.1f}", f"{per_parameter(row):.2f}")
        for mode, dimension, devices, most in TARGETS
        for row in result["rows"]
        if (row.get("mode"), row["dimension"], row["devices"]) == (mode, dimension, devices)
        and row["bits"] == 8
    ]


def _costs(result: _Measured, title: str, dimension: int, *, fine: bool = False) -> Table:
    titles = (
        "side",
        "devices",
        "bytes a parameter",
        "device, ms",
        "add, ms",
        "release, ms",
        "combine, ms",
        "peak MB",
        "error",
    )
    rows = [
        row
        for row in result["rows"]
        if row["dimension"] == dimension and fine == (row.get("bits") == 16)
    ]
    return Table(title, titles, tuple(map(_cost, rows)))


def _cost(row: _Measured) -> tuple[str, ...]:
    peaks = (row["peak_bytes"][at] for at in ("device", "server", "release"))
    return (
        row["side"],
        "any" if _any_devices(row) else f"{row['devices']:,}",
        f"{per_parameter(row):.2f}",
        milliseconds(total(row["device"])),
        milliseconds(total(row["server"])),
        milliseconds(total(row["release"])),
        milliseconds(total(row["combine"])) if row["combine"] else _NONE,
        " / ".join(f"{peak / 1e6:.0f}" if peak else _NONE for peak in peaks),
        _NONE if row["error"] is None else f"{row['error']:.1e}",
    )


def _any_devices(row: _Measured) -> bool:
    return bool(row["side"] == "NVFLARE")


def _notes(result: _Measured) -> tuple[str, ...]:
    notes = [
        "Device: from an update's numbers to its bytes, encoding and encryption. Add: checking one "
        "update and adding it, with the sum read from its encoding and written again. Peak MB: "
        "device / gateway or server / hospital.",
        "Error: root mean square of the mean's error over that of the mean. The updates are random "
        "and nearly cancel, which is the hardest case.",
        "Release: with a joint key one hospital's part with its check, with one key the decryption "
        "of the sum, in clear reading it. Combine: opening the checks and adding up the parts.",
        "Two servers: a device's bytes and times are of both halves, and adding is what both "
        "gateways do together. They add when a round is over and both know whose halves they have.",
    ]
    parts = [row for row in result["rows"] if row.get("released_bytes")]
    if parts:
        shares = [row["released_bytes"] / row["dimension"] for row in parts if row["bits"] == 8]
        notes.append(
            "What a hospital sends the others of a release with a joint key is "
            f"{min(shares):.1f} to {max(shares):.1f} bytes a parameter, once a round; each also "
            "fetches all updates."
        )
    notes += _fewer(result["rows"])
    sides = {row["side"] for row in result["rows"]}
    if "NVFLARE" in sides:
        notes.append(
            "NVFLARE: HEModelEncryptor, HEInTimeAccumulateWeightedAggregator and HEModelDecryptor "
            "with the defaults of its provisioning (CKKS, degree 8192, primes of 60, 40 and 40 "
            "bits, scale 2^40, symmetric), messages in its own encoding, which carries the keys' "
            "public context with every vector. Release is the decryption, by every client for "
            "itself: all hold the same secret key. Combine is the server's weighted mean."
        )
    if "Flower SecAgg+" in sides:
        example = max((row for row in result["rows"] if "shares" in row), key=lambda r: r["shares"])
        notes.append(
            "Flower: its client mod with its default quantisation to 22 bits over ±8, far wider "
            "than these updates, every client of the greatest weight; "
            f"up to {example['shares']} shares, {example['threshold']} of which rebuild a seed; "
            "nobody drops out, each one who does costs the server a mask for each neighbour. Bytes "
            "and times of a device are of all four of its messages. Release is the server's: the "
            "time for one seed and mask, times the devices."
        )
        if any(row["error"] is None for row in result["rows"]):
            notes.append(
                "Where Flower's error is missing, only some of a group of neighbours had an update "
                "of that size, so their masks do not cancel and nothing can be decoded."
            )
    return tuple(notes)


def _fewer(rows: Sequence[_Measured]) -> list[str]:
    """Name what was measured on fewer additions than its devices make."""
    fewer = sorted({row["dimension"] for row in rows if row["additions"] < row["devices"]})
    return [
        f"{dimension:,} parameters: adding was measured on "
        f"{max(row['additions'] for row in rows if row['dimension'] == dimension)} updates, not "
        "on as many as the devices' number where that is larger; it costs each update the same."
        for dimension in fewer
    ]
