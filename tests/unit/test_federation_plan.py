"""How much a device weighs in a study, by its plan."""

import numpy as np
import pytest

from vitalring.models.artefact import load_artefact
from vitalring.models.dataset.statistics import Question
from vitalring.protocol.quantise import Codec, decode_sum, encode_update, weight_of
from vitalring.tools.plans import Sizes, plan_of, statistics_plan_of
from vitalring.tools.settings import StudySettings

SMALLEST, LARGEST = 300, 900
NONE = StudySettings(unit="none", noise="none")


def codec_of(settings: StudySettings, most_records: int = LARGEST) -> Codec:
    """Return the codec of a plan for three devices."""
    artefact = load_artefact("ecg_cnn")
    return plan_of(settings, artefact, 3, Sizes.of(SMALLEST, most_records)).codec


def test_without_privacy_a_device_weighs_by_its_records_up_to_the_largest():
    codec = codec_of(NONE)
    assert weight_of(LARGEST, codec) == codec.levels
    assert weight_of(SMALLEST, codec) == round(codec.levels * SMALLEST / LARGEST)


def test_a_cap_that_is_set_counts():
    codec = codec_of(StudySettings(unit="none", noise="none", weight_cap=600))
    assert weight_of(600, codec) == weight_of(LARGEST, codec) == codec.levels


@pytest.mark.parametrize("most", [0, LARGEST])
def test_with_a_guarantee_for_records_all_weigh_alike(most):
    codec = codec_of(StudySettings(unit="record", weight_cap=LARGEST), most)
    assert weight_of(SMALLEST, codec) == weight_of(LARGEST, codec) == codec.levels


def test_where_the_largest_is_not_known_all_weigh_alike():
    codec = codec_of(NONE, most_records=0)
    assert weight_of(SMALLEST, codec) == weight_of(LARGEST, codec)


def test_without_privacy_rounding_hardly_moves_the_mean():
    codec, generator, seed = codec_of(NONE), np.random.default_rng(1), bytes(32)
    records = np.array([SMALLEST, 600, LARGEST])
    updates = generator.normal(size=(3, 4096))
    updates *= 0.8 * codec.clip / np.linalg.norm(updates, axis=1, keepdims=True)
    fields = [
        encode_update(update, int(n), codec, seed, rng=generator).fields
        for update, n in zip(updates, records, strict=True)
    ]
    mean = decode_sum(np.sum(fields, axis=0), 3, codec, 4096, seed).mean
    wanted = records @ updates / records.sum()
    assert np.linalg.norm(mean - wanted) < 0.06 * np.linalg.norm(wanted)


def test_sites_agree_on_features_in_one_group_whatever_their_study_says():
    settings = StudySettings(unit="none", groups=3, combine="median")
    question = Question(("age",), buckets=2, min_count=1)
    plan = statistics_plan_of(settings, question, ("no", "yes"), 6)
    assert (plan.groups, plan.combine) == (1, "mean")
    assert plan_of(settings, load_artefact("ecg_cnn"), 6, SMALLEST).groups == 3
