"""Which rosters a device signs in: the newest of the log, and no other that a gateway shows it."""

import dataclasses

import pytest
from device_fixture import announce, announce_round, announced, catch_up, charges, device
from federation_fixture import SOME_PRIVACY, Parties, small_federation

from vitalring.edge_agent import rosters, state
from vitalring.errors import LogError, RecordError
from vitalring.gateway import log, rounds
from vitalring.protocol import lsag, trust
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.records import PlanAnnouncement, SealedUpdate
from vitalring.protocol.signing import sign
from vitalring.protocol.update import round_context


def consider(agent, parties, data):
    # It shares its cache, not its broker: what the log has it can fetch.
    return agent.consider(data, parties.now_ms)


def update_of(agent):
    (pending,) = state.outbox(agent.db)
    return decode(SealedUpdate, pending.update)


def nothing_happened(agent):
    return not state.outbox(agent.db) and charges(agent) == []


def test_a_revoked_device_stays_out_and_the_others_go_on_as_before(parties, make, small):
    gone, stays = make(0), make(1)
    first = announce_round(parties)
    assert consider(gone, parties, first) == consider(stays, parties, first) == "ready"
    parties.end_round(range(4))
    for agent in (gone, stays):
        assert agent.receipts(rounds.latest(parties.db).receipts)
    parties.take_up(parties.federation.next_roster(devices=range(1, 6)))
    second = announce_round(parties)
    reason = consider(gone, parties, second)
    assert reason.startswith("this device's key is revoked: roster 1 of ward does not have it")
    assert not state.outbox(gone.db)
    assert consider(stays, parties, second) == "ready"
    # The same key and the tag that follows from it; nothing was enrolled anew.
    plan = trust.open_round_plan(rounds.latest(parties.db).signed_plan, parties.federation.study)
    tag = lsag.tag_of(small.devices[1].secret, round_context(plan))
    assert update_of(stays).signature[:32] == tag


def test_a_device_that_joins_is_told_to_wait_before(parties, make):
    pair = lsag.keygen()
    agent = make(9, pair=pair)
    first = announce_round(parties)
    assert "not enrolled yet" in consider(agent, parties, first)
    parties.end_round(range(4))
    keys = tuple(sorted([*parties.federation.study.roster.keys, pair.public]))
    parties.take_up(parties.federation.next_roster(keys=keys, ring_size=4), pair)
    assert consider(agent, parties, announce_round(parties)) == "ready"


def test_the_newest_roster_is_remembered_and_can_be_compared(parties, make):
    agent = make()
    consider(agent, parties, announce_round(parties))
    known = rosters.known(agent.db, "ward")
    study = parties.federation.study
    assert known == rosters.KnownRoster(0, 1, study.roster_digest, 6, 1)
    parties.end_round(range(4))
    parties.take_up(parties.federation.next_roster(devices=range(5)))
    consider(agent, parties, announce_round(parties))
    known = rosters.known(agent.db, "ward")
    assert (known.serial, known.keys) == (1, 5)
    assert known.digest == parties.federation.study.roster_digest


def test_an_older_roster_is_a_stale_ring(parties, make, small, tmp_path):
    """A gateway that keeps a revoked device in a ring of its own, say."""
    agent = make()
    consider(agent, parties, announce_round(parties))
    parties.end_round(range(4))
    old = parties.federation
    parties.take_up(parties.federation.next_roster(devices=range(5)))
    consider(agent, parties, announce_round(parties))
    before = state.outbox(agent.db)
    plan = trust.open_round_plan(rounds.latest(parties.db).signed_plan, parties.federation.study)
    back = dataclasses.replace(plan, round=3, roster=old.study.roster_digest)
    shown = announce(parties, sign(back, [small.aggregator_seed]), roster=2)
    with pytest.raises(RecordError, match="stale ring: the plan names roster 0 of ward, and this"):
        consider(agent, parties, shown)
    assert state.outbox(agent.db) == before


