"""Plans and models that several hospitals sign: only what each would have said itself."""

from dataclasses import replace

import pytest

from vitalring.aggregator.cosign import Draft, check_model, check_plan
from vitalring.errors import RecordError, SignatureError
from vitalring.protocol import limits
from vitalring.protocol.privacy import Privacy, Training
from vitalring.protocol.quantise import Codec
from vitalring.protocol.records import Evaluation, GlobalModel, RoundPlan
from vitalring.protocol.signing import merge, public_key, sign, verify

SEEDS = [bytes([number]) * 32 for number in (1, 2, 3)]
KEYS = {public_key(seed) for seed in SEEDS}
PLAN = RoundPlan(
    federation="f",
    study="s",
    study_plan=b"p" * 32,
    cohort="c",
    epoch=1,
    round=3,
    weights=b"w" * 32,
    training=Training(1.0, 1, 5, 0.1, 1, 1),
    privacy=Privacy(),
    codec=Codec(n_max=10, clip=1.0, weight_cap=1),
    sum_key=b"k" * 32,
    roster=b"r" * 32,
    min_cohort=2,
    opens_ms=10**9,
    window_ms=1000,
    deadline_ms=10**9 + 5000,
)
MODEL = GlobalModel(
    federation="f",
    study="s",
    round=3,
    plan=b"p" * 32,
    report=b"r" * 32,
    weights=b"w" * 32,
    contributions=5,
    applied=True,
    final=False,
    evaluation=None,
)
MEASURED = Evaluation(accuracy=0.5, macro_f1=0.5, loss=1.0, confusion=((1, 0), (0, 1)))


def test_a_quorum_of_signatures_makes_the_record():
    draft = Draft(PLAN, SEEDS[0], quorum=2)
    assert draft.complete() is None
    draft.add(sign(replace(PLAN, round=4), [SEEDS[1]]))
    draft.add(sign(PLAN, [SEEDS[0]]))
    assert draft.complete() is None, (
        "neither another draft's signature nor the own one again counts"
    )
    draft.add(sign(PLAN, [SEEDS[2]]))
    signed = draft.complete()
    assert signed is not None
    assert verify(RoundPlan, signed, KEYS, 2) == PLAN
    with pytest.raises(SignatureError, match="has 2 signatures, needs 3"):
        verify(RoundPlan, signed, KEYS, 3)
    draft.add(sign(PLAN, [SEEDS[1]]))
    assert draft.complete() == signed


def test_whoever_signs_first_the_record_verifies():
    draft = Draft(MODEL, SEEDS[2], quorum=2)
    for seed in SEEDS[:2]:
        draft.add(sign(MODEL, [seed]))
    signed = draft.complete()
    assert signed is not None
    assert verify(GlobalModel, signed, KEYS, 2) == MODEL


def test_what_does_not_belong_together_is_not_merged():
    with pytest.raises(RecordError, match="different records"):
        merge([sign(PLAN, SEEDS[:1]), sign(MODEL, SEEDS[1:2])])
    with pytest.raises(RecordError, match="twice"):
        merge([sign(PLAN, SEEDS[:1]), sign(PLAN, SEEDS[:2])])


def test_a_plan_may_begin_at_another_time():
    check_plan(replace(PLAN, opens_ms=PLAN.opens_ms + 7, deadline_ms=PLAN.deadline_ms + 7), PLAN)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": b"x" * 32},
        {"round": 4},
        {"min_cohort": 3},
        {"window_ms": 2},
        {"deadline_ms": PLAN.deadline_ms + 1},
        {"roster": b"x" * 32},
    ],
)
def test_a_plan_that_differs_otherwise_is_not_signed(change):
    with pytest.raises(RecordError, match=f"drafted with {next(iter(change))}"):
        check_plan(replace(PLAN, **change), PLAN)


def test_a_plan_of_another_hour_is_not_signed():
    moved = limits.MAX_CLOCK_SKEW_MS + 1
    old = replace(PLAN, opens_ms=PLAN.opens_ms - moved, deadline_ms=PLAN.deadline_ms - moved)
    with pytest.raises(RecordError, match="begin 300 s from now"):
        check_plan(old, PLAN)


def test_a_model_may_be_measured_on_other_records():
    check_model(replace(MODEL, evaluation=MEASURED), MODEL, early=False)
    check_model(replace(MODEL, evaluation=MEASURED, final=True), MODEL, early=True)


@pytest.mark.parametrize(
    ("change", "early"),
    [
        ({"weights": b"x" * 32}, True),
        ({"contributions": 4}, True),
        ({"applied": False}, True),
        ({"report": b"x" * 32}, True),
        ({"final": True}, False),
    ],
)
def test_a_model_that_differs_otherwise_is_not_signed(change, early):
    with pytest.raises(RecordError, match=f"drafted with {next(iter(change))}"):
        check_model(replace(MODEL, **change), MODEL, early=early)


def test_the_last_round_is_the_end_whoever_drafts():
    with pytest.raises(RecordError, match="drafted with final False"):
        check_model(MODEL, replace(MODEL, final=True), early=False)
