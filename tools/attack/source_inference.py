"""`vitalring attack source-inference`: whose record was it, at every stage of an update's path.

Hu et al., "Source Inference Attacks in Federated Learning", ICDM 2021 (arXiv:2109.05659), on
updates with names, without, with known records, and on sums; then everything that the state
folder of a real gateway holds, after real rounds, in the hands of a classifier.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from vitalring.aggregator.following import weights_of
from vitalring.edge_agent.personal import macro_f1_of_own_classes
from vitalring.errors import ConfigError
from vitalring.models import metrics
from vitalring.models.artefact import Artefact, initial_weights
from vitalring.models.catalogue import choose_artefact
from vitalring.models.dataset import Records
from vitalring.models.runtime import TrainableModel
from vitalring.protocol.quantise import decode_sum, field_count
from vitalring.protocol.records import StudyPlan
from vitalring.protocol.update import rotation_seed
from vitalring.protocol.weights import unpack_weights
from vitalring.tools.attack import arithmetic, least_loss
from vitalring.tools.attack.gateway_attack import (
    attack_gateway,
    attack_updates,
    ciphertexts_of,
    left_behind,
)
from vitalring.tools.attack.gateway_state import Held, run_and_copy
from vitalring.tools.attack.pool import Pool, case_name, deal, load_pool, write_folder
from vitalring.tools.measuring.machine import machine
from vitalring.tools.measuring.virtual import Weights, play
from vitalring.tools.plans import Sizes, plan_of
from vitalring.tools.settings import SimulationSettings, StudySettings

Say = Callable[[str], None]

_SEED: Final = 5_000_000
_ROWS_OF_A_PERSON: Final = 2000


@dataclass(frozen=True)
class AttackSettings:
    """What is attacked: studies without noise, and with each of `epsilons`."""

    devices: int = 10
    rows: int = 200
    """Most rows of a device."""
    rounds: int = 5
    seeds: int = 5
    targets: int = 40
    """Most records of a device that are asked about."""
    alphas: tuple[float, ...] = (0.1,)
    """Dirichlet label skews, besides the people as they are."""
    epsilons: tuple[float, ...] = (8.0, 1.0)
    gateway_rounds: int = 6
    """Rounds of the real parties whose gateway is attacked; 0 leaves them out."""
    window_s: float = 3.0
    """Devices submit at a random time within this window."""


def measure_source_inference(
    folder: Path, model: str | None, settings: AttackSettings, say: Say = lambda _line: None
) -> dict[str, Any]:
    """Attack studies on a data set's folder, and return every figure. Raises VitalRingError."""
    _check(settings)
    began, cpu = time.monotonic(), _cpu_seconds()
    pool = load_pool(folder, max(settings.rows, _ROWS_OF_A_PERSON))
    info = pool.info
    artefact = choose_artefact(model, pool.input_shape, info.kind, info.classes)
    bench = _Bench(pool, artefact, TrainableModel(artefact), settings)
    cases = []
    for alpha in (None, *settings.alphas):
        case = case_name(alpha, len(pool.people), settings.devices)
        studies = []
        for epsilon in (0.0, *settings.epsilons):
            say(f"{case}, {privacy_name(epsilon)}: {settings.seeds} studies")
            studies.append(_attack_studies(bench, alpha, epsilon))
        cases.append({"name": case, "alpha": alpha, "studies": studies})
    gateway = []
    for epsilon in (0.0, *settings.epsilons) if settings.gateway_rounds else ():
        say(f"a real gateway, {privacy_name(epsilon)}: {settings.gateway_rounds} rounds")
        gateway.append(_attack_gateway(bench, epsilon))
    return {
        "dataset": info.name,
        "people": len(pool.people),
        "held_out_rows": len(pool.held_out),
        "model": artefact.info.name,
        "parameters": artefact.info.dimension,
        "settings": asdict(settings),
        "cases": cases,
        "gateway": gateway,
        "seconds": time.monotonic() - began,
        "cpu_seconds": _cpu_seconds() - cpu,
        "machine": machine(),
    }


def privacy_name(epsilon: float) -> str:
    """Return how a guarantee is called; 0 is none."""
    return f"ε = {epsilon:g}" if epsilon else "no noise"


def _cpu_seconds() -> float:
    """Return what this process and those that it started and waited for have taken."""
    return sum(os.times()[:4])


def _check(settings: AttackSettings) -> None:
    least = max(least_loss.KNOWN) + 2
    if settings.devices < 2 or settings.rows < least:
        raise ConfigError(
            f"{settings.devices} devices of {settings.rows} rows: use 2 devices and {least} rows, "
            "or more, as the attacker knows some and asks about others"
        )
    if min(settings.rounds, settings.seeds, settings.targets) < 1:
        raise ConfigError("rounds, seeds and targets must be 1 or more: nothing would be measured")
    if settings.gateway_rounds == 1 or settings.gateway_rounds < 0:
        raise ConfigError("gateway rounds are 2 or more, to learn from one and ask the other, or 0")


