"""`vitalring attack membership`: tell records that were trained on from those that were not.

Each study trains on a random half of every person's records, by the toolkit's own path; the other
half are the non-members. So members and others differ in nothing but the lot. Every study is
attacked with the others as shadows: an attacker who has such people's records and trains as the
plan, which is public, says. What it looks at is the final model, the models of all rounds, from
which the opened sums follow, or, where nothing is encrypted, the updates of a record's device.
"""

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from vitalring.errors import ConfigError
from vitalring.models.artefact import Artefact, initial_weights
from vitalring.models.catalogue import choose_artefact
from vitalring.models.dataset import Records
from vitalring.models.runtime import TrainableModel
from vitalring.protocol.records import StudyPlan
from vitalring.tools.attack.likelihood import Floats, Truth, confidence, score
from vitalring.tools.attack.membership_peer import attack_with_peer
from vitalring.tools.attack.pool import load_people
from vitalring.tools.attack.roc import measure_roc
from vitalring.tools.measuring.machine import machine
from vitalring.tools.measuring.virtual import Weights, play
from vitalring.tools.plans import Sizes, plan_of
from vitalring.tools.settings import StudySettings

Say = Callable[[str], None]

_SEED: Final = 6_000_000
_LEAST_EACH_SIDE: Final = 5000

VIEWS: Final = {
    "final": "the final model",
    "models": "all models, as from the opened sums",
    "update": "one update of the device in clear",
    "updates": "all updates of the device in clear",
}
"""What an attacker sees."""

ATTACKS: Final = {
    "threshold": "loss threshold",
    "by_record": "likelihood ratio, by record",
    "by_difficulty": "likelihood ratio, by difficulty",
}
"""What it makes of it."""


@dataclass(frozen=True)
class Defence:
    """How a study is trained: a unit of privacy, where noise is added, epsilon, passes."""

    unit: str = "none"
    noise: str = "none"
    epsilon: float = 0.0
    passes: float | None = None
    """Local epochs of a round; None takes the toolkit's own number."""

    @classmethod
    def from_text(cls, text: str) -> "Defence":
        """Read `none`, or `none:PASSES`, or `UNIT/NOISE/EPSILON`. Raises ConfigError."""
        try:
            if text == "none":
                return cls()
            if text.startswith("none:"):
                return cls(passes=float(text.removeprefix("none:")))
            unit, noise, epsilon = text.split("/")
            return cls(unit, noise, float(epsilon))
        except ValueError as error:
            raise ConfigError(
                f"{text!r} is no defence: write none, none:PASSES or UNIT/NOISE/EPSILON, "
                "as record/local/8"
            ) from error

    @property
    def text(self) -> str:
        """Return what `from_text` reads."""
        if self.unit != "none":
            return f"{self.unit}/{self.noise}/{self.epsilon:g}"
        return "none" if self.passes is None else f"none:{self.passes:g}"

    @property
    def name(self) -> str:
        """Return how it is called on a page."""
        if self.unit != "none":
            return f"{self.unit}, {self.noise}, ε = {self.epsilon:g}"
        return "no noise" + (f", {self.passes:g} passes a round" if self.passes else "")

    def settings(self, model: str, rounds: int, devices: int) -> StudySettings:
        """Return the settings of such a study. Raises ConfigError later, when it is planned."""
        settings = StudySettings(unit=self.unit, model=model, rounds=rounds)
        if self.unit != "none":
            settings = replace(settings, noise=self.noise, epsilon=self.epsilon)
        return replace(settings, local_epochs=self.passes, ring_size=max(2, devices))


@dataclass(frozen=True)
class MembershipSettings:
    """What is attacked."""

    defences: tuple[Defence, ...] = (Defence(), Defence("record", "local", 8.0))
    rows: int = 500
    """Most records of a person, of which half are trained on."""
    rounds: int = 20
    studies: int = 16
    """Studies of each defence: one is attacked, all others are its shadows, in turn."""
    resamples: int = 200
    """Bootstrap draws of the records."""


