"""Train rows that lie in one place, as the rounds of a federation would, without privacy."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitalring.aggregator import optimisers
from vitalring.edge_agent.dpsgd import train
from vitalring.edge_agent.personal import KeepRule, keep_back
from vitalring.models.artefact import Artefact, initial_weights
from vitalring.models.dataset import FeatureSchema, Records, load_dataset, load_device, split
from vitalring.models.runtime import TrainableModel
from vitalring.protocol.privacy import Privacy, Training
from vitalring.protocol.records import ServerOptimiser


@dataclass(frozen=True)
class Recipe:
    """What a plan says about training: the network, its first weights, steps and optimiser.

    `clip` bounds the L2 norm of one record's gradient, which steadies training without privacy
    too; 0 leaves it unbounded.
    """

    artefact: Artefact
    initial_seed: bytes
    training: Training
    clip: float
    server: ServerOptimiser


@dataclass(frozen=True)
class Trained:
    """Weights (d,) and how many records were seen on the way, each as often as it was."""

    weights: npt.NDArray[np.float64]
    examples: int


def training_rows(
    folder: Path, devices: Sequence[str], features: FeatureSchema | None, personal: KeepRule | None
) -> Records:
    """Return the records that these devices train the common model on, all in one.

    `personal`: without those that devices keep back, by this rule, for heads of their own.
    Raises DataError.
    """
    info = load_dataset(folder)
    parts = [split(load_device(folder, name, info, features), info).train for name in devices]
    if personal:
        parts = [keep_back(part, personal).train for part in parts]
    return Records(
        "+".join(devices),
        np.concatenate([part.x for part in parts]),
        np.concatenate([part.y for part in parts]),
    )


def train_rounds(
    recipe: Recipe,
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.int64],
    seed: int,
    on_round: Callable[[int], None] = lambda _: None,
) -> Trained:
    """Run `recipe.training.rounds` rounds of local training and server optimiser on x (n, ...).

    There is no pull back to the round's start (FedProx): nobody else is there to drift from.
    Raises DataError or ModelError.
    """
    examples = 0
    for number, (weights, seen) in enumerate(rounds_of(recipe, x, y, seed), start=1):
        examples += seen
        trained = Trained(weights, examples)
        on_round(number)
    return trained  # a plan has one round or more


def rounds_of(
    recipe: Recipe, x: npt.NDArray[np.float32], y: npt.NDArray[np.int64], seed: int
) -> Iterator[tuple[npt.NDArray[np.float64], int]]:
    """Yield the weights (d,) after each round and how many records it saw, as `train_rounds`."""
    model = TrainableModel(recipe.artefact)
    optimiser = optimisers.build(recipe.server)
    generator = np.random.default_rng(seed)
    training = replace(recipe.training, proximal=0.0)
    first = initial_weights(recipe.artefact, recipe.initial_seed)
    state = optimiser.init(first.astype(np.float64))
    for _ in range(training.rounds):
        start = state.weights.astype(np.float32)
        result = train(model, start, x, y, training, Privacy(clip=recipe.clip), generator)
        state = optimiser.apply(state, result.weights.astype(np.float64) - start)
        yield state.weights, result.examples_seen
