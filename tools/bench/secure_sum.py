"""`vitalring bench secure-sum`: what a sum costs in every mode, beside NVFLARE's and Flower's own.

Each party runs in a process of its own, the peers' in the peers' own environments, all in one
run on one machine.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vitalring.files import write_atomic
from vitalring.protocol.secure_sum import KEYLESS, he_params, threshold_params
from vitalring.tools.bench.secure_sum_cell import (
    RELEASES,
    Cell,
    Sizes,
    additions_timed,
    updates_made,
)
from vitalring.tools.bench.secure_sum_peers import flower_rows, nvflare_row, peaks, stages
from vitalring.tools.bench.secure_sum_text import sum_facts, sum_tables
from vitalring.tools.measuring.child import require_modules, run_child
from vitalring.tools.measuring.machine import machine
from vitalring.tools.measuring.table import markdown, print_tables

SIDES = (
    ("plain", 1, 1),
    ("two-server", 1, 1),
    ("single-he", 1, 1),
    ("threshold-he", 3, 2),
    ("threshold-he", 3, 3),
)
"""Modes, with the hospitals that hold the key and how many of them decrypt."""

BITS = 8
FINE_BITS = 16
"""Measured too, at one size: nearer to the precision of the peers."""

_CONTEXT = bytes(32)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    sizes = Sizes()
    for name, default, what in (
        ("--dimensions", sizes.dimensions, "parameters of a network"),
        ("--devices", sizes.devices, "devices that add"),
    ):
        text = ",".join(map(str, default))
        parser.add_argument(name, type=_integers, default=default, help=f"{what}, as {text}")
    parser.add_argument("--repeats", type=int, default=sizes.repeats, help="decryptions of a sum")
    for name, package in (("nvflare", "nvflare[HE]"), ("flower", "flwr")):
        parser.add_argument(
            f"--{name}", metavar="PYTHON", help=f"interpreter with {package}, to compare"
        )
    parser.add_argument("--out", type=Path, help="folder for JSON, Markdown and the picture")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    sizes = Sizes(options.dimensions, options.devices, options.repeats)
    result = measure_sums(sizes, options.nvflare, options.flower, Console(stderr=True).print)
    command = "vitalring bench secure-sum"
    command += "" if sizes.dimensions == Sizes.dimensions else _flag("dimensions", sizes.dimensions)
    command += "" if sizes.devices == Sizes.devices else _flag("devices", sizes.devices)
    command += f" --repeats {sizes.repeats}"
    # The interpreters' places are one machine's business.
    command += "".join(
        f" --{name} PYTHON" for name in ("nvflare", "flower") if getattr(options, name)
    )
    print_tables(sum_facts(result), sum_tables(result), Console())
    if options.out is not None:
        write_page(options.out, command, result)
    return 0


def write_page(folder: Path, command: str, result: dict[str, Any]) -> None:
    """Write a result as Markdown with a picture, and as JSON."""
    # Plots take a second to load, and nothing else here needs them.
    from vitalring.tools.bench.secure_sum_plots import sum_plot  # noqa: PLC0415

    first, *others = sum_tables(result)
    picture = "![Bytes a parameter, and processor time of one device](secure-sum.svg)"
    first = replace(first, notes=(*first.notes, picture))
    text = markdown("The encrypted sum", command, sum_facts(result), [first, *others])
    content = json.dumps({"command": command, **result}, indent=2) + "\n"
    write_atomic(folder / "secure-sum.md", text.encode())
    write_atomic(folder / "secure-sum.json", content.encode())
    write_atomic(folder / "secure-sum.svg", sum_plot(result).encode())


def measure_sums(
    sizes: Sizes, nvflare: str | None, flower: str | None, say: Callable[[str], object]
) -> dict[str, Any]:
    """Measure and return the content of `secure-sum.json`: processor seconds, and bytes.

    `nvflare` and `flower` are interpreters with these packages, None leaves a side out.
    Raises ConfigError.
    """
    if nvflare is not None:
        require_modules(nvflare, ("nvflare", "tenseal"), "nvflare[HE]")
    if flower is not None:
        require_modules(flower, ("flwr",), "flwr")
    rows = []
    for cell in _cells(sizes):
        say(
            f"{_name(cell)}: {cell.dimension:,} parameters, {cell.devices:,} devices, "
            f"{cell.bits} bits"
        )
        rows.append(_own(cell, sizes.repeats))
    for dimension in sizes.dimensions:
        if nvflare is not None:
            say(f"NVFLARE: {dimension:,} parameters")
            rows.append(nvflare_row(nvflare, dimension, sizes))
        if flower is not None:
            say(f"Flower: {dimension:,} parameters")
            rows += flower_rows(flower, dimension, sizes)
    return {
        "machine": machine(),
        "sizes": asdict(sizes),
        "compared": sizes.compared,
        "releases": RELEASES,
        "left_out": [
            name for name, python in (("nvflare", nvflare), ("flower", flower)) if python is None
        ],
        "rows": rows,
    }


def _cells(sizes: Sizes) -> list[Cell]:
    wanted = [(d, n, BITS) for d in sizes.dimensions for n in sizes.devices]
    wanted.append((*sizes.compared, FINE_BITS))
    return [
        Cell(*side, d, n, bits, updates_made(d, n), additions_timed(d, n))
        for d, n, bits in wanted
        for side in SIDES
    ]


def _name(cell: Cell) -> str:
    if cell.joint is None:
        return cell.mode
    return f"{cell.mode}, {cell.threshold} of {cell.hospitals}"


def _own(cell: Cell, repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="vitalring-bench-") as room:
        folder = Path(room)
        _write_keys(cell, folder)
        request = {"cell": asdict(cell), "folder": room, "repeats": repeats}
        device, gateway, hospital = (
            run_child(f"secure_sum_{party}", request) for party in ("device", "gateway", "hospital")
        )
    return {
        "side": _name(cell),
        "mode": cell.mode,
        "precision": f"{cell.bits} bits",
        "bits": cell.bits,
        "dimension": cell.dimension,
        "devices": cell.devices,
        "updates": cell.updates,
        "additions": cell.additions,
        "update_bytes": device["bytes"],
        "released_bytes": hospital["released_bytes"],
        "device": stages(device["samples"]),
        "server": stages(gateway["samples"]),
        "release": stages(hospital["release"]),
        "combine": stages(hospital["combine"]),
        "peak_bytes": peaks(device, gateway, hospital),
        "error": hospital["error"],
    }


def _write_keys(cell: Cell, folder: Path) -> None:
    """Write what device and hospitals hold; how long making keys takes is not measured here."""
    # Loads SEAL, which no other command of this module needs.
    from vitalring.aggregator import key  # noqa: PLC0415
    from vitalring.protocol.threshold.joint_key import contribute, join  # noqa: PLC0415
    from vitalring.protocol.threshold.pieces import encode_piece  # noqa: PLC0415

    public = b""
    if cell.joint is not None:
        params = threshold_params(cell.codec, cell.dimension, cell.joint)
        made = [contribute(h, _CONTEXT, params) for h in range(cell.hospitals)]
        for piece in (piece for pieces, _ in made for piece in pieces):
            (folder / f"{piece.index}.piece").write_bytes(encode_piece(piece))
        public = join((contribution for _, contribution in made), _CONTEXT, params)
    elif cell.mode not in KEYLESS:
        secret = key.generate(he_params(cell.codec, cell.dimension, None))
        secret.save(folder / "secret.key")
        public = secret.public_key()
    (folder / "public.key").write_bytes(public)


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers such as 10,100") from error


def _flag(name: str, values: Sequence[int]) -> str:
    return f" --{name} " + ",".join(map(str, values))
