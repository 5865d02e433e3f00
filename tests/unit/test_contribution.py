"""One device's part in a round, for every unit: what leaves it, and with how much noise."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from vitalring.edge_agent import contribution
from vitalring.edge_agent.contribution import learn, protect
from vitalring.edge_agent.dpsgd import gradient_update, train
from vitalring.edge_agent.randomness import fresh_generator
from vitalring.errors import ConfigError, DivergenceError, PrivacyError
from vitalring.models.dataset import Records
from vitalring.protocol.guarantee import Terms, gradient_scale, noise_of, sensitivity
from vitalring.protocol.integer_noise import width_for
from vitalring.protocol.privacy import MAX_SAMPLED, Privacy, Training
from vitalring.protocol.quantise import Codec, decode_sum, encode_update, grid_step

DIMENSION = 64
SEED = b"s" * 32
ONE_STEP = Training(sampling_rate=1.0, steps=1, rounds=5, learning_rate=0.5, batch=20, records=10)


def terms_of(unit: str, noise: str, **codec: object) -> Terms:
    """Return terms of nine honest devices at multiplier 2, with fields that the noise fits."""
    shared = noise == "distributed"
    privacy = Privacy(unit, noise, 8.0, 1e-5, 1.0, 2.0, colluders=1 if shared else 0)
    one_sum = unit == "record" and shared
    given = Codec(
        n_max=20,
        clip=0.5,
        weight_cap=10 if unit == "record" else 1,
        bits=14,
        rounding="plain" if one_sum else "bounded",
    )
    terms = Terms(privacy, ONE_STEP, replace(given, **codec), DIMENSION, 10)
    if noise == "local" and unit == "record":
        return terms
    width = width_for(noise_of(terms).deviation)
    return replace(terms, codec=replace(terms.codec, noise_width=width))


RECORD = terms_of("record", "distributed")
DEVICE = terms_of("device", "distributed")
LOCAL = terms_of("device", "local")
PLAIN = Terms(Privacy(), ONE_STEP, Codec(n_max=20, clip=0.5, weight_cap=40), DIMENSION, 10)


@dataclass
class Linear:
    """A model whose gradient is the record itself, clipped."""

    physical_batch: int = 8

    def gradient_sum(self, weights, x, y, clip):
        norms = np.linalg.norm(x, axis=1)
        scale = np.minimum(1.0, clip / np.maximum(norms, 1e-12))
        return (x * scale[:, None]).sum(0).astype(np.float32), 0.0, norms


def records(count: int = 30, seed: int = 1) -> Records:
    x = np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float32)
    return Records("d", x, np.zeros(count, np.int64))


START = np.zeros(DIMENSION, np.float32)


def grid(fields: np.ndarray, terms: Terms) -> np.ndarray:
    return fields[1:].astype(np.int64) - terms.codec.offset


def without_noise(monkeypatch):
    monkeypatch.setattr(
        contribution, "noise_share", lambda _, noise: np.zeros(noise.coordinates, np.int64)
    )


def test_a_sum_of_gradients_is_one_clipped_step():
    rows = records()
    update = learn(Linear(), START, rows, RECORD, fresh_generator())
    unit = rows.x / np.maximum(1.0, np.linalg.norm(rows.x, axis=1))[:, None]
    assert np.allclose(update, -0.5 / 20 * unit.sum(0), atol=1e-6)
    step = gradient_update(
        Linear(), START, rows.x, rows.y, ONE_STEP, RECORD.privacy, fresh_generator()
    )
    assert np.allclose(step, update, atol=1e-8)  # in other chunks


def test_records_enter_by_coins_of_their_own():
    rows = Records("d", np.eye(DIMENSION, dtype=np.float32), np.zeros(DIMENSION, np.int64))
    terms = replace(RECORD, training=replace(ONE_STEP, sampling_rate=0.3))
    seen = np.stack(
        [learn(Linear(), START, rows, terms, fresh_generator()) != 0.0 for _ in range(400)]
    )
    # Each record by itself, and all together: 25,600 coins.
    assert np.all(np.abs(seen.mean(0) - 0.3) < 6 * np.sqrt(0.21 / 400))
    assert abs(seen.mean() - 0.3) < 5 * np.sqrt(0.21 / seen.size)


@pytest.mark.parametrize("size", [0.1, 1.0, 30.0])
def test_one_record_moves_the_fields_by_its_sensitivity_at_most(size):
    rows = records()
    more = Records("d", np.vstack([rows.x, size * records(1, 2).x]), np.zeros(31, np.int64))
    codec = replace(RECORD.codec, noise_width=0)
    pair = [
        encode_update(
            learn(Linear(), START, each, RECORD, fresh_generator()),
            10,
            codec,
            SEED,
            rng=np.random.default_rng(5),
        ).fields.astype(np.int64)
        for each in (rows, more)
    ]
    moved = np.linalg.norm(pair[1] - pair[0])
    assert moved <= sensitivity(RECORD)
    clip = gradient_scale(ONE_STEP) / grid_step(codec, DIMENSION)
    longest = min(1.0, float(np.linalg.norm(more.x[-1])))
    assert moved > 0.9 * longest * clip


@pytest.mark.parametrize("terms", [DEVICE, LOCAL])
def test_a_device_is_within_its_bound_however_long_its_update(terms, monkeypatch):
    without_noise(monkeypatch)
    for length in (0.01, 1.0, 1e6):
        update = length * records(1).x[0].astype(np.float64)
        made = protect(update, 30, terms, SEED, fresh_generator())
        assert np.linalg.norm(grid(made.fields, terms)) <= sensitivity(terms)


@pytest.mark.parametrize("terms", [RECORD, DEVICE, LOCAL])
def test_noise_of_the_honest_devices_is_what_is_accounted(terms):
    noise = noise_of(terms)
    sums = [
        sum(
            grid(protect(np.zeros(DIMENSION), 30, terms, SEED, fresh_generator()).fields, terms)
            for _ in range(noise.shares)
        )
        for _ in range(60)
    ]
    values = np.concatenate(sums) / noise.total
    # A chi-square of as many values, five standard deviations wide.
    assert abs(np.mean(values**2) - 1.0) < 5 * np.sqrt(2 / values.size)
    assert noise.total == pytest.approx(
        2.0
        * (0.5 if terms.privacy.unit == "device" else 0.025)
        / grid_step(terms.codec, DIMENSION),
        rel=1e-3,
    )


def test_the_true_count_leaves_only_without_a_guarantee():
    for terms, constant in ((RECORD, True), (DEVICE, True), (LOCAL, True), (PLAIN, False)):
        weights = {
            protect(np.zeros(DIMENSION), count, terms, SEED, fresh_generator()).weight
            for count in (10, 20, 40)
        }
        assert weights == {terms.codec.levels} if constant else len(weights) == 3


def test_a_sum_decodes_to_the_mean_of_what_was_learnt():
    """Through the noise of twenty devices, over many coordinates."""
    fields, learnt = np.zeros(DIMENSION + 1, np.uint64), np.zeros(DIMENSION)
    for number in range(20):
        update = learn(Linear(), START, records(seed=number), RECORD, fresh_generator())
        fields += protect(update, 30, RECORD, SEED, fresh_generator()).fields
        learnt += update / 20
    decoded = decode_sum(fields, 20, RECORD.codec, DIMENSION, SEED)
    noise = noise_of(RECORD)
    spread = noise.deviation / np.sqrt(20) * grid_step(RECORD.codec, DIMENSION)
    error = (decoded.mean - learnt) / spread
    assert abs(np.mean(error**2) - 1.0) < 7 * np.sqrt(2 / DIMENSION)


@pytest.mark.parametrize("terms", [RECORD, DEVICE, LOCAL, terms_of("record", "local")])
def test_noise_that_can_be_foretold_is_refused(terms):
    with pytest.raises(PrivacyError, match=r"use randomness\.fresh_generator"):
        protect(np.zeros(DIMENSION), 30, terms, SEED, np.random.default_rng(1))
    protect(np.zeros(DIMENSION), 30, PLAIN, SEED, np.random.default_rng(1))


def test_terms_without_a_guarantee_are_refused_before_anything_is_made():
    with pytest.raises(ConfigError, match=r"codec\.noise_width"):
        narrow = replace(RECORD, codec=replace(RECORD.codec, noise_width=5))
        protect(np.zeros(DIMENSION), 30, narrow, SEED, fresh_generator())


class Diverging(Linear):
    """Its gradients leave the finite numbers."""

    def gradient_sum(self, weights, x, y, clip):
        total, loss, norms = super().gradient_sum(weights, x, y, clip)
        return total * np.nan, loss, norms


@pytest.mark.parametrize("terms", [DEVICE, LOCAL])
def test_a_device_whose_training_diverges_sends_noise_like_any_other(terms):
    update = learn(Diverging(), START, records(), terms, fresh_generator())
    assert not update.any()
    fields = protect(update, 30, terms, SEED, fresh_generator()).fields
    assert grid(fields, terms).std() == pytest.approx(noise_of(terms).deviation, rel=0.5)
    with pytest.raises(DivergenceError):
        learn(Diverging(), START, records(), PLAIN, np.random.default_rng(0))


def test_each_unit_has_one_way_to_learn():
    rows = records()
    with pytest.raises(ConfigError, match="use gradient_update"):
        train(Linear(), START, rows.x, rows.y, ONE_STEP, RECORD.privacy, fresh_generator())
    with pytest.raises(ConfigError, match="trains weights"):
        gradient_update(
            Linear(), START, rows.x, rows.y, ONE_STEP, DEVICE.privacy, fresh_generator()
        )


def test_more_records_than_are_argued_for_are_refused():
    rows = records(MAX_SAMPLED + 1)
    with pytest.raises(PrivacyError, match="a step sampled 1048577 records"):
        learn(Linear(256), START, rows, RECORD, fresh_generator())
    with pytest.raises(PrivacyError, match=r"use randomness\.fresh_generator"):
        learn(Linear(), START, records(), RECORD, np.random.default_rng(1))