@dataclass(frozen=True)
class _Bench:
    """What all studies share."""

    pool: Pool
    artefact: Artefact
    model: TrainableModel
    settings: AttackSettings

    def devices(self, alpha: float | None, seed: int) -> tuple[Records, ...]:
        generator = np.random.default_rng([_SEED, seed])
        return deal(self.pool.people, alpha, self.settings.devices, self.settings.rows, generator)

    def study(self, epsilon: float, rounds: int) -> StudySettings:
        # The roster is one ring: a ring of its own would name a device.
        return StudySettings(
            unit="record" if epsilon else "none",
            epsilon=epsilon or 8.0,  # counts only with unit record
            model=self.artefact.info.name,
            rounds=rounds,
            ring_size=max(2, self.settings.devices),
            min_cohort=min(10, self.settings.devices),
        )

    def plan(self, made: Sequence[Records], epsilon: float, rounds: int) -> StudyPlan:
        sizes = Sizes.counted([len(records) for records in made])
        return plan_of(self.study(epsilon, rounds), self.artefact, len(made), sizes)

    def start(self, seed: int) -> Weights:
        name = hashlib.sha256(f"source inference {seed}".encode()).digest()
        return initial_weights(self.artefact, name)

    def score(self, weights: Weights) -> dict[str, float]:
        held_out = self.pool.held_out
        probabilities = self.model.probabilities(weights, held_out.x)
        counts = metrics.confusion_matrix(
            held_out.y, probabilities.argmax(axis=1), probabilities.shape[1]
        )
        return {
            "accuracy": metrics.accuracy(counts),
            "macro_f1": macro_f1_of_own_classes(counts),
        }


def _attack_studies(bench: _Bench, alpha: float | None, epsilon: float) -> dict[str, Any]:
    """Attack as many studies as there are seeds; a figure is a list with one value of each."""
    settings = bench.settings
    figures: dict[str, list[float]] = {}
    plan = None
    for seed in range(settings.seeds):
        made = bench.devices(alpha, seed)
        # Devices of the same sizes have the same plan, whose noise takes a second to find.
        plan = plan or bench.plan(made, epsilon, settings.rounds)
        rounds = list(play(bench.model, plan, made, bench.start(seed), seed))
        generator = np.random.default_rng([_SEED, seed, 1])
        targets = least_loss.draw_targets(made, settings.targets, generator)
        watched = least_loss.watch(bench.model, rounds, targets, generator)
        found = least_loss.infer(watched, targets, generator) | bench.score(rounds[-1].after)
        for name, value in found.items():
            figures.setdefault(name, []).append(value)
    training = asdict(plan.training) if plan else {}
    return {"epsilon": epsilon, "training": training, "figures": figures}


def _attack_gateway(bench: _Bench, epsilon: float) -> dict[str, Any]:
    """Run real parties on one division of the rows, and attack what their gateway holds."""
    settings = bench.settings
    made = bench.devices(None, 0)
    with tempfile.TemporaryDirectory(prefix="vitalring-attack-") as folder:
        data = Path(folder) / "data"
        write_folder(data, bench.pool, made)
        study = bench.study(epsilon, settings.gateway_rounds)
        held = run_and_copy(
            SimulationSettings(
                data=data, alone=False, window_s=settings.window_s, timeout_s=600.0, study=study
            )
        )
    plan = bench.plan(made, epsilon, settings.gateway_rounds)
    clear = list(play(bench.model, plan, made, bench.start(0), 0))
    names = [records.device for records in made]
    return {
        "epsilon": epsilon,
        "rounds": len(held),
        "left_behind": left_behind(held),
        "attacks": attack_gateway(held, names),
        "control": attack_updates([seen.updates for seen in clear]),
        "read as updates": _read_as_updates(bench, plan, held, made),
    }


def _read_as_updates(
    bench: _Bench, plan: StudyPlan, held: Sequence[Held], made: Sequence[Records]
) -> list[float]:
    """Attack ciphertexts as if they were updates in clear: the least loss on what they decode to.

    The first bytes of each are taken for its fields. Returns the share of records whose slot is
    found, by round.
    """
    generator = np.random.default_rng([_SEED, 2])
    targets = least_loss.draw_targets(made, bench.settings.targets, generator)
    records = targets.records.take(slice(0, targets.asked))
    places = {each.device: place for place, each in enumerate(made)}
    shares = []
    for each in held:
        copy = each.copies.get("closed")
        contents = [ciphertexts_of(slot) for slot in copy.slots] if copy else []
        if copy is None or not each.weights or len(contents) < len(made) or None in contents:
            continue
        start = unpack_weights(each.weights, bench.artefact.info.dimension)
        losses = [
            arithmetic.losses_of(
                bench.model.probabilities(_as_model(start, content, plan, each), records.x),
                records.y,
            )
            for content in contents
            if content is not None
        ]
        senders = np.array([places[each.senders[slot.tag]] for slot in copy.slots])
        guesses = arithmetic.least_loss(np.stack(losses), generator)
        shares.append(arithmetic.success(senders[guesses], targets.truth))
    return shares


def _as_model(start: Weights, content: bytes, plan: StudyPlan, each: Held) -> Weights:
    """Return the weights (d,) that ciphertext bytes stand for when read as fields."""
    count = field_count(plan.codec, plan.vector_size)
    words = np.resize(np.frombuffer(content[: 2 * (len(content) // 2)], "<u2"), count)
    fields = words.astype(np.uint64) % np.uint64(plan.codec.field_max)
    fields[0] = plan.codec.levels
    mean = decode_sum(fields, 1, plan.codec, plan.vector_size, rotation_seed(each.plan)).mean
    update = each.clip_factor * weights_of(mean, plan.terms)
    model: Weights = (start + update).astype(np.float32)
    return model
