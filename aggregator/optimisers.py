"""Server optimisers: from a state and an average update to the next state.

Written as in fedjax (Ro et al. 2021): an optimiser is one builder function
that returns `init` and `apply`; states are frozen, and adding an optimiser is
one function and one line of `OPTIMISERS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitalring.errors import ConfigError
from vitalring.protocol.records import ServerOptimiser

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ServerState:
    """Weights (d,) and what the optimiser remembers, each (d,)."""

    weights: Vector
    memory: tuple[Vector, ...] = ()


@dataclass(frozen=True)
class Optimiser:
    """`init(weights)` makes a first state, `apply(state, mean_update)` the next one."""

    init: Callable[[Vector], ServerState]
    apply: Callable[[ServerState, Vector], ServerState]


def fedavg(settings: ServerOptimiser) -> Optimiser:
    """Add the average update (McMahan et al. 2017), scaled by the learning rate."""

    def apply(state: ServerState, mean: Vector) -> ServerState:
        return ServerState(state.weights + settings.learning_rate * mean)

    return Optimiser(ServerState, apply)


def momentum(settings: ServerOptimiser) -> Optimiser:
    """Add a decaying sum of the average updates (FedAvgM, Hsu et al. 2019)."""

    def init(weights: Vector) -> ServerState:
        return ServerState(weights, (np.zeros_like(weights),))

    def apply(state: ServerState, mean: Vector) -> ServerState:
        velocity = settings.momentum * state.memory[0] + mean
        return ServerState(state.weights + settings.learning_rate * velocity, (velocity,))

    return Optimiser(init, apply)


OPTIMISERS: Mapping[str, Callable[[ServerOptimiser], Optimiser]] = {
    "fedavg": fedavg,
    "momentum": momentum,
}


def build(settings: ServerOptimiser) -> Optimiser:
    """Return the optimiser that a plan names. Raises ConfigError."""
    if settings.name not in OPTIMISERS:
        raise ConfigError(
            f"server.name is {settings.name!r}; known here: {', '.join(sorted(OPTIMISERS))}"
        )
    return OPTIMISERS[settings.name](settings)
