"""The server's part of a clip that follows a quantile (SPEC 7.17).

The state's vector has the round's factor before the weights, and the mean update a count before
the rest, so that whatever holds of the state holds of the clip: hospitals agree on it, and it is
there after a restart. The optimiser sees weights and updates alone. With a fixed clip all of this
leaves things as they are.
"""

import numpy as np

from vitalring.aggregator.optimisers import Optimiser, ServerState, Vector
from vitalring.protocol.adaptive_clip import next_factor, unclipped
from vitalring.protocol.guarantee import Terms
from vitalring.protocol.privacy import follows_quantile


def first_vector(weights: Vector, terms: Terms) -> Vector:
    """Return the vector of the first state, from weights (d,)."""
    return _joined(1.0, weights) if follows_quantile(terms.privacy) else weights


def weights_of(vector: Vector, terms: Terms) -> Vector:
    """Return the weights (d,) of a state's vector."""
    return vector[1:] if follows_quantile(terms.privacy) else vector


def factor_of(vector: Vector, terms: Terms) -> float:
    """Return what the next round's clip is multiplied with; 1 for a fixed one."""
    return float(vector[0]) if follows_quantile(terms.privacy) else 1.0


def unclipped_of(mean: Vector, terms: Terms) -> float:
    """Return the noisy share that was within the clip, from a decoded mean; 0 for a fixed one."""
    return unclipped(float(mean[0]), terms) if follows_quantile(terms.privacy) else 0.0


def following(optimiser: Optimiser, terms: Terms) -> Optimiser:
    """Return an optimiser of such vectors, which moves the factor beside the weights."""
    if not follows_quantile(terms.privacy):
        return optimiser

    def init(vector: Vector) -> ServerState:
        return _widened(vector[0], optimiser.init(vector[1:]))

    def apply(state: ServerState, mean: Vector) -> ServerState:
        factor = factor_of(state.weights, terms)
        inner = ServerState(state.weights[1:], tuple(each[1:] for each in state.memory))
        moved = optimiser.apply(inner, factor * mean[1:])
        return _widened(next_factor(factor, unclipped_of(mean, terms), terms.privacy), moved)

    return Optimiser(init, apply)


def _widened(factor: float, state: ServerState) -> ServerState:
    """Memories are as long as the vector; nothing is remembered of the factor."""
    memory = tuple(_joined(0.0, each) for each in state.memory)
    return ServerState(_joined(factor, state.weights), memory)


def _joined(first: float, rest: Vector) -> Vector:
    return np.concatenate([[first], rest])
