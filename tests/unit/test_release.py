"""Hospitals decrypt a round's sum together: once, for one set, and through every lie."""

import dataclasses
import random
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st
from release_fixture import (
    Network,
    Node,
    begin,
    open_db,
    opened_record,
    opens,
    reasons,
    rows,
    world,
)

from vitalring.aggregator import release_store
from vitalring.errors import ConfigError, RecordError, VitalRingError
from vitalring.protocol.release import STEPS, SetCommitment, challenge, member_sets

# Honest hospitals.


@pytest.mark.parametrize("hospitals, threshold", [(3, 3), (3, 2), (5, 3)])
@pytest.mark.parametrize("order", range(2))
def test_hospitals_open_the_exact_sum_whatever_the_order(tmp_path, hospitals, threshold, order):
    nodes, network = begin(tmp_path, world(hospitals, threshold), random.Random(order))
    network.run(pauses=1)
    assert all(opens(nodes))
    assert not any(node.complaints for node in nodes)
    assert release_store.failed_checks(nodes[0].db, nodes[0].world.study.sum_key_digest) == 0


def test_one_decryption_a_member_suffices_when_all_are_there(tmp_path):
    nodes, network = begin(tmp_path, world(3, 2))
    network.run()
    assert {node.outcome.members for node in nodes} == {(0, 1)}
    assert [rows(n, "SELECT SUM(sums) FROM release_sessions")[0][0] for n in nodes] == [1, 1, 0]


def test_groups_open_one_by_one_from_what_all_drew(tmp_path):
    nodes, network = begin(tmp_path, world(3, 2, 2))
    network.run()
    assert all(opens(nodes))
    assert {len(node.outcome.plaintexts) for node in nodes} == {2}


def test_nothing_is_shown_before_what_it_waits_for(tmp_path):
    nodes, _ = begin(tmp_path, world(3, 3))
    node = nodes[0]
    said = [set(node.said())]
    for step in STEPS[:4]:
        for other in nodes[1:]:
            other.release.advance(1)
            node.release.advance(1)
            said.append(set(node.said()))
            for receiver in nodes:
                if receiver is not other and (step, 0) in other.said():
                    receiver.hear(other.hospital, step, 0, other.said()[step, 0])
        for receiver in nodes:
            receiver.release.advance(1)
            for sender in nodes:
                if sender is not receiver and (step, 0) in sender.said():
                    receiver.hear(sender.hospital, step, 0, sender.said()[step, 0])
        if step != "check":
            assert not any((later, 0) in node.said() for later in STEPS[STEPS.index(step) + 2 : 5])
    assert said[0] == {("commitment", 0)}


# Silence.


@pytest.mark.parametrize("step", ["nonce", "promise", "check", "part"])
@pytest.mark.parametrize("silent", range(3))
def test_others_open_the_sum_when_one_of_three_falls_silent(tmp_path, step, silent):
    later = STEPS[STEPS.index(step) : -1]

    def tamper(sender, receiver, said, attempt, content):
        return None if sender == silent and said in later else content

    nodes, network = begin(tmp_path, world(3, 2), tamper=tamper)
    network.run()
    others = [node for node in nodes if node.hospital != silent]
    assert all(opens(others))
    assert {silent}.isdisjoint(others[0].outcome.members)
    # The check of those who went on passed: the one that was kept back showed nothing.
    assert release_store.failed_checks(others[0].db, others[0].world.study.sum_key_digest) == 0


@pytest.mark.parametrize("lost", range(3))
def test_others_decrypt_when_one_has_lost_its_share(tmp_path, monkeypatch, lost):
    there = world(3, 2)
    whole = there.party
    monkeypatch.setattr(
        there,
        "party",
        lambda h, **changes: whole(h, **({"pieces": ()} if h == lost else {}), **changes),
    )
    nodes, network = begin(tmp_path, there)
    network.run()
    # It committed, and opens the sum from what the others show.
    assert all(opens(nodes))
    assert lost not in nodes[lost].outcome.members
    assert not any(step in ("promise", "check", "part") for step, _ in nodes[lost].said())


