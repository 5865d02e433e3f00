"""`vitalring bench ring`: what ring signatures cost, in both suites, and why in this group."""

import argparse
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vitalring.errors import ConfigError
from vitalring.files import write_atomic
from vitalring.protocol import group, limits, lsag, ring_suite
from vitalring.protocol.rings import statement
from vitalring.tools.bench import ring_msm
from vitalring.tools.bench.ring_admission import measure_admission
from vitalring.tools.bench.ring_text import ring_facts, ring_tables
from vitalring.tools.measuring.child import require_modules, run_script
from vitalring.tools.measuring.machine import machine
from vitalring.tools.measuring.spread import spread
from vitalring.tools.measuring.table import markdown, print_tables

_CONTEXT = lsag.context("bench", "ring", 1, "cohort", 1)
_SCRIPT = Path(__file__).with_name("ring_ristretto.py")
_CALLS = 200


@dataclass(frozen=True)
class RingSizes:
    """Keys in a ring, signatures in a batch, and how often each is measured.

    Admission is measured in a ring of `admission` keys with so many honest `updates`.
    """

    rings: tuple[int, ...] = (16, 64, 256, 1_024, 4_096)
    batch: int = 100
    repeats: int = 3
    admission: int = 1_024
    updates: int = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    sizes = RingSizes()
    text = ",".join(map(str, sizes.rings))
    parser.add_argument("--rings", type=_integers, default=sizes.rings, help=f"keys, as {text}")
    parser.add_argument("--batch", type=int, default=sizes.batch, help="signatures in a batch")
    parser.add_argument("--repeats", type=int, default=sizes.repeats, help="how often to measure")
    parser.add_argument(
        "--admission", type=int, default=sizes.admission, help="keys in the ring of admission"
    )
    parser.add_argument("--updates", type=int, default=sizes.updates, help="updates to admit")
    parser.add_argument("--ristretto", metavar="PYTHON", help="interpreter with rbcl, to compare")
    parser.add_argument("--out", type=Path, help="folder for JSON and Markdown")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    sizes = RingSizes(
        options.rings, options.batch, options.repeats, options.admission, options.updates
    )
    result = measure_rings(sizes, options.ristretto, Console(stderr=True).print)
    command = "vitalring bench ring"
    if sizes.rings != RingSizes.rings:
        command += f" --rings {','.join(map(str, sizes.rings))}"
    command += f" --batch {sizes.batch} --repeats {sizes.repeats}"
    if (sizes.admission, sizes.updates) != (RingSizes.admission, RingSizes.updates):
        command += f" --admission {sizes.admission} --updates {sizes.updates}"
    # The interpreter's place is one machine's business.
    command += " --ristretto PYTHON" if options.ristretto else ""
    facts, tables = ring_facts(result), ring_tables(result)
    print_tables(facts, tables, Console())
    if options.out is not None:
        text = markdown("Ring signatures", command, facts, tables)
        content = json.dumps({"command": command, **result}, indent=2) + "\n"
        write_atomic(options.out / "ring.md", text.encode())
        write_atomic(options.out / "ring.json", content.encode())
    return 0


def measure_rings(
    sizes: RingSizes, ristretto: str | None, say: Callable[[str], object]
) -> dict[str, Any]:
    """Measure and return the content of `ring.json`: processor seconds of one core, and bytes.

    `ristretto` is an interpreter with rbcl, None leaves that group out. Raises ConfigError.
    """
    if min(sizes.batch, sizes.repeats, sizes.updates) < 1 or not sizes.rings:
        raise ConfigError(f"{sizes} measures nothing: use 1 or more of each")
    wrong = [size for size in sizes.rings if not 2 <= size <= limits.MAX_DEVICES]
    if wrong:
        raise ConfigError(f"rings of {wrong} keys; 2 to {limits.MAX_DEVICES} allowed")
    if ristretto is not None:
        require_modules(ristretto, ("rbcl",), "rbcl")
    rings: dict[str, dict[str, Any]] = {}
    for size in sizes.rings:
        say(f"ring of {size:,}")
        pairs = sorted((lsag.keygen() for _ in range(size)), key=lambda pair: pair.public)
        rings[str(size)] = {
            "lsag": _lsag(pairs, sizes) if size <= limits.MAX_RING else None,
            "one-of-many": _one_of_many(pairs, sizes),
            "multiplications": _multiplications([pair.public for pair in pairs], sizes),
        }
    return {
        "machine": machine(),
        "sizes": asdict(sizes),
        "rings": rings,
        "admission": measure_admission(sizes.admission, sizes.updates, sizes.repeats, say),
        "operations": {"edwards25519": _operations(sizes), "ristretto255": None}
        | ({} if ristretto is None else {"ristretto255": _foreign(ristretto, sizes)}),
    }


def _lsag(pairs: Sequence[lsag.KeyPair], sizes: RingSizes) -> dict[str, Any]:
    keys, digest = [pair.public for pair in pairs], _digest(0)
    ring = ring_suite.prepare(ring_suite.LSAG, keys)
    signer = secrets.choice(pairs).secret
    signature = ring.sign(signer, _CONTEXT, digest)
    return {
        "bytes": len(signature),
        "ring": _measured(sizes, lambda: ring_suite.prepare(ring_suite.LSAG, keys)),
        "sign": _measured(sizes, lambda: ring.sign(signer, _CONTEXT, digest)),
        "verify": _measured(sizes, lambda: ring.verify(_CONTEXT, digest, signature)),
    }


