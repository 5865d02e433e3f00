"""What a hospital knows of rosters: from a file, from others, from its own disk."""

import dataclasses
import sqlite3
from contextlib import closing

import pytest
from federation_fixture import Parties, small_federation

from vitalring.aggregator import rosters as known_rosters
from vitalring.aggregator import rounds, store
from vitalring.aggregator.rosters import Rosters, UnknownRosterError
from vitalring.aggregator.service import AggregatorService
from vitalring.errors import RecordError, SignatureError, StorageError
from vitalring.files import write_atomic
from vitalring.gateway import rosters as logged_rosters
from vitalring.gateway import rounds as gateway_rounds
from vitalring.protocol import rosters as succession
from vitalring.protocol import topics, trust
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.records import Bundle
from vitalring.protocol.signing import sign


@pytest.fixture(scope="module")
def federation():
    return small_federation()


@pytest.fixture
def db(tmp_path):
    with closing(store.open_store(tmp_path / "aggregator")) as opened:
        yield opened


@pytest.fixture
def known(db, federation, tmp_path):
    return Rosters(db, federation.study, federation.files.records["roster"], tmp_path)


def install(tmp_path, record):
    write_atomic(tmp_path / trust.ROSTER_FILE, record)


def test_a_file_that_follows_is_taken_up_and_kept(known, db, federation, tmp_path):
    known.look()
    assert known.newest is federation.study
    record = federation.next_roster(devices=range(5))
    install(tmp_path, record)
    known.look()
    assert known.newest.roster_digest == digest(record)
    assert known.newest.roster_digest == digest(known_rosters.newest_record(db)) == digest(record)
    # A restart, with the study's older file.
    again = Rosters(db, federation.study, federation.files.records["roster"], tmp_path)
    assert again.newest.roster_digest == digest(record)


def test_what_is_wrong_with_a_file_is_said_once(known, federation, tmp_path, caplog):
    install(tmp_path, sign(federation.study.roster, [b"s" * 32]))
    for _ in range(3):
        known.look()
    assert caplog.text.count("is not used, roster 0 goes on") == 1
    install(tmp_path, federation.next_roster(devices=range(5), serial=2))
    known.look()
    assert "roster 1 is missing" in caplog.text
    assert known.newest is federation.study


def test_earlier_rosters_that_come_after_the_newest_file_are_seen(
    known, db, federation, tmp_path, caplog
):
    """Files are copied in any order; each fault is said once."""
    chain = [federation.next_roster(devices=range(5), serial=serial) for serial in (1, 2, 3)]
    install(tmp_path, chain[2])
    for _ in range(3):
        known.look()
    write_atomic(tmp_path / known_rosters.BEFORE / "2.cbor", chain[1])
    for _ in range(3):
        known.look()
    assert caplog.text.count("is not used, roster 0 goes on") == 2
    assert caplog.text.count("roster 1 is missing") == 2  # of 3 first, then of 2
    assert known.newest is federation.study
    write_atomic(tmp_path / known_rosters.BEFORE / "1.cbor", chain[0])
    known.look()
    assert known.newest.roster_digest == digest(chain[2]) == digest(known_rosters.newest_record(db))
    assert known.next(0)[1] == tuple(chain)
    # Later there is nothing to say, and what was learned is not read again as a fault.
    known.look()
    assert caplog.text.count("is not used") == 2


def test_rosters_that_a_draft_came_without_are_learned_from_the_folder(
    known, federation, tmp_path, caplog
):
    chain = [federation.next_roster(devices=range(5), serial=serial) for serial in (1, 2, 3)]
    known.learn(chain[1])
    install(tmp_path, chain[1])
    known.look()
    assert known.next(0)[1] == (chain[1],)
    write_atomic(tmp_path / known_rosters.BEFORE / "1.cbor", chain[0])
    # One that nobody installed does not take effect.
    write_atomic(tmp_path / known_rosters.BEFORE / "3.cbor", chain[2])
    known.look()
    assert known.next(0)[1] == tuple(chain[:2])
    assert "is not used" not in caplog.text


def test_a_roster_that_the_disk_refused_is_kept_at_the_next_look(known, db, federation, tmp_path):
    record = federation.next_roster(devices=range(5))
    install(tmp_path, record)
    db.execute("PRAGMA query_only=ON")
    with pytest.raises((StorageError, sqlite3.Error)):
        known.look()
    db.execute("PRAGMA query_only=OFF")
    known.look()
    assert digest(known_rosters.newest_record(db)) == digest(record)


def test_a_later_roster_that_somebody_else_has_is_taken_up(known, federation):
    far = federation.next_roster(devices=range(5), serial=9)
    known.learn(far)
    assert known.newest.roster_digest == digest(far)
    # One before it is known then, and does not count.
    before = federation.next_roster(devices=range(4), serial=3)
    known.learn(before)
    assert known.newest.roster_digest == digest(far)
    # Nor does another one of the same number.
    known.learn(federation.next_roster(devices=range(4), serial=9))
    assert known.newest.roster_digest == digest(far)


