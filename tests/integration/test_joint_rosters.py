"""Rosters that follow one another in a study of three hospitals: who learns of them, and when."""

import dataclasses

import pytest
from joint_fixture import GATEWAY, JointWorld, federation_of

from vitalring.files import write_atomic
from vitalring.gateway import log, rosters
from vitalring.protocol import lsag, topics, trust
from vitalring.protocol.cbor import decode, digest, encode, type_of
from vitalring.protocol.records import AcceptedUpdate, Bundle, LoggedObject
from vitalring.protocol.signing import sign
from vitalring.protocol.update import round_context


@pytest.fixture(scope="module")
def federation():
    return federation_of(devices=5)


@pytest.fixture
def world(tmp_path, monkeypatch, federation):
    made = JointWorld(tmp_path, monkeypatch, federation)
    yield made
    made.stop()


def kinds(world):
    db = world.gateway.db
    entries = log.entries(db, 0, log.size(db))
    return [
        decode(LoggedObject, e).kind if type_of(e) == LoggedObject.TYPE else "accepted-update"
        for e in entries
    ]


def plans(world):
    federation = world.federation.study.federation
    return [trust.peek_round_plan(each, federation) for each in world.logged("round-plan")]


def tags(world, number):
    """The tags that the log counts in a round."""
    name = digest(world.logged("round-plan")[number - 1])
    db = world.gateway.db
    entries = log.entries(db, 0, log.size(db))
    updates = [decode(AcceptedUpdate, e) for e in entries if type_of(e) == AcceptedUpdate.TYPE]
    return {update.signature[:32] for update in updates if update.plan == name}


def tag_of(world, device, number):
    pair = next(iter(world.under.values())).devices[device]
    return lsag.tag_of(pair.secret, round_context(plans(world)[number - 1]))


def test_a_device_is_revoked_one_joins_and_an_epoch_begins(world, federation):
    world.start().run_rounds(1)
    # One operator has the file; the other hospitals have signed it and learn of it by the draft.
    revoked, without = world.make_roster(federation, devices=range(1, 5))
    world.install(revoked, 0)
    world.run_rounds(2)
    new = lsag.keygen()
    keys = tuple(sorted([*without.study.roster.keys, new.public]))
    joined, with_new = world.make_roster(without, new, keys=keys)
    world.devices = range(6)
    world.install(joined, 0, 1, 2)
    world.run_rounds(3)
    pairs = [lsag.keygen() for _ in range(4)]
    keys = tuple(sorted(pair.public for pair in pairs))
    renewed, _ = world.make_roster(with_new, *pairs, keys=keys, epoch=2)
    world.devices = range(10)
    world.install(renewed, 0)
    world.run_rounds(4)
    world.check()
    # Each roster is logged once, right before the first plan that names it.
    assert world.logged("roster")[1:] == [revoked, joined, renewed]
    for position, kind in enumerate(kinds(world)):
        if kind == "roster" and position > 3:
            assert kinds(world)[position + 1] == "round-plan"
    assert [plan.roster for plan in plans(world)[1:4]] == list(
        map(digest, (revoked, joined, renewed))
    )
    assert [plan.epoch for plan in plans(world)] == [1, 1, 1, 2]
    assert [model.contributions for model in world.models()] == [5, 4, 5, 4]
    # The others' keys and tags are those of before.
    assert tag_of(world, 0, 1) in tags(world, 1)
    assert tag_of(world, 0, 2) not in tags(world, 2)
    assert tags(world, 2) == {tag_of(world, device, 2) for device in range(1, 5)}
    assert not world.refusals()


def test_several_rosters_between_two_rounds_are_all_logged(world, federation):
    world.start().run_rounds(1)
    first, one = world.make_roster(federation, devices=range(1, 5))
    second, _ = world.make_roster(one, devices=range(2, 5))
    write_atomic(world.hospitals[0].public / "rosters" / "1.cbor", first)
    world.install(second, 0)
    world.run_rounds(2)
    assert world.logged("roster")[1:] == [first, second]
    assert world.models()[-1].contributions == 3
    world.check()


@pytest.mark.parametrize("fault", ["unsigned", "gap", "old", "garbage"])
def test_a_roster_of_no_use_is_named_with_its_cure_and_the_old_one_goes_on(
    world, federation, caplog, fault
):
    _, one = world.make_roster(federation, devices=range(1, 5))
    bad = {
        "unsigned": sign(one.study.roster, federation.identity_seeds[:2]),
        "gap": one.next_roster(devices=range(2, 5)),
        "old": federation.next_roster(serial=0, devices=range(2, 5)),
        "garbage": b"not a roster",
    }[fault]
    world.install(bad, 0, 1, 2)
    world.start().run_rounds(2)
    assert len(world.logged("roster")) == 1
    complaints = [r for r in caplog.records if "is not used, roster 0 goes on" in r.getMessage()]
    # Said once by each hospital, not at each attempt.
    assert len(complaints) == 3
    assert "vitalring federation roster" in complaints[0].getMessage()
    good, _ = world.make_roster(federation, devices=range(1, 5))
    world.install(good, 0)
    world.run_rounds(3)
    assert world.logged("roster")[1:] == [good]


