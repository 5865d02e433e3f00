"""A device that answers calls for ring keys, and forgets those of epochs that are over."""

import dataclasses
import itertools
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from device_fixture import announce_round, announced, catch_up, charges, device, keyring, statuses

from vitalring.edge_agent import rosters, state
from vitalring.edge_agent.budget import CHARGED, UNACCOUNTED, committed_of
from vitalring.edge_agent.enrolling import Applicant, Enroller, answer
from vitalring.edge_agent.keyring import Keyring
from vitalring.errors import ConfigError, RecordError, SignatureError, StorageError, TransportError
from vitalring.gateway import rounds
from vitalring.protocol import enrolment, lsag, sealing
from vitalring.protocol.cbor import decode
from vitalring.protocol.enrolment import Enrolment, EnrolmentCall
from vitalring.protocol.limits import MAX_CLOCK_SKEW_MS
from vitalring.protocol.records import SealedUpdate
from vitalring.protocol.signing import sign

NOW_MS = 1_700_000_000_000
CALL = EnrolmentCall("fed", "ward", 2, bytes(32), NOW_MS + 86_400_000)
TICKET = b"t" * 32
GOING = threading.Event()


@pytest.fixture
def applicant(tmp_path):
    db = state.open_state(tmp_path / "state")
    yield Applicant(db, Keyring(tmp_path / "keys"), TICKET)
    db.close()


def enrolled_in(applicant, epoch):
    with applicant.db:
        applicant.db.execute(
            "INSERT OR REPLACE INTO rosters VALUES ('ward', 1, ?, ?, 5, ?)",
            (epoch, bytes(32), epoch),
        )


# What a device answers.


def test_a_new_device_answers_with_its_ticket(applicant):
    said = answer(CALL, applicant, 0)
    enrolment.check_call(said, CALL)
    enrolment.check_proofs(said, CALL)
    assert said.ticket == TICKET
    assert said.key == applicant.keys.require(2).public
    assert answer(CALL, applicant, 1).key == said.key


def test_vouchers_take_turns_the_newest_key_first_and_the_ticket_last(applicant):
    for epoch in (0, 1):
        applicant.keys.draw(epoch)
    said = [answer(CALL, applicant, attempt) for attempt in range(4)]
    assert [each.previous and each.previous.epoch for each in said] == [1, 0, None, 1]
    assert len({each.key for each in said}) == 1
    for each in said:
        enrolment.check_proofs(each, CALL)


def test_a_call_for_an_epoch_that_never_came_keeps_no_device_from_the_next_one(applicant):
    """One call of a gateway gone wrong must not lock devices out for good."""
    far = dataclasses.replace(CALL, epoch=2**48)
    assert answer(far, applicant, 0).epoch == 2**48
    said = answer(CALL, applicant, 0)
    enrolment.check_proofs(said, CALL)
    assert said.key == applicant.keys.require(2).public != applicant.keys.require(2**48).public


@pytest.mark.parametrize("why", ["no voucher", "enrolled", "erased", "past", "same epoch"])
def test_a_device_with_nothing_to_say_draws_no_key(applicant, why):
    if why in ("no voucher", "same epoch"):
        applicant = Applicant(applicant.db, applicant.keys, None)
    match why:
        case "enrolled":
            enrolled_in(applicant, 2)
        case "erased":
            applicant.keys.draw(2)
            applicant.keys.erase(2)
        case "past":
            enrolled_in(applicant, 3)
        case "same epoch":
            applicant.keys.draw(2)
    before = applicant.keys.epochs()
    assert answer(CALL, applicant, 0) is None
    assert applicant.keys.epochs() == before


# When it answers.


class Wire:
    """What was sent, opened; it can be cut."""

    def __init__(self, small):
        self._small = small
        self.sent = []
        self.cut = False

    def send(self, box):
        assert len(box) == enrolment.BOX_BYTES
        if self.cut:
            raise TransportError("no broker")
        self.sent.append(decode(Enrolment, sealing.unseal(box, self._small.sealing_key)))


@pytest.fixture
def wire(small):
    return Wire(small)


