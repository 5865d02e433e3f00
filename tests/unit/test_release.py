"""Hospitals decrypt a round's sum together: once, for one set, and through every lie."""

import dataclasses
import random
import sqlite3
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from release_fixture import (
    Network,
    Node,
    begin,
    open_db,
    random_residues,
    resigned,
    world,
)

from vitalring.aggregator import release as release_module
from vitalring.aggregator import release_messages, release_sessions, release_store
from vitalring.aggregator.release import Refused
from vitalring.database import transaction
from vitalring.errors import ConfigError, RecordError, VitalRingError
from vitalring.protocol.cbor import decode, digest
from vitalring.protocol.release import (
    STEPS,
    PartPromise,
    ReleaseNonce,
    ReleaseRefusal,
    SetCommitment,
    challenge,
    commitments_needed,
    member_sets,
    nonce_commitment,
)
from vitalring.protocol.signing import Signed, verify
from vitalring.protocol.threshold.decryption import encode_check, encode_part, key_share
from vitalring.protocol.threshold.pieces import Access


def reasons(nodes):
    return [n.outcome.reason if isinstance(n.outcome, Refused) else n.outcome for n in nodes]


def opens(nodes):
    return [n.world.opened(n.outcome, n.chosen) for n in nodes]


def opened_record(cls, content):
    return decode(cls, decode(Signed, content).payload)


def rows(node, query, *values):
    return node.db.execute(query, values).fetchall()


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


# Lies.


def lie_of(there, sender, make_check=None, make_part=None):
    """A hospital that promises and shows another check or part than it should."""
    shown = {}

    def forged(attempt):
        if attempt not in shown:
            members = member_sets(there.access)[attempt]
            shown[attempt] = (
                make_check(members) if make_check else None,
                make_part(members) if make_part else None,
            )
        return shown[attempt]

    def tamper(source, receiver, step, attempt, content):
        if source != sender or step not in ("promise", "check", "part"):
            return content
        check, part = forged(attempt)
        if step == "promise":
            changes = {}
            if check is not None:
                changes["check"] = digest(check)
            if part is not None:
                changes["part"] = digest(part)
            return resigned(there, sender, PartPromise, content, **changes)
        return {"check": check, "part": part}[step] or content

    return tamper


def random_part(there):
    bfv = there.params.bfv
    residues = random_residues((bfv.ciphertexts, bfv.degree), bfv.data_primes)
    return encode_part(residues, there.params)


def random_check(there):
    bfv = there.params.bfv
    return encode_check(random_residues((bfv.reserved,), bfv.data_primes), there.params)


def decryption_for(there, hospital, members, chosen):
    """A check and a part as they would be for other members or another set."""
    held = [there.pieces[p] for p in there.access.held_by(hospital)]
    share = key_share(hospital, held, members, there.params)
    check, part = share.decrypt(there.total(chosen.updates), b"x" * 32)
    return encode_check(check, there.params), encode_part(part, there.params)


@pytest.mark.parametrize("kind", ["random", "other set", "wrong share", "no residues"])
def test_a_wrong_part_opens_nothing_and_ends_its_session_alone(tmp_path, kind):
    there = world(3, 3)
    make = {
        "random": lambda _: random_part(there),
        "other set": lambda m: decryption_for(there, 2, m, there.sets[1])[1],
        "wrong share": lambda m: decryption_for(world(3, 3), 2, m, there.sets[0])[1][::-1],
        "no residues": lambda _: b"\xff" * there.params.partial_bytes,
    }[kind]
    nodes, network = begin(tmp_path, there, tamper=lie_of(there, 2, make_part=make))
    network.run()
    assert reasons(nodes[:2]) == ["bad_part", "bad_part"]
    assert (
        nodes[0].outcome.subject
        == opened_record(SetCommitment, nodes[0].said()["commitment", 0]).set
    )
    assert release_store.failed_checks(nodes[0].db, there.study.sum_key_digest) == 0


@pytest.mark.parametrize("liar", range(3))
def test_after_a_wrong_part_other_members_open_the_sum(tmp_path, liar):
    there = world(3, 2)
    # A part for other members is a part with another share of the key.
    others = {
        s: next(o for o in member_sets(there.access) if liar in o and o != s)
        for s in member_sets(there.access)
        if liar in s
    }
    wrong = lie_of(
        there,
        liar,
        make_part=lambda m: decryption_for(there, liar, others[m], there.sets[1])[1],
    )
    nodes, network = begin(tmp_path, there, tamper=wrong)
    network.run()
    honest = [node for node in nodes if node.hospital != liar]
    assert all(opens(honest))
    assert liar not in honest[0].outcome.members