def _one_of_many(pairs: Sequence[lsag.KeyPair], sizes: RingSizes) -> dict[str, Any]:
    keys = [pair.public for pair in pairs]
    ring, shape = ring_suite.prepare(ring_suite.ONE_OF_MANY, keys), statement.Ring.of(keys)
    # All of a batch differ; a ring smaller than the batch signs several messages with a key.
    items, times = [], []
    for number in range(sizes.batch):
        signer, digest = pairs[number % len(pairs)].secret, _digest(number)
        began = time.process_time()
        signature = ring.sign(signer, _CONTEXT, digest)
        times.append(time.process_time() - began)
        items.append((digest, signature))
    spoiled = [*items[:-1], (items[-1][0], _insider(items[-1][1]))]
    passes = 2 + len(items).bit_length()

    def check(batch: list[tuple[bytes, bytes]], refused: int) -> None:
        verdicts = ring.verify_batch(_CONTEXT, batch, passes)
        if sum(verdict.tag is None for verdict in verdicts) != refused:
            raise ConfigError("a batch was judged wrongly: do not use these figures")

    return {
        "bytes": len(items[0][1]),
        "radices": list(shape.radices),
        "members": len(shape.members),
        "ring": _measured(sizes, lambda: ring_suite.prepare(ring_suite.ONE_OF_MANY, keys)),
        "sign": asdict(spread(times)),
        "verify": _measured(sizes, lambda: ring.verify(_CONTEXT, *items[0])),
        "garbage": _measured(sizes, lambda: _refused(ring, _garbage(items[0]))),
        "batch": _measured(sizes, lambda: check(items, 0)),
        "batch with one bad": _measured(sizes, lambda: check(spoiled, 1)),
    }


def _insider(signature: bytes) -> bytes:
    """Spoil the scalar that only a pass over the ring can miss."""
    at = len(signature) - 2 * group.SCALAR_BYTES
    opening = signature[at : at + group.SCALAR_BYTES]
    one = (1).to_bytes(group.SCALAR_BYTES, "little")
    return signature[:at] + group.scalar_add(opening, one) + signature[at + 32 :]


def _garbage(item: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """Put a signature on another message: what somebody without a key can send."""
    return hashlib.sha256(item[0]).digest(), item[1]


def _refused(ring: ring_suite.Ring, item: tuple[bytes, bytes]) -> None:
    if ring.verify_batch(_CONTEXT, [item], 1)[0].error is None:
        raise ConfigError("a signature over another message was accepted")


def _multiplications(keys: Sequence[bytes], sizes: RingSizes) -> dict[str, Any]:
    """Measure the ways to multiply a ring's keys by as many random numbers."""
    scalars = [1 + secrets.randbelow(group.ORDER - 1) for _ in keys]
    bits = min(range(4, 16), key=lambda b: (len(keys) + 2**b) * (253 // b + 1))
    table_bits = min(range(4, 16), key=lambda b: len(keys) * (254 // b + 1) + 2.5 * 2 ** (b - 1))
    began = time.process_time()
    tables = ring_msm.Tables.of(keys, table_bits)
    build = time.process_time() - began
    ways: dict[str, Callable[[], bytes]] = {
        "libsodium": lambda: ring_msm.by_libsodium(scalars, keys),
        "buckets": lambda: ring_msm.by_buckets(scalars, keys, bits),
        "tables": lambda: tables.multiply(scalars),
    }
    if len({way() for way in ways.values()}) != 1:
        raise ConfigError("the ways to multiply disagree: do not use these figures")
    return {
        **{name: _measured(sizes, way) for name, way in ways.items()},
        "buckets_bits": bits,
        "tables_bits": table_bits,
        "tables_build_seconds": build,
    }


def _operations(sizes: RingSizes) -> dict[str, Any]:
    scalar, p, q = group.random_scalar(), lsag.keygen().public, lsag.keygen().public
    operations: dict[str, Callable[[], object]] = {
        "base": lambda: group.base_mul(scalar),
        "multiply": lambda: group.mul(scalar, p),
        "add": lambda: group.add(p, q),
        "decode": lambda: group.decode_point(p),
        "hash to point": lambda: group.hash_to_point(b"bench", scalar),
    }
    return {
        name: asdict(spread([_cost(call, _CALLS) for _ in range(sizes.repeats)]))
        for name, call in operations.items()
    }


def _foreign(python: str, sizes: RingSizes) -> dict[str, Any]:
    request = {"calls": _CALLS, "repeats": sizes.repeats}
    found = run_script(_SCRIPT, request, python=python)
    costs = {name: asdict(spread(values)) for name, values in found["seconds"].items()}
    return {**costs, "accepts_alias": found["accepts_alias"]}


def _measured(sizes: RingSizes, call: Callable[[], object]) -> dict[str, Any]:
    return asdict(spread([_cost(call, 1) for _ in range(sizes.repeats)]))


def _cost(call: Callable[[], object], calls: int) -> float:
    """Return processor seconds of one call."""
    began = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - began) / calls


def _digest(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(8, "little")).digest()


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers such as 16,1024") from error