@pytest.fixture
def enroller(small, wire, applicant):
    return Enroller([applicant], small.study.federation, "ward", wire.send, retry_s=60.0)


def record(small, call=CALL):
    return sign(call, [small.log_key.seed])


def test_an_answer_goes_out_within_a_minute_and_again_ever_more_rarely(enroller, small, wire):
    enroller.hear(record(small), NOW_MS)
    enroller.work(NOW_MS + 60_000, GOING)
    assert len(wire.sent) == 1
    times = []
    for second in range(60, 6 * 3600, 10):
        enroller.work(NOW_MS + second * 1000, GOING)
        if len(wire.sent) > len(times) + 1:
            times.append(second)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert 8 <= len(times) <= 20
    assert max(gaps) <= 3_600 + 10
    assert gaps[-1] > gaps[0]
    assert len({each.key for each in wire.sent}) == 1


def test_it_ends_with_the_roster_with_the_call_and_with_its_time(enroller, small, wire, applicant):
    later = NOW_MS + 7_200_000
    enroller.hear(record(small), NOW_MS)
    enroller.work(NOW_MS + 60_000, GOING)
    enroller.hear(b"", NOW_MS)
    enroller.work(later, GOING)
    assert len(wire.sent) == 1
    enroller.hear(record(small), NOW_MS)
    enroller.work(CALL.closes_ms + MAX_CLOCK_SKEW_MS + 1, GOING)
    enroller.work(later, GOING)
    assert len(wire.sent) == 1
    enroller.hear(b"", NOW_MS)
    enroller.hear(record(small), NOW_MS)
    enrolled_in(applicant, 2)
    enroller.work(later, GOING)
    assert len(wire.sent) == 1


def test_a_call_that_comes_again_changes_nothing_and_a_new_one_begins_anew(enroller, small, wire):
    enroller.hear(record(small), NOW_MS)
    enroller.work(NOW_MS + 60_000, GOING)
    enroller.hear(record(small), NOW_MS + 60_000)
    enroller.work(NOW_MS + 60_001, GOING)
    assert len(wire.sent) == 1
    other = EnrolmentCall("fed", "ward", 2, bytes(31) + b"x", CALL.closes_ms)
    enroller.hear(record(small, other), NOW_MS + 60_001)
    enroller.work(NOW_MS + 120_001, GOING)
    assert [each.challenge for each in wire.sent] == [CALL.challenge, other.challenge]


def test_without_a_broker_it_tries_again_with_the_same_key(enroller, small, wire, applicant):
    wire.cut = True
    enroller.hear(record(small), NOW_MS)
    enroller.work(NOW_MS + 60_000, GOING)
    drawn = applicant.keys.require(2)
    wire.cut = False
    enroller.work(NOW_MS + 240_000, GOING)
    assert [each.key for each in wire.sent] == [drawn.public]


def test_calls_that_are_not_the_hosts_or_for_others_are_left_aside(enroller, small, wire):
    with pytest.raises(SignatureError):
        enroller.hear(sign(CALL, [bytes(32)]), NOW_MS)
    with pytest.raises(RecordError):
        enroller.hear(b"noise", NOW_MS)
    other = EnrolmentCall("fed", "ward-2", 2, bytes(32), CALL.closes_ms)
    enroller.hear(record(small, other), NOW_MS)
    enroller.work(NOW_MS + 60_000, GOING)
    assert wire.sent == []


def test_one_device_at_fault_does_not_keep_the_others_from_answering(small, wire, tmp_path):
    db = state.open_state(tmp_path / "state")
    devices = [Applicant(db, Keyring(tmp_path / f"keys{n}"), TICKET) for n in range(3)]
    devices[1].keys.draw(1)
    devices[1].keys.path(1).chmod(0o644)
    enroller = Enroller(devices, small.study.federation, "ward", wire.send, retry_s=1.0)
    enroller.hear(record(small), NOW_MS)
    enroller.work(NOW_MS + 60_000, GOING)
    assert {each.key for each in wire.sent} == {devices[n].keys.require(2).public for n in (0, 2)}
    devices[1].keys.path(1).chmod(0o600)
    enroller.work(NOW_MS + 120_000, GOING)
    assert devices[1].keys.require(2).public in {each.key for each in wire.sent}
    db.close()


