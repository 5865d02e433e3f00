"""One device: when it takes part, when it stays out, and that nothing is made or paid twice."""

import dataclasses
import time

import pytest
from device_fixture import (
    FLOORS,
    announce,
    announced,
    catch_up,
    charges,
    device,
    statuses,
)
from federation_fixture import SOME_PRIVACY, Parties, seed, small_federation

from vitalring.edge_agent import agent as agent_module
from vitalring.edge_agent import state
from vitalring.edge_agent.accountant import epsilon
from vitalring.edge_agent.budget import CHARGED, committed_of, spent_of
from vitalring.errors import DataError, LogError, PrivacyError, RecordError, SignatureError
from vitalring.gateway import rounds
from vitalring.protocol import limits, lsag, privacy, trust
from vitalring.protocol.cbor import decode, encode
from vitalring.protocol.records import GlobalModel, PlanAnnouncement, SealedUpdate
from vitalring.protocol.signing import sign
from vitalring.protocol.update import update_digest


@pytest.fixture
def parties(parties):
    parties.begin(parties.propose())
    return parties


def plan_of(parties):
    return trust.open_round_plan(rounds.latest(parties.db).signed_plan, parties.federation.study)


def changed_plan(parties, key=None, **changes):
    plan = dataclasses.replace(plan_of(parties), **changes)
    return sign(plan, [key or parties.federation.aggregator_seed])


def nothing_happened(agent):
    return charges(agent) == [] and state.outbox(agent.db) == [] and statuses(agent) == {}


def test_an_honest_round_makes_an_update_that_the_gateway_counts(parties, make):
    agent = make()
    assert agent.consider(announced(parties), parties.now_ms) == "ready"
    (pending,) = state.outbox(agent.db)
    plan = plan_of(parties)
    assert plan.opens_ms <= pending.submit_at_ms <= plan.opens_ms + plan.window_ms
    assert pending.deadline_ms == plan.deadline_ms
    update = decode(SealedUpdate, pending.update)
    assert pending.digest == update_digest(update.plan, update.ring, update.ciphertexts)
    assert charges(agent) == [(CHARGED, 1)]
    assert parties.admit(parties.federation.box(update))
    # A retry is the same update in another box, and is counted once.
    assert not parties.admit(parties.federation.box(update))
    assert rounds.latest(parties.db).admitted == 1


def test_a_slow_account_is_no_reason_to_send_at_once(parties, make, monkeypatch):
    """All that an update took is before the time that is drawn, not only its training."""
    agent = make()
    slept, pay = [0.0], agent._pay
    steady = time.perf_counter

    def slowly(*args):
        slept[0] = 1_000.0
        pay(*args)

    monkeypatch.setattr("time.perf_counter", lambda: steady() + slept[0])
    monkeypatch.setattr(agent, "_pay", slowly)
    agent.consider(announced(parties), parties.now_ms)
    (pending,) = state.outbox(agent.db)
    assert pending.submit_at_ms >= parties.now_ms + 1_000_000


def test_what_leaves_the_device_does_not_name_it(parties, make):
    agent = make()
    agent.consider(announced(parties), parties.now_ms)
    (pending,) = state.outbox(agent.db)
    keys = parties.federation.devices[0]
    assert keys.public not in pending.update
    assert keys.secret not in pending.update
    assert keys.secret.hex() not in repr(vars(agent))


def test_a_round_is_made_once(parties, make):
    agent = make()
    assert agent.consider(announced(parties), parties.now_ms) == "ready"
    before = state.outbox(agent.db)
    assert agent.consider(announced(parties), parties.now_ms) == "already ready"
    assert state.outbox(agent.db) == before
    assert charges(agent) == [(CHARGED, 1)]


