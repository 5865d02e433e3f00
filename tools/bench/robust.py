"""`vitalring bench robust`: what hostile devices do to a study, and what groups do about them.

Every defence meets every attack with the same devices, first weights and coins. Training,
encoding, sums of fields, limits and the combination are those of the parties; the encryption
between them, which changes no field of a sum (SPEC 5), is left out.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vitalring.aggregator import groups, optimisers, robust
from vitalring.errors import ConfigError, EncodingRangeError, RecordError
from vitalring.models.artefact import initial_weights
from vitalring.models.catalogue import choose_artefact
from vitalring.models.runtime import TrainableModel
from vitalring.protocol.quantise import Codec, DecodedSum, decode_sum
from vitalring.protocol.records import ServerOptimiser
from vitalring.protocol.weights import pack_weights, unpack_weights
from vitalring.tools.bench.robust_attacks import (
    ATTACKS,
    Attack,
    Situation,
    encoded,
    radix,
)
from vitalring.tools.bench.robust_devices import Fleet, virtual_devices
from vitalring.tools.bench.skew_devices import load_people
from vitalring.tools.measuring.machine import machine

Say = Callable[[str], None]
Sums = Sequence[tuple[npt.NDArray[np.uint64], int]]

SERVER: Final = ServerOptimiser("adam", 0.02, 0.9)
LAST: Final = 4
"""A figure is the mean over this many last rounds: single rounds go up and down."""


@dataclass(frozen=True)
class Defence:
    """How a round's updates become one mean: `size` updates in a group, 0 puts all into one."""

    name: str
    combine: str = "mean"
    size: int = 0
    limits: bool = True


DEFENCES: Final = (
    Defence("none", limits=False),
    Defence("limits, one sum"),
    Defence("groups of 3, trimmed mean", "trimmed-mean", 3),
    Defence("groups of 3, median", "median", 3),
    Defence("groups of 5, median", "median", 5),
    Defence("groups of 10, median", "median", 10),
)


@dataclass(frozen=True)
class RobustSettings:
    """What is compared: `shares` of hostile devices, besides none."""

    devices: int = 105
    rows: int = 60  # of each device
    rounds: int = 12
    seeds: int = 1
    shares: tuple[float, ...] = (0.01, 0.1, 0.2)


def measure_robust(
    folder: Path, model: str | None, settings: RobustSettings, say: Say = lambda _line: None
) -> dict[str, Any]:
    """Run every defence against every attack, and return every figure. Raises VitalRingError."""
    least = max(defence.size for defence in DEFENCES)
    if settings.devices < least or min(settings.rounds, settings.seeds, settings.rows) < 1:
        raise ConfigError(f"robust takes {least} devices or more, and rounds, seeds and rows")
    if not all(
        0 < share < 1 and hostile_count(settings.devices, share) for share in settings.shares
    ):
        raise ConfigError(
            f"shares of hostile devices lie between 0 and 1 and are one device of "
            f"{settings.devices} at least, not {settings.shares}"
        )
    began = time.monotonic()
    people = load_people(folder)
    classes = people.info.classes
    artefact = choose_artefact(model, people.input_shape, people.info.kind, classes)
    network = TrainableModel(artefact)
    cases: list[tuple[Attack | None, float]] = [(None, 0.0)]
    cases += [(attack, share) for share in settings.shares for attack in ATTACKS.values()]
    found: dict[tuple[str, float], list[list[dict[str, float]]]] = {}
    for seed in range(settings.seeds):
        fleet = Fleet(
            network,
            len(classes),
            virtual_devices(
                people.train, settings.devices, settings.rows, np.random.default_rng([seed, 0])
            ),
            people.held_out,
            initial_weights(artefact, hashlib.sha256(f"robust {seed}".encode()).digest()),
            settings.rounds,
            seed,
        )
        for attack, share in cases:
            say(f"seed {seed + 1} of {settings.seeds}: {case_name(attack, share)}")
            runs = _runs(fleet, attack, share)
            found.setdefault((attack.name if attack else "", share), []).append(runs)
    return {
        "dataset": people.info.name,
        "people": len(people.train),
        "held_out_rows": len(people.held_out),
        "held_out_people": len(people.info.test_devices or ()),
        "model": artefact.info.name,
        "parameters": artefact.info.dimension,
        "settings": asdict(settings),
        "defences": [asdict(defence) for defence in DEFENCES],
        "attacks": {attack.name: attack.does for attack in ATTACKS.values()},
        "cases": [
            {
                "attack": attack,
                "share": share,
                "defences": [list(runs) for runs in zip(*seeds, strict=True)],
            }
            for (attack, share), seeds in found.items()
        ],
        "seconds": time.monotonic() - began,
        "machine": machine(),
    }