@dataclass(frozen=True)
class Bench:
    """What all studies share."""

    people: tuple[Records, ...]
    artefact: Artefact
    model: TrainableModel
    settings: MembershipSettings

    @property
    def everything(self) -> Records:
        """All records, person by person."""
        return Records(
            "all",
            np.concatenate([each.x for each in self.people]),
            np.concatenate([each.y for each in self.people]),
        )

    @property
    def owners(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Whose each record is."""
        return np.repeat(np.arange(len(self.people)), [len(each) for each in self.people])

    def plan(self, defence: Defence) -> StudyPlan:
        """Return the plan of a study that is so defended. Raises ConfigError."""
        sizes = Sizes.counted([len(each) // 2 for each in self.people])
        settings = defence.settings(self.artefact.info.name, self.settings.rounds, len(self.people))
        return plan_of(settings, self.artefact, len(self.people), sizes)


@dataclass(frozen=True)
class Looked:
    """What all studies of one defence say of each record."""

    members: Truth = field(repr=False)
    """(studies, records)"""
    models: Floats = field(repr=False)
    """Confidence of the global models, the first one's before any training: (studies, 1 +
    rounds, records)."""
    clients: Floats = field(repr=False)
    """Confidence of the model that the record's own device sent: (studies, rounds, records)."""
    final: tuple[Weights, ...] = field(repr=False)