def test_a_hospital_that_was_away_over_two_rosters_comes_back(world, federation):
    world.start().run_rounds(1)
    world.hospitals[2].stop()
    first, one = world.make_roster(federation, devices=range(1, 5))
    world.install(first, 0)
    # With two of three no set has enough commitments: rounds end without a sum, and go on.
    world.run_rounds(2)
    second, _ = world.make_roster(one, devices=range(2, 5))
    world.install(second, 0)
    world.run_rounds(3)
    world.hospitals[2].start()
    world.run_rounds(5)
    assert world.models()[-1].applied
    assert world.hospitals[2].service._rosters.newest.roster_digest == digest(second)
    world.check()


def test_a_hospital_that_missed_rounds_drafts_under_the_newest_of_many_rosters(
    world, federation, caplog
):
    """More rosters than a proposal has room for: it does not begin anew from the first."""
    world.start().run_rounds(1)
    away = world.hospitals[0]
    away.stop()
    chain, last = [], federation
    for serial in range(1, 18):
        record, last = world.make_roster(last, devices=range(5))
        chain.append(record)
        for hospital in world.hospitals:
            write_atomic(hospital.public / "rosters" / f"{serial:02}.cbor", record)
    world.install(chain[-1], 0, 1, 2)
    # Without it no set has enough commitments; the rounds take up 15 rosters, then the others.
    world.run_rounds(3)
    assert [plan.roster for plan in plans(world)[1:]] == [digest(chain[14]), digest(chain[16])]
    caplog.clear()
    away.start()
    # Its turn is the first.
    world.run_rounds(5)
    assert "is drafted with" not in caplog.text
    assert {plan.roster for plan in plans(world)[3:]} == {digest(chain[-1])}
    assert world.models()[-1].applied
    world.check()


def test_what_a_hospital_learned_outlives_a_restart_and_an_older_file(world, federation):
    world.start().run_rounds(1)
    record, _ = world.make_roster(federation, devices=range(1, 5))
    world.install(record, 0)
    world.run_rounds(2)
    for party in world.parties:
        party.stop()
    world.install(federation.files.records["roster"], 0, 1, 2)
    for party in world.parties:
        party.start()
    world.run_rounds(4)
    assert {plan.roster for plan in plans(world)[1:]} == {digest(record)}
    world.check()


def test_a_lost_database_learns_the_roster_from_the_log(world, federation):
    world.start().run_rounds(1)
    record, _ = world.make_roster(federation, devices=range(1, 5))
    world.install(record, 0)
    world.run_rounds(2)
    world.hospitals[2].stop()
    world.hospitals[2].lose_database()
    world.hospitals[2].start()
    world.run_rounds(4)
    assert world.hospitals[2].service._rosters.newest.roster_digest == digest(record)
    world.check()


def test_a_hospital_never_signs_a_plan_under_an_older_roster(world, federation, caplog):
    """The host kept a roster back that the others have: it must take it from them."""
    world.start().run_rounds(1)
    record, _ = world.make_roster(federation, devices=range(1, 5))
    world.install(record, 1)
    world.run_rounds(3)
    assert plans(world)[-1].roster == digest(record)
    world.check()


def test_a_hospital_that_hides_a_new_roster_is_not_followed(world, federation, caplog):
    """The host's drafts go on under the roster of before; those who know better sign none."""
    world.start().run_rounds(1)
    record, _ = world.make_roster(federation, devices=range(1, 5))
    names = [hospital.name for hospital in federation.study.federation.hospitals]
    roster_topics = {topics.hospital_topic("fed", name, "roster") for name in names}

    def deaf(sender, receiver, topic, payload):
        return None if receiver == names[0] and topic in roster_topics else payload

    world.hub.tamper = deaf
    world.install(record, 1, 2)
    world.run(lambda: len(plans(world)) >= 2 and plans(world)[-1].roster == digest(record))
    world.run_rounds(3)
    assert "is drafted with" in caplog.text
    world.check()


def test_a_gateway_takes_no_plan_whose_roster_did_not_come_along(world, federation, caplog):
    world.start().run_rounds(1)
    record, _ = world.make_roster(federation, devices=range(1, 5))

    def stripped(sender, receiver, topic, payload):
        if receiver == GATEWAY and topic == topics.propose_topic("fed") and payload:
            bundle = decode(Bundle, payload[1:])
            return payload[:1] + encode(dataclasses.replace(bundle, objects=bundle.objects[:1]))
        return payload

    world.hub.tamper = stripped
    world.install(record, 0)
    world.run(lambda: "is named and did not come along" in caplog.text)
    assert len(world.logged("roster")) == 1
    world.hub.tamper = lambda sender, receiver, topic, payload: payload
    world.run_rounds(2)
    assert world.logged("roster")[1:] == [record]


@pytest.mark.parametrize("party", [GATEWAY, "north", "south"])
def test_killed_at_every_moment_of_a_roster_change(tmp_path, monkeypatch, federation, party):
    """The roster is in the log once, before the plan, and everybody goes by it."""
    point, died = 1, True
    while died:
        world = JointWorld(tmp_path / str(point), monkeypatch, federation).start()
        world.run_rounds(1)
        record, _ = world.make_roster(federation, devices=range(1, 5))
        world.install(record, 0)
        (victim,) = (each for each in world.parties if each.name == party)
        victim.dies_at = victim.points + point

        def revive(victim=victim):
            if victim.service is None:
                victim.start()

        def begun(world=world):
            return world.gateway.service is not None and len(plans(world)) == 2

        world.run(begun, each=revive)
        died = victim.deaths > 0
        world.run_rounds(2, each=revive)
        assert world.logged("roster")[1:] == [record]
        assert rosters.newest(world.gateway.db) == record
        world.check()
        world.stop()
        point += 3
