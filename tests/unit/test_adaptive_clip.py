"""A clip that follows a quantile: what is counted, what it may move, and where the factor goes."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from vitalring.errors import ConfigError
from vitalring.protocol import adaptive_clip as a
from vitalring.protocol import privacy as p
from vitalring.protocol.guarantee import Terms, check_terms
from vitalring.protocol.privacy import Privacy, Training
from vitalring.protocol.quantise import Codec

TRAINING = Training(sampling_rate=1.0, steps=1, rounds=5, learning_rate=0.5, batch=20, records=10)
FOLLOWS = {"clip_quantile": 0.5, "clip_rate": 0.2, "clip_share": 0.1}
RECORD = Privacy("record", "distributed", 8.0, 1e-5, 1.0, 2.0, **FOLLOWS)
DEVICE = Privacy("device", "distributed", 8.0, 1e-5, 0.0, 2.0, **FOLLOWS)

shares = st.floats(0.01, 0.125)
quantiles = st.floats(0.01, 0.99)
clips = st.floats(1e-3, 1e3)


@pytest.mark.parametrize("privacy", [RECORD, DEVICE, replace(DEVICE, noise="local")])
def test_goes_with_what_is_in_a_noisy_sum(privacy):
    p.check_privacy(privacy, TRAINING)
    assert p.follows_quantile(privacy)


@pytest.mark.parametrize(
    ("privacy", "names"),
    [
        (Privacy(**FOLLOWS), "clip_quantile is 0.5 with privacy.unit none"),
        (replace(RECORD, noise="local"), "clip_quantile is 0.5 with unit record and noise local"),
        (replace(RECORD, clip_quantile=0.0), r"privacy\.clip_rate is 0\.2 and .* 0\.1 with"),
        (replace(RECORD, clip_quantile=0.0, clip_rate=0.0), r"privacy\.clip_share 0\.1 with"),
        (replace(DEVICE, clip_quantile=0.005), r"privacy\.clip_quantile is 0\.005"),
        (replace(DEVICE, clip_quantile=math.nan), r"privacy\.clip_quantile is nan"),
        (replace(DEVICE, clip_quantile=-0.5), r"privacy\.clip_quantile is -0\.5"),
        (replace(DEVICE, clip_rate=0.0), r"privacy\.clip_rate is 0"),
        (replace(DEVICE, clip_rate=1.5), r"privacy\.clip_rate is 1\.5"),
        (replace(DEVICE, clip_share=0.0), r"privacy\.clip_share is 0"),
        (replace(DEVICE, clip_share=0.2), r"privacy\.clip_share is 0\.2"),
        (replace(RECORD, clip=1e-4), r"privacy\.clip is 0\.0001"),
        (replace(RECORD, clip=1e4), r"privacy\.clip is 10000"),
    ],
)
def test_refuses_by_name_what_cannot_be_counted(privacy, names):
    with pytest.raises(ConfigError, match=names):
        p.check_privacy(privacy, TRAINING)


def test_the_clip_of_records_is_one_wherever_the_factor_moves_it():
    for clip in (1e-6 / p.MIN_FACTOR, 1e6 / p.MAX_FACTOR):
        p.check_privacy(replace(RECORD, clip=clip), TRAINING)
        for factor in (p.MIN_FACTOR, p.MAX_FACTOR):
            fixed = Privacy("record", "distributed", 8.0, 1e-5, factor * clip, 2.0)
            p.check_privacy(fixed, TRAINING)


@settings(max_examples=300)
@given(
    st.lists(st.floats(0.0, allow_nan=False), min_size=1, max_size=20),
    clips,
    shares,
    quantiles,
    st.floats(0.0, 1.0),
)
def test_no_vector_is_longer_than_the_clip_with_its_count(norms, clip, share, quantile, weight):
    """A record's weighted gradient or a device's update, and its count, at right angles."""
    privacy = replace(RECORD, clip_share=share, clip_quantile=quantile)
    norms = np.array(norms)
    counts = a.counted(norms, clip, privacy)
    clipped = weight * np.minimum(norms, a.update_clip(clip, share))
    assert np.all(np.hypot(clipped, counts) <= clip * (1.0 + 1e-12))
    assert np.all(np.abs(counts) <= share * clip * (1.0 + 1e-12))


def test_a_norm_counts_whole_below_the_ramp_and_not_above_it():
    norms = np.array([0.0, 0.5, 15 / 16, 1.0, 17 / 16, 2.0, math.inf])
    np.testing.assert_allclose(a.within(norms * 3.0, 3.0), [1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 0.0])


@settings(max_examples=300)
@given(st.floats(0.0, 3.0), st.floats(-1.0, 1.0), clips)
def test_the_last_bits_of_a_norm_move_its_count_as_little_as_is_argued(norm, off, clip):
    """SPEC 7.17: two runs, in each of which a norm is off by 2^-20 of itself."""
    norm *= clip
    seen = [norm * (1.0 + 2.0**-20), norm * (1.0 + off * 2.0**-20)]
    one, two = a.within(np.array(seen), clip)
    assert abs(one - two) <= 17.001 * 2.0**-20


def test_counts_that_move_together_fit_into_what_the_sensitivity_sets_aside():
    """SPEC 7.17: beside what SPEC 7.4 has for the gradients of a chunk, at right angles."""
    joined = 2 * (p.MAX_CHUNK + 1) * 2.0**-20
    slope = 1.0 / (2.0 * a.RAMP)
    counts = (p.MAX_CHUNK + 1) * 0.125 * slope * (1.0 + a.RAMP) * 2 * 2.0**-20
    lattice = 1.5 * 2.0 ** (22 / 2 - p.SUM_BITS)
    last = 2 * p.MAX_SAMPLED * 2.0**-53
    assert counts < 2.0**-8.9
    assert math.hypot(joined, counts) < 2.0**-8.45
    assert math.hypot(joined, counts) + lattice + last < p.CLIP_SLACK / 2


def terms_of(privacy: Privacy) -> Terms:
    rounding = "plain" if privacy.unit == "record" else "bounded"
    codec = Codec(n_max=20, clip=0.5, weight_cap=1, noise_width=400_000, bits=16, rounding=rounding)
    terms = Terms(privacy, TRAINING, codec, 65, 10)
    check_terms(terms)
    return terms


@pytest.mark.parametrize("privacy", [RECORD, DEVICE])
def test_a_decoded_count_is_the_share_that_it_counted(privacy):
    terms = terms_of(privacy)
    clip = privacy.clip if privacy.unit == "record" else terms.codec.clip
    norms = clip * np.array([0.1] * 7 + [5.0] * 3)
    count = a.counted(norms, clip, privacy).sum()
    if privacy.unit == "record":
        # Ten records in a batch of ten are sent as gradients are: downhill.
        terms = replace(terms, training=replace(TRAINING, batch=10))
        sent = -TRAINING.learning_rate / 10 * count
    else:
        sent = count / 10
    assert a.unclipped(sent, terms) == 0.7


@given(st.floats(-1e300, 1e300), quantiles)
def test_what_a_sum_says_is_cut_off_and_has_one_writing(count, quantile):
    terms = terms_of(replace(DEVICE, clip_quantile=quantile))
    share = a.unclipped(count, terms)
    assert -1.0 <= share <= 2.0
    assert abs(share - quantile) <= 1.0 + 1e-6
    assert share == round(share, 6)
    assert math.copysign(1.0, share) == 1.0 or share < 0.0
    moved = a.next_factor(1.0, share, replace(DEVICE, clip_quantile=quantile))
    assert math.exp(-0.2001) <= moved <= math.exp(0.2001)


def test_the_factor_has_six_digits_and_stays_in_its_range():
    assert a.next_factor(1.0, 0.75, DEVICE) == 0.951229  # exp(-0.05)
    assert a.next_factor(0.951229, 0.25, DEVICE) == 1.0
    assert a.next_factor(1.0, 0.5, DEVICE) == 1.0
    fast = replace(DEVICE, clip_rate=1.0)
    low = high = 1.0
    for _ in range(30):
        low, high = a.next_factor(low, 1.5, fast), a.next_factor(high, -0.5, fast)
    assert (low, high) == (p.MIN_FACTOR, p.MAX_FACTOR)
    # From the end of the range it comes back.
    assert a.next_factor(low, 0.0, DEVICE) > low
    assert a.next_factor(high, 1.0, DEVICE) < high


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("start", [0.01, 100.0])
def test_follows_the_true_quantile_as_the_algorithm_of_the_paper(quantile, start):
    """Against Algorithm 1 as it is written, with a step instead of a ramp and no rounding."""
    generator = np.random.default_rng(7)
    norms, spread, users, rate = stats.lognorm(0.5), 0.03, 200, 0.2
    privacy = replace(DEVICE, clip_quantile=quantile, clip_rate=rate)
    factor, theirs, ours_seen, theirs_seen = start, start, [], []
    for number in range(400):
        lengths = norms.rvs(users, random_state=generator)
        noise = spread * generator.normal()
        share = a.within(lengths, factor).mean() + noise
        factor = a.next_factor(factor, float(round(share, 6)), privacy)
        theirs *= math.exp(-rate * ((lengths <= theirs).mean() + noise - quantile))
        if number >= 100:
            ours_seen.append(factor)
            theirs_seen.append(theirs)
    true = norms.ppf(quantile)
    assert np.median(theirs_seen) == pytest.approx(true, rel=0.05)
    assert np.median(ours_seen) == pytest.approx(true, rel=0.05)
    assert np.median(ours_seen) == pytest.approx(np.median(theirs_seen), rel=0.02)


@given(st.integers(100_000, 999_999), st.integers(-9, -2))
@example(100_000, -5)
def test_a_factors_last_digit_may_be_another_machines(digits, power):
    """The next number of six digits is near enough, and of the least numbers only the next."""
    one, following = float(f"{digits}e{power}"), float(f"{digits + 1}e{power}")
    assert float(f"{one:.6g}") == one
    assert following - one <= a.FACTOR_TOLERANCE * one
    assert a.FACTOR_TOLERANCE < 2 / 100_000
