"""Which numbers a study trains with where its settings leave them out."""

import math
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitalring.edge_agent.accountant import epsilon
from vitalring.edge_agent.config import Floors
from vitalring.errors import ConfigError
from vitalring.models.artefact import load_artefact
from vitalring.protocol.privacy import Spend
from vitalring.schema import from_plain, to_plain
from vitalring.tools.federation import training_line
from vitalring.tools.plan_text import clip_line
from vitalring.tools.plans import plan_of, training_of
from vitalring.tools.settings import (
    SERVERS,
    WITH_NOISE,
    WITHOUT_NOISE,
    Numbers,
    SimulationSettings,
    StudySettings,
    numbers_of,
    rings_of,
)
from vitalring.tools.simulate.api import apply_changes

NONE = StudySettings(unit="none")
SAID = {
    "local_epochs": 3.0,
    "batch": 17,
    "lr": 0.25,
    "noise": "none",
    "clip": 2.5,
    "update_clip": 7.0,
    "server": SERVERS["yogi"],
}


def test_with_noise_the_defaults_are_those_of_the_shipped_study():
    plan = plan_of(StudySettings(), load_artefact("ecg_cnn"), 22, 600)
    assert (plan.training.sampling_rate, plan.training.steps) == (0.5, 2)
    assert (plan.training.batch, plan.training.learning_rate) == (300, 1.0)
    assert (plan.privacy.unit, plan.privacy.noise, plan.privacy.clip) == ("record", "local", 1.0)
    assert plan.privacy.noise_multiplier > 0
    assert plan.codec.clip == 1.2
    assert (plan.server.name, plan.server.learning_rate, plan.server.momentum) == (
        "momentum",
        1.0,
        0.9,
    )


def test_without_noise_they_are_others():
    plan = plan_of(NONE, load_artefact("ecg_cnn"), 22, 640)
    assert (plan.training.sampling_rate, plan.training.batch) == (0.1, 64)
    assert plan.training.steps * plan.training.sampling_rate == pytest.approx(
        WITHOUT_NOISE.local_epochs
    )
    assert plan.training.learning_rate == WITHOUT_NOISE.lr
    assert (plan.privacy.unit, plan.privacy.noise) == ("none", "none")
    assert plan.privacy.clip == WITHOUT_NOISE.clip
    assert plan.codec.clip == WITHOUT_NOISE.update_clip
    assert plan.server == WITHOUT_NOISE.server


@given(records=st.integers(1, 10**6))
def test_without_noise_a_small_device_takes_small_batches(records):
    batch = numbers_of(NONE, records).batch
    assert 1 <= batch <= WITHOUT_NOISE.batch
    assert records < 4 or records / batch >= 4
    assert records < 4 * WITHOUT_NOISE.batch or batch == WITHOUT_NOISE.batch


@given(records=st.integers(1, 10**6), batch=st.one_of(st.none(), st.integers(1, 2000)))
def test_without_noise_a_large_site_takes_a_bounded_number_of_steps(records, batch):
    settings = replace(NONE, batch=batch)
    training = training_of(settings, records)
    assert training.steps <= 64
    passes = training.steps * training.sampling_rate
    # Half a step is rounded away at most, and each round takes one.
    assert passes <= WITHOUT_NOISE.local_epochs + 0.5 * training.sampling_rate
    assert training.steps == 64 or passes >= 2 - 0.5 * training.sampling_rate


def test_passes_that_a_study_says_are_not_cut_short():
    assert training_of(replace(NONE, local_epochs=2.0), 64_000).steps == 2000


def test_with_noise_the_batch_is_the_same_for_every_size():
    assert numbers_of(StudySettings(), 5) == numbers_of(StudySettings(), 5000) == WITH_NOISE


@pytest.mark.parametrize("unit", ["none", "record"])
@given(names=st.sets(st.sampled_from(sorted(SAID))))
def test_what_a_study_says_wins_and_moves_nothing_else(unit, names):
    plain = StudySettings(unit=unit)
    said = {name: SAID[name] for name in names}
    numbers = numbers_of(replace(plain, **said), 400)
    assert numbers == replace(numbers_of(plain, 400), **said)


def test_every_number_that_depends_on_the_unit_is_left_out_at_first():
    assert {each.name for each in fields(Numbers)} == set(SAID)
    assert all(getattr(StudySettings(), name) is None for name in SAID)


