"""Drafts of several hospitals: they come to sign one, whoever is late, gone or of another mind."""

from dataclasses import replace

import pytest
from federation_fixture import small_federation

from vitalring.aggregator.cosign import check_model, check_plan
from vitalring.aggregator.drafts import Drafts
from vitalring.protocol import limits
from vitalring.protocol.cbor import decode, encode
from vitalring.protocol.records import GlobalModel, RoundPlan
from vitalring.protocol.signing import Signed, public_key, sign, verify

TURN_MS = 1_000
START_MS = 10**9


@pytest.fixture(scope="module")
def federation():
    return small_federation(hospitals=3, threshold=0)


def plan_of(federation):
    study = federation.study
    return RoundPlan(
        federation="fed",
        study="study",
        study_plan=study.plan_digest,
        cohort="ward",
        epoch=1,
        round=3,
        weights=b"w" * 32,
        training=study.plan.training,
        privacy=study.plan.privacy,
        codec=study.plan.codec,
        sum_key=b"k" * 32,
        roster=b"r" * 32,
        min_cohort=2,
        opens_ms=0,
        window_ms=1000,
        deadline_ms=5000,
    )


class Table:
    """Hospitals that hear of one another what stands on their topics."""

    def __init__(self, federation, quorum, hospitals=(0, 1, 2)):
        self.federation, self.quorum, self.now_ms = federation, quorum, START_MS
        self.base = dict.fromkeys(range(3), plan_of(federation))
        self.stands = {}
        self.complete = {}
        self.there = {}
        for hospital in hospitals:
            self.come(hospital)

    def come(self, hospital):
        self.there[hospital] = Drafts(
            RoundPlan,
            3,
            self.federation.study.federation,
            hospital,
            self.federation.aggregator_seeds[hospital],
            self.quorum,
            self.now_ms + hospital * TURN_MS,
        )

    def mine(self, hospital):
        plan = self.base[hospital]
        return replace(plan, opens_ms=self.now_ms, deadline_ms=self.now_ms + plan.deadline_ms)

    def turn(self):
        for hospital, drafts in self.there.items():
            mine = self.mine(hospital)
            others = {h: said for h, said in self.stands.items() if h != hospital}
            signed = drafts.advance(
                lambda mine=mine: mine,
                lambda theirs, mine=mine: check_plan(theirs, mine),
                {h: draft for h, (draft, _) in others.items() if draft},
                {h: signature for h, (_, signature) in others.items() if signature},
                self.now_ms,
            )
            self.stands[hospital] = (drafts.draft, drafts.signature)
            if signed:
                self.complete[hospital] = signed

    def turns(self, count, each_ms=0):
        for _ in range(count):
            self.turn()
            self.now_ms += each_ms

    def opened(self, hospital):
        keys = {public_key(seed) for seed in self.federation.aggregator_seeds}
        return verify(RoundPlan, self.complete[hospital], keys, self.quorum)


def test_the_first_drafts_and_puts_the_signatures_together(federation):
    table = Table(federation, quorum=3)
    table.turns(3, each_ms=10)
    assert list(table.complete) == [0]
    assert table.opened(0).opens_ms == START_MS
    assert table.there[1].draft is None


def test_what_is_complete_stays_the_same_record(federation):
    table = Table(federation, quorum=2)
    table.turns(3)
    first = table.complete[0]
    table.turns(3)
    assert table.complete[0] == first


def test_all_come_to_sign_one_of_three_drafts(federation):
    # Each drafts before it hears of another: the turn of all has come.
    table = Table(federation, quorum=3)
    table.now_ms += 3 * TURN_MS
    table.turns(4, each_ms=1)
    assert {decode(Signed, content).payload for content in table.complete.values()} == {
        decode(Signed, table.there[0].draft).payload
    }


def test_a_draft_whose_hospital_is_gone_is_completed_by_the_next_in_turn(federation):
    table = Table(federation, quorum=3)
    table.turns(1)
    draft = table.there[0].draft
    del table.there[0]
    table.turns(2)
    assert table.complete == {}, "it is not their turn"
    table.now_ms += TURN_MS
    table.turns(1)
    assert list(table.complete) == [1]
    assert encode(table.opened(1)) == decode(Signed, draft).payload


def test_without_its_draft_the_next_drafts_after_its_turn(federation):
    table = Table(federation, quorum=2, hospitals=(1, 2))
    table.turns(1)
    assert table.there[1].draft is None
    table.now_ms += TURN_MS
    table.turns(3)
    assert table.opened(1).opens_ms == START_MS + TURN_MS
    assert table.there[2].draft is None


def test_drafts_that_became_old_give_way_to_new_ones(federation):
    table = Table(federation, quorum=3, hospitals=(0, 1))
    table.turns(2, each_ms=2 * TURN_MS)
    table.now_ms += 2 * limits.MAX_CLOCK_SKEW_MS
    # The third comes long after, to whom what stood till now is too old.
    table.come(2)
    table.turns(3)
    assert set(table.complete) >= {0}
    assert table.opened(0).opens_ms == table.now_ms


def test_a_draft_of_another_mind_is_not_signed_and_said_once(federation, caplog):
    table = Table(federation, quorum=2)
    table.base[0] = replace(table.base[0], weights=b"v" * 32)
    table.turns(5, each_ms=TURN_MS)
    assert table.opened(1).weights == b"w" * 32
    assert 0 not in table.complete
    said = [r.message for r in caplog.records if "hospital 0 is not signed" in r.message]
    # Once by each of the others, and again never.
    assert len(said) == 2
    assert "weights" in said[0]


def test_what_is_of_another_matter_or_signer_does_not_count(federation):
    table = Table(federation, quorum=2, hospitals=(1,))
    seeds = federation.aggregator_seeds
    mine = table.mine(1)
    for content in (
        sign(replace(mine, round=4), [seeds[0]]),
        sign(mine, [seeds[2]]),
        sign(mine, seeds[:2]),
        b"garbage",
    ):
        table.stands[0] = (content, content)
        table.turns(2)
        assert table.there[1].signature is None
        assert table.complete == {}


def test_a_hospital_that_learns_better_drafts_its_model_anew(federation):
    seeds = federation.aggregator_seeds
    before = GlobalModel(
        federation="fed",
        study="study",
        round=3,
        plan=b"p" * 32,
        report=b"r" * 32,
        weights=b"w" * 32,
        contributions=0,
        applied=False,
        final=False,
        evaluation=None,
    )
    after = replace(before, weights=b"x" * 32, contributions=3, applied=True)
    drafts = Drafts(GlobalModel, 3, federation.study.federation, 0, seeds[0], 2, START_MS)
    for result in (before, after):
        drafts.advance(
            lambda result=result: result,
            lambda theirs, result=result: check_model(theirs, result, early=False),
            {},
            {},
            START_MS,
        )
        assert decode(Signed, drafts.draft).payload == encode(result)
        assert decode(Signed, drafts.signature).payload == encode(result)
