"""What sums become: a feature schema out of limbs, or nothing at all."""

import dataclasses

import numpy as np
import pytest
from federation_fixture import small_federation

from vitalring.aggregator import goals
from vitalring.errors import DataError, EncodingRangeError
from vitalring.models.dataset.features import FeatureSchema
from vitalring.models.dataset.statistics import Question, answer
from vitalring.protocol.limbs import answer_fields, to_limbs

QUESTION = Question(("age",), buckets=2, min_count=1)
# Numbers, texts, missing, two moments and two buckets: ages 1 and 3, in fixed point.
ONE, TWO = (
    [1, 0, 0, value * 65536 + 2**48, (value * 65536) ** 2, bucket, 1 - bucket]
    for value, bucket in ((1, 0), (3, 1))
)


@pytest.fixture(scope="module")
def goal():
    plan = small_federation().study.plan
    model = dataclasses.replace(plan.model, dimension=sum(QUESTION.widths))
    return goals.statistics(dataclasses.replace(plan, model=model), QUESTION)


def fields(*sites):
    return sum(answer_fields(to_limbs(numbers, QUESTION.widths)) for numbers in sites)


def test_a_sum_of_answers_becomes_the_schema_of_all_sites(goal):
    state = goal.optimiser.init(goal.start)
    mean = goal.decode([(lambda: fields(ONE, TWO), 2)], bytes(32))
    schema = FeatureSchema.from_json(goal.content(goal.optimiser.apply(state, mean).weights))
    assert schema == answer(QUESTION, [a + b for a, b in zip(ONE, TWO, strict=True)])
    assert schema.features[0].mean == 2.0


def test_nothing_is_published_before_there_is_a_sum(goal):
    assert goal.content(goal.start) == b""


def test_a_sum_that_counts_other_sites_than_the_round_is_refused(goal):
    with pytest.raises(EncodingRangeError, match="a sum of 3 answers counts"):
        goal.decode([(lambda: fields(ONE, TWO), 3)], bytes(32))


def test_limbs_that_no_site_counted_make_no_schema(goal):
    spoilt = fields(ONE, TWO).astype(np.float64)[1:]
    spoilt[0] += 7
    with pytest.raises(DataError, match="disagree"):
        goal.content(spoilt)
