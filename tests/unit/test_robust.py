"""Limits on decoded sums, and what hostile groups can do to their combination."""

import dataclasses

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vitalring.aggregator.robust import (
    combine_groups,
    decode_group,
    median,
    norm_limit,
    trimmed_each_side,
    trimmed_mean,
    weighted_mean,
)
from vitalring.errors import CiphertextError, ConfigError, EncodingRangeError
from vitalring.protocol.quantise import Codec, DecodedSum, decode_sum, encode_update

SEED = bytes(range(32))
CODEC = Codec(n_max=50, clip=2.0, weight_cap=100)
D = 300


def honest_sum(codec, count, rng, *, samples=None, length=1.0, noise=False):
    """Fields of `count` honest updates that all point the same way, the longest mean there is."""
    direction = rng.standard_normal(D)
    direction *= length * codec.clip / np.linalg.norm(direction)
    total = np.uint64(0)
    for _ in range(count):
        rows = samples or int(rng.integers(1, 2 * codec.weight_cap))
        width = codec.noise_width
        kept = max(1, round(codec.keep * D))
        coins = rng.integers(-width, width, kept, endpoint=True) if noise else None
        total = total + encode_update(direction, rows, codec, SEED, rng=rng, noise=coins).fields
    return total


def groups_of(*rows, weights=None):
    weights = weights or [1] * len(rows)
    return [
        DecodedSum(np.asarray(row, dtype=np.float64), weight)
        for row, weight in zip(rows, weights, strict=True)
    ]


@given(
    count=st.integers(1, 50),
    bits=st.sampled_from([2, 4, 8, 16]),
    keep=st.sampled_from([0.1, 0.5, 1.0]),
    width=st.sampled_from([0, 3]),
    length=st.sampled_from([0.1, 1.0, 50.0]),
    seed=st.integers(0, 1000),
)
@example(count=1, bits=2, keep=1.0, width=0, length=1.0, seed=0)
def test_an_honest_sum_always_passes(count, bits, keep, width, length, seed):
    codec = dataclasses.replace(CODEC, bits=bits, keep=keep, noise_width=width)
    fields = honest_sum(codec, count, np.random.default_rng(seed), length=length, noise=bool(width))
    decoded = decode_group(fields, count, codec, D, SEED)
    np.testing.assert_array_equal(decoded.mean, decode_sum(fields, count, codec, D, SEED).mean)


def test_the_limit_is_little_above_the_clip_where_devices_weigh_alike():
    for count in (1, 3, 50):
        limit = norm_limit(count, count * CODEC.levels, CODEC, 4096)
        assert CODEC.clip < limit < 1.01 * CODEC.clip


def test_the_limit_is_wider_where_devices_weigh_next_to_nothing():
    # Rounding is as large as the update then: the limit must not refuse honest devices.
    assert norm_limit(3, 3, CODEC, 4096) > 5 * CODEC.clip


def with_large_fields(count):
    """A sum in which one device wrote 100 steps more into each field than an honest one would."""
    fields = honest_sum(CODEC, count, np.random.default_rng(1), samples=100, length=0.1)
    fields[1:] += np.uint64(100)
    decode_sum(fields, count, CODEC, D, SEED)
    return fields


@pytest.mark.parametrize("count", [2, 3])
def test_an_update_past_the_clip_shows_in_a_small_group_though_no_field_does(count):
    with pytest.raises(EncodingRangeError, match="honest ones reach"):
        decode_group(with_large_fields(count), count, CODEC, D, SEED)


def test_an_update_past_the_clip_hides_in_a_large_group():
    """What stays possible: among ten, 4.7 times the clip is less than half of the limit."""
    decoded = decode_group(with_large_fields(10), 10, CODEC, D, SEED)
    assert np.linalg.norm(decoded.mean) > 0.4 * CODEC.clip


@pytest.mark.parametrize("weight", [2, 3 * 255 + 1])
def test_a_weight_that_devices_cannot_have_is_refused(weight):
    fields = honest_sum(CODEC, 3, np.random.default_rng(1))
    fields[0] = weight
    with pytest.raises(EncodingRangeError, match="cannot weigh"):
        decode_group(fields, 3, CODEC, D, SEED)


def test_a_smaller_weight_cannot_make_a_sum_count_more():
    """A hostile device that takes weight away makes the mean longer, and the limit less so."""
    fields = honest_sum(CODEC, 10, np.random.default_rng(1), samples=100, length=0.9)
    decode_group(fields, 10, CODEC, D, SEED)
    fields[0] = 10 * 255 // 3
    with pytest.raises(EncodingRangeError, match="honest ones reach"):
        decode_group(fields, 10, CODEC, D, SEED)