def test_another_roster_of_the_same_number_is_a_false_ring(parties, make, small):
    """All hospitals signed two of one number: a device takes the one that it saw first."""
    agent = make()
    consider(agent, parties, announce_round(parties))
    parties.end_round(range(4))
    one, other = (parties.federation.next_roster(devices=range(n)) for n in (5, 4))
    before = parties.federation
    parties.take_up(one)
    consider(agent, parties, announce_round(parties))
    plan = trust.open_round_plan(rounds.latest(parties.db).signed_plan, parties.federation.study)
    with parties.db:
        position = log.append_object(parties.db, "roster", other)
    twin = dataclasses.replace(plan, round=3, roster=digest(other))
    shown = announce(parties, sign(twin, [small.aggregator_seed]), roster=position)
    assert before.under(other).study.roster.serial == 1
    with pytest.raises(RecordError, match=r"false ring: the plan names .* as roster 1 of ward"):
        consider(agent, parties, shown)


def test_a_roster_that_the_log_does_not_hold_is_a_false_ring(parties, make, small):
    """Signed by everybody, but shown to this device alone."""
    agent = make()
    announce_round(parties)
    own = parties.federation.next_roster(devices=range(2))
    plan = trust.open_round_plan(rounds.latest(parties.db).signed_plan, parties.federation.study)
    shown = announce(
        parties, sign(dataclasses.replace(plan, roster=digest(own)), [small.aggregator_seed])
    )
    with pytest.raises(LogError, match=f"false ring: roster {digest(own).hex()} is not in the log"):
        consider(agent, parties, shown)
    assert nothing_happened(agent)
    assert rosters.known(agent.db, "ward") is None


def test_a_roster_must_be_in_the_log_before_the_plan(parties, make, small):
    agent = make()
    announce_round(parties)
    data = decode(PlanAnnouncement, announced(parties))
    late = dataclasses.replace(data, roster_index=data.index + 1)
    with pytest.raises(LogError, match="after the plan"):
        consider(agent, parties, encode(late))
    elsewhere = dataclasses.replace(data, roster_index=data.roster_index - 1)
    with pytest.raises(LogError, match="false ring"):
        consider(agent, parties, encode(elsewhere))
    assert nothing_happened(agent)


def test_a_roster_that_a_hospital_has_not_signed_is_refused(tmp_path, small):
    """Even where log and plan have it: the device believes signatures of all hospitals alone."""
    two = small_federation(privacy=SOME_PRIVACY, hospitals=2)
    parties = Parties(two, tmp_path / "two")
    agent = device(parties, tmp_path / "device", 0)
    announce_round(parties)
    unsigned = sign(
        dataclasses.replace(two.study.roster, serial=1, keys=two.study.roster.keys[:4]),
        two.identity_seeds[:1],
    )
    plan = trust.open_round_plan(rounds.latest(parties.db).signed_plan, two.study)
    with parties.db:
        position = log.append_object(parties.db, "roster", unsigned)
    shown = announce(
        parties,
        sign(dataclasses.replace(plan, roster=digest(unsigned)), [two.aggregator_seed]),
        roster=position,
    )
    with pytest.raises(Exception, match="sign"):
        consider(agent, parties, shown)
    assert nothing_happened(agent)
    agent.db.close()
    parties.close_databases()


def test_a_device_with_a_new_state_knows_rosters_again_from_the_next_plan(parties, make, tmp_path):
    make(1)
    announce_round(parties)
    parties.end_round(range(4))
    parties.take_up(parties.federation.next_roster(devices=range(5)))
    announce_round(parties)
    agent = device(parties, tmp_path / "fresh", 1, caught_up=False)
    catch_up(agent, parties)
    assert consider(agent, parties, announced(parties)) == "ready"
    assert rosters.known(agent.db, "ward").serial == 1
    agent.db.close()
