"""`vitalring bench secure-sum`: what a sum costs in every mode, beside NVFLARE's and Flower's own.

Each party runs in a process of its own, the peers' in the peers' own environments, all in one
run on one machine.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vitalring.errors import ConfigError
from vitalring.files import write_atomic
from vitalring.protocol.secure_sum import he_params, threshold_params
from vitalring.tools.bench.child import require_modules, run_child, run_script
from vitalring.tools.bench.machine import machine
from vitalring.tools.bench.secure_sum_cell import RELEASES, Cell
from vitalring.tools.bench.secure_sum_text import sum_facts, sum_tables
from vitalring.tools.bench.spread import by_name
from vitalring.tools.bench.table import markdown, print_tables

SIDES = (
    ("plain", 1, 1),
    ("single-he", 1, 1),
    ("threshold-he", 3, 2),
    ("threshold-he", 3, 3),
)
"""Modes, with the hospitals that hold the key and how many of them decrypt."""

BITS = 8
FINE_BITS = 16
"""Measured too, at one size: nearer to the precision of the peers."""

_HERE = Path(__file__).parent
_CONTEXT = bytes(32)
# So many parameters are encrypted for a sum, in four updates at least.
_MADE = 2_000_000
# Above it an update is megabytes, and adding is measured on fewer.
_LARGE = 200_000
_LARGE_UPDATES, _LARGE_ADDITIONS = 4, 20
_NVFLARE_CLIENTS = 10
_SHARES = 21  # of Flower's clients, with two thirds of them to reconstruct


@dataclass(frozen=True)
class Sizes:
    """What is measured: every dimension with every number of devices."""

    dimensions: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    devices: tuple[int, ...] = (10, 100, 1_000)
    repeats: int = 5  # of decryptions

    def __post_init__(self) -> None:
        if not self.dimensions or not self.devices or self.repeats < 1:
            raise ConfigError("a dimension, a number of devices and a repeat are needed at least")
        if min(self.dimensions) < 1 or min(self.devices) < 3:
            raise ConfigError("a sum needs one parameter and three devices at least")

    @property
    def compared(self) -> tuple[int, int]:
        """Return the dimension and devices at which sides are drawn: the middle and the most."""
        return sorted(self.dimensions)[len(self.dimensions) // 2], max(self.devices)


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
            rows.append(_nvflare(nvflare, dimension, sizes))
        if flower is not None:
            say(f"Flower: {dimension:,} parameters")
            rows += _flower(flower, dimension, sizes)
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
        Cell(*side, d, n, bits, _updates(d, n), _additions(d, n))
        for d, n, bits in wanted
        for side in SIDES
    ]


def _updates(dimension: int, devices: int) -> int:
    return min(devices, max(_LARGE_UPDATES, _MADE // dimension))


def _additions(dimension: int, devices: int) -> int:
    return min(devices, _LARGE_ADDITIONS) if dimension > _LARGE else devices


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
        "device": _stages(device["samples"]),
        "server": _stages(gateway["samples"]),
        "release": _stages(hospital["release"]),
        "combine": _stages(hospital["combine"]),
        "peak_bytes": _peaks(device, gateway, hospital),
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
    elif cell.mode != "plain":
        secret = key.generate(he_params(cell.codec, cell.dimension, None))
        secret.save(folder / "secret.key")
        public = secret.public_key()
    (folder / "public.key").write_bytes(public)


def _nvflare(python: str, dimension: int, sizes: Sizes) -> dict[str, Any]:
    """Measure NVFLARE's parties; what they do does not depend on the number of devices."""
    most = max(sizes.devices)
    with tempfile.TemporaryDirectory(prefix="vitalring-bench-") as room:
        request = {
            "folder": room,
            "dimension": dimension,
            "clients": min(_updates(dimension, most), _NVFLARE_CLIENTS),
            "additions": _additions(dimension, most),
            "repeats": sizes.repeats,
        }
        device, server, release = (
            run_script(_HERE / "secure_sum_nvflare.py", {"role": role, **request}, python=python)
            for role in ("device", "server", "release")
        )
    return {
        "side": "NVFLARE",
        "version": device["version"],
        "precision": "scale 2^40",
        "dimension": dimension,
        "devices": most,
        "additions": request["additions"],
        "update_bytes": device["bytes"],
        "device": _stages(device["samples"]),
        "server": _stages(server["added"]),
        "release": _stages(release["samples"]),
        "combine": _stages(server["mean"]),
        "peak_bytes": _peaks(device, server, release),
        "error": release["error"],
    }


def _flower(python: str, dimension: int, sizes: Sizes) -> list[dict[str, Any]]:
    """Measure SecAgg+ for each number of neighbours, then adding for each number of devices."""
    rows = []
    for shares in sorted({min(devices, _SHARES) for devices in sizes.devices}):
        devices = [n for n in sizes.devices if min(n, _SHARES) == shares]
        with tempfile.TemporaryDirectory(prefix="vitalring-bench-") as room:
            request = {
                "folder": room,
                "dimension": dimension,
                "shares": shares,
                "threshold": max(2, -(-2 * shares // 3)),
                # All of them where their sum is checked: a part of them leaves masks in it.
                "clients": _LARGE_UPDATES if dimension > _LARGE and shares == _SHARES else shares,
            }
            script = _HERE / "secure_sum_flower.py"
            device = run_script(script, {"role": "device", **request}, python=python)
            for count in devices:
                additions = _additions(dimension, count)
                server = run_script(
                    script, {"role": "server", "additions": additions, **request}, python=python
                )
                rows.append(_flower_row(device, server, request, count, additions))
    return rows


def _flower_row(
    device: dict[str, Any],
    server: dict[str, Any],
    request: dict[str, Any],
    devices: int,
    additions: int,
) -> dict[str, Any]:
    # One seed after the other is rebuilt and its mask taken away.
    release = [
        {stage: seconds * devices for stage, seconds in sample.items()}
        for sample in server["removed"]
    ]
    return {
        "side": "Flower SecAgg+",
        "version": device["version"],
        "precision": "22 bits over ±8",
        "shares": request["shares"],
        "threshold": request["threshold"],
        "dimension": request["dimension"],
        "devices": devices,
        "additions": additions,
        "update_bytes": device["bytes"],
        "device": _stages(device["samples"]),
        "server": _stages(server["added"]),
        "release": _stages(release),
        "combine": {},
        "peak_bytes": _peaks(device, server, None),
        "error": server["error"],
    }


def _peaks(
    device: dict[str, Any], server: dict[str, Any], release: dict[str, Any] | None
) -> dict[str, int | None]:
    return {
        "device": device["peak_bytes"],
        "server": server["peak_bytes"],
        "release": release["peak_bytes"] if release else None,
    }


def _stages(samples: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {name: asdict(figure) for name, figure in by_name(samples).items()}


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers such as 10,100") from error


def _flag(name: str, values: Sequence[int]) -> str:
    return f" --{name} " + ",".join(map(str, values))