def test_median_and_trimmed_mean_by_coordinate():
    found = groups_of([0.0, 9], [1, 8], [2, 7], [3, 6], [1000, -1000])
    np.testing.assert_array_equal(median(found), [2, 7])
    np.testing.assert_array_equal(trimmed_mean(found), [2, 7])
    np.testing.assert_array_equal(median(found[:2]), [0.5, 8.5])
    np.testing.assert_array_equal(trimmed_mean(found[:2]), [0.5, 8.5])


def test_weights_count_in_the_mean_alone():
    found = groups_of([0.0], [3.0], [9.0], weights=[1, 2, 100])
    np.testing.assert_allclose(weighted_mean(found), [906 / 103])
    for combine in (median, trimmed_mean):
        np.testing.assert_array_equal(combine(found), [3.0])


def test_the_mean_of_groups_is_that_of_all_updates():
    rng = np.random.default_rng(5)
    parts = [honest_sum(CODEC, count, rng) for count in (3, 4, 4)]
    found = [
        decode_group(part, n, CODEC, D, SEED) for part, n in zip(parts, (3, 4, 4), strict=True)
    ]
    whole = decode_sum(sum(parts), 11, CODEC, D, SEED)
    np.testing.assert_allclose(weighted_mean(found), whole.mean, atol=1e-12)


def test_how_many_groups_a_trimmed_mean_leaves_out():
    assert [trimmed_each_side(n) for n in range(1, 13)] == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3]
    assert all(2 * trimmed_each_side(n) < n for n in range(1, 100))


@given(st.integers(3, 30), st.integers(0, 1000), st.sampled_from([1e-3, 1.0, 1e6]))
def test_few_hostile_groups_cannot_move_the_result_past_the_honest_ones(count, seed, size):
    rng = np.random.default_rng(seed)
    for combine, bad in ((median, (count - 1) // 2), (trimmed_mean, trimmed_each_side(count))):
        honest = rng.standard_normal((count - bad, 6))
        hostile = size * rng.standard_normal((bad, 6))
        result = combine(groups_of(*rng.permutation(np.concatenate([honest, hostile]))))
        assert (result >= honest.min(axis=0)).all()
        assert (result <= honest.max(axis=0)).all()


def test_a_majority_of_hostile_groups_decides():
    """What stays possible: nothing here helps against most of the groups."""
    found = groups_of([0.0], [0.0], [7.0], [7.0], [7.0])
    np.testing.assert_array_equal(median(found), [7.0])


def test_long_vectors_are_combined_in_parts():
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((5, 150_001))
    found = groups_of(*rows)
    np.testing.assert_array_equal(median(found), np.median(rows, axis=0))
    np.testing.assert_array_equal(trimmed_mean(found), np.sort(rows, axis=0)[1:4].mean(axis=0))


def opened(group):
    def open_group():
        if isinstance(group, Exception):
            raise group
        return group

    return open_group


def test_a_group_that_fails_is_left_out_and_named():
    good = groups_of([1.0], [2.0], [4.0])
    broken = CiphertextError("no encryption"), EncodingRangeError("too long")
    combined = combine_groups(
        "median", [opened(each) for each in (good[0], broken[0], *good[1:], broken[1])]
    )
    np.testing.assert_array_equal(combined.mean, [2.0])
    assert combined.used == (0, 2, 3)
    assert combined.left_out == ((1, "no encryption"), (4, "too long"))


@pytest.mark.parametrize(("good", "bad"), [(0, 1), (1, 1), (2, 2), (2, 3)])
def test_without_a_majority_of_groups_the_round_is_not_applied(good, bad):
    found = [*groups_of(*[[1.0]] * good), *[EncodingRangeError("too long")] * bad]
    with pytest.raises(EncodingRangeError, match=f"{bad} of {good + bad} groups.*too long"):
        combine_groups("median", [opened(each) for each in found])


def test_no_group_and_no_way_to_combine_are_refused():
    with pytest.raises(EncodingRangeError, match="0 of 0 groups"):
        combine_groups("median", [])
    with pytest.raises(ConfigError, match="'krum'"):
        combine_groups("krum", [opened(groups_of([1.0])[0])])


def test_faults_of_another_kind_are_not_taken_for_hostile_groups():
    with pytest.raises(ConfigError, match="disk"):
        combine_groups("median", [opened(ConfigError("disk"))])
