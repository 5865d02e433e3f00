"""Several hospitals' services through a study: whoever is away, comes late or forgets, goes on."""

import logging
import random
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
from joint_fixture import SCHEDULE, JointWorld, bundle_of, federation_of

from vitalring.protocol import blobs, topics
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.records import Bundle, RoundPlan
from vitalring.protocol.signing import Signed, public_key, sign

NORTH, SOUTH, EAST = range(3)


@pytest.fixture(scope="module")
def federation():
    return federation_of()


@pytest.fixture
def world(tmp_path, monkeypatch, federation):
    made = JointWorld(tmp_path, monkeypatch, federation)
    yield made
    made.stop()


def applied(world):
    return [model.applied for model in world.models()]


def payloads_signed_by(world, name, step):
    """What a hospital signed in a step, by what it ever published."""
    found = set()
    for sender, topic, payload in world.hub.spoken:
        if sender == name and payload and topics.parse(topic).step == step:
            found.add(decode(Signed, blobs.whole(payload)).payload)
    return found


def test_every_hospital_comes_to_the_same_state_round_after_round(world):
    world.start()
    before = world.clock.now
    world.run_rounds(3)
    assert [(m.round, m.applied, m.contributions) for m in world.models()] == [
        (1, True, 3),
        (2, True, 3),
        (3, True, 3),
    ]
    # Nobody waited for anything but messages.
    assert world.clock.now - before < 5.0
    for hospital in world.hospitals:
        assert np.array_equal(hospital.state[1], world.expected([True] * 3))
        assert not hospital.link.unacknowledged
        assert hospital.refusals == []
        # No ciphertext stays on a hospital's disk.
        assert not (hospital.folder / "updates").exists()
    world.check()


def test_the_last_round_ends_the_study_for_everybody(tmp_path, monkeypatch, federation):
    world = JointWorld(tmp_path, monkeypatch, federation, replace(SCHEDULE, rounds=2))
    world.start()
    world.run(lambda: all(h.service.finished() for h in world.hospitals))
    assert [model.final for model in world.models()] == [False, True]
    world.check()
    # Also for one whose database is lost after that.
    world.hospitals[EAST].stop()
    world.hospitals[EAST].lose_database()
    world.hospitals[EAST].start()
    world.run(world.hospitals[EAST].service.finished, 60.0)
    world.stop()


def test_with_one_of_three_away_rounds_end_without_a_sum_until_it_is_back(world, caplog):
    caplog.set_level(logging.INFO)
    world.start()
    world.run_rounds(1)
    world.hospitals[EAST].stop()
    world.run_rounds(3)
    assert applied(world) == [True, False, False]
    assert [h.refusals for h in world.hospitals[:EAST]] == [["silent_hospital"] * 2] * 2
    said = [("north", "silent_hospital"), ("south", "silent_hospital")]
    assert sorted(world.refusals()) == sorted(said * 2)
    # It missed two rounds, and takes their end from what the others agreed on.
    world.hospitals[EAST].start()
    world.run_rounds(5)
    assert applied(world)[3:] == [True, True]
    assert np.array_equal(world.hospitals[EAST].state[1], world.expected(applied(world)))
    assert 4 in world.hospitals[EAST].releases
    world.check()


def test_three_of_five_go_on_with_one_away_which_catches_up_and_signs_again(tmp_path, monkeypatch):
    five = federation_of(hospitals=5, threshold=3)
    world = JointWorld(tmp_path, monkeypatch, five).start()
    lake = world.hospitals[4]
    world.run_rounds(1)
    lake.stop()
    world.run_rounds(2)
    lake.start()
    world.run_rounds(3)
    assert applied(world) == [True] * 3
    assert sorted(lake.releases) == [1, 3]
    assert np.array_equal(lake.state[1], world.expected([True] * 3))
    world.check()
    # Its signature counts again: without it and one more, three are left, which is the quorum.
    world.hospitals[0].stop()
    world.hospitals[1].stop()
    world.run_rounds(4)
    assert applied(world)[3:] == [False], "two of five are away: four must commit"
    world.check()
    world.stop()


def test_a_hospital_whose_database_is_lost_between_rounds_goes_on(world):
    world.start()
    world.run_rounds(2)
    north = world.hospitals[NORTH]
    north.stop()
    north.lose_database()
    north.start()
    world.run_rounds(4)
    assert applied(world) == [True] * 4
    assert np.array_equal(north.state[1], world.expected([True] * 4))
    world.check()


@pytest.mark.parametrize("step", ["commitment", "promise"])
def test_a_hospital_whose_database_is_lost_within_a_round_does_not_release_it_again(world, step):
    world.start()
    world.run_rounds(1)
    south = world.hospitals[SOUTH]
    seen = len(payloads_signed_by(world, "south", step))
    world.run(lambda: len(payloads_signed_by(world, "south", step)) > seen)
    south.stop()
    south.lose_database()
    south.start()
    world.run_rounds(2)
    assert "second_request" in [reason for name, reason in world.refusals() if name == "south"]
    world.run_rounds(3)
    assert applied(world)[2]
    world.check()