@pytest.mark.parametrize("hospitals, threshold, silent", [(3, 2, 1), (5, 3, 2), (3, 3, 1)])
def test_too_few_commitments_open_nothing(tmp_path, hospitals, threshold, silent):
    there = world(hospitals, threshold)
    nodes, network = begin(
        tmp_path, there, tamper=lambda s, r, step, a, content: None if s < silent else content
    )
    network.run(pauses=len(member_sets(there.access)) + 2)
    assert reasons(nodes[silent:]) == ["silent_hospital"] * (hospitals - silent)
    assert not any("nonce" in step for node in nodes[silent:] for step, _ in node.said())


def test_one_silent_hospital_of_five_is_waited_for_and_then_left_out(tmp_path):
    nodes, network = begin(
        tmp_path, world(5, 3), tamper=lambda s, r, step, a, content: None if s == 0 else content
    )
    network.settle()
    assert reasons(nodes[1:]) == [None] * 4
    network.run(pauses=2)
    assert all(opens(nodes[1:]))
    assert nodes[1].outcome.members == (1, 2, 3)


def test_who_commits_late_is_in_no_session(tmp_path):
    there = world(5, 3)
    late = []

    def tamper(sender, receiver, step, attempt, content):
        if sender == 0:
            late.append((receiver, step, attempt, content))
            return None
        # Without hospitals 1 and 4 nobody is left but those who could decrypt with hospital 0.
        return None if sender in (1, 4) and step != "commitment" else content

    nodes, network = begin(tmp_path, there, tamper=tamper)
    network.run(pauses=1)
    for receiver, step, attempt, content in late:
        nodes[receiver].hear(0, step, attempt, content)
    network.run(pauses=20)
    assert reasons(nodes[2:4]) == ["silent_hospital"] * 2
    assert ("nonce", 0) in nodes[2].said()
    assert not any(step == "promise" for step, _ in nodes[2].said())


# One release a round.


def test_a_round_is_released_for_one_set_only(tmp_path):
    there = world(3, 2)
    nodes, network = begin(tmp_path, there)
    network.run()
    db = nodes[0].db
    for changes in ({"chosen": there.sets[1]}, {"plan": b"p" * 32}, {"report": b"r" * 32}):
        second = there.release(db, 0, **({"chosen": there.sets[0]} | changes))
        assert second.outcome.reason == "second_request"
        first = opened_record(SetCommitment, nodes[0].said()["commitment", 0])
        assert second.outcome.subject == first.set
        assert set(second.said()) == {("refusal", 0)}
        second.hear(1, "commitment", 0, nodes[1].said()["commitment", 0])
        second.advance(network.now_ms)
        assert second.said().keys() == {("refusal", 0)}
    nodes[0].restart()
    network.replay_to(nodes[0])
    network.run(pauses=1)
    assert opens(nodes)[0]


def test_the_database_itself_refuses_a_second_set(tmp_path):
    nodes, _ = begin(tmp_path, world(3, 2))
    db = nodes[0].db
    with pytest.raises(sqlite3.IntegrityError, match="one set only"):
        db.execute("UPDATE releases SET set_digest = x'00'")
    with pytest.raises(sqlite3.IntegrityError, match="one set only"):
        db.execute("DELETE FROM releases")
    with pytest.raises(sqlite3.IntegrityError):
        db.execute(
            "INSERT INTO releases (round, sum_key, plan, report, set_digest) "
            "VALUES (1, x'', x'', x'', x'')"
        )


def test_what_is_forgotten_is_never_released_again(tmp_path):
    there = world(3, 2)
    nodes, network = begin(tmp_path, there)
    network.run()
    release_store.forget_releases_before(nodes[0].db, 2)
    again = there.release(nodes[0].db, 0, there.sets[0])
    assert again.outcome.reason == "second_request"
    assert set(again.said()) == {("refusal", 0)}
    assert rows(nodes[0], "SELECT COUNT(*) FROM release_messages") == [(0,)]