@pytest.mark.parametrize("counted", [True, False])
def test_receipts_settle_an_update(parties, make, counted):
    agent = make()
    agent.consider(announced(parties), parties.now_ms)
    (pending,) = state.outbox(agent.db)
    if counted:
        assert parties.admit(parties.federation.box(decode(SealedUpdate, pending.update)))
    parties.submit([1, 2, 3, 4])
    open_announcement = announced(parties)
    parties.now_ms += 20_000
    parties.close()
    assert agent.receipts(rounds.latest(parties.db).receipts)
    assert state.outbox(agent.db) == []
    outcome = "counted" if counted else "missed"
    assert statuses(agent) == {1: outcome}
    assert charges(agent) == [(CHARGED, 1)]
    # The same receipts again, and the same announcement again, change nothing.
    assert not agent.receipts(rounds.latest(parties.db).receipts)
    with pytest.raises(LogError, match="shrank"):
        catch_up(agent, parties)
        agent.consider(open_announcement, parties.now_ms)
    assert charges(agent) == [(CHARGED, 1)]


def test_receipts_that_a_log_key_did_not_sign_settle_nothing(parties, make):
    agent = make()
    agent.consider(announced(parties), parties.now_ms)
    parties.now_ms += 20_000
    parties.close()
    receipts = trust.open_receipts(
        rounds.latest(parties.db).receipts, parties.federation.study.federation
    )
    for key in (seed("a thief"), parties.federation.aggregator_seed):
        with pytest.raises(SignatureError):
            agent.receipts(sign(receipts, [key]))
    assert len(state.outbox(agent.db)) == 1


def test_an_update_that_missed_its_deadline_is_dropped_and_stays_paid(parties, make):
    agent = make()
    agent.consider(announced(parties), parties.now_ms)
    (pending,) = state.outbox(agent.db)
    last = pending.deadline_ms + limits.MAX_CLOCK_SKEW_MS
    assert agent.expire(last) == []
    assert [late.round for late in agent.expire(last + 1)] == [1]
    assert state.outbox(agent.db) == []
    assert statuses(agent) == {1: "missed"}
    assert charges(agent) == [(CHARGED, 1)]
    assert agent.consider(announced(parties), parties.now_ms) == "already missed"


def test_before_it_has_caught_up_a_device_stays_out(parties, make):
    agent = make(caught_up=False)
    assert agent.consider(announced(parties), parties.now_ms) == "not caught up with the log"
    assert nothing_happened(agent)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"floors": dataclasses.replace(FLOORS, ring=4)}, "ring of 3 keys is below this device"),
        ({"floors": dataclasses.replace(FLOORS, cohort=5)}, "sums of 4 updates are below this"),
        ({"floors": dataclasses.replace(FLOORS, allow_plain_sum=False)}, "insists on an encrypted"),
        ({"records": 99}, "99 records are fewer than the plan asks for"),
    ],
)
def test_a_device_stays_out_below_its_floors_and_pays_nothing(parties, make, options, match):
    agent = make(**options)
    assert match in agent.consider(announced(parties), parties.now_ms)
    assert nothing_happened(agent)


def test_a_device_with_too_many_records_stays_out_and_pays_nothing(parties, make, monkeypatch):
    """A million records a step are too many; here it is two thousand, for the memory's sake."""
    monkeypatch.setattr(privacy, "MAX_SAMPLED", 2048)
    agent = make(records=33_000)
    match = "33000 records are more than the guarantee is argued for"
    assert match in agent.consider(announced(parties), parties.now_ms)
    assert nothing_happened(agent)


def model_of(parties, final, key=None):
    model = GlobalModel(
        federation=plan_of(parties).federation,
        study=plan_of(parties).study,
        round=1,
        plan=rounds.latest(parties.db).plan,
        report=bytes(32),
        weights=plan_of(parties).weights,
        contributions=0,
        applied=False,
        final=final,
        evaluation=None,
    )
    return sign(model, [key or parties.federation.aggregator_seed])


def test_a_final_model_frees_what_the_study_did_not_use(parties, make):
    agent = make()
    assert agent.consider(announced(parties), parties.now_ms) == "ready"
    assert committed_of(agent._budget.entries()) != spent_of(agent._budget.entries())
    agent.end_study(model_of(parties, final=True))
    agent.end_study(model_of(parties, final=True))
    assert committed_of(agent._budget.entries()) == spent_of(agent._budget.entries()) != ()