KILLED = """
import os, signal, sys
from pathlib import Path
from vitalring.edge_agent import state
from vitalring.edge_agent.enrolling import Applicant, Enroller
from vitalring.edge_agent.keyring import Keyring
from vitalring.protocol.trust import open_federation
import threading

folder, moment = Path(sys.argv[1]), sys.argv[2]
federation = open_federation((folder / "federation").read_bytes(), bytes.fromhex(sys.argv[3]))
applicant = Applicant(state.open_state(folder / "state"), Keyring(folder / "keys"), b"t" * 32)

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def send(box):
    if moment == "before":
        die()
    (folder / "sent").write_bytes(box)
    die()

if moment == "rename":
    Path.rename = die
enroller = Enroller([applicant], federation, "ward", send, 0.0)
enroller.hear((folder / "call").read_bytes(), 1)
enroller.work(2, threading.Event())
"""


@pytest.mark.parametrize("moment", ["rename", "before", "after"])
def test_killed_between_draw_and_send_it_sends_the_key_that_it_drew(
    small, wire, tmp_path, applicant, moment
):
    (tmp_path / "federation").write_bytes(small.files.records["federation"])
    (tmp_path / "call").write_bytes(record(small))
    authority = small.authority_key.hex()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path, moment, authority], check=False, timeout=300
    )
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "sent").exists() == (moment == "after")
    drawn = applicant.keys.pair(2)
    assert (drawn is None) == (moment == "rename")
    enroller = Enroller([applicant], small.study.federation, "ward", wire.send, retry_s=0.0)
    enroller.hear(record(small), NOW_MS)
    enroller.work(NOW_MS, GOING)
    assert [each.key for each in wire.sent] == [applicant.keys.require(2).public]
    assert drawn in (None, applicant.keys.require(2))


# A new epoch, and the end of the old keys.


def rotated(parties, agents):
    """Take up a roster of epoch 2 with new keys of these agents, and of some others."""
    new = [agent._keys.draw(2) for agent in agents]
    new += [lsag.keygen() for _ in range(6 - len(new))]
    keys = tuple(sorted(pair.public for pair in new))
    parties.take_up(parties.federation.next_roster(epoch=2, keys=keys), *new)


@pytest.fixture
def agent(parties, tmp_path):
    agent = device(parties, tmp_path / "device")
    yield agent
    agent.db.close()


def take_part(agent, parties):
    assert agent.consider(announced(parties), parties.now_ms) == "ready"
    (pending,) = [
        each for each in state.outbox(agent.db) if each.plan == rounds.latest(parties.db).plan
    ]
    return decode(SealedUpdate, pending.update)


def round_of(agent, parties, devices):
    """A whole round in which the agent's own update counts."""
    announce_round(parties)
    update = take_part(agent, parties)
    assert parties.admit(parties.federation.box(update))
    parties.end_round(devices)
    assert agent.receipts(rounds.latest(parties.db).receipts)
    return update


def test_an_old_key_goes_when_the_new_one_stands_in_a_roster_and_the_log_is_searched(
    parties, agent
):
    round_of(agent, parties, range(1, 5))
    old = agent._keys.require(1)
    rotated(parties, [agent])
    assert not agent.owes_erasure
    announce_round(parties)
    take_part(agent, parties)
    # 1. The roster has the new key, but the log is not searched up to there.
    assert agent.owes_erasure
    assert agent.erase_old_keys() == ()
    assert agent._keys.require(1) == old
    # 2. Searching the log ends it; the update in the outbox is of the new epoch.
    catch_up(agent, parties)
    assert not agent.owes_erasure
    assert agent._keys.epochs() == (2,)
    assert agent._keys.is_erased(1)
    with pytest.raises(ConfigError, match="epoch 1 is erased"):
        agent._keys.require(1)