def test_settings_that_leave_them_out_survive_their_file():
    assert from_plain(StudySettings, to_plain(NONE), ConfigError) == NONE
    changed = apply_changes(SimulationSettings(), {"unit": "none", "server": SERVERS["fedavg"]})
    assert changed.study.server == SERVERS["fedavg"]
    assert changed.study.lr is None


def test_a_person_sees_the_numbers_under_the_names_they_are_set_by():
    plan = plan_of(replace(NONE, **SAID), load_artefact("ecg_cnn"), 3, 170)
    assert training_line(plan) == (
        "30 steps a round, batch 17, lr 0.25, clip 2.5, update_clip 7, "
        "server yogi with learning_rate 0.03 and momentum 0.9"
    )
    plan = plan_of(replace(NONE, server=SERVERS["fedavg"]), load_artefact("ecg_cnn"), 3, 170)
    assert training_line(plan).endswith("server fedavg with learning_rate 1")


def test_a_person_sees_which_quantile_a_clip_follows():
    settings = StudySettings(unit="record", noise="distributed", clip_quantile=0.6, clip=2.0)
    plan = plan_of(settings, load_artefact("ecg_cnn"), 20, 170)
    assert clip_line(plan) == (
        "clip follows the 0.6 quantile from 2 on, at rate 0.2; its count takes a share of 0.1"
    )
    assert training_line(plan).endswith(f"momentum 0.9; {clip_line(plan)}")
    settings = StudySettings(unit="device", clip_quantile=0.6, clip_rate=0.5)
    line = clip_line(plan_of(settings, load_artefact("ecg_cnn"), 20, 170))
    assert line.startswith("update_clip follows the 0.6 quantile from 0.5 on, at rate 0.5;")


@pytest.mark.parametrize(
    ("settings", "devices", "suite", "size"),
    [
        (StudySettings(), 11, 1, 11),
        (StudySettings(), 12, 2, 12),
        (StudySettings(), 10_000, 2, 10_000),
        (StudySettings(ring_suite=1), 100, 1, 100),
        (StudySettings(ring_suite=2), 5, 2, 5),
        (StudySettings(ring_size=16), 1000, 2, 16),
        (StudySettings(ring_size=10), 1000, 1, 10),
        (StudySettings(ring_size=32), 100, 2, 32),
        # 33 keys cut at 32 make rings of 17 and 16.
        (StudySettings(ring_size=32), 33, 2, 32),
        (StudySettings(ring_size=32), 11, 1, 32),
    ],
)
def test_a_cohort_is_one_ring_unless_a_study_says_otherwise(settings, devices, suite, size):
    assert rings_of(settings, devices) == (suite, size)
    if devices >= 10:
        plan = plan_of(settings, load_artefact("ecg_cnn"), devices, 170)
        assert plan.ring_suite == suite
        smallest = devices // -(-devices // size)
        # A quarter of them can be revoked.
        assert plan.min_ring == max(2, -(-3 * smallest // 4))


def test_a_study_may_insist_on_larger_rings():
    plan = plan_of(StudySettings(min_ring=20), load_artefact("ecg_cnn"), 20, 170)
    assert plan.min_ring == 20
    with pytest.raises(ConfigError, match="make rings of 10 keys: use 10 at most"):
        plan_of(StudySettings(min_ring=11, ring_size=10), load_artefact("ecg_cnn"), 20, 170)


@pytest.mark.parametrize(
    ("settings", "devices", "why"),
    [
        (StudySettings(), 0, "0 devices make no ring"),
        (StudySettings(ring_size=4), 1, "1 devices make no ring"),
        (StudySettings(ring_size=1), 5, "hides nobody"),
        (StudySettings(ring_suite=1), 1_025, "1024 at most"),
        (StudySettings(ring_suite=1, ring_size=2_000), 5_000, "use a smaller ring_size"),
    ],
)
def test_rings_that_no_suite_has_are_refused(settings, devices, why):
    with pytest.raises(ConfigError, match=why):
        rings_of(settings, devices)


@pytest.mark.parametrize("cls", [StudySettings, Floors])
def test_a_delta_that_can_be_written_is_one_that_is_accounted_for(cls):
    low = from_plain(cls, {"delta": 1e-9}, ConfigError).delta
    assert 0 < epsilon((Spend(0.1, 1.5, 10),), low) < math.inf
    with pytest.raises(ConfigError, match=r"delta is 1e-10, must lie between 1e-09 and 0\.01"):
        from_plain(cls, {"delta": 1e-10}, ConfigError)
