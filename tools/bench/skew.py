"""`vitalring bench skew`: what unlike devices do to FedAvg, FedProx, Adam, Yogi, personal heads.

All sides run in one process on the same devices, from the same weights, with the same coins, and
each gets the same small search of its numbers, on people set aside from those who train. The
held-out people of the data set are asked about the settings that this search chose, never
about others.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vitalring.edge_agent import personal
from vitalring.errors import ConfigError, ModelError, RecordError
from vitalring.models import metrics
from vitalring.models.artefact import Artefact, initial_weights
from vitalring.models.catalogue import choose_artefact
from vitalring.models.dataset import Records, pooled
from vitalring.models.runtime import TrainableModel
from vitalring.protocol.privacy import Training
from vitalring.protocol.quantise import Codec
from vitalring.protocol.records import ServerOptimiser
from vitalring.tools.bench.learning import Work, learn
from vitalring.tools.bench.skew_devices import (
    Device,
    People,
    load_people,
    make_devices,
    mixes,
    redistribute,
    validation_split,
)
from vitalring.tools.measuring.machine import machine

SAMPLING_RATE: Final = 0.25
STEPS: Final = 4
"""A round is one pass over a device's rows, in four batches."""

UPDATE_CLIP: Final = 5.0
BITS: Final = 8

_SEARCH_SEED: Final = 1_000_000

Say = Callable[[str], None]
Weights = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Side:
    """An algorithm and the values that it tries of its own number."""

    name: str
    server: str
    own: str
    values: tuple[float, ...]


SIDES: Final = (
    Side("FedAvg", "fedavg", "server rate", (1.0, 1.5)),
    Side("FedProx", "fedavg", "mu", (0.01, 0.1)),
    Side("Adam", "adam", "server rate", (0.03, 0.1)),
    Side("Yogi", "yogi", "server rate", (0.03, 0.1)),
)
PERSONALISED: Final = "FedAvg"
"""The side whose global model gets personal heads."""


@dataclass(frozen=True)
class SkewSettings:
    """What is compared: `alphas` of Dirichlet skew, beside the people as they are."""

    alphas: tuple[float, ...] = (0.1, 1.0, 100.0)
    devices: int = 0  # devices of a Dirichlet case; 0 is as many as there are people
    rounds: int = 20
    search_rounds: int = 5
    seeds: int = 3
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    """Learning rates on the device that every side tries."""
    heads: personal.PersonalSettings = field(default_factory=personal.PersonalSettings)


@dataclass(frozen=True)
class _Setting:
    """One point of a side's search."""

    side: Side
    device_rate: float
    own: float

    def training(self, rounds: int) -> Training:
        return Training(
            sampling_rate=SAMPLING_RATE,
            steps=STEPS,
            rounds=rounds,
            learning_rate=self.device_rate,
            batch=1,  # counts only with privacy
            records=1,
            proximal=self.own if self.side.own == "mu" else 0.0,
        )

    def server(self) -> ServerOptimiser:
        rate = 1.0 if self.side.own == "mu" else self.own
        beta_1 = 0.0 if self.side.server == "fedavg" else 0.9
        return ServerOptimiser(self.side.server, rate, beta_1)


@dataclass(frozen=True)
class _Bench:
    """What all runs share."""

    people: People
    artefact: Artefact
    model: TrainableModel
    settings: SkewSettings

    def work(self, setting: _Setting, fit: Sequence[Records], rounds: int, seed: int) -> Work:
        """Return the work of one run; what depends on the seed is the same for every side."""
        name = hashlib.sha256(f"skew {seed}".encode()).digest()
        codec = Codec(n_max=len(fit), clip=UPDATE_CLIP, weight_cap=max(map(len, fit)), bits=BITS)
        return Work(
            devices=tuple(fit),
            start=initial_weights(self.artefact, name),
            training=setting.training(rounds),
            codec=codec,
            server=setting.server(),
            seed=seed,
        )

    def devices(self, people: Sequence[Records], alpha: float | None, seed: int) -> list[Device]:
        """Return the devices of a case."""
        count = self.settings.devices or len(self.people.train)
        generator = np.random.default_rng([_SEARCH_SEED, seed])
        return list(make_devices(redistribute(people, alpha, count, generator)))


def measure_skew(
    folder: Path, model: str | None, settings: SkewSettings, say: Say = lambda _line: None
) -> dict[str, Any]:
    """Compare all sides on a data set's folder, and return every figure. Raises VitalRingError."""
    if min(settings.rounds, settings.search_rounds, settings.seeds, len(settings.rates)) < 1:
        raise ConfigError("rounds, seeds and rates must be 1 or more: nothing would be measured")
    began = time.monotonic()
    people = load_people(folder)
    classes = people.info.classes
    artefact = choose_artefact(model, people.input_shape, people.info.kind, classes)
    bench = _Bench(people, artefact, TrainableModel(artefact), settings)
    cases = []
    for alpha in (*settings.alphas, None):
        say(f"{case_name(alpha)}: searching")
        cases.append(_measure_case(bench, alpha, say))
    return {
        "dataset": people.info.name,
        "classes": list(classes),
        "people": len(people.train),
        "held_out_rows": len(people.held_out),
        "held_out_people": len(people.info.test_devices or ()),
        "model": artefact.info.name,
        "parameters": artefact.info.dimension,
        "head": artefact.info.head,
        "settings": asdict(settings),
        "sides": [asdict(side) for side in SIDES],
        "personalised": PERSONALISED,
        "cases": cases,
        "seconds": time.monotonic() - began,
        "machine": machine(),
    }