def test_more_rosters_than_a_proposal_has_room_for_come_with_several_rounds(known, federation):
    chain = [federation.next_roster(serial=serial) for serial in range(1, 21)]
    for record in chain:
        known.learn(record)
    study, new = known.next(0)
    assert new == tuple(chain[:15])
    assert study.roster_digest == digest(chain[14])
    assert succession.follow(federation.study, study.roster_digest, new)[0].roster == study.roster
    study, new = known.next(study.roster.serial)
    assert (study, new) == (known.newest, tuple(chain[15:]))
    assert known.next(20) == (known.newest, ())
    # Another record of the newest number, which somebody else has, is not what a plan names.
    known.learn(federation.next_roster(devices=range(4), serial=20))
    assert known.next(15) == (study, new)


def test_hospitals_that_know_not_the_same_between_name_the_same(db, known, federation, tmp_path):
    """One has all from a folder; another took the 15th from a draft, then the newest."""
    chain = [federation.next_roster(serial=serial) for serial in range(1, 18)]
    for record in chain:
        known.learn(record)
    with closing(store.open_store(tmp_path / "other")) as other:
        drafted = Rosters(other, federation.study, federation.files.records["roster"])
        for record in chain[14:]:
            drafted.learn(record)
        for last in (0, 1, 2, 15, 16):
            assert drafted.next(last)[0].roster == known.next(last)[0].roster
        # None of those that a proposal has room for is known: what there is, is named.
        away = Rosters(other, federation.study, federation.files.records["roster"])
        away.learn(chain[-1])
        assert away.next(0) == (away.newest, (chain[-1],))


def test_after_a_round_that_was_missed_the_newest_roster_counts(known, federation):
    """The log has most of them: whoever missed a round does not begin anew from the first."""
    chain = [federation.next_roster(serial=serial) for serial in range(1, 21)]
    for record in chain:
        known.learn(record)
    # Before the first round the log may have none of them.
    assert known.next(-1)[0].roster.serial == 14
    missed = known.serial_of(b"")
    assert missed is None
    study, new = known.next(missed)
    assert study is known.newest
    assert new == tuple(chain[-15:])
    # A gateway at any of these can follow.
    for serial in (5, 12, 19, 20):
        there = succession.later_study(federation.study, chain[serial - 1])
        assert succession.follow(there, study.roster_digest, new)[0].roster == study.roster
    # So the plan is that of the others, who know which roster the round had.
    for last in range(5, 21):
        assert known.next(last)[0] is study


def test_with_few_rosters_a_missed_round_and_the_start_are_the_same(known, federation):
    assert known.next(known.serial_of(b"")) == known.next(-1)
    record = federation.next_roster(devices=range(5))
    known.learn(record)
    assert known.next(known.serial_of(b"")) == known.next(-1)
    assert known.next(None)[1] == (federation.files.records["roster"], record)


def test_strangers_rosters_are_refused(known, federation):
    other = dataclasses.replace(federation.study.roster, serial=1)
    with pytest.raises(SignatureError):
        known.learn(sign(other, [b"s" * 32]))
    for serial in (0, 5):
        with pytest.raises(RecordError, match="cohort other"):
            known.learn(federation.next_roster(cohort="other", serial=serial))
    assert known.newest is federation.study


def test_a_plan_is_opened_under_its_own_roster(known, federation, tmp_path):
    parties = Parties(federation, tmp_path / "parties")
    parties.run_round(range(4))
    first = gateway_rounds.latest(parties.db).signed_plan
    record = federation.next_roster(devices=range(5))
    parties.take_up(record)
    second = parties.propose().record
    assert known.open_plan(first).roster == federation.study.roster_digest
    with pytest.raises(UnknownRosterError, match="is not known here yet") as caught:
        known.open_plan(second)
    assert caught.value.name == digest(record)
    known.learn(record)
    assert known.open_plan(second).roster == digest(record)
    assert known.of_plan(first).roster == federation.study.roster
    parties.close_databases()


class Said:
    """A channel that remembers what stands on a topic."""

    connected = True

    def __init__(self):
        self.topics = {}

    def publish(self, topic, content):
        self.topics[topic] = content

    def watch(self, name): ...

    def unwatch(self, name): ...


def test_one_hospital_proposes_under_the_file_of_the_day(db, known, federation, tmp_path):
    """Its gateway takes the roster from the proposal, after the first round too."""
    parties = Parties(federation, tmp_path / "gateway")
    aggregator = parties.aggregator
    rounds.start(db, aggregator)
    channel = Said()

    def advance():
        service = AggregatorService(db, aggregator, known, channel, lambda: parties.now_ms)
        service._advance()
        return decode(Bundle, channel.topics[topics.propose_topic("fed")])

    record = federation.next_roster(devices=range(5))
    install(tmp_path, record)
    proposal = advance()
    study, new = succession.follow(federation.study, digest(record), proposal.objects)
    assert new == (record,)
    assert parties.federation.study.roster_digest != study.roster_digest
    started = logged_rosters.newest(parties.db)
    opened = trust.open_round_plan(proposal.record, study)
    assert opened.roster == digest(record) != digest(started)
    # A plan that stands is said again as it is, whatever file comes.
    install(tmp_path, parties.federation.under(record).next_roster(devices=range(4)))
    assert encode(advance()) == encode(proposal)
    parties.close_databases()