def test_only_a_quorums_final_model_ends_a_study(parties, make):
    agent = make()
    agent.consider(announced(parties), parties.now_ms)
    with pytest.raises(RecordError, match="does not end"):
        agent.end_study(model_of(parties, final=False))
    with pytest.raises(SignatureError, match="unknown key"):
        agent.end_study(model_of(parties, final=True, key=seed("another")))
    assert committed_of(agent._budget.entries()) != spent_of(agent._budget.entries())


def test_the_coin_is_tossed_once_a_round(parties, make):
    agent = make(participation=0.0)
    assert "sits this round out" in agent.consider(announced(parties), parties.now_ms)
    assert state.outbox(agent.db) == []
    assert charges(agent) == []
    # A repeated announcement, after a reconnection say, must not raise the chance.
    agent._participation = 1.0
    assert agent.consider(announced(parties), parties.now_ms) == "already sat_out"


def test_a_round_that_is_over_is_left_alone(parties, make):
    agent = make()
    deadline = plan_of(parties).deadline_ms + limits.MAX_CLOCK_SKEW_MS
    assert agent.consider(announced(parties), deadline + 1) == "the round is over"
    assert nothing_happened(agent)
    assert agent.consider(announced(parties), deadline) == "ready"


def test_a_plan_without_privacy_is_refused_unless_the_device_allows_it(tmp_path):
    parties = Parties(small_federation(), tmp_path / "parties")
    parties.begin(parties.propose())
    strict = device(parties, tmp_path / "strict", 0)
    assert "device insists on it" in strict.consider(announced(parties), parties.now_ms)
    assert nothing_happened(strict)
    floors = dataclasses.replace(FLOORS, allow_no_privacy=True)
    lax = device(parties, tmp_path / "lax", 1, floors=floors)
    assert lax.consider(announced(parties), parties.now_ms) == "ready"
    for agent in (strict, lax):
        agent.db.close()
    parties.close_databases()


def test_a_claim_below_what_the_plan_spends_is_refused(parties, make):
    def honest(spends, delta):
        return 8.001

    agent = make(accountant=honest, floors=dataclasses.replace(FLOORS, epsilon=100.0))
    with pytest.raises(PrivacyError, match=r"claims epsilon 8 .* spend 8\.001"):
        agent.consider(announced(parties), parties.now_ms)
    assert nothing_happened(agent)


def test_a_study_over_the_devices_own_limit_is_refused(parties, make):
    agent = make(floors=dataclasses.replace(FLOORS, epsilon=3.99))
    # 40 rounds of 10 steps, one per hundred steps.
    with pytest.raises(PrivacyError, match=r"to epsilon 4\.0000 .* its limit is 3\.99"):
        agent.consider(announced(parties), parties.now_ms)
    assert nothing_happened(agent)


def test_the_real_accountant_agrees_with_the_plan(parties, make):
    agent = make(accountant=lambda spends, delta: epsilon(tuple(spends), delta))
    assert agent.consider(announced(parties), parties.now_ms) == "ready"


def test_an_accountant_that_fails_or_says_nothing_stops_the_device(parties, make):
    agent = make(accountant=lambda spends, delta: float("nan"))
    with pytest.raises(PrivacyError):
        agent.consider(announced(parties), parties.now_ms)
    assert nothing_happened(agent)


def test_a_plan_that_strangers_or_too_few_signed_is_refused_although_the_log_has_it(parties, make):
    agent = make()
    for key in (seed("a thief"), seed("authority"), seed("hospital"), seed("log")):
        data = announce(parties, changed_plan(parties, key))
        with pytest.raises(SignatureError, match="unknown key"):
            agent.consider(data, parties.now_ms)
    assert nothing_happened(agent)


@pytest.mark.parametrize(
    "changes",
    [
        {"federation": "other"},
        {"min_cohort": 3},
        {"privacy": dataclasses.replace(SOME_PRIVACY, noise_multiplier=0.5)},
        {"round": 41},
    ],
)
def test_a_plan_that_breaks_its_study_is_refused(parties, make, changes):
    agent = make()
    data = announce(parties, changed_plan(parties, **changes))
    with pytest.raises(RecordError):
        agent.consider(data, parties.now_ms)
    assert nothing_happened(agent)


