"""Encoding of one update and decoding of a sum (SPEC 4)."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.errors import ConfigError, EncodingRangeError
from vitalring.protocol.quantise import (
    Codec,
    check_codec,
    decode_sum,
    encode_update,
    field_count,
    grid_step,
    kept_count,
    norm_bound,
    weight_of,
)
from vitalring.protocol.rotation import kept_coordinates, rotate

SEED = bytes(range(32))
CODEC = Codec(n_max=1_000, clip=1.0, weight_cap=100)


def generator(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def unit_vector(dimension: int, seed: int = 0) -> np.ndarray:
    vector = np.random.default_rng(seed).normal(size=dimension)
    return vector / np.linalg.norm(vector)


def grid_of(fields: np.ndarray, codec: Codec) -> np.ndarray:
    return fields[1:].astype(np.int64) - codec.offset


@settings(max_examples=60, deadline=None)
@given(
    dimension=st.integers(1, 300),
    bits=st.integers(2, 16),
    keep=st.floats(0.05, 1.0),
    scale=st.floats(1e-6, 1e6),
    samples=st.lists(st.integers(1, 500), min_size=1, max_size=6),
    noise_width=st.integers(0, 50),
    seed=st.binary(min_size=32, max_size=32),
)
def test_a_sum_decodes_to_the_mean_of_the_rounded_updates(
    dimension, bits, keep, scale, samples, noise_width, seed
):
    codec = replace(CODEC, bits=bits, keep=keep, noise_width=noise_width)
    rng = generator()
    total = np.zeros(field_count(codec, dimension), dtype=np.uint64)
    grids = np.zeros(kept_count(codec, dimension), dtype=np.int64)
    for i, count in enumerate(samples):
        noise = rng.integers(-noise_width, noise_width + 1, grids.size)
        encoded = encode_update(
            scale * unit_vector(dimension, i), count, codec, seed, rng=rng, noise=noise
        )
        assert int(encoded.fields.max()) <= codec.field_max
        total += encoded.fields
        grids += grid_of(encoded.fields, codec)
    decoded = decode_sum(total, len(samples), codec, dimension, seed)
    weight = sum(weight_of(count, codec) for count in samples)
    assert decoded.weight == weight
    kept = kept_coordinates(dimension, grids.size, seed)
    expected = np.zeros(dimension)
    expected[kept] = grids * grid_step(codec, dimension) * dimension / grids.size
    # Rotating the mean again gives back the integers that were summed.
    np.testing.assert_allclose(
        rotate(decoded.mean, seed) * weight / codec.levels, expected, rtol=1e-9, atol=1e-9
    )


def test_the_mean_is_weighted_by_capped_samples():
    updates = [unit_vector(500, i) for i in range(4)]
    samples = [10, 50, 100, 100_000]
    encoded = [
        encode_update(u, n, CODEC, SEED, rng=generator(i))
        for i, (u, n) in enumerate(zip(updates, samples, strict=True))
    ]
    decoded = decode_sum(sum(e.fields for e in encoded), 4, CODEC, 500, SEED)
    weights = np.array([26, 128, 255, 255])
    assert [e.weight for e in encoded] == weights.tolist()
    expected = (weights[:, None] * updates).sum(axis=0) / weights.sum()
    assert np.linalg.norm(decoded.mean - expected) < 0.05


def test_rounding_is_unbiased():
    vector = unit_vector(64)
    total = np.zeros(65, dtype=np.uint64)
    rng = generator()
    for _ in range(1_000):
        total += encode_update(vector, 100, CODEC, SEED, rng=rng).fields
    decoded = decode_sum(total, 1_000, CODEC, 64, SEED)
    # Each coordinate's deviation is below half a step / sqrt(1000).
    step = grid_step(CODEC, 64)
    assert np.linalg.norm(decoded.mean - vector) < 64**0.5 * step / 2 / 1_000**0.5 * 1.5


def test_a_long_update_is_clipped_and_a_short_one_is_not():
    long = encode_update(5.0 * unit_vector(100), 100, CODEC, SEED, rng=generator())
    decoded = decode_sum(long.fields, 1, CODEC, 100, SEED)
    assert np.linalg.norm(decoded.mean - unit_vector(100)) < 0.1
    short = encode_update(unit_vector(100) / 2, 100, CODEC, SEED, rng=generator())
    decoded = decode_sum(short.fields, 1, CODEC, 100, SEED)
    assert np.linalg.norm(decoded.mean - unit_vector(100) / 2) < 0.1


@pytest.mark.parametrize("scale", [0.0, 1e-300, 1e300])
def test_extreme_norms_neither_overflow_nor_divide_by_zero(scale):
    vector = scale * unit_vector(50)
    encoded = encode_update(vector, 100, CODEC, SEED, rng=generator())
    assert np.isfinite(decode_sum(encoded.fields, 1, CODEC, 50, SEED).mean).all()


def test_a_coordinate_out_of_range_shrinks_the_whole_vector():
    codec = replace(CODEC, reach=1.5, bits=12)
    vector = unit_vector(1_000)
    encoded = encode_update(vector, 100, codec, SEED, rng=generator())
    mean = decode_sum(encoded.fields, 1, codec, 1_000, SEED).mean
    # Direction kept: parallel to the update, and shorter.
    shorter = mean @ vector
    assert 0.3 < shorter < 0.9
    assert np.linalg.norm(mean - shorter * vector) < 0.01


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("dimension", [1, 7, 1_000])
def test_the_norm_is_enforced_after_rounding(bits, dimension):
    codec = replace(CODEC, bits=bits)
    bound = norm_bound(codec, dimension)
    for seed in range(20):
        encoded = encode_update(
            9.0 * unit_vector(dimension, seed), 999, codec, SEED, rng=generator(seed)
        )
        assert np.linalg.norm(grid_of(encoded.fields, codec)) <= bound


def test_rounding_that_leaves_the_bound_is_drawn_again():
    class Upwards(np.random.Generator):
        """Rounds everything up twice, as a rare draw might, then behaves."""

        draws = 0

        def random(self, *args, **kwargs):
            self.draws += 1
            fair = super().random(*args, **kwargs)
            return fair if self.draws > 2 else np.full_like(fair, 1 - 2**-53)

    codec = replace(CODEC, bits=2)
    rng = Upwards(np.random.PCG64(1))
    encoded = encode_update(unit_vector(4_000), 100, codec, SEED, rng=rng)
    assert rng.draws >= 3
    assert np.linalg.norm(grid_of(encoded.fields, codec)) <= norm_bound(codec, 4_000)


def test_a_broken_generator_is_an_error_and_not_an_endless_loop():
    class Stuck(np.random.Generator):
        def random(self, *args, **kwargs):
            return np.full_like(super().random(*args, **kwargs), 1 - 2**-53)

    with pytest.raises(EncodingRangeError, match="random generator"):
        encode_update(
            unit_vector(4_000),
            100,
            replace(CODEC, bits=2),
            SEED,
            rng=Stuck(np.random.PCG64(1)),
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_is_not_encoded(bad):
    vector = unit_vector(10)
    vector[3] = bad
    with pytest.raises(EncodingRangeError, match="coordinate 3"):
        encode_update(vector, 10, CODEC, SEED, rng=generator())


@pytest.mark.parametrize("shape", [(0,), (2, 3)])
def test_only_vectors_are_encoded(shape):
    with pytest.raises(EncodingRangeError, match="vector"):
        encode_update(np.zeros(shape), 10, CODEC, SEED, rng=generator())


def test_noise_that_the_plan_asks_for_is_never_left_out():
    codec = replace(CODEC, noise_width=5)
    with pytest.raises(EncodingRangeError, match="none was given"):
        encode_update(unit_vector(10), 10, codec, SEED, rng=generator())


@pytest.mark.parametrize(
    "noise", [np.full(10, 6), np.full(10, -6), np.zeros(9, np.int64), np.zeros(10)]
)
def test_noise_that_does_not_fit_is_refused(noise):
    codec = replace(CODEC, noise_width=5)
    with pytest.raises(EncodingRangeError, match="noise"):
        encode_update(unit_vector(10), 10, codec, SEED, rng=generator(), noise=noise)


def test_noise_of_full_width_on_extreme_values_stays_in_the_field():
    codec = replace(CODEC, noise_width=5, reach=0.1)
    for sign in (-1, 1):
        encoded = encode_update(
            np.full(1, sign * 1.0),
            100,
            codec,
            SEED,
            rng=generator(),
            noise=np.full(1, 5 * sign),
        )
        assert 0 <= int(encoded.fields[1]) <= codec.field_max


@pytest.mark.parametrize(
    ("samples", "weight"), [(1, 3), (50, 128), (99, 252), (100, 255), (101, 255), (10**9, 255)]
)
def test_weights(samples, weight):
    assert weight_of(samples, CODEC) == weight


def test_a_small_device_still_weighs_something():
    assert weight_of(1, replace(CODEC, weight_cap=10**6)) == 1


@pytest.mark.parametrize("samples", [0, -1])
def test_a_device_without_samples_is_refused(samples):
    with pytest.raises(ConfigError, match="cannot take part"):
        weight_of(samples, CODEC)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_max", 0),
        ("n_max", 10_001),
        ("clip", 0.0),
        ("clip", -1.0),
        ("clip", float("nan")),
        ("clip", float("inf")),
        ("weight_cap", 0),
        ("bits", 1),
        ("bits", 21),
        ("reach", 0.0),
        ("reach", float("nan")),
        ("keep", 0.0),
        ("keep", 1.1),
        ("noise_width", -1),
    ],
)
def test_a_codec_out_of_limits_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"codec.{field}"):
        check_codec(replace(CODEC, **{field: value}))


def test_a_sum_that_cannot_be_is_refused():
    fields = encode_update(unit_vector(10), 100, CODEC, SEED, rng=generator()).fields
    too_heavy, too_light, too_large = fields.copy(), fields.copy(), fields.copy()
    too_heavy[0], too_light[0], too_large[5] = 256, 0, 255
    for bad in (too_heavy, too_light, too_large):
        with pytest.raises(EncodingRangeError):
            decode_sum(bad, 1, CODEC, 10, SEED)
    with pytest.raises(EncodingRangeError, match="shape"):
        decode_sum(fields[:-1], 1, CODEC, 10, SEED)
    for count in (0, 1_001):
        with pytest.raises(EncodingRangeError, match="allows 1 to 1000"):
            decode_sum(fields, count, CODEC, 10, SEED)


def test_keeping_a_fraction_is_unbiased_over_rounds():
    codec = replace(CODEC, keep=0.25, bits=16)
    vector = unit_vector(64)
    means = [
        decode_sum(
            encode_update(vector, 100, codec, seed, rng=generator()).fields, 1, codec, 64, seed
        ).mean
        for seed in (i.to_bytes(32, "big") for i in range(2_000))
    ]
    # Variance of one mean is about 1/keep - 1 = 3 of the squared norm, over all coordinates.
    assert np.linalg.norm(np.mean(means, axis=0) - vector) < 3 * (3 / 2_000) ** 0.5
