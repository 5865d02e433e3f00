"""What a plan may say about privacy, and what is refused by name."""

from dataclasses import replace

import pytest
from scipy import stats

from vitalring.errors import ConfigError, RecordError
from vitalring.protocol import privacy as p
from vitalring.schema import from_plain, to_plain

TRAINING = p.Training(
    sampling_rate=0.1, steps=10, rounds=20, learning_rate=0.5, batch=30, records=300
)
RECORD_LOCAL = p.Privacy("record", "local", 8.0, 1e-5, 1.0, 1.2)


def test_accepts_what_this_version_can_do():
    p.check_privacy(p.Privacy(), TRAINING)
    p.check_privacy(RECORD_LOCAL, TRAINING)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"noise": "distributed"}, "use training.steps 1"),
        ({"colluders": 1}, "privacy.colluders is 1 with privacy.noise local"),
        ({"unit": "none"}, "privacy.unit is none with privacy.noise local"),
        ({"noise": "none"}, "privacy.unit is record with privacy.noise none"),
        ({"unit": "none", "noise": "none"}, "must be 0"),
        ({"epsilon": 0.0}, "privacy.epsilon"),
        ({"epsilon": float("nan")}, "privacy.epsilon"),
        ({"delta": 0.0}, "privacy.delta"),
        ({"delta": 0.005}, "1 / training.records"),
        ({"clip": 0.0}, "privacy.clip"),
        ({"clip": float("inf")}, "privacy.clip"),
        ({"noise_multiplier": 0.0}, "privacy.noise_multiplier"),
        ({"noise_multiplier": float("nan")}, "privacy.noise_multiplier"),
    ],
)
def test_refuses_by_name(change, names):
    with pytest.raises(ConfigError, match=names):
        p.check_privacy(replace(RECORD_LOCAL, **change), TRAINING)


def test_refuses_more_steps_than_are_accounted():
    with pytest.raises(ConfigError, match=r"training\.steps \* training\.rounds"):
        p.check_privacy(RECORD_LOCAL, replace(TRAINING, steps=100_000, rounds=11))


def test_travels_as_a_plain_mapping():
    for value in (RECORD_LOCAL, p.Privacy(), TRAINING):
        assert from_plain(type(value), to_plain(value), RecordError) == value


@pytest.mark.parametrize(
    ("field", "value"),
    [("unit", "person"), ("noise", "central"), ("epsilon", -1.0), ("clip", 1e9), ("delta", 1.0)],
)
def test_schema_names_the_field(field, value):
    plain = {**to_plain(RECORD_LOCAL), field: value}
    with pytest.raises(RecordError, match=field):
        from_plain(p.Privacy, plain, RecordError)


def test_sensitivity_charges_lattice_and_arithmetic():
    assert p.sensitivity_factor(1) == 1.0 + p.CLIP_SLACK + 2.0**-20
    assert p.sensitivity_factor(1 << 20) == 1.0 + p.CLIP_SLACK + 2.0**-10
    assert p.effective_noise_multiplier(RECORD_LOCAL, 6_000) < RECORD_LOCAL.noise_multiplier
    for dimension in (0, 10**8):
        with pytest.raises(ConfigError, match="dimension"):
            p.sensitivity_factor(dimension)


def test_a_step_samples_no_more_than_it_is_argued_for():
    # At rate 1 the count decides.
    assert p.fits_a_step(p.MAX_SAMPLED, 1.0)
    assert not p.fits_a_step(p.MAX_SAMPLED + 1, 1.0)
    # Below it chance does: at the largest count that passes, a step that samples too many is
    # rarer than 2^-60, and at the next count the bound is not far away.
    for rate in (1e-3, 0.05, 0.3, 0.7):
        near = int(p.MAX_SAMPLED / rate)
        count = max(
            n for n in range(near * 9 // 10, near, near // 10_000) if p.fits_a_step(n, rate)
        )
        assert stats.binom.sf(p.MAX_SAMPLED, count, rate) < 2.0**-60
        assert count * rate > 0.98 * p.MAX_SAMPLED


def test_no_class_weighs_more_than_one():
    p.check_privacy(RECORD_LOCAL, replace(TRAINING, class_weights=(0.0, 1.0)))
    with pytest.raises(ConfigError, match="count more than its clip allows"):
        p.check_privacy(RECORD_LOCAL, replace(TRAINING, class_weights=(0.5, 1.01)))


def test_sums_of_chunks_are_exact():
    """As many steps as a sum can have are a whole float64, and their error fits into the slack."""
    assert p.MAX_SAMPLED * 2**p.SUM_BITS * (1 + p.CLIP_SLACK) < 2**53
    joined = 2 * (p.MAX_CHUNK + 1) * 2.0**-20
    lattice = 1.5 * 2.0 ** (22 / 2 - p.SUM_BITS)  # three half steps in each of 2^22 coordinates
    last = 2 * p.MAX_SAMPLED * 2.0**-53
    assert joined + lattice + last < p.CLIP_SLACK / 2


def test_a_pull_that_overshoots_is_refused():
    p.check_privacy(RECORD_LOCAL, replace(TRAINING, proximal=3.9))
    with pytest.raises(ConfigError, match=r"training\.proximal is 2: from 2 on"):
        p.check_privacy(RECORD_LOCAL, replace(TRAINING, proximal=4.0))
