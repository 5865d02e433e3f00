"""One study in one process, measured: what the benches of privacy's price have in common.

`play` runs devices and server as they are; `central` is what a server could do that everybody
trusts with clear updates.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vitalring.aggregator import optimisers
from vitalring.edge_agent import dpsgd
from vitalring.edge_agent.contribution import learn
from vitalring.edge_agent.randomness import fresh_generator
from vitalring.errors import ConfigError, ModelError
from vitalring.models import metrics
from vitalring.models.artefact import Artefact, initial_weights
from vitalring.models.dataset import Records
from vitalring.models.runtime import TrainableModel
from vitalring.protocol.records import StudyPlan
from vitalring.protocol.weights import pack_weights, unpack_weights
from vitalring.tools.bench.one_layer import has_one_layer, with_features
from vitalring.tools.measuring.virtual import play
from vitalring.tools.plans import Sizes, plan_of
from vitalring.tools.settings import StudySettings

Weights = npt.NDArray[np.float32]


class Model(dpsgd.TrainableModel, Protocol):
    """A network that trains and predicts."""

    def probabilities(self, weights: Weights, x: npt.NDArray[np.float32]) -> Weights:
        """Return class probabilities (n, classes) of x (n, ...)."""


@dataclass(frozen=True)
class Stage:
    """Who trains what, and whose rows measure it."""

    artefact: Artefact
    model: Model
    devices: tuple[Records, ...] = field(repr=False)
    aside: tuple[Records, ...] = field(repr=False)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Records of each device."""
        return tuple(map(len, self.devices))

    def plan(self, settings: StudySettings) -> StudyPlan:
        """Return the plan of a study of these devices. Raises ConfigError."""
        sizes = Sizes.counted(self.sizes, settings.records)
        return plan_of(settings, self.artefact, len(self.devices), sizes)


def stage_of(artefact: Artefact, devices: Sequence[Records], aside: Sequence[Records]) -> Stage:
    """Return devices for a network; what it computes alike in every step is computed once here."""
    count = len(devices)
    if has_one_layer(artefact.info):
        # Its features are a matter of speed: what is no such network after all goes the long way.
        with suppress(ModelError):
            layer, made = with_features(artefact, (*devices, *aside))
            return Stage(artefact, layer, made[:count], made[count:])
    return Stage(artefact, TrainableModel(artefact), tuple(devices), tuple(aside))


def federated(stage: Stage, plan: StudyPlan, seed: int) -> Weights:
    """Return the weights (d,) that a study ends with. Raises VitalRingError."""
    start = initial_weights(stage.artefact, plan.model.initial_seed)
    weights = start
    for seen in play(stage.model, plan, stage.devices, start, seed):
        weights = seen.after
    return weights


def central(
    stage: Stage, plan: StudyPlan, clip: float, noise_multiplier: float, seed: int
) -> Weights:
    """Return the weights (d,) of a server that is trusted with clear updates.

    Devices learn as the plan says. The server clips each update to the L2 norm `clip`, adds one
    Gaussian of `noise_multiplier` clips to their sum, and divides it by their number. Its noise
    follows from `seed`: fit for a comparison, not for a guarantee.
    Raises ConfigError for a clip or a noise that changes from round to round, which this server
    has not; VitalRingError as a device or a server would.
    """
    for name, value in (
        ("clip_quantile", plan.privacy.clip_quantile),
        ("noise_schedule", plan.privacy.schedule),
    ):
        if value:
            raise ConfigError(
                f"{name} is {value}: a trusted server has one clip and one noise for all rounds, "
                f"leave {name} out of the study that is compared with it"
            )
    optimiser = optimisers.build(plan.server)
    start = initial_weights(stage.artefact, plan.model.initial_seed)
    state = optimiser.init(start.astype(np.float64))
    for number in range(1, plan.training.rounds + 1):
        weights = unpack_weights(pack_weights(state.weights), start.size)
        total = np.zeros(start.size)
        for place, records in enumerate(stage.devices):
            # The functions of a record's guarantee take no coins that somebody else can toss.
            by_record = plan.privacy.unit == "record"
            coins = fresh_generator() if by_record else np.random.default_rng([seed, number, place])
            update = learn(stage.model, weights, records, plan.terms, coins)
            total += update * min(1.0, clip / max(float(np.linalg.norm(update)), 1e-300))
        if noise_multiplier:
            coins = np.random.default_rng([seed, number])
            total += coins.normal(0.0, noise_multiplier * clip, start.size)
        state = optimiser.apply(state, total / len(stage.devices))
    return unpack_weights(pack_weights(state.weights), start.size)


def score(stage: Stage, weights: Weights) -> Mapping[str, float]:
    """Return accuracy, macro-F1 and AUROC of weights (d,) on the rows set aside."""
    y = np.concatenate([each.y for each in stage.aside])
    probabilities = np.concatenate(
        [stage.model.probabilities(weights, each.x) for each in stage.aside]
    )
    if not np.isfinite(probabilities).all():
        raise ModelError("the study diverged: lower its lr, or that of its server")
    classes = len(stage.artefact.info.classes)
    confusion = metrics.confusion_matrix(y, probabilities.argmax(axis=1), classes)
    return {
        "accuracy": metrics.accuracy(confusion),
        "macro_f1": metrics.macro_f1(confusion),
        "auroc": metrics.auroc(y, probabilities),
    }