def test_a_second_plan_for_a_round_is_never_signed(parties, make):
    agent = make()
    assert agent.consider(announced(parties), parties.now_ms) == "ready"
    before = state.outbox(agent.db)
    second = announce(parties, changed_plan(parties, weights=b"w" * 32))
    with pytest.raises(RecordError, match="round 1 was announced before with another plan"):
        agent.consider(second, parties.now_ms)
    assert state.outbox(agent.db) == before
    assert charges(agent) == [(CHARGED, 1)]


def test_a_device_that_the_roster_does_not_list_says_so(parties, make):
    agent = make(pair=lsag.keygen())
    reason = agent.consider(announced(parties), parties.now_ms)
    assert reason.startswith("this device's key is not enrolled yet: it is not in roster 0 of ward")
    assert nothing_happened(agent)


def test_a_log_that_shrank_or_forked_is_seen_before_anything_is_made(parties, make, tmp_path):
    agent = make()
    before = announced(parties)
    # A plan that is refused for itself still tells of a larger log.
    with pytest.raises(RecordError):
        agent.consider(announce(parties, changed_plan(parties, round=41)), parties.now_ms)
    with pytest.raises(LogError, match="the log shrank"):
        agent.consider(before, parties.now_ms)
    fork = Parties(parties.federation, tmp_path / "fork")
    fork.now_ms += 1
    fork.begin(fork.propose())
    for _ in range(2):
        with pytest.raises(LogError):
            agent.consider(announced(fork), parties.now_ms)
        announce(fork, changed_plan(fork, round=41))
    fork.close_databases()
    assert nothing_happened(agent)


def test_a_plan_that_is_not_proved_to_be_in_the_log_is_refused(parties, make):
    agent = make()
    announcement = decode(PlanAnnouncement, announced(parties))
    for changes in ({"inclusion": ()}, {"index": 0}, {"plan": changed_plan(parties, round=2)}):
        with pytest.raises(LogError):
            agent.consider(encode(dataclasses.replace(announcement, **changes)), parties.now_ms)
    assert nothing_happened(agent)


def test_not_a_number_among_the_records_ends_the_round_and_nothing_leaves(parties, make):
    agent = make()
    agent._source.rows.x[7, 3] = float("nan")
    with pytest.raises(DataError, match="x of record 7 is not finite"):
        agent.consider(announced(parties), parties.now_ms)
    assert state.outbox(agent.db) == []


@pytest.mark.parametrize("stage", ["learn", "protect", "encode"])
def test_a_crash_after_paying_is_paid_once_and_made_once(parties, make, monkeypatch, stage):
    def crash(*_args, **_options):
        raise KeyboardInterrupt

    first = make()
    with monkeypatch.context() as broken:
        broken.setattr(agent_module, stage, crash)
        with pytest.raises(KeyboardInterrupt):
            first.consider(announced(parties), parties.now_ms)
    assert charges(first) == [(CHARGED, 1)]
    assert state.outbox(first.db) == []
    first.db.close()
    again = make()
    assert statuses(again) == {1: "charged"}
    assert again.consider(announced(parties), parties.now_ms) == "ready"
    assert charges(again) == [(CHARGED, 1)]
    (pending,) = state.outbox(again.db)
    assert parties.admit(parties.federation.box(decode(SealedUpdate, pending.update)))


def test_a_crash_while_paying_leaves_nothing_paid(parties, make, monkeypatch):
    def crash(*_args):
        raise KeyboardInterrupt

    first = make()
    with monkeypatch.context() as broken:
        broken.setattr(state, "mark", crash)
        with pytest.raises(KeyboardInterrupt):
            first.consider(announced(parties), parties.now_ms)
    assert nothing_happened(first)
    first.db.close()
    assert make().consider(announced(parties), parties.now_ms) == "ready"


def test_a_device_that_trusts_nobody_elses_noise_stays_out(parties, make):
    agent = make()
    study, plan = parties.federation.study, plan_of(parties)
    shared = dataclasses.replace(plan.privacy, noise="distributed")
    asks = (study, dataclasses.replace(plan, privacy=shared), study.rings[0], None)
    assert "insists on carrying its guarantee alone" in agent._below_floors(*asks)
    agent._floors = dataclasses.replace(FLOORS, allow_shared_noise=True)
    assert agent._below_floors(*asks) is None
