"""Server optimisers against their papers' formulas, and as functions without side effects."""

import math

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


adaptive = st.tuples(rates, st.floats(0, 0.999), st.floats(0, 0.9999), st.floats(1e-6, 1.0))


def by_hand(name, start, updates, rate, beta_1, beta_2, tau):
    """Algorithm 2 of Reddi et al. 2021, one coordinate at a time, in plain floats."""
    reached = []
    for coordinate in range(start.size):
        x, m, v = float(start[coordinate]), 0.0, tau**2
        for update in updates:
            delta = float(update[coordinate])
            m = beta_1 * m + (1 - beta_1) * delta
            if name == "adam":
                v = beta_2 * v + (1 - beta_2) * delta**2
            elif v > delta**2:
                v = v - (1 - beta_2) * delta**2
            elif v < delta**2:
                v = v + (1 - beta_2) * delta**2
            x += rate * m / (math.sqrt(v) + tau)
        reached.append(x)
    return reached


@pytest.mark.parametrize("name", ["adam", "yogi"])
@given(vectors, st.lists(vectors, max_size=5), adaptive)
def test_adaptive_optimisers_are_those_of_the_paper(name, start, updates, numbers):
    end = run(ServerOptimiser(name, *numbers), start, updates)[-1]
    wanted = by_hand(name, start, updates, *numbers)
    np.testing.assert_allclose(end.weights, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["adam", "yogi"])
@given(vectors, st.lists(vectors, max_size=5), adaptive)
def test_squares_never_fall_below_zero(name, start, updates, numbers):
    for state in run(ServerOptimiser(name, *numbers), start, updates):
        assert (state.memory[1] >= 0).all()


def test_no_bias_correction_and_a_first_step_of_known_size():
    settings = ServerOptimiser("adam", 0.1, 0.9, 0.99, 1e-3)
    first = run(settings, np.zeros(1), [np.ones(1)])[-1]
    # m = 0.1, v = 0.99e-6 + 0.01; with bias correction the step would be 0.1.
    assert first.weights[0] == pytest.approx(0.1 * 0.1 / (math.sqrt(0.01 + 0.99e-6) + 1e-3))


def test_after_a_large_update_yogi_keeps_small_steps_longer_than_adam():
    updates = [np.full(1, 10.0), *[np.full(1, 1e-3)] * 300]
    scale = {}
    for name in ("adam", "yogi"):
        scale[name] = run(ServerOptimiser(name, 0.1, 0.9), np.zeros(1), updates)[-1].memory[1]
    assert scale["yogi"] > 10 * scale["adam"]


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
    with pytest.raises(ConfigError, match=r"'adagrad'; known here: adam, fedavg, momentum, yogi"):
        build(ServerOptimiser("adagrad", 1.0, 0.0))