def test_an_erasure_that_a_power_cut_stopped_is_brought_to_its_end(parties, agent, monkeypatch):
    round_of(agent, parties, range(1, 5))
    rotated(parties, [agent])
    announce_round(parties)
    take_part(agent, parties)

    def cut(_path):
        raise StorageError("the power is gone")

    with monkeypatch.context() as broken:
        broken.setattr("vitalring.edge_agent.keyring.erase_ring_key", cut)
        with pytest.raises(StorageError, match="the power is gone"):
            catch_up(agent, parties)
    # Marked as erased, and its bytes are still there.
    assert agent._keys.epochs() == (2,)
    assert agent._keys.path(1).exists()
    assert agent.owes_erasure
    assert agent.erase_old_keys() == (1,)
    assert not agent._keys.path(1).exists()
    assert not agent.owes_erasure


def test_tags_of_the_same_device_in_two_epochs_share_nothing(parties, agent):
    first = round_of(agent, parties, range(1, 5)).signature
    old = agent._keys.require(1)
    rotated(parties, [agent])
    announce_round(parties)
    second = take_part(agent, parties).signature
    assert first[:32] != second[:32]
    contexts = [
        lsag.context("fed", "study", epoch, "ward", number) for epoch, number in ((1, 1), (2, 2))
    ]
    assert lsag.tag_of(old.secret, contexts[0]) == first[:32]
    assert lsag.tag_of(old.secret, contexts[1]) != second[:32]
    assert lsag.tag_of(agent._keys.require(2).secret, contexts[1]) == second[:32]


def test_an_old_update_that_waits_for_its_receipt_keeps_the_key(parties, agent):
    announce_round(parties)
    assert parties.admit(parties.federation.box(take_part(agent, parties)))
    parties.end_round(range(1, 5))
    receipts = rounds.latest(parties.db).receipts
    rotated(parties, [agent])
    announce_round(parties)
    take_part(agent, parties)
    catch_up(agent, parties)
    assert agent._keys.epochs() == (1, 2)
    assert agent.receipts(receipts)
    assert agent._keys.epochs() == (2,)


def test_an_old_update_that_missed_its_deadline_keeps_the_key_until_then(parties, agent):
    announce_round(parties)
    take_part(agent, parties)
    parties.end_round(range(1, 5))
    rotated(parties, [agent])
    announce_round(parties)
    take_part(agent, parties)
    catch_up(agent, parties)
    assert agent._keys.epochs() == (1, 2)
    late = state.outbox(agent.db)[0].deadline_ms + MAX_CLOCK_SKEW_MS + 1
    agent.expire(late)
    assert 1 not in agent._keys.epochs()


def test_a_device_that_is_not_in_the_new_roster_keeps_its_old_key(parties, agent):
    round_of(agent, parties, range(1, 5))
    agent._keys.draw(2)
    rotated(parties, [])
    assert "not enrolled yet" in agent.consider(announce_round(parties), parties.now_ms)
    catch_up(agent, parties)
    assert not agent.owes_erasure
    assert agent._keys.epochs() == (1, 2)


def test_a_revocation_within_an_epoch_erases_nothing(parties, agent):
    round_of(agent, parties, range(1, 5))
    parties.take_up(parties.federation.next_roster(devices=range(5)))
    agent.consider(announce_round(parties), parties.now_ms)
    catch_up(agent, parties)
    assert agent._keys.epochs() == (1,)


def test_erasure_waits_out_a_restart(parties, agent, tmp_path):
    round_of(agent, parties, range(1, 5))
    rotated(parties, [agent])
    announce_round(parties)
    take_part(agent, parties)
    agent.db.close()
    again = device(parties, tmp_path / "device", caught_up=False)
    assert again._keys.epochs() == (1, 2)
    catch_up(again, parties)
    again.consider(announced(parties), parties.now_ms)
    assert again.owes_erasure
    assert again.erase_old_keys() == (1,)
    again.db.close()


def backup_before(parties, tmp_path, then):
    """A device's folder as it was before `then`, with the keys as they are now."""
    folder, backup = tmp_path / "device", tmp_path / "backup"
    agent = device(parties, folder)
    agent.db.close()
    shutil.copytree(folder, backup)
    agent = device(parties, folder)
    then(agent)
    agent.db.close()
    shutil.rmtree(backup / "keys")
    shutil.copytree(folder / "keys", backup / "keys")
    restored = device(parties, backup, caught_up=False)
    catch_up(restored, parties)
    return restored