def test_the_next_hospital_drafts_when_the_first_is_gone(world):
    world.start()
    world.run_rounds(1)
    world.hospitals[NORTH].stop()
    before = world.clock.now
    world.run(lambda: len(world.models()) == 2)
    # South's turn came once for the plan, and once for the model that tells of no sum.
    assert world.clock.now - before >= 2 * SCHEDULE.turn_ms / 1000
    assert applied(world) == [True, False]
    world.hospitals[NORTH].start()
    world.run_rounds(3)
    assert applied(world) == [True, False, True]
    world.check()


def test_a_draft_whose_hospital_is_gone_is_brought_to_its_end_by_the_next(world):
    world.start()
    world.run_rounds(1)
    north, mine = world.hospitals[NORTH], topics.hospital_topic("fed", "north", "draft")

    def drafted():
        payload = world.hub.retained.get(mine, ("", b""))[1]
        if not payload:
            return False
        found = decode(Signed, blobs.whole(payload)).payload
        return b"round-plan" in found

    # Nobody else hears that it drafted before it is gone.
    world.hub.tamper = lambda sender, receiver, topic, payload: (
        None if topic == topics.propose_topic("fed") else payload
    )
    world.run(drafted)
    north.stop()
    draft = decode(Signed, blobs.whole(world.hub.retained[mine][1]))
    world.hub.tamper = lambda sender, receiver, topic, payload: payload
    world.run(lambda: world.gateway.standing.number == 2)
    logged = decode(Signed, world.gateway.standing.signed_plan)
    assert logged.payload == draft.payload
    assert public_key(world.federation.aggregator_seeds[NORTH]) in [
        signature.key for signature in logged.signatures
    ]
    world.check()


def test_a_draft_that_became_old_is_drafted_anew(world):
    world.start()
    world.run_rounds(1)
    world.hospitals[SOUTH].stop()
    world.hospitals[EAST].stop()
    topic = topics.hospital_topic("fed", "north", "draft")
    world.run(lambda: topic in world.hub.retained and world.hub.retained[topic][1])
    # Alone it drafts, and nobody signs for a day.
    old = world.hub.retained[topic][1]
    before = world.clock.now
    world.run(lambda: world.clock.now > before + 3_600)
    assert world.hub.retained[topic][1] != old
    world.hospitals[SOUTH].start()
    world.hospitals[EAST].start()
    world.run_rounds(2)
    assert applied(world) == [True, True]
    world.check()


def test_a_draft_with_other_weights_is_not_signed(world, caplog):
    world.start()
    world.run_rounds(1)
    north = world.hospitals[NORTH]
    seed = world.federation.aggregator_seeds[NORTH]
    topic = topics.hospital_topic("fed", "north", "draft")
    world.run(lambda: any(b"round-plan" in p for p in payloads_signed_by(world, "north", "draft")))
    honest = max(
        (
            decode(RoundPlan, p)
            for p in payloads_signed_by(world, "north", "draft")
            if b"round-plan" in p
        ),
        key=lambda plan: plan.round,
    )
    north.stop()
    world.hub.retained.pop(topic, None)
    lie = replace(honest, round=2, weights=b"w" * 32, opens_ms=world.clock.ms())
    world.hub.take("north", topic, blobs.WHOLE + sign(lie, [seed]), retain=True)
    world.run(lambda: len(world.models()) == 2)
    assert encode(lie) not in payloads_signed_by(world, "south", "signature")
    assert encode(lie) not in payloads_signed_by(world, "east", "signature")
    assert "is drafted with weights" in caplog.text
    world.check()


def spoil_state(world, receiver):
    """Replace the state, which no signature covers, in what one hospital gets of models."""

    def tamper(sender, to, topic, payload):
        told = (topics.model_topic("fed"), topics.sum_topic("fed"))
        if topic not in told or to != receiver or not payload:
            return payload
        bundle = bundle_of(payload)
        wrong = tuple(bytes(len(content)) for content in bundle.objects[1:])
        return blobs.WHOLE + encode(Bundle(bundle.record, (*bundle.objects[:1], *wrong)))

    world.hub.tamper = tamper


def test_a_wrong_state_with_a_models_quorum_is_refused(world, caplog):
    world.start()
    world.run_rounds(1)
    east = world.hospitals[EAST]
    east.stop()
    world.run_rounds(2)
    spoil_state(world, "east")
    before = east.state
    east.start()
    world.run(lambda: world.gateway.standing.number == 3)
    world.run(lambda: "does not follow on what this hospital knows" in caplog.text)
    assert east.state[0] == before[0]
    assert np.array_equal(east.state[1], before[1])
    assert "came without weights or state" in caplog.text
    # It is back as soon as it hears the truth.
    world.hub.tamper = lambda sender, receiver, topic, payload: payload
    world.run_rounds(4)
    assert applied(world)[3]
    world.check()