def test_a_forged_check_ends_the_round_and_then_the_key(tmp_path):
    there = world(3, 2)
    lie = lie_of(there, 1, make_check=lambda _: random_check(there))
    nodes, network = begin(tmp_path, there, tamper=lie)
    network.run()
    assert reasons([nodes[0], nodes[2]]) == ["bad_check", "bad_check"]
    assert not any(step == "part" for node in (nodes[0], nodes[2]) for step, _ in node.said())
    key = there.study.sum_key_digest
    assert release_store.failed_checks(nodes[0].db, key) == 1
    # The next round, with a key that tolerates one failure less or just as many.
    tolerated = there.params.tolerated_failures
    assert tolerated == 0
    spent = there.release(nodes[0].db, 0, there.sets[1], number=2, plan=digest(b"2"))
    assert spent.outcome.reason == "spent_key"
    assert "make a new key" in spent.outcome.detail
    spent.advance(1)
    assert set(spent.said()) == {("refusal", 0)}
    # Another key is another matter.
    study = dataclasses.replace(there.study, sum_key_digest=digest(b"new key"))
    fresh = there.release(nodes[0].db, 0, there.sets[1], number=3, study=study)
    assert fresh.outcome is None


def test_a_check_that_stays_unanswered_counts_like_a_failed_one(tmp_path):
    there = world(3, 3)
    nodes, network = begin(
        tmp_path,
        there,
        tamper=lambda s, r, step, a, c: None if s == 2 and step in ("check", "part") else c,
    )
    network.run()
    assert reasons(nodes[:2]) == ["silent_hospital"] * 2
    assert release_store.failed_checks(nodes[0].db, there.study.sum_key_digest) == 1
    # Once it is answered it showed nothing but noise.
    for step in ("check", "part"):
        nodes[0].hear(2, step, 0, nodes[2].release.said().get((step, 0), b"x"))
        nodes[0].hear(1, step, 0, nodes[1].release.said().get((step, 0), b"x"))
    nodes[0].release.advance(network.now_ms)
    assert release_store.failed_checks(nodes[0].db, there.study.sum_key_digest) == 0
    assert nodes[0].outcome.reason == "silent_hospital"


def test_who_keeps_its_check_back_gets_no_second_one(tmp_path):
    there = world(5, 3)
    nodes, network = begin(
        tmp_path,
        there,
        tamper=lambda s, r, step, a, c: None if s == 1 and step in ("check", "part") else c,
    )
    network.run()
    assert all(opens(nodes[2:]))
    for node in (nodes[0], *nodes[2:]):
        shown = [a for step, a in node.said() if step == "check"]
        assert sum(1 in member_sets(there.access)[a] for a in shown) <= 1


def test_a_malformed_update_is_found_before_anything_else_shows(tmp_path):
    there = world(3, 2)
    nodes, network = begin(tmp_path, there, chosen=there.make_set(7, shift_c1=True))
    network.run()
    assert reasons(nodes) == ["bad_check"] * 3
    assert not any(step == "part" for node in nodes for step, _ in node.said())


def test_a_broken_promise_names_its_hospital_and_others_open_the_sum(tmp_path):
    there = world(3, 2)
    for step in ("check", "part"):
        forged = random_check(there) if step == "check" else random_part(there)
        folder = tmp_path / step
        nodes, network = begin(
            folder,
            there,
            tamper=lambda s, r, said, a, c, step=step, forged=forged: (
                forged if (s, said) == (1, step) else c
            ),
        )
        network.run()
        assert all(opens([nodes[0], nodes[2]]))
        assert any("not the one that it promised" in c for c in nodes[0].complaints)


def test_a_nonce_that_does_not_fit_is_refused(tmp_path):
    there = world(3, 2)

    def tamper(sender, receiver, step, attempt, content):
        if (sender, step) == (0, "nonce"):
            return resigned(there, 0, ReleaseNonce, content, value=b"n" * 32)
        return content

    nodes, network = begin(tmp_path, there, tamper=tamper)
    network.run()
    assert opens(nodes)[1:] == [True, True]
    assert nodes[1].outcome.members == (1, 2)
    # Early nonces are checked when their commitments come, without a word.
    nodes[1].hear(0, "nonce", 0, tamper(0, 1, "nonce", 0, nodes[0].said()["nonce", 0]))
    assert "not the one that its commitment promised" in nodes[1].complaints[-1]


def test_another_hospitals_nonce_cannot_be_passed_on():
    assert nonce_commitment(b"s" * 32, 1, b"n" * 32) != nonce_commitment(b"s" * 32, 2, b"n" * 32)