def hostile_count(devices: int, share: float) -> int:
    """Return how many of the devices are hostile."""
    return round(share * devices)


def case_name(attack: Attack | None, share: float) -> str:
    """Return how a case is called."""
    return f"{share:.0%} {attack.name}" if attack else "no attack"


def run(fleet: Fleet, defence: Defence, attack: Attack | None, share: float) -> dict[str, float]:
    """Run a study, and return its figures."""
    count, codec = len(fleet.devices), fleet.codec
    coins = np.random.default_rng([fleet.seed, 1])
    # Hostile devices stay so; the smaller share of them is among the larger one.
    order = coins.permutation(count)
    hostile = frozenset(order[: hostile_count(count, share)].tolist()) if attack else frozenset()
    optimiser = optimisers.build(SERVER)
    state = optimiser.init(fleet.start.astype(np.float64))
    scores: list[dict[str, float]] = []
    lost = left_out = opened = 0
    for number in range(1, fleet.rounds + 1):
        weights = unpack_weights(pack_weights(state.weights), fleet.start.size)
        seed = hashlib.sha256(f"{fleet.seed} {number}".encode()).digest()
        members = _groups(count, defence, seed)
        sums = _sums(fleet, weights, members, hostile, attack, share, seed, number)
        opened += len(sums)
        openers = [partial(_decode, defence, *each, codec, weights.size, seed) for each in sums]
        try:
            combined = robust.combine_groups(defence.combine, openers)
            moved = optimiser.apply(state, combined.mean)
            pack_weights(moved.weights)  # refuses what cannot be published
            state = moved
            left_out += len(combined.left_out)
        except (EncodingRangeError, RecordError):
            lost += 1
        if number > fleet.rounds - LAST:
            scores.append(fleet.score(state.weights.astype(np.float32)))
    return {
        "macro_f1": float(np.mean([each["macro_f1"] for each in scores])),
        "accuracy": float(np.mean([each["accuracy"] for each in scores])),
        "rounds_lost": lost,
        "left_out_a_round": left_out / max(1, fleet.rounds - lost),
        "groups": opened / fleet.rounds,
    }


def _runs(fleet: Fleet, attack: Attack | None, share: float) -> list[dict[str, float]]:
    """Run every defence against an attack."""
    runs = {defence: run(fleet, defence, attack, share) for defence in DEFENCES[1:]}
    # Where the limits refused no sum, the study is the same without them.
    limited = runs[DEFENCES[1]]
    unlimited = run(fleet, DEFENCES[0], attack, share) if limited["rounds_lost"] else limited
    return [unlimited, *runs.values()]


def _groups(count: int, defence: Defence, seed: bytes) -> list[list[int]]:
    """Return a round's groups. Tags are stood for by hashes, as unlike each other as points."""
    if not defence.size:
        return [list(range(count))]
    tags = [hashlib.sha256(seed + place.to_bytes(4, "big")).digest() for place in range(count)]
    return groups.assign(tags, hashlib.sha256(b"nonces" + seed).digest(), count, defence.size)


def _sums(
    fleet: Fleet,
    weights: npt.NDArray[np.float32],
    members: Sequence[Sequence[int]],
    hostile: frozenset[int],
    attack: Attack | None,
    share: float,
    seed: bytes,
    number: int,
) -> Sums:
    """Return each group's sum of fields, and how many updates are in it."""
    honest = fleet.updates(weights, frozenset())
    flips = attack is not None and attack.flips_labels
    trained = fleet.updates(weights, hostile) if flips else honest
    direction = np.mean([honest[device] for device in sorted(hostile)] or honest, axis=0)
    made = []
    for group in members:
        total = np.zeros(1, dtype=np.int64)
        for device in group:
            bad = device in hostile
            at = Situation(
                honest=honest[device],
                trained=trained[device],
                direction=direction,
                rows=len(fleet.devices[device]),
                codec=fleet.codec,
                seed=seed,
                group=len(group),
                hostile_share=share,
                generator=np.random.default_rng([fleet.seed, number, device]),
            )
            total = total + (attack.fields(at) if bad and attack else encoded(at.honest, at))
        made.append(((total % radix(fleet.codec)).astype(np.uint64), len(group)))
    return made


def _decode(
    defence: Defence,
    fields: npt.NDArray[np.uint64],
    count: int,
    codec: Codec,
    dimension: int,
    seed: bytes,
) -> DecodedSum:
    decode = robust.decode_group if defence.limits else decode_sum
    return decode(fields, count, codec, dimension, seed)
