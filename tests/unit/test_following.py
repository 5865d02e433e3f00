"""The server's part of a clip that follows a quantile: one coordinate before its vectors."""

from dataclasses import replace

import numpy as np
import pytest
from federation_fixture import FOLLOWING, artefact_of, small_federation

from vitalring.aggregator import goals, optimisers, store
from vitalring.aggregator.following import (
    factor_of,
    first_vector,
    following,
    unclipped_of,
    weights_of,
)
from vitalring.aggregator.optimisers import Optimiser, ServerState
from vitalring.protocol.adaptive_clip import count_unit, next_factor
from vitalring.protocol.quantise import encode_update
from vitalring.protocol.records import ServerOptimiser
from vitalring.protocol.update import rotation_seed
from vitalring.protocol.weights import pack_weights
from vitalring.tools.settings import SERVERS

START = np.array([0.5, -0.25, 2.0])


@pytest.fixture(scope="module")
def plan():
    return small_federation(**FOLLOWING).study.plan


@pytest.fixture(scope="module")
def terms(plan):
    return plan.terms


def mean_of(error, update, terms):
    """A decoded mean (1 + d,) whose count is off the quantile by `error`."""
    return np.concatenate([[error * count_unit(terms)], update])


@pytest.mark.parametrize("name", SERVERS)
def test_the_optimiser_sees_weights_and_scaled_updates_alone(name, terms):
    settings = replace(SERVERS[name], learning_rate=0.5)
    plain, wide = optimisers.build(settings), following(optimisers.build(settings), terms)
    state, both = plain.init(START), wide.init(first_vector(START, terms))
    factor = 1.0
    for error, update in ((0.3, [1.0, 2.0, 3.0]), (-5.0, [-1.0, 0.0, 1.0]), (0.1, [0.5] * 3)):
        state = plain.apply(state, factor * np.array(update))
        mean = mean_of(error, update, terms)
        both = wide.apply(both, mean)
        assert np.array_equal(weights_of(both.weights, terms), state.weights)
        for wider, memory in zip(both.memory, state.memory, strict=True):
            assert np.array_equal(wider, np.concatenate([[0.0], memory]))
        factor = next_factor(factor, unclipped_of(mean, terms), terms.privacy)
        assert factor_of(both.weights, terms) == factor != 1.0
    # exp(-0.2 * (0.3 - 1 + 0.1)), each round's error cut off at 1
    assert factor == pytest.approx(np.exp(0.12), rel=1e-5)


@pytest.mark.parametrize("name", SERVERS)
def test_the_factor_is_in_the_state_that_is_kept_and_compared(name, terms, tmp_path):
    wide = following(optimisers.build(SERVERS[name]), terms)
    first = wide.init(first_vector(START, terms))
    state = wide.apply(first, mean_of(0.3, START, terms))
    data = store.state_bytes(state)
    read = store.state_from_bytes(data, 4, len(state.memory))
    assert factor_of(read.weights, terms) == factor_of(state.weights, terms) == 0.941765
    assert store.state_bytes(read) == data != store.state_bytes(first)
    db = store.open_store(tmp_path)
    with db:
        store.save_state(db, 1, state)
    assert store.state_bytes(store.load_state(db, 1)) == data
    db.close()


def test_a_fixed_clip_leaves_everything_as_it_is(terms):
    fixed = small_federation().study.plan.terms
    optimiser = Optimiser(ServerState, lambda state, mean: state)
    assert following(optimiser, fixed) is optimiser
    assert first_vector(START, fixed) is START
    assert weights_of(START, fixed) is START
    assert factor_of(START, fixed) == 1.0
    assert unclipped_of(START, fixed) == 0.0


def test_a_goal_decodes_the_count_and_publishes_the_weights_alone(plan):
    info, model = artefact_of(plan.model.dimension)
    artefact = goals.Artefact(info, model)
    evaluated = []
    plan = replace(plan, server=ServerOptimiser("momentum", 1.0, 0.9))
    goal = goals.training(plan, artefact, lambda weights: evaluated.append(weights.size))
    dimension = plan.model.dimension
    assert goal.start.size == plan.vector_size == 1 + dimension
    assert len(goal.content(goal.start)) == len(pack_weights(np.zeros(dimension)))
    goal.evaluate(goal.start)
    assert evaluated == [dimension]
    # Four devices of which one was clipped, at a quarter of the range that is left to updates.
    name, seed = bytes(32), rotation_seed(bytes(32))
    none = np.zeros(1 + dimension, np.int64)
    vector = mean_of(0.25, np.full(dimension, 0.1), plan.terms)
    codec = replace(plan.codec, bits=16)
    fine = replace(plan, codec=codec)
    total = sum(
        encode_update(vector, 1, codec, seed, rng=np.random.default_rng(n), noise=none).fields
        for n in range(4)
    )
    goal = goals.training(fine, artefact, lambda _: None)
    mean = goal.decode([(lambda: total, 4)], name)
    assert unclipped_of(mean, fine.terms) == pytest.approx(0.75, abs=0.01)
    after = goal.optimiser.apply(goal.optimiser.init(goal.start), mean)
    assert factor_of(after.weights, fine.terms) == pytest.approx(np.exp(-0.05), rel=0.002)
