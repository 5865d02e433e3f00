"""Server optimisers against their papers' formulas, and as functions without side effects."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vitalring.aggregator.optimisers import OPTIMISERS, build
from vitalring.errors import ConfigError
from vitalring.protocol.records import ServerOptimiser

vectors = arrays(np.float64, 4, elements=st.floats(-10, 10))
rates = st.floats(1e-3, 10)


def run(settings, start, updates):
    optimiser = build(settings)
    states = [optimiser.init(start)]
    for update in updates:
        states.append(optimiser.apply(states[-1], update))
    return states


@given(vectors, st.lists(vectors, max_size=5), rates)
def test_fedavg_adds_the_scaled_averages(start, updates, rate):
    states = run(ServerOptimiser("fedavg", rate, 0.0), start, updates)
    wanted = start + rate * np.sum([np.zeros(4), *updates], axis=0)
    np.testing.assert_allclose(states[-1].weights, wanted, rtol=1e-9, atol=1e-9)
    assert states[-1].memory == ()


@given(vectors, vectors, vectors, rates, st.floats(0, 0.999))
def test_momentum_remembers_updates_with_decay(start, first, second, rate, beta):
    states = run(ServerOptimiser("momentum", rate, beta), start, [first, second])
    # Hsu, Qi, Brown 2019, section 4.3: v <- beta v + update; w <- w + rate v.
    wanted = start + rate * first + rate * (beta * first + second)
    np.testing.assert_allclose(states[2].weights, wanted, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(states[2].memory[0], beta * first + second, rtol=1e-9, atol=1e-9)


@given(vectors, st.lists(vectors, max_size=4), rates)
def test_momentum_without_memory_is_fedavg(start, updates, rate):
    one = run(ServerOptimiser("fedavg", rate, 0.0), start, updates)[-1]
    other = run(ServerOptimiser("momentum", rate, 0.0), start, updates)[-1]
    np.testing.assert_array_equal(one.weights, other.weights)


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
def test_a_step_changes_nothing_that_it_was_given(name):
    start, update = np.ones(4), np.full(4, 0.5)
    first = build(ServerOptimiser(name, 1.0, 0.5)).init(start)
    before = [first.weights.copy(), *(m.copy() for m in first.memory)]
    optimiser = build(ServerOptimiser(name, 1.0, 0.5))
    one, two = optimiser.apply(first, update), optimiser.apply(first, update)
    np.testing.assert_array_equal(one.weights, two.weights)
    for old, now in zip(before, [first.weights, *first.memory], strict=True):
        np.testing.assert_array_equal(old, now)
    np.testing.assert_array_equal(start, np.ones(4))
    np.testing.assert_array_equal(update, np.full(4, 0.5))


def test_plans_may_name_exactly_the_optimisers_that_there_are():
    annotation = ServerOptimiser.__annotations__["name"]
    assert set(annotation.__metadata__[0].words) == set(OPTIMISERS)


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match=r"server.name is 'adam'; known here: fedavg, momentum"):
        build(ServerOptimiser("adam", 1.0, 0.0))