def test_who_came_to_the_same_model_needs_no_state_from_others(world):
    world.start()
    spoil_state(world, "east")
    world.run_rounds(3)
    assert applied(world) == [True] * 3
    world.check()


@pytest.mark.parametrize("forget", [False, True])
def test_a_broker_that_restarts_at_any_moment_is_told_again(world, forget):
    world.start()
    rng = random.Random(4)

    def restart():
        if rng.random() < 0.1:
            world.clock.now += 5.0
            world.hub.restart(forget=forget)

    world.run_rounds(4, each=restart)
    assert applied(world) == [True] * 4
    assert [h.refusals for h in world.hospitals] == [[]] * 3
    world.check()


def test_what_an_earlier_study_left_at_the_broker_does_no_harm(
    tmp_path, monkeypatch, world, federation
):
    # The same hospitals with the same keys.
    earlier = JointWorld(tmp_path / "earlier", monkeypatch, federation_of(name="earlier"))
    earlier.start()
    earlier.run_rounds(2)
    earlier.run(lambda: earlier.gateway.standing.status == "closed")
    left = dict(earlier.hub.retained)
    earlier.stop()
    assert topics.sum_topic("fed") in left
    monkeypatch.undo()
    later = JointWorld(tmp_path / "later", monkeypatch, federation)
    later.hub.retained.update(left)
    # Its gateway comes last, so that the hospitals hear all that is there before.
    later.start("gateway")
    for _ in range(60):
        later.step()
    assert any(later.hub.retained[t] == left[t] for t in left), "all of it was gone"
    later.gateway.start()
    before = later.clock.now
    later.run_rounds(2)
    assert later.clock.now - before < 120.0
    assert [model.applied for model in later.models()] == [True, True]
    later.check()
    later.stop()


def test_a_manifest_without_its_pieces_keeps_nobody_waiting(world):
    world.start()
    world.run_rounds(1)
    manifest = blobs.Manifest(70_000, b"d" * 32, (b"p" * 32, b"q" * 32))
    hostile = blobs.IN_PIECES + encode(manifest)
    for step, attempt in (("part", 1), ("check", 1), ("part", 2)):
        world.hub.take("east", topics.hospital_topic("fed", "east", step, attempt), hostile, True)
    before = world.clock.now
    world.run_rounds(2)
    assert world.clock.now - before < 15.0
    assert applied(world) == [True, True]
    world.check()


@pytest.mark.parametrize(
    ("step", "attempt", "most"), [("commitment", 0, 1 << 20), ("part", 3, 0), ("part", 7, 0)]
)
def test_hospitals_take_no_more_than_may_come(world, caplog, step, attempt, most):
    world.start()
    huge = blobs.IN_PIECES + encode(blobs.Manifest(1 << 26, b"d" * 32, (b"p" * 32,)))
    topic = topics.hospital_topic("fed", "east", step, attempt)
    world.hub.take("east", topic, huge, retain=True)
    world.run_rounds(1)
    assert f"the message on {topic} is refused" in caplog.text
    assert topics.object_topic("fed", b"p" * 32) not in world.hospitals[NORTH].link._filters
    assert applied(world) == [True]


def test_a_disk_that_is_full_for_a_while_costs_nothing_but_time(world, monkeypatch):
    world.start()
    world.run_rounds(1)
    south = world.hospitals[SOUTH]
    struck = []

    def full():
        struck.append(1)
        if len(struck) % 3 == 0:
            raise sqlite3.OperationalError("database or disk is full")

    # After a transaction that took: SQLite's own word for one that did not is as likely.
    south.db._point = full
    world.run_rounds(3)
    assert len(struck) > 6
    assert applied(world) == [True] * 3
    world.check()


def test_a_topic_that_the_broker_refuses_for_a_while_is_published_later(world):
    world.start()
    topic = topics.hospital_topic("fed", "south", "nonce")
    world.hospitals[SOUTH].link.refused.add(topic)
    before = world.clock.now
    world.run(lambda: world.clock.now > before + 5)
    assert topic not in world.hub.retained
    world.hospitals[SOUTH].link.refused.clear()
    world.run_rounds(1)
    assert applied(world) == [True]
    world.check()


def test_the_name_of_a_model_is_what_its_gateway_logged(world):
    world.start()
    world.run_rounds(1)
    names = {digest(decode(Bundle, h.service._current.model).record) for h in world.hospitals}
    assert names == {digest(world.logged("global-model")[0])}