def test_rounds_of_an_erased_key_that_a_restored_state_does_not_know_count_as_spent(
    parties, tmp_path
):
    def one_round_then_a_new_epoch(agent):
        round_of(agent, parties, range(1, 5))
        rotated(parties, [agent])
        announce_round(parties)
        take_part(agent, parties)
        catch_up(agent, parties)
        assert agent._keys.epochs() == (2,)

    restored = backup_before(parties, tmp_path, one_round_then_a_new_epoch)
    assert charges(restored) == [(UNACCOUNTED, 1)]
    assert statuses(restored) == {1: "restored"}
    catch_up(restored, parties)
    assert charges(restored) == [(UNACCOUNTED, 1)]
    assert restored.consider(announced(parties), parties.now_ms) == "ready"
    assert charges(restored) == [(UNACCOUNTED, 1), (CHARGED, 2)]
    restored.db.close()


def test_it_cannot_tell_so_a_round_that_it_sat_out_counts_too(parties, tmp_path):
    def others_round_then_erased(agent):
        announce_round(parties)
        parties.end_round(range(1, 5))
        agent._keys.erase(1)

    restored = backup_before(parties, tmp_path, others_round_then_erased)
    assert charges(restored) == [(UNACCOUNTED, 1)]
    restored.db.close()


def test_what_the_state_knows_is_not_charged_again_after_erasure(parties, agent):
    round_of(agent, parties, range(1, 5))
    agent._keys.erase(1)
    catch_up(agent, parties)
    assert charges(agent) == [(CHARGED, 1)]
    assert statuses(agent) == {1: "counted"}


def test_rounds_of_a_key_that_went_with_a_restored_folder_count_as_spent(parties, tmp_path):
    """State and keys of epoch 1 are put back after a round of epoch 2: its key is gone."""
    folder, backup = tmp_path / "device", tmp_path / "backup"
    agent = device(parties, folder)
    round_of(agent, parties, range(1, 5))
    agent.db.close()
    shutil.copytree(folder, backup)
    agent = device(parties, folder)
    catch_up(agent, parties)
    rotated(parties, [agent])
    round_of(agent, parties, range(7, 11))
    assert charges(agent) == [(CHARGED, 1), (CHARGED, 2)]
    agent.db.close()
    restored = device(parties, backup, caught_up=False)
    assert restored._keys.epochs() == (1,)
    committed = committed_of(restored._budget.entries())
    catch_up(restored, parties)
    assert charges(restored) == [(CHARGED, 1), (UNACCOUNTED, 2)]
    # It was promised to the study already, so that one who only slept loses nothing by it.
    assert committed_of(restored._budget.entries()) == committed
    restored.db.close()


def test_a_device_that_never_had_a_key_of_an_epoch_is_charged_nothing(parties, tmp_path):
    announce_round(parties)
    parties.end_round(range(1, 5))
    newcomer = device(parties, tmp_path / "new", 7, pair=lsag.keygen(), caught_up=False)
    newcomer._keys.path(1).unlink()
    catch_up(newcomer, parties)
    assert charges(newcomer) == []
    assert newcomer.consider(announce_round(parties), parties.now_ms) == (
        "this device is not enrolled in epoch 1"
    )
    assert rosters.known(newcomer.db, "ward").enrolled_in is None
    newcomer.db.close()


def test_a_round_in_which_nobody_counted_is_charged_to_nobody(parties, tmp_path):
    def empty_round_then_erased(agent):
        announce_round(parties)
        parties.end_round()
        agent._keys.erase(1)

    restored = backup_before(parties, tmp_path, empty_round_then_erased)
    assert charges(restored) == []
    restored.db.close()


def test_a_fixture_that_has_the_key_again_does_not_undo_an_erasure(tmp_path):
    keys = keyring(tmp_path, lsag.keygen())
    keys.erase(1)
    assert keyring(tmp_path, lsag.keygen()).pair(1) is None