def measure_membership(
    folder: Path,
    model: str | None,
    settings: MembershipSettings,
    peer: str | None = None,
    say: Say = lambda _line: None,
) -> dict[str, Any]:
    """Attack studies on a data set's folder, and return every figure.

    `peer` is an interpreter with tensorflow-privacy's own tests of privacy, which then attack the
    first study of each defence too. Raises VitalRingError.
    """
    _check(settings)
    began, cpu = time.monotonic(), sum(os.times()[:4])
    info, people = load_people(folder, settings.rows, 2 * _LEAST_EACH_SIDE)
    shape = people[0].x.shape[1:]
    artefact = choose_artefact(model, shape, info.kind, info.classes)
    bench = Bench(people, artefact, TrainableModel(artefact), settings)
    cases = [_attack(bench, defence, peer, say) for defence in settings.defences]
    records = bench.everything
    return {
        "dataset": info.name,
        "people": len(people),
        "members": sum(len(each) // 2 for each in people),
        "others": sum(len(each) - len(each) // 2 for each in people),
        "least_each_side": _LEAST_EACH_SIDE,
        "model": artefact.info.name,
        "parameters": artefact.info.dimension,
        "classes": np.bincount(records.y, minlength=len(info.classes)).tolist(),
        "settings": {
            **asdict(settings),
            "defences": [defence.text for defence in settings.defences],
        },
        "cases": cases,
        "seconds": time.monotonic() - began,
        "cpu_seconds": sum(os.times()[:4]) - cpu,
        "machine": machine(),
    }


def look(bench: Bench, plan: StudyPlan, defence: Defence, say: Say) -> Looked:
    """Train `bench.settings.studies` studies, and return what each says of each record.

    Raises VitalRingError as a device or a server would.
    """
    everything, owners = bench.everything, bench.owners
    studies, rounds = bench.settings.studies, plan.training.rounds
    members = np.zeros((studies, len(owners)), dtype=bool)
    models = np.zeros((studies, 1 + rounds, len(owners)))
    clients = np.zeros((studies, rounds, len(owners)))
    # The first weights follow from the plan, so all studies of a plan, and shadows, share them.
    seed = hashlib.sha256(b"membership").digest()
    start, final = initial_weights(bench.artefact, seed), []

    def sure(weights: Weights, rows: Truth | slice) -> Floats:
        y = everything.y[rows]
        return confidence(bench.model.probabilities(weights, everything.x[rows]), y)

    for study in range(studies):
        say(f"{defence.name}: study {study + 1} of {studies}")
        generator = np.random.default_rng([_SEED, study])
        trained = []
        for person, records in enumerate(bench.people):
            half = np.sort(generator.permutation(len(records))[: len(records) // 2])
            members[study, np.flatnonzero(owners == person)[half]] = True
            trained.append(records.take(half))
        models[study, 0] = sure(start, slice(None))
        last = start
        for number, seen in enumerate(play(bench.model, plan, trained, start, study)):
            models[study, number + 1] = sure(seen.after, slice(None))
            for person in range(len(bench.people)):
                clients[study, number, owners == person] = sure(
                    seen.client_model(person), owners == person
                )
            last = seen.after
        final.append(last)
    return Looked(members, models, clients, tuple(final))


def looks_of(looked: Looked, view: str) -> Floats:
    """Return the looks (studies, k, records) at each record that a view of VIEWS gives."""
    models = looked.models[:, 1:]
    if view == "final":
        return models[:, -1:]
    if view == "models":
        return models
    starts = looked.models[:, :-1]
    if view == "update":
        return np.concatenate([starts[:, -1:], looked.clients[:, -1:]], axis=1)
    return np.concatenate([starts, looked.clients], axis=1)


def attack_looks(looked: Looked, view: str) -> dict[str, Floats]:
    """Return each attack's scores (studies, records) on a view, every study's by the others.

    The threshold (Yeom et al. 2018, arXiv:1709.01604) is on the confidence, the mean of it over
    several models; for an update on how much it raises the confidence.
    """
    looks, studies = looks_of(looked, view), len(looked.members)
    if view in ("final", "models"):
        plain = looks.mean(axis=1)
    else:
        starts, clients = np.split(looks, 2, axis=1)
        plain = (clients - starts).mean(axis=1)
    by_record, by_difficulty = [], []
    for target in range(studies):
        others = np.arange(studies) != target
        found = score(looks[target], looks[others], looked.members[others])
        by_record.append(found.by_record)
        by_difficulty.append(found.by_difficulty)
    return {
        "threshold": plain,
        "by_record": np.stack(by_record),
        "by_difficulty": np.stack(by_difficulty),
    }


def _check(settings: MembershipSettings) -> None:
    if settings.studies < 5:
        raise ConfigError(f"{settings.studies} studies: use 5 or more, as one has 4 shadows then")
    if settings.rows < 4 or settings.rounds < 1 or settings.resamples < 20:
        raise ConfigError("use 4 rows, 1 round and 20 resamples, or more")
    if not settings.defences:
        raise ConfigError("no defence is named, so nothing is attacked")


def _attack(bench: Bench, defence: Defence, peer: str | None, say: Say) -> dict[str, Any]:
    plan = bench.plan(defence)
    looked = look(bench, plan, defence, say)
    generator = np.random.default_rng([_SEED, 1])
    figures: dict[str, dict[str, Any]] = {}
    for view in VIEWS:
        scores = attack_looks(looked, view)
        figures[view] = {
            name: asdict(
                measure_roc(scores[name], looked.members, bench.settings.resamples, generator)
            )
            for name in ATTACKS
        }
    right = looked.models[:, -1] > 0.0
    found = {
        "defence": defence.text,
        "name": defence.name,
        "training": asdict(plan.training),
        "privacy": asdict(plan.privacy),
        "right": {
            "members": float(right[looked.members].mean()),
            "others": float(right[~looked.members].mean()),
        },
        "figures": figures,
    }
    if peer:
        say(f"{defence.name}: tensorflow-privacy attacks the final model")
        found["peer"] = _peer(bench, looked, peer)
    return found


def _peer(bench: Bench, looked: Looked, python: str) -> Mapping[str, Any]:
    everything = bench.everything
    return attack_with_peer(
        python,
        bench.model.probabilities(looked.final[0], everything.x),
        everything.y,
        looks_of(looked, "final")[:, 0],
        looked.members,
    )
