"""Hospitals that lie: nothing false is opened, and honest ones get round it where they can."""

import dataclasses

import pytest
from release_fixture import (
    begin,
    opened_record,
    opens,
    random_residues,
    reasons,
    resigned,
    rows,
    world,
)

from vitalring.aggregator import release_store
from vitalring.protocol.cbor import digest
from vitalring.protocol.release import (
    PartPromise,
    ReleaseNonce,
    ReleaseRefusal,
    SetCommitment,
    member_sets,
    nonce_commitment,
)
from vitalring.protocol.signing import verify
from vitalring.protocol.threshold.decryption import encode_check, encode_part, key_share


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