@pytest.mark.parametrize("step", ["commitment", "promise"])
def test_a_hospital_that_lost_its_memory_refuses_what_its_key_signed_already(tmp_path, step):
    there = world(3, 2)
    nodes, network = begin(tmp_path, there)
    network.settle()
    said = nodes[0].said()
    lost = Node(there, 0, tmp_path / "lost.sqlite", there.sets[0])
    if step == "promise":
        # A backup from before the promise, with the nonce in it.
        lost.db.execute("ATTACH ? AS old", (str(tmp_path / "0.sqlite"),))
        for column in ("nonce",):
            lost.db.execute(f"UPDATE releases SET {column} = (SELECT {column} FROM old.releases)")
        lost.db.execute("DELETE FROM release_messages")
        lost.db.execute(
            "INSERT INTO release_messages SELECT * FROM old.release_messages "
            "WHERE step = 'commitment'"
        )
        lost.db.execute("DETACH old")
        lost.ever_said = {}
        lost.restart()
    lost.hear(0, step, 0, said[step, 0])
    assert lost.outcome.reason == "second_request"
    for other in nodes[1:]:
        for (said_step, attempt), content in other.said().items():
            lost.hear(other.hospital, said_step, attempt, content)
    lost.release.advance(1)
    assert not any(s in ("nonce", "promise", "check", "part") for s, _ in lost.said())


def test_sets_that_cannot_be_meant_are_refused(tmp_path):
    there = world(3, 2)
    db = open_db(tmp_path / "db.sqlite")
    whole = there.sets[0]
    few = dataclasses.replace(whole, digests=whole.digests[:1])
    twice = dataclasses.replace(whole, digests=(whole.digests[0], *whole.digests))
    assert there.release(db, 0, few).outcome.reason == "too_few"
    assert there.release(db, 0, twice).outcome.reason == "double_update"
    # They bind nothing.
    assert there.release(db, 0, whole).outcome is None
    with pytest.raises(ConfigError, match="signing key"):
        there.release(db, 0, whole, signing_seed=there.seed(1, "aggregator"))


def test_sums_that_are_not_of_the_set_are_not_decrypted(tmp_path):
    there = world(3, 3)
    nodes, network = begin(tmp_path, there, sums=there.sums(there.sets[1]))
    with pytest.raises(RecordError, match="sums that came are not those of set"):
        network.run()
    assert not any(step == "promise" for node in nodes for step, _ in node.release.said())


def test_a_key_decrypts_no_more_often_than_its_noise_was_sized_for(tmp_path):
    there = world(3, 2)
    params = dataclasses.replace(there.params, releases=len(member_sets(there.access)))
    nodes = [
        Node(there, h, tmp_path / f"{h}.sqlite", there.sets[0], params=params) for h in range(3)
    ]
    Network(nodes, random.Random(1)).run(pauses=1)
    assert reasons(nodes)[:2] == ["spent_key"] * 2
    assert not any(step == "promise" for node in nodes for step, _ in node.said())


# Hostile bytes.


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    nodes, network = begin(tmp_path_factory.mktemp("hostile"), world(3, 3))
    network.settle()
    return nodes


@given(
    sender=st.integers(-1, 4),
    step=st.sampled_from([*STEPS, "evidence", "", "draft"]),
    attempt=st.integers(-1, 2),
    cut=st.integers(0, 60),
    junk=st.binary(max_size=200),
)
def test_hostile_bytes_are_refused_by_name_and_change_nothing(
    finished, sender, step, attempt, cut, junk
):
    query = "SELECT hospital, step, attempt, content FROM release_messages ORDER BY 1, 2, 3"
    before = rows(finished[0], query)
    good = finished[1].said().get((step, 0), b"")
    for content in (junk, good[: len(good) - cut], good[: len(good) - cut] + junk):
        try:
            finished[0].release.hear(sender, step, attempt, content)
        except VitalRingError as error:
            assert f"hospital {sender}" in str(error)
    assert rows(finished[0], query) == before
    assert opens(finished[:1]) == [True]


def test_the_challenge_depends_on_the_set_and_every_nonce_and_who_drew_it():
    nonces = {0: b"a" * 32, 1: b"b" * 32}
    seen = {
        challenge(b"s" * 32, nonces),
        challenge(b"t" * 32, nonces),
        challenge(b"s" * 32, nonces | {1: b"c" * 32}),
        challenge(b"s" * 32, {0: nonces[0], 2: nonces[1]}),
        challenge(b"s" * 32, {0: nonces[1], 1: nonces[0]}),
    }
    assert len(seen) == 5


def test_secrets_do_not_show(tmp_path):
    there = world(3, 2)
    party = there.party(0)
    assert party.signing_seed.hex() not in repr(party)
    assert repr(party.signing_seed) not in repr(party)
    assert "pieces" not in repr(party)
