"""What a device asks of an announcement before it looks at the plan."""

import dataclasses

import pytest
from device_fixture import announce, announce_round, announced
from federation_fixture import Parties, seed, small_federation
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.edge_agent.announcement import (
    UnknownHistoryError,
    check_growth,
    check_roster,
    read,
)
from vitalring.errors import LogError, RecordError, SignatureError, VitalRingError
from vitalring.gateway import log, rounds
from vitalring.protocol import checkpoint as notes
from vitalring.protocol import limits
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.records import PlanAnnouncement


@pytest.fixture(scope="module")
def small():
    return small_federation()


@pytest.fixture
def parties(small, tmp_path):
    parties = Parties(small, tmp_path / "one")
    parties.begin(parties.propose())
    yield parties
    parties.close_databases()


@pytest.fixture
def fork(small, tmp_path):
    """A second gateway with the same keys and another history."""
    fork = Parties(small, tmp_path / "two")
    fork.now_ms += 1
    fork.begin(fork.propose())
    yield fork
    fork.close_databases()


def check(data, federation, known):
    found = read(data, federation)
    check_growth(found, known)
    return found


def opened(parties, data, known=None):
    return check(data, parties.federation.study.federation, known)


def changed(data, **changes):
    return encode(dataclasses.replace(decode(PlanAnnouncement, data), **changes))


def test_an_honest_announcement_is_believed(parties):
    found = opened(parties, announced(parties))
    assert found.signed_plan == rounds.latest(parties.db).signed_plan
    assert found.plan_digest == digest(found.signed_plan)
    assert found.checkpoint.size == log.size(parties.db)
    assert opened(parties, announced(parties), found.checkpoint) == found


def test_a_log_that_grew_is_believed_from_every_recent_checkpoint(parties):
    known = [opened(parties, announced(parties)).checkpoint]
    for n in range(5):
        announce(parties, b"plan %d" % n)
        known.append(opened(parties, announced(parties), known[-1]).checkpoint)
    for old in known:
        assert opened(parties, announced(parties), old).checkpoint == known[-1]


def test_a_checkpoint_of_too_long_ago_asks_for_the_entries(parties):
    known = opened(parties, announced(parties)).checkpoint
    for n in range(limits.RECENT_CHECKPOINTS + 1):
        announce(parties, b"plan %d" % n)
    with pytest.raises(UnknownHistoryError, match=f"our checkpoint of {known.size} entries"):
        opened(parties, announced(parties), known)
    with pytest.raises(UnknownHistoryError):
        opened(parties, changed(announced(parties), consistency=()), known)


def test_a_log_that_shrank_is_refused(parties):
    before = announced(parties)
    later = opened(parties, announce(parties, b"another plan")).checkpoint
    with pytest.raises(LogError, match=f"the log shrank from {later.size} to {later.size - 1}"):
        opened(parties, before, later)


def test_another_history_is_refused_at_the_same_size_and_later(parties, fork):
    known = opened(parties, announced(parties)).checkpoint
    with pytest.raises(LogError):
        opened(fork, announced(fork), known)
    announce(fork, b"another plan")
    with pytest.raises(LogError):
        opened(fork, announced(fork), known)


def test_the_plan_must_be_in_the_log(parties, fork):
    mine, other = announced(parties), decode(PlanAnnouncement, announced(fork))
    for changes in (
        {"plan": other.plan},
        {"inclusion": ()},
        {"inclusion": (*other.inclusion[:-1], bytes(32))},
        {"inclusion": (*decode(PlanAnnouncement, mine).inclusion, bytes(32))},
        {"index": 0},
        {"index": 10_000},
        {"index": 2**48},
    ):
        with pytest.raises(LogError):
            opened(parties, changed(mine, **changes))


def test_an_entry_of_another_kind_is_no_plan(parties):
    # The roster is in the log too, but as a roster.
    roster = parties.federation.files.records["roster"]
    size = log.size(parties.db)
    for position in range(size):
        with pytest.raises(LogError):
            opened(
                parties,
                changed(
                    announced(parties),
                    plan=roster,
                    index=position,
                    inclusion=log.inclusion(parties.db, position, size),
                ),
            )


def test_only_a_log_of_the_federation_signs_checkpoints(parties):
    size = log.size(parties.db)
    root = opened(parties, announced(parties)).checkpoint.root
    for origin, key, name in (
        ("log.example/ward", seed("a thief"), "log.example/ward"),
        ("log.example/other", seed("log"), "log.example/other"),
        ("log.example/other", seed("log"), "log.example/ward"),
    ):
        note = notes.sign(notes.Checkpoint(origin, size, root), key, name)
        with pytest.raises((LogError, SignatureError)):
            opened(parties, changed(announced(parties), checkpoint=note))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_changed_announcement_is_refused_or_proves_the_same(small_announced, data):
    good, federation = small_announced
    bad = bytearray(good)
    bad[data.draw(st.integers(0, len(bad) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = check(bytes(bad), federation, None)
        check_roster(found, federation)
    except VitalRingError:
        return
    # What was changed then was not used: proofs of growth from what we did not know.
    assert found == check(good, federation, None)


@given(st.binary(max_size=300))
def test_random_bytes(small, data):
    with pytest.raises(RecordError):
        check(data, small.study.federation, None)


@pytest.fixture(scope="module")
def small_announced(small, tmp_path_factory):
    parties = Parties(small, tmp_path_factory.mktemp("parties"))
    data = announce_round(parties)
    parties.close_databases()
    return data, small.study.federation