@pytest.mark.parametrize("what", ["set", "report", "plan"])
def test_a_commitment_to_another_set_ends_the_round_and_is_kept(tmp_path, what):
    there = world(3, 2)

    def tamper(sender, receiver, step, attempt, content):
        if (sender, step) == (2, "commitment"):
            return resigned(there, 2, SetCommitment, content, **{what: b"o" * 32})
        return content

    nodes, network = begin(tmp_path, there, tamper=tamper)
    network.run()
    assert reasons(nodes[:2]) == ["set_mismatch"] * 2
    evidence = rows(nodes[0], "SELECT content FROM release_messages WHERE step = 'evidence'")
    other = verify(SetCommitment, evidence[0][0], {there.key(2)}, 1)
    assert getattr(other, what) == b"o" * 32
    refusal = verify(ReleaseRefusal, nodes[0].said()["refusal", 0], {there.key(0)}, 1)
    assert (refusal.reason, refusal.subject) == ("set_mismatch", digest(evidence[0][0]))
    assert not any(step == "nonce" for step, _ in nodes[0].said())


def test_commitments_of_other_rounds_and_keys_are_no_evidence(tmp_path):
    there = world(3, 2)
    nodes, network = begin(tmp_path, there)
    mine = nodes[2].said()["commitment", 0]
    for changes in ({"round": 2, "set": b"o" * 32}, {"sum_key": b"o" * 32, "set": b"o" * 32}):
        nodes[0].release.hear(
            2, "commitment", 0, resigned(there, 2, SetCommitment, mine, **changes)
        )
    network.run()
    assert all(opens(nodes))


def test_a_second_commitment_to_the_same_set_changes_nothing(tmp_path):
    there = world(3, 2)
    nodes, network = begin(tmp_path, there)
    network.settle()
    second = resigned(there, 2, SetCommitment, nodes[2].said()["commitment", 0], nonce=b"o" * 32)
    nodes[0].hear(2, "commitment", 0, second)
    assert "said something else before" in nodes[0].complaints[-1]
    assert all(opens(nodes))


def test_the_signature_of_another_hospital_does_not_count(tmp_path):
    there = world(3, 3)
    nodes, network = begin(tmp_path, there)
    for step in ("commitment", "nonce", "promise", "refusal"):
        network.settle()
        said = nodes[1].said()
        content = said.get((step, 0), said["commitment", 0])
        complaints = len(nodes[0].complaints)
        nodes[0].hear(2, step, 0, content)
        assert "unknown key" in nodes[0].complaints[complaints]
        assert "hospital 2 (h2)" in nodes[0].complaints[complaints]
    assert all(opens(nodes))


def test_a_promise_for_other_members_or_another_challenge_goes_nowhere(tmp_path):
    there = world(3, 3)

    def tamper(sender, receiver, step, attempt, content):
        if (sender, step) == (2, "promise"):
            return resigned(there, 2, PartPromise, content, challenge=b"o" * 32)
        return content

    nodes, network = begin(tmp_path, there, tamper=tamper)
    network.run()
    assert reasons(nodes[:2]) == ["silent_hospital"] * 2
    assert not any(step == "check" for step, _ in nodes[0].said())
    wrong = resigned(there, 2, PartPromise, nodes[2].said()["promise", 0], members=(0, 1))
    nodes[0].hear(2, "promise", 0, wrong)
    assert "it is for members (0, 1)" in nodes[0].complaints[-1]


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


# Kills.


class Killed(Exception):
    pass


@contextmanager
def killing(monkeypatch, target, at, *, after):
    """Kill hospital `target` at its transaction number `at`, before or after it is durable."""
    count = [0]

    @contextmanager
    def fatal(db):
        mine = str(target) == db.execute("PRAGMA database_list").fetchone()[2].split("/")[-1][0]
        count[0] += mine
        with transaction(db) as opened:
            yield opened
            if mine and count[0] == at and not after:
                raise Killed
        if mine and count[0] == at and after:
            raise Killed

    with monkeypatch.context() as patch:
        for module in (release_module, release_messages, release_sessions):
            patch.setattr(module, "transaction", fatal)
        yield count


@pytest.fixture
def drawn(monkeypatch):
    """Every share that is made to decrypt with, by hospital and members."""
    shares = []

    def counted(hospital, pieces, members, params):
        shares.append((hospital, members))
        return key_share(hospital, pieces, members, params)

    monkeypatch.setattr(release_sessions, "key_share", counted)
    return shares


