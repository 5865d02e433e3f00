"""What a round of each unit spends, and which plans give no guarantee."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.errors import ConfigError
from vitalring.protocol import guarantee as g
from vitalring.protocol import integer_noise
from vitalring.protocol.privacy import SAMPLER_EPSILON, Privacy, Training
from vitalring.protocol.quantise import (
    Codec,
    distance_bound,
    encode_update,
    grid_step,
    norm_bound,
)
from vitalring.protocol.rotation import unrotate

DIMENSION = 400
ROUNDS = Training(sampling_rate=0.5, steps=10, rounds=20, learning_rate=0.5, batch=30, records=300)
ONE_SUM = replace(ROUNDS, steps=1)
NONE = g.Terms(Privacy(), ROUNDS, Codec(n_max=20, clip=1.0, weight_cap=300), DIMENSION, 12)
LOCAL = replace(NONE, privacy=Privacy("record", "local", 8.0, 1e-5, 1.0, 1.2))
SHARED = g.Terms(
    Privacy("record", "distributed", 1.0, 1e-5, 1.0, 11.0, colluders=3),
    ONE_SUM,
    Codec(n_max=20, clip=0.5, weight_cap=300, bits=16, noise_width=200_000, rounding="plain"),
    DIMENSION,
    12,
)
DEVICE = g.Terms(
    Privacy("device", "distributed", 8.0, 1e-5, 0.0, 3.0, colluders=3),
    ROUNDS,
    Codec(n_max=20, clip=0.5, weight_cap=1, noise_width=20_000),
    DIMENSION,
    12,
)
ALONE = replace(DEVICE, privacy=replace(DEVICE.privacy, noise="local", colluders=0))
GUARANTEES = {"record/local": LOCAL, "record": SHARED, "device": DEVICE, "device/local": ALONE}


def changed(terms: g.Terms, part: str, **changes: object) -> g.Terms:
    if part == "terms":
        return replace(terms, **changes)
    return replace(terms, **{part: replace(getattr(terms, part), **changes)})


@pytest.mark.parametrize("terms", [NONE, *GUARANTEES.values()])
def test_accepts_each_unit_and_place_of_the_noise(terms):
    g.check_terms(terms)


@pytest.mark.parametrize(
    ("terms", "part", "change", "names"),
    [
        (NONE, "codec", {"noise_width": 5}, "codec.noise_width is 5"),
        (NONE, "codec", {"rounding": "plain"}, "takes 0 and bounded"),
        (LOCAL, "codec", {"noise_width": 5}, "unit record with noise local takes 0 and bounded"),
        (LOCAL, "codec", {"rounding": "up"}, "codec.rounding is 'up'"),
        (SHARED, "codec", {"rounding": "bounded"}, "unit record takes plain"),
        (SHARED, "codec", {"weight_cap": 301}, "by a cap of 300"),
        (SHARED, "codec", {"noise_width": 2_000}, "codec.noise_width is 2000"),
        (SHARED, "codec", {"bits": 4}, "more codec.bits"),
        (SHARED, "privacy", {"colluders": 12}, "the noise of 0 devices protects nothing"),
        (SHARED, "terms", {"min_cohort": 2}, "the noise of -1 devices protects nothing"),
        (SHARED, "privacy", {"clip": 0.0}, "privacy.clip"),
        (SHARED, "privacy", {"delta": 0.005}, "1 / training.records"),
        (SHARED, "training", {"proximal": 0.1}, "training.proximal 0"),
        (DEVICE, "codec", {"rounding": "plain"}, "unit device takes bounded"),
        (DEVICE, "codec", {"weight_cap": 2}, "by a cap of 1"),
        (DEVICE, "privacy", {"epsilon": 0.0}, "privacy.epsilon"),
        (DEVICE, "privacy", {"noise_multiplier": float("nan")}, "noise_multiplier"),
        (DEVICE, "codec", {"n_max": 10_000, "noise_width": 1 << 25}, "codec.noise_width"),
        (changed(DEVICE, "privacy", delta=0.001), "codec", {"n_max": 1000}, "1 / codec.n_max"),
    ],
)
def test_refuses_by_name(terms, part, change, names):
    broken = changed(terms, part, **change)
    for refuse in (
        g.check_terms,
        g.study_spend,
        g.budget_allowances,
        lambda terms: g.round_spend(terms, 1),
        lambda terms: g.budget_spend(terms, 1),
    ):
        with pytest.raises(ConfigError, match=names):
            refuse(broken)


def test_a_device_that_oversamples_keeps_its_guarantee():
    """The whole update is clipped, whatever it was learnt from."""
    g.check_terms(changed(DEVICE, "training", balance="oversample", proximal=0.5))


def test_local_noise_spends_by_steps():
    spend = g.round_spend(LOCAL, 20)
    assert (spend.sampling_rate, spend.steps) == (0.5, 10)
    assert (spend.epsilon, spend.delta) == (SAMPLER_EPSILON, 0.0)
    assert 0.9 * 1.2 < spend.noise_multiplier < 1.2
    assert g.study_spend(LOCAL) == (replace(spend, steps=200),)
    assert g.study_spend(LOCAL, 3) == (replace(spend, steps=30),)
    assert g.round_spend(NONE, 1) is g.budget_spend(NONE, 1) is None
    assert g.study_spend(NONE) == g.budget_allowances(NONE) == g.study_spend(LOCAL, 0) == ()


@pytest.mark.parametrize(("terms", "rate"), [(SHARED, 0.5), (DEVICE, 1.0), (ALONE, 1.0)])
def test_integer_noise_spends_by_rounds(terms, rate):
    spend = g.round_spend(terms, 1)
    noise = g.noise_of(terms)
    assert (spend.sampling_rate, spend.steps) == (rate, 1)
    assert g.study_spend(terms) == (replace(spend, steps=20),)
    assert noise.shares == (1 if terms is ALONE else 9)
    # The multiplier that a plan names is in clips; rounding makes it a little less.
    named = terms.privacy.noise_multiplier
    assert 0.95 * named < spend.noise_multiplier < named
    assert spend.noise_multiplier == noise.total / g.sensitivity(terms)
    assert spend.epsilon == noise.epsilon > 0.0
    assert spend.delta >= noise.delta > 0.0


def test_colluders_and_a_smaller_sum_leave_less_noise():
    """The shares of a plan are sized for the honest devices: each adds more where fewer count."""
    few = changed(DEVICE, "privacy", colluders=8)
    assert g.noise_of(few).shares == 4
    assert g.noise_of(few).deviation == pytest.approx(1.5 * g.noise_of(DEVICE).deviation)
    assert g.noise_of(few).total == pytest.approx(g.noise_of(DEVICE).total)


def test_a_record_spends_twice_a_device_in_the_budget():
    """From one update within the bound to another is twice as far as from one to nothing."""
    claim, spent = g.round_spend(DEVICE, 7), g.budget_spend(DEVICE, 7)
    assert spent == replace(claim, noise_multiplier=claim.noise_multiplier / 2)
    for terms in (LOCAL, SHARED):
        assert g.budget_spend(terms, 7) == g.round_spend(terms, 7)


def test_the_weight_says_nothing():
    assert [g.weight_samples(terms, 1234) for terms in (NONE, LOCAL, SHARED, DEVICE)] == [
        1234,
        300,
        300,
        1,
    ]


def encoded(terms: g.Terms, vector: np.ndarray, seed: int) -> np.ndarray:
    """Return the rounded vector without noise: what the sensitivity is about."""
    codec = replace(terms.codec, noise_width=0)
    fields = encode_update(
        vector, g.weight_samples(terms, 77), codec, b"r" * 32, rng=np.random.default_rng(seed)
    ).fields
    return fields[1:].astype(np.int64) - codec.offset


vectors = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@settings(max_examples=60, deadline=None)
@given(vectors, st.floats(1e-3, 1e3), st.booleans(), st.integers(0, 2**32 - 1))
def test_one_record_never_moves_a_sum_further_than_its_sensitivity(rng, length, spiky, seed):
    """With clip, clamp, mask and rounding of the real encoder, near and far beyond the range."""
    base = rng.normal(size=DIMENSION)
    if spiky:
        base[rng.integers(DIMENSION)] += 100 * np.linalg.norm(base)
    base *= length * 0.5 / np.linalg.norm(base)
    record = rng.normal(size=DIMENSION)
    clip = SHARED.privacy.clip * g.gradient_scale(SHARED.training)
    record *= clip / np.linalg.norm(record)
    for terms in (SHARED, changed(SHARED, "codec", keep=0.3)):
        moved = encoded(terms, base + record, seed) - encoded(terms, base, seed)
        assert np.linalg.norm(moved) <= g.sensitivity(terms)


def test_shrinking_the_whole_vector_would_break_the_bound():
    """Why unit record has a rounding of its own: the other one moves neighbours far apart."""
    codec = replace(SHARED.codec, rounding="bounded", reach=1.0)
    bounded = replace(SHARED, codec=codec)
    steps = SHARED.privacy.clip * g.gradient_scale(SHARED.training)
    # In the rotated vector one coordinate reaches the range, and the record adds to it.
    base = np.full(DIMENSION, 0.9 * codec.half)
    base[0] = codec.half
    record = np.zeros(DIMENSION)
    record[0] = steps / grid_step(codec, DIMENSION)
    unit = grid_step(codec, DIMENSION)
    pair = [unrotate(each * unit, b"r" * 32) for each in (base, base + record)]
    apart = np.linalg.norm(np.subtract(*(encoded(bounded, each, 1) for each in pair)))
    assert apart > 5 * g.sensitivity(bounded)
    plain = changed(SHARED, "codec", reach=1.0)
    apart = np.linalg.norm(np.subtract(*(encoded(plain, each, 1) for each in pair)))
    assert apart <= g.sensitivity(plain)


@settings(max_examples=40, deadline=None)
@given(vectors, st.floats(1e-3, 1e6), st.integers(0, 2**32 - 1))
def test_a_device_never_moves_a_sum_further_than_its_sensitivity(rng, length, seed):
    vector = rng.normal(size=DIMENSION)
    vector *= length / np.linalg.norm(vector)
    moved = encoded(DEVICE, vector, seed)
    assert np.linalg.norm(moved) <= g.sensitivity(DEVICE) == norm_bound(DEVICE.codec, DIMENSION)


def test_rounding_costs_what_the_bound_says():
    """Unrounded vectors a short way apart often end further apart: the bound is needed."""
    rng = np.random.default_rng(3)
    step = grid_step(SHARED.codec, DIMENSION)
    apart = 10.0
    direction = rng.normal(size=DIMENSION)
    direction *= apart * step / np.linalg.norm(direction)
    base = rng.normal(size=DIMENSION) * 0.1 / math.sqrt(DIMENSION)
    seen = [
        np.linalg.norm(encoded(SHARED, base + direction, s) - encoded(SHARED, base, s))
        for s in range(200)
    ]
    assert np.mean(seen) > 1.1 * apart
    assert max(seen) < distance_bound(apart, DIMENSION)


def test_the_arithmetic_of_a_record_is_charged():
    plain = SHARED.privacy.clip * g.gradient_scale(SHARED.training)
    steps = plain / grid_step(SHARED.codec, DIMENSION)
    assert g.sensitivity(SHARED) > distance_bound(steps * (1 + 2**-7), DIMENSION)
    assert integer_noise.width_for(10.0) == 130
