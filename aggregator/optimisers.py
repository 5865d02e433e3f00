"""Server optimisers: from a state and an average update to the next state.

Written as in fedjax (Ro et al. 2021): an optimiser is one builder function
that returns `init` and `apply`; states are frozen, and adding an optimiser is
one function and one line of `OPTIMISERS`.

Settings that are a fair start: fedavg and momentum 0.9 with learning rate 1;
adam and yogi with `momentum` 0.9, `second_momentum` 0.99, `adaptivity` 1e-3
(section 5 of Reddi et al. 2021) and a learning rate of 0.03, or 0.1 for few
rounds, which the searches in docs/results chose. A step of theirs moves each
weight by about the learning rate however short the average update is, so a
learning rate of 1, which suits fedavg, throws them far off.
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
    """Weights (d,) and what the optimiser remembers, each (d,); `following` puts a factor first."""

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


def adam(settings: ServerOptimiser) -> Optimiser:
    """Scale each coordinate by a decaying mean of its squares (FedAdam, Reddi et al. 2021)."""
    decay = settings.second_momentum
    return _adaptive(settings, lambda second, square: decay * second + (1.0 - decay) * square)


def yogi(settings: ServerOptimiser) -> Optimiser:
    """Do as adam, with squares that grow and shrink by steps (FedYogi, Reddi et al. 2021).

    A large update raises the scale for longer than its own round, but one of
    many small ones cannot make it collapse.
    """
    rate = 1.0 - settings.second_momentum
    return _adaptive(
        settings, lambda second, square: second - rate * square * np.sign(second - square)
    )


def _adaptive(
    settings: ServerOptimiser, second_moment: Callable[[Vector, Vector], Vector]
) -> Optimiser:
    """Algorithm 2 of Reddi et al., "Adaptive Federated Optimization", ICLR 2021.

    Without bias correction, as there: the second moment starts at
    adaptivity^2, the least value that its line 1 allows.
    """

    def init(weights: Vector) -> ServerState:
        least = np.full_like(weights, settings.adaptivity**2)
        return ServerState(weights, (np.zeros_like(weights), least))

    def apply(state: ServerState, mean: Vector) -> ServerState:
        first = settings.momentum * state.memory[0] + (1.0 - settings.momentum) * mean
        second = second_moment(state.memory[1], np.square(mean))
        step = first / (np.sqrt(second) + settings.adaptivity)
        return ServerState(state.weights + settings.learning_rate * step, (first, second))

    return Optimiser(init, apply)


OPTIMISERS: Mapping[str, Callable[[ServerOptimiser], Optimiser]] = {
    "fedavg": fedavg,
    "momentum": momentum,
    "adam": adam,
    "yogi": yogi,
}


def build(settings: ServerOptimiser) -> Optimiser:
    """Return the optimiser that a plan names. Raises ConfigError."""
    if settings.name not in OPTIMISERS:
        raise ConfigError(
            f"server.name is {settings.name!r}; known here: {', '.join(sorted(OPTIMISERS))}"
        )
    return OPTIMISERS[settings.name](settings)
