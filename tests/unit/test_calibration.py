"""Noise and fields for a claim: what is drawn up passes the device, and no less would."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest

from vitalring.edge_agent.accountant import check_claim, epsilon
from vitalring.errors import ConfigError, PrivacyError
from vitalring.models.artefact import load_artefact
from vitalring.protocol.guarantee import (
    Terms,
    budget_allowances,
    check_terms,
    noise_of,
    sensitivity,
    study_spend,
)
from vitalring.protocol.privacy import Privacy, Training
from vitalring.protocol.quantise import Codec, decode_sum, encode_update, field_count
from vitalring.tools import calibration
from vitalring.tools.calibration import too_small, unsteady_clip
from vitalring.tools.plans import Sizes, min_cohort_of, plan_of, training_of
from vitalring.tools.settings import StudySettings

with_noise = functools.cache(calibration.with_noise)
"""A search for the same noise is made once."""

TRAINING = Training(
    sampling_rate=1.0, steps=1, rounds=20, learning_rate=0.5, batch=300, records=200
)
SHARED = Terms(
    Privacy("record", "distributed", 1.0, 1e-5, 1.0, colluders=2),
    TRAINING,
    Codec(n_max=30, clip=0.25, weight_cap=200, rounding="plain"),
    500,
    20,
)
DEVICE = replace(
    SHARED,
    privacy=Privacy("device", "distributed", 8.0, 1e-5, colluders=2),
    codec=Codec(n_max=30, clip=0.25, weight_cap=1),
)
ALONE = replace(DEVICE, privacy=Privacy("device", "local", 8.0, 1e-5))


@pytest.fixture(scope="module", params=[SHARED, DEVICE, ALONE], ids=["record", "device", "local"])
def drawn(request):
    return with_noise(request.param)


def test_what_is_drawn_up_passes_and_is_tight(drawn):
    check_terms(drawn)
    claim = drawn.privacy.epsilon
    assert 0.999 * claim < check_claim(drawn, epsilon) <= claim
    less = replace(drawn.privacy, noise_multiplier=drawn.privacy.noise_multiplier - 2e-4)
    with pytest.raises(PrivacyError, match="the plan claims epsilon"):
        check_claim(replace(drawn, privacy=less), epsilon)


def test_rounding_costs_little_and_bits_are_few(drawn):
    noise = noise_of(drawn)
    clip = noise.deviation * noise.shares**0.5 / drawn.privacy.noise_multiplier
    assert sensitivity(drawn) < 1.015 * clip
    assert noise.delta * 20 < 1e-5 / 1024


def test_fewer_bits_would_be_too_coarse():
    """Eight bits are the least that is asked for; what the grid needs goes beyond."""
    drawn = with_noise(SHARED)
    assert drawn.codec.bits > 8
    coarse = replace(drawn, codec=replace(drawn.codec, bits=drawn.codec.bits - 1))
    noise = noise_of(coarse)
    clip = noise.deviation * noise.shares**0.5 / drawn.privacy.noise_multiplier
    assert sensitivity(coarse) > 1.015 * clip
    assert with_noise(DEVICE).codec.bits >= with_noise(ALONE).codec.bits >= 8


def test_a_smaller_sum_asks_more_of_each_device():
    """The shares together are the same, however many devices are waited for."""
    few = with_noise(SHARED)
    many = replace(few, min_cohort=30)
    assert noise_of(many).deviation < noise_of(few).deviation
    assert noise_of(many).total == pytest.approx(noise_of(few).total)
    # A study cannot be opened with the width of the larger sum and the smaller one's devices.
    narrow = replace(few.codec, noise_width=int(13 * noise_of(many).deviation) + 1)
    with pytest.raises(ConfigError, match=r"codec\.noise_width is"):
        check_claim(replace(few, codec=narrow), epsilon)


def test_a_budget_bears_what_a_device_unit_spends():
    terms = with_noise(DEVICE)
    spends = [each.whole for each in budget_allowances(terms)]
    spent = epsilon(spends, 1e-5)
    assert 16.0 < spent < 24.0
    # With another unit's rounds it adds up, by one accountant.
    both = epsilon([*spends, *study_spend(with_noise(SHARED))], 1e-5)
    assert spent < both < spent + 2.0


def test_nobody_left_is_refused():
    with pytest.raises(ConfigError, match="20 colluders of the 20 devices"):
        with_noise(replace(SHARED, privacy=replace(SHARED.privacy, colluders=20)))


def test_a_small_fleet_is_told_so_with_the_arithmetic():
    few = with_noise(ALONE)
    note = too_small(few, 30)
    assert note is not None
    assert "unit device with noise local takes about" in note
    wanted = int(note.split("about ")[1].split()[0].replace(",", ""))
    assert too_small(few, wanted) is None
    assert too_small(few, wanted - 2) is not None
    assert too_small(with_noise(SHARED), 30) is None
    assert too_small(replace(SHARED, privacy=Privacy()), 2) is None


def following(terms: Terms, **changes: float) -> Terms:
    numbers = {"clip_quantile": 0.5, "clip_rate": 0.2, "clip_share": 0.1, **changes}
    privacy = replace(terms.privacy, **numbers)
    return with_noise(replace(terms, privacy=privacy, dimension=terms.dimension + 1))


def test_a_count_too_noisy_to_follow_is_told_with_the_arithmetic():
    """With unit device: sigma / (share * devices) * sqrt(devices / shares), SPEC 7.17."""
    drawn = following(ALONE)
    sigma, devices = drawn.privacy.noise_multiplier, 30
    each = sigma / 0.1 / math.sqrt(devices)
    note = unsteady_clip(drawn, devices)
    assert note is not None
    assert f"is {each:.2g} a round and {each / math.sqrt(5):.2g} over the 5 rounds" in note
    enough = math.ceil((sigma / 0.1 / math.sqrt(5) / 0.2) ** 2)
    assert unsteady_clip(drawn, enough + 1) is None
    assert unsteady_clip(drawn, enough - 2) is not None
    # Records of a batch are many, and a fixed clip follows nothing.
    assert unsteady_clip(following(SHARED), 20) is None
    assert unsteady_clip(with_noise(ALONE), 2) is None


def test_a_count_is_as_steady_as_in_the_loudest_stretch():
    drawn = following(ALONE)
    devices = 10_000
    assert unsteady_clip(drawn, devices) is None
    loud = replace(drawn, privacy=replace(drawn.privacy, schedule=(1.0, 9.0)))
    each = 9.0 * drawn.privacy.noise_multiplier / 0.1 / math.sqrt(devices)
    note = unsteady_clip(loud, devices)
    assert note is not None
    assert f"is {each:.2g} a round" in note


@pytest.mark.parametrize("terms", [SHARED, ALONE])
def test_what_all_leave_out_unsettles_a_count_however_many_they_are(terms):
    """The error of the first coordinate of a decoded mean, measured beside what is warned of."""
    drawn = replace(following(terms), dimension=256, min_cohort=1)
    codec = replace(drawn.codec, keep=0.1)
    note = unsteady_clip(replace(drawn, codec=codec), 10**9)
    assert note is not None
    assert "lower clip_rate, raise keep, or" in note
    warned = float(note.split(" is ")[1].split(" a round")[0])
    fine = replace(codec, bits=16, n_max=1, weight_cap=1, noise_width=0, rounding="plain", reach=16)
    coins = np.random.default_rng(0)
    errors = []
    for number in range(300):
        mean = coins.normal(size=256)
        mean *= codec.clip / np.linalg.norm(mean)
        seed = number.to_bytes(32, "big")
        fields = encode_update(mean, 1, fine, seed, rng=coins).fields
        decoded = decode_sum(fields.astype(np.uint64), 1, fine, 256, seed).mean
        errors.append((decoded[0] - mean[0]) / (0.1 * codec.clip))
    assert np.std(errors) == pytest.approx(warned, rel=0.15)
    assert unsteady_clip(replace(drawn, codec=replace(codec, keep=0.98)), 10**9) is None


def test_noise_too_coarse_for_a_device_takes_more_bits():
    """Among 10,000 devices each adds little: eight bits would do for the sum alone."""
    privacy = Privacy("device", "distributed", 2.0, 5e-5, colluders=2)
    codec, once = Codec(n_max=10_000, clip=0.25, weight_cap=1), replace(TRAINING, rounds=1)
    drawn = with_noise(Terms(privacy, once, codec, 50, 10_000))
    assert drawn.codec.bits == 9
    coarse = replace(drawn, codec=replace(drawn.codec, bits=8))
    with pytest.raises(ConfigError, match="too coarse"):
        check_terms(coarse)


def test_a_count_costs_no_noise_and_no_bytes():
    """One coordinate among thousands: the same epsilon for hardly more than the same noise."""
    for plain in (SHARED, DEVICE):
        fixed, follows = with_noise(plain), following(plain)
        assert check_claim(follows, epsilon) <= follows.privacy.epsilon
        assert follows.privacy.noise_multiplier == pytest.approx(
            fixed.privacy.noise_multiplier, rel=2e-3
        )
        assert follows.codec.bits == fixed.codec.bits
    settings = StudySettings(unit="device", rounds=3)
    plans = [
        plan_of(replace(settings, clip_quantile=quantile), load_artefact("ecg_cnn"), 20, 300)
        for quantile in (0.0, 0.5)
    ]
    assert [plan.vector_size - plan.model.dimension for plan in plans] == [0, 1]
    assert len({field_count(plan.codec, plan.vector_size) for plan in plans}) == 1
    assert plans[1].privacy.clip_share == 0.1
    assert plans[0].privacy.clip_rate == 0.0
    whole = replace(settings, clip_quantile=0.5, keep=1.0)
    plan = plan_of(whole, load_artefact("ecg_cnn"), 20, 300)
    assert field_count(plan.codec, plan.vector_size) == 4_096 + 2


@pytest.mark.parametrize(("unit", "noise"), [("none", None), ("record", "local")])
def test_a_study_without_a_count_cannot_follow_one(unit, noise):
    settings = StudySettings(unit=unit, noise=noise, clip_quantile=0.5)
    with pytest.raises(ConfigError, match=rf"clip_quantile is 0\.5 with .*unit {unit}"):
        plan_of(settings, load_artefact("ecg_cnn"), 20, 300)


def test_a_distributed_guarantee_sizes_its_sums_by_the_fleet():
    settings = StudySettings(noise="distributed")
    assert [min_cohort_of(settings, devices) for devices in (5, 12, 20, 1000)] == [5, 10, 16, 800]
    assert min_cohort_of(replace(settings, spare=0.5), 1000) == 500
    assert min_cohort_of(replace(settings, min_cohort=40), 1000) == 40
    assert min_cohort_of(StudySettings(), 1000) == 10


def test_one_sum_takes_as_many_records_as_a_step_may():
    settings = StudySettings(noise="distributed")
    small = training_of(settings, Sizes.of(200, 400, 300.0))
    assert (small.sampling_rate, small.steps, small.batch) == (1.0, 1, 300)
    large = training_of(settings, Sizes.of(200, 200_000, 50_000.0))
    assert (large.sampling_rate, large.batch) == (0.1, 5_000)
    with pytest.raises(ConfigError, match="records is 0"):
        Sizes.of(0)


@pytest.mark.parametrize(
    ("unit", "noise", "weight_cap", "rounding"),
    [("record", "distributed", 300, "plain"), ("device", "local", 1, "bounded")],
)
def test_plans_of_each_unit(unit, noise, weight_cap, rounding):
    settings = StudySettings(unit=unit, noise=noise, rounds=3)
    plan = plan_of(settings, load_artefact("ecg_cnn"), 20, 300)
    assert (plan.privacy.unit, plan.privacy.noise) == (unit, noise)
    assert (plan.codec.weight_cap, plan.codec.rounding) == (weight_cap, rounding)
    assert check_claim(plan.terms, epsilon) <= 8.0
    assert plan.privacy.colluders == (2 if noise == "distributed" else 0)


def test_distributed_noise_goes_with_an_encrypted_sum():
    settings = StudySettings(noise="distributed", secure_sum="plain", rounds=2)
    with pytest.raises(ConfigError, match="secure_sum plain shows every update"):
        plan_of(settings, load_artefact("ecg_cnn"), 20, 300)
