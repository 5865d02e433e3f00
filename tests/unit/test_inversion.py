"""Gradient inversion: likeness of known size, and records that a dense layer gives away."""

import numpy as np
import pytest

from vitalring.edge_agent.dpsgd import privatise
from vitalring.edge_agent.randomness import fresh_generator
from vitalring.errors import ConfigError
from vitalring.models.artefact import initial_weights
from vitalring.models.catalogue import find_artefact
from vitalring.models.dataset import Records
from vitalring.models.runtime import TrainableModel
from vitalring.protocol.privacy import Privacy
from vitalring.tools.attack.inversion import InversionSettings, Known, measure_inversion
from vitalring.tools.attack.likeness import closest, correlation, first_dense_inputs, psnr
from vitalring.tools.simulate.layout import SHIPPED_DATA

MEAN = np.zeros(4, np.float32)
HIDDEN = 30  # of har_mlp


def window(generator, *constants):
    """Two channels that move, and others that do not."""
    moving = generator.normal(size=(50, 2))
    return np.concatenate([moving, np.tile(constants, (50, 1))], axis=1).astype(np.float32)


def test_only_the_course_of_a_window_counts():
    generator = np.random.default_rng(0)
    true = window(generator, 1.0, 2.0)
    shifted = 3.0 * true + np.array([5.0, -7.0, 0.0, 0.0], np.float32)
    # What an attack writes into channels that do not move is not held against it.
    shifted[:, 2:] = generator.normal(size=(50, 2))
    assert correlation(true, shifted, MEAN) == pytest.approx(1.0)
    assert correlation(true, -true, MEAN) == pytest.approx(-1.0)
    assert abs(correlation(true, window(generator, 0.0, 0.0), MEAN)) < 0.35
    assert correlation(true, np.ones_like(true), MEAN) == 0.0


def test_rows_are_compared_without_what_all_have():
    mean = np.array([100.0, 100.0, 100.0], np.float32)
    away = np.array([1.0, -1.0, 0.5], np.float32)
    assert correlation(mean + away, mean + 2 * away, mean) == pytest.approx(1.0)
    assert correlation(mean + away, mean - away, mean) == pytest.approx(-1.0)


def test_the_signal_to_noise_ratio_is_in_decibels():
    true = np.zeros((10, 1), np.float32)
    assert psnr(true, true + 0.1, peak=1.0) == pytest.approx(20.0)
    assert psnr(true, true, peak=1.0) == 60.0


def test_the_closest_guess_counts():
    generator = np.random.default_rng(1)
    true = window(generator, 0.0, 0.0)
    guesses = np.stack([window(generator, 0.0, 0.0), true])
    found = closest(true, guesses, MEAN, 1.0)
    assert found == {"correlation": pytest.approx(1.0), "psnr": 60.0}
    assert closest(true, guesses[:0], MEAN, 1.0) == {"correlation": 0.0, "psnr": 0.0}


@pytest.fixture(scope="module")
def network():
    artefact = find_artefact("har_mlp", (265,), tuple("abcdef"))
    return TrainableModel(artefact), initial_weights(artefact, bytes(32))


def rows(count):
    generator = np.random.default_rng(2)
    x = generator.uniform(-0.99, 0.99, (count, 265)).astype(np.float32)
    return x, generator.integers(0, 6, count)


def test_a_dense_layer_gives_a_single_record_away(network):
    model, start = network
    (x, y), mean = rows(1), np.zeros(265, np.float32)
    gradient, _, _ = model.gradient_sum(start, x, y, 1e6)
    found = first_dense_inputs(gradient.astype(np.float64), 265, HIDDEN)
    # Up to the int8 levels of the input, 1/128 apart.
    assert closest(x[0], found, mean, 2.0)["correlation"] > 0.999
    assert np.abs(found - x[0]).max(axis=1).min() < 1 / 128
    # Clipping changes the length of a gradient and nothing of this.
    clipped, _, _ = model.gradient_sum(start, x, y, 0.1)
    found = first_dense_inputs(clipped.astype(np.float64), 265, HIDDEN)
    assert closest(x[0], found, mean, 2.0)["correlation"] > 0.999


def test_the_rr_numbers_of_a_heartbeat_are_the_inputs_of_a_dense_layer():
    generator = np.random.default_rng(3)
    artefact = find_artefact("ecg_cnn", (216, 4), ("N", "S", "V"))
    start = initial_weights(artefact, bytes(32))
    numbers = np.array([-0.3, 0.7, 1.1], np.float32)
    x = np.concatenate([generator.normal(size=(216, 1)), np.tile(numbers, (216, 1))], axis=1)
    gradient, _, _ = TrainableModel(artefact).gradient_sum(
        start, x[None].astype(np.float32), np.array([2]), 1e6
    )
    # The convolutions have 256 and 2,592 weights; the layer behind takes 32 means and 3 numbers.
    found = first_dense_inputs(gradient[256 + 2592 :].astype(np.float64), 35, 32)
    # Their int8 levels are 1/32 apart.
    assert np.abs(found[:, -3:] - numbers).max(axis=1).min() <= 1 / 64 + 1e-6


def test_among_many_or_in_noise_the_record_is_not_found(network):
    model, start = network
    (x, y), mean = rows(64), np.zeros(265, np.float32)
    one, _, _ = model.gradient_sum(start, x[:1], y[:1], 1.0)
    privacy = Privacy("record", "local", 8.0, 1e-5, 1.0, 1.0)
    noisy = [privatise(one.astype(np.float64), privacy, fresh_generator()) for _ in range(7)]
    many, _, _ = model.gradient_sum(start, x, y, 1e6)
    others = closest(x[0], x[1 : HIDDEN + 1], mean, 2.0)["correlation"]

    def found(gradient):
        guesses = first_dense_inputs(gradient, 265, HIDDEN)
        return closest(x[0], guesses, mean, 2.0)["correlation"]

    # The likest of all units is so by chance at times, hence the median of some draws.
    assert np.median([found(each) for each in noisy]) < others + 0.15
    assert found(many.astype(np.float64)) < 0.8


def test_units_that_nothing_fired_are_no_guess():
    gradient = np.zeros(3 * 2 + 2)
    gradient[:6] = [2.0, 0.0, 4.0, 0.0, 6.0, 0.0]
    gradient[6] = 2.0
    assert first_dense_inputs(gradient, 3, 2).tolist() == [[1.0, 2.0, 3.0]]


def test_what_the_attacker_knows_is_of_every_class():
    x, _ = rows(20)
    known = Known.of([Records("a", x, np.arange(20) % 6)], 6)
    assert known.classes.shape == (6, 265)
    assert known.some(3, 5, np.random.default_rng(0)).shape == (5, 265)
    with pytest.raises(ConfigError, match="lack a class"):
        Known.of([Records("a", x, np.zeros(20, np.int64))], 6)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"targets": 11}, "no more targets"),
        ({"iterations": 0}, "1 or more"),
        ({"rows": 3}, "more rows"),
        ({"defences": ()}, "name a defence"),
    ],
)
def test_settings_that_measure_nothing_are_refused(changes, match):
    with pytest.raises(ConfigError, match=match):
        measure_inversion(SHIPPED_DATA, None, InversionSettings(**changes), "python")