def case_name(alpha: float | None) -> str:
    """Return how a case is called."""
    return "by person" if alpha is None else f"Dirichlet {alpha:g}"


def personal_name(result: Mapping[str, Any]) -> str:
    """Return what the side with personal heads is called."""
    return f"{result['personalised']} + heads"


def _measure_case(bench: _Bench, alpha: float | None, say: Say) -> dict[str, Any]:
    searches = [_search(bench, side, alpha) for side in SIDES]
    seeds = []
    for seed in range(bench.settings.seeds):
        say(f"{case_name(alpha)}: seed {seed + 1} of {bench.settings.seeds}")
        seeds.append(_measure_seed(bench, [best for best, _ in searches], alpha, seed))
    devices = bench.devices(bench.people.train, alpha, 0)
    shares = mixes(devices, len(bench.people.info.classes))
    return {
        "alpha": alpha,
        "devices": len(devices),
        "records": sorted(len(device.fit) for device in devices),
        "commonest_class_share": float(shares.max(axis=1).mean()),
        "classes_a_device": float((shares > 0).sum(axis=1).mean()),
        "sides": [
            {
                "name": side.name,
                "device_rate": best.device_rate,
                "own": best.own,
                "tried": tried,
                "curves": [found["curves"][i] for found in seeds],
                "held_out": [found["held_out"][i] for found in seeds],
                "own_rows": [found["own_rows"][i] for found in seeds],
            }
            for i, (side, (best, tried)) in enumerate(zip(SIDES, searches, strict=True))
        ],
        "personal": [found["personal"] for found in seeds],
    }


def _search(
    bench: _Bench, side: Side, alpha: float | None
) -> tuple[_Setting, list[dict[str, float]]]:
    """Return the setting that does best on people set aside from those who train."""
    rest, aside = validation_split(bench.people.train, np.random.default_rng(_SEARCH_SEED))
    fit = [device.fit for device in bench.devices(rest, alpha, _SEARCH_SEED)]
    rows = pooled("validation", aside)
    rounds = bench.settings.search_rounds
    settings = [_Setting(side, rate, own) for rate in bench.settings.rates for own in side.values]
    tried = []
    for setting in settings:
        score = -1.0  # diverged
        try:
            *_, weights = learn(bench.model, bench.work(setting, fit, rounds, _SEARCH_SEED))
            score = _scores(bench.model, weights.astype(np.float32), rows)["macro_f1"]
        except (ModelError, RecordError):
            pass
        tried.append({"device_rate": setting.device_rate, "own": setting.own, "macro_f1": score})
    best = max(range(len(settings)), key=lambda i: tried[i]["macro_f1"])
    return settings[best], tried


def _measure_seed(
    bench: _Bench, settings: Sequence[_Setting], alpha: float | None, seed: int
) -> dict[str, Any]:
    """Run every side once on the same devices, and personal heads on one side's last weights."""
    devices = bench.devices(bench.people.train, alpha, seed)
    found: dict[str, Any] = {"curves": [], "held_out": [], "own_rows": []}
    for setting in settings:
        work = bench.work(setting, [each.fit for each in devices], bench.settings.rounds, seed)
        curve, weights = [], work.start
        for reached in learn(bench.model, work):
            weights = reached.astype(np.float32)
            curve.append(_scores(bench.model, weights, bench.people.held_out))
        found["curves"].append([point["macro_f1"] for point in curve])
        found["held_out"].append(curve[-1])
        found["own_rows"].append(
            summary([_scores(bench.model, weights, each.unseen) for each in devices])
        )
        if setting.side.name == PERSONALISED:
            found["personal"] = _personal_heads(bench, weights, devices, seed)
    return found


def _personal_heads(
    bench: _Bench, weights: Weights, devices: Sequence[Device], seed: int
) -> dict[str, Any]:
    """Personalise every device, and measure what it then uses on rows that it never had."""
    head = bench.artefact.info.head
    in_use, always, used = [], [], 0
    for number, device in enumerate(devices):
        generator = np.random.default_rng([_SEARCH_SEED, seed, number])
        done = personal.personalise(
            bench.model, weights, head, device.records, "order", bench.settings.heads, generator
        )
        own = _scores(bench.model, personal.with_head(weights, done.head), device.unseen)
        always.append(own)
        used += done.result.used
        in_use.append(own if done.result.used else _scores(bench.model, weights, device.unseen))
    return {"own_rows": summary(in_use), "always": summary(always), "used": used}


def _scores(model: TrainableModel, weights: Weights, records: Records) -> dict[str, float]:
    """Return accuracy and macro-F1, over the classes that occur, of weights (d,) on rows."""
    probabilities = model.probabilities(weights, records.x)
    counts = metrics.confusion_matrix(
        records.y, probabilities.argmax(axis=1), probabilities.shape[1]
    )
    return {
        "accuracy": metrics.accuracy(counts),
        "macro_f1": personal.macro_f1_of_own_classes(counts),
    }


def summary(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean over devices, and the mean of the fifth of them that fare worst."""
    worst = max(1, len(scores) // 5)
    by_name = {name: sorted(each[name] for each in scores) for name in ("accuracy", "macro_f1")}
    return {
        "accuracy": float(np.mean(by_name["accuracy"])),
        "macro_f1": float(np.mean(by_name["macro_f1"])),
        "worst_accuracy": float(np.mean(by_name["accuracy"][:worst])),
    }