class FragileNetwork(Network):
    """Starts a hospital again when it dies, and brings it what stands."""

    def __init__(self, *arguments, drawn):
        super().__init__(*arguments)
        self.deaths, self.drawn = 0, drawn

    def advance(self, node):
        self.survive(node, lambda: node.release.advance(self.now_ms))

    def deliver(self, message):
        self.survive(message[1], lambda: super(FragileNetwork, self).deliver(message))

    def survive(self, node, act):
        before = dict(node.ever_said)
        drawn = len(self.drawn)
        try:
            act()
        except Killed:
            self.deaths += 1
            node.restart()
            self.replay_to(node)
        # No noise is drawn for what was promised.
        for hospital, members in self.drawn[drawn:]:
            attempt = member_sets(node.world.access).index(members)
            assert hospital == node.hospital
            assert ("promise", attempt) not in before


@pytest.mark.parametrize("after", [False, True], ids=["before commit", "after commit"])
@pytest.mark.parametrize("target", [0, 2])
def test_a_hospital_killed_at_any_step_resumes_to_the_same_sum(
    tmp_path, monkeypatch, drawn, after, target
):
    there = world(3, 2) if target == 0 else world(3, 3)
    at = deaths = 0
    while deaths == at:
        at += 1
        with killing(monkeypatch, target, at, after=after):
            folder = tmp_path / str(at)
            nodes = []
            for h in range(3):
                path = folder / f"{h}.sqlite"
                try:
                    nodes.append(Node(there, h, path, there.sets[0]))
                except Killed:
                    deaths += 1
                    nodes.append(Node(there, h, path, there.sets[0]))
            network = FragileNetwork(nodes, random.Random(at), drawn=drawn)
            network.run(pauses=1)
            deaths += network.deaths
        assert all(opens(nodes)), f"killed at transaction {at}"
        assert not any(node.complaints for node in nodes)
        for node in nodes:
            node.db.close()
    assert at > 15


# No two sets of a round.


def split_run(tmp_path, there, rng, corrupt, same_set=False):
    """Hostile hospitals live twice, once for each side; honest ones are split between sides.

    Each side sees one set (or the same one, with other nonces of the hostile), and messages
    between honest hospitals of different sides are lost at random.
    """
    honest = [h for h in range(there.access.hospitals) if h not in corrupt]
    side = {h: rng.randrange(2) for h in honest}
    nodes, sides = [], {}
    for h in range(there.access.hospitals):
        for s in (0, 1) if h in corrupt else (side[h],):
            chosen = there.sets[0 if same_set else s]
            node = Node(there, h, tmp_path / f"{h}-{s}.sqlite", chosen)
            nodes.append(node)
            sides[id(node)] = s
    loss = rng.choice([0.0, 0.5, 1.0])
    network = Network(nodes, rng)

    def send(node, step, attempt, content):
        for other in nodes:
            if other is node or other.hospital == node.hospital:
                continue
            across = sides[id(other)] != sides[id(node)]
            if across and (node.hospital in corrupt or rng.random() < loss):
                continue
            network.queue.append((node.hospital, other, step, attempt, content))

    network.send = send
    network.run(pauses=rng.randint(1, 4))
    return [node for node in nodes if node.hospital in honest]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 2**32), st.sampled_from([(3, 2), (5, 3), (4, 3), (3, 3)]))
def test_no_two_sets_of_a_round_are_ever_both_opened(tmp_path_factory, number, kind):
    rng, there = random.Random(number), world(*kind)
    corrupt = set(rng.sample(range(kind[0]), kind[1] - 1))
    honest = split_run(tmp_path_factory.mktemp("split"), there, rng, corrupt)
    used = {
        opened_record(PartPromise, content).set
        for node in honest
        for (step, _), content in node.said().items()
        if step == "promise"
    }
    # Not only is no second set opened: no honest hospital gives anything of it away.
    assert len(used) <= 1
    opened = {digest(b"".join(n.chosen.digests)) for n in honest if any(opens([n]))}
    assert len(opened) <= 1


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 2**32))
def test_no_two_groupings_of_a_round_are_ever_both_opened(tmp_path_factory, number):
    rng, there = random.Random(number), world(3, 2, 2)
    honest = split_run(tmp_path_factory.mktemp("groups"), there, rng, {2}, same_set=True)
    seeds = {node.release._sessions._sums[0] for node in honest if node.release._sessions._sums}
    assert len(seeds) <= 1


def test_the_quorum_of_commitments_cannot_be_met_twice():
    for hospitals in range(2, 65):
        for threshold in range(2, hospitals + 1):
            access = Access(hospitals, threshold)
            needed, corrupt = commitments_needed(access), threshold - 1
            honest = hospitals - corrupt
            assert needed <= hospitals
            assert 2 * needed > honest + 2 * corrupt
            assert 2 * (needed - 1) <= honest + 2 * corrupt
            assert commitments_needed(access, 2) == hospitals


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
