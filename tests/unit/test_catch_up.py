"""A device finds in the log what its state has lost, and believes no other past than the one."""

import shutil
import tracemalloc
from dataclasses import replace

import pytest
from device_fixture import announce, announce_round, announced, catch_up, charges, device, statuses
from federation_fixture import Parties

from vitalring.edge_agent import state
from vitalring.edge_agent.budget import CHARGED, UNACCOUNTED
from vitalring.errors import LogError, RecordError, SignatureError
from vitalring.gateway import log, rounds
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.records import AcceptedUpdate, RoundPlan, SealedUpdate
from vitalring.protocol.signing import Signed, sign
from vitalring.protocol.tiles import decode_bundle_start, encode_bundle


def take_part(agent, parties):
    assert agent.consider(announced(parties), parties.now_ms) == "ready"
    (pending,) = state.outbox(agent.db)
    assert parties.admit(parties.federation.box(decode(SealedUpdate, pending.update)))


@pytest.fixture
def restored(parties, tmp_path):
    """A device whose folder was copied before round 1, in which it took part, and put back."""
    folder, backup = tmp_path / "device", tmp_path / "backup"
    agent = device(parties, folder)
    agent.db.close()
    shutil.copytree(folder, backup)
    agent = device(parties, folder)
    parties.begin(parties.propose())
    take_part(agent, parties)
    parties.end_round([1, 2, 3, 4])
    assert agent.receipts(rounds.latest(parties.db).receipts)
    agent.db.close()
    agent = device(parties, backup, caught_up=False)
    yield agent
    agent.db.close()


def test_a_restored_device_is_charged_for_what_the_log_shows(parties, restored):
    assert charges(restored) == []
    assert (
        restored.consider(announce_round(parties), parties.now_ms) == "not caught up with the log"
    )
    catch_up(restored, parties)
    assert charges(restored) == [(UNACCOUNTED, 1)]
    assert statuses(restored) == {1: "restored"}
    # Searching again finds nothing new.
    catch_up(restored, parties)
    assert charges(restored) == [(UNACCOUNTED, 1)]
    # Then it goes on, with that round on its account.
    take_part(restored, parties)
    assert charges(restored) == [(UNACCOUNTED, 1), (CHARGED, 2)]


def test_other_devices_updates_are_not_ours(parties, restored, tmp_path):
    bystander = device(parties, tmp_path / "bystander", 5)
    assert charges(bystander) == []
    assert statuses(bystander) == {}
    bystander.db.close()


def test_a_device_that_lost_nothing_is_charged_nothing(parties, tmp_path):
    agent = device(parties, tmp_path / "device")
    parties.begin(parties.propose())
    take_part(agent, parties)
    parties.end_round([1, 2, 3, 4])
    catch_up(agent, parties)
    assert charges(agent) == [(CHARGED, 1)]
    agent.db.close()


def test_an_update_is_found_when_its_plan_was_read_in_an_earlier_search(parties, tmp_path):
    folder, backup = tmp_path / "device", tmp_path / "backup"
    parties.begin(parties.propose())
    agent = device(parties, folder)
    agent.db.close()
    shutil.copytree(folder, backup)
    agent = device(parties, folder)
    take_part(agent, parties)
    agent.db.close()
    parties.end_round([1, 2, 3, 4])
    restored = device(parties, backup)
    assert charges(restored) == [(UNACCOUNTED, 1)]
    restored.db.close()


@pytest.mark.parametrize("before", ["charged", "sat_out"])
def test_a_round_that_an_older_folder_had_not_finished_is_not_made_again(parties, tmp_path, before):
    # The copy was made while the device trained, or before it changed its mind.
    folder, backup = tmp_path / "device", tmp_path / "backup"
    parties.begin(parties.propose())
    if before == "charged":
        agent = device(parties, folder)
        agent._keep_update = lambda *_: None
        assert agent.consider(announced(parties), parties.now_ms) == "ready"
    else:
        agent = device(parties, folder, participation=0.0)
        assert agent.consider(announced(parties), parties.now_ms) == "sits this round out"
    assert statuses(agent) == {1: before}
    agent.db.close()
    shutil.copytree(folder, backup)
    if before == "sat_out":
        shutil.rmtree(folder)
    agent = device(parties, folder)
    take_part(agent, parties)
    agent.db.close()
    parties.submit([1, 2, 3, 4])
    parties.now_ms += 20_000
    parties.close()
    restored = device(parties, backup)
    assert [number for _, number in charges(restored)] == [1]
    assert statuses(restored) == {1: "restored"}
    # The round is not done and a gateway may announce it once more.
    assert restored.consider(announced(parties), parties.now_ms) == "already restored"
    assert state.outbox(restored.db) == []
    restored.db.close()


def test_a_bundle_that_has_grown_since_the_checkpoint_is_read(parties, restored):
    note = log.latest_checkpoint(parties.db)
    size = log.size(parties.db)
    parties.begin(parties.propose())
    assert log.size(parties.db) > size

    def read(tile):
        end = min(tile.span.start + 256, log.size(parties.db))
        return encode_bundle(log.entries(parties.db, tile.span.start, end))

    restored.catch_up(note, read)
    assert charges(restored) == [(UNACCOUNTED, 1)]
    assert state.known_checkpoint(restored.db).size == size


def test_a_log_larger_than_a_devices_memory_can_be_searched(parties, tmp_path):
    parties.begin(parties.propose())
    plan = rounds.latest(parties.db).plan
    with parties.db:
        for first in range(0, 2048, 256):
            log.append(
                parties.db,
                [
                    encode(AcceptedUpdate(plan, 0, bytes(32), n.to_bytes(32) + bytes(16_000)))
                    for n in range(first, first + 256)
                ],
            )
        log.sign_checkpoint(parties.db, parties.federation.log_key)
    agent = device(parties, tmp_path / "device", caught_up=False)
    tracemalloc.start()
    catch_up(agent, parties)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    agent.db.close()
    # All entries have 33 megabytes; one bundle has four, and is copied on its way.
    assert peak < 24_000_000


@pytest.mark.parametrize("fault", ["changed", "dropped", "swapped", "short", "empty", "noise"])
def test_entries_that_do_not_give_the_checkpoint_are_refused(parties, restored, fault):
    def read(tile):
        data = log.tile_bytes(parties.db, tile)
        entries = list(decode_bundle_start(data, tile.width))
        match fault:
            case "changed":
                entries[5] = entries[5][:-1] + bytes([entries[5][-1] ^ 1])
            case "dropped":
                del entries[6]
                entries.append(b"instead")
            case "swapped":
                entries[5], entries[6] = entries[6], entries[5]
            case "short":
                return data[:-1]
            case "empty":
                return b""
            case "noise":
                return b"\xff" * len(data)
        return encode_bundle(entries)

    with pytest.raises((LogError, RecordError)):
        restored.catch_up(log.latest_checkpoint(parties.db), read)
    assert not restored.caught_up
    assert charges(restored) == []


def test_a_log_that_shrank_is_refused(parties, tmp_path):
    old = log.latest_checkpoint(parties.db)
    parties.begin(parties.propose())
    agent = device(parties, tmp_path / "device")
    with pytest.raises(LogError, match="the log shrank from 5 to 4 entries"):
        agent.catch_up(old, lambda tile: log.tile_bytes(parties.db, tile))
    agent.db.close()


def test_a_rewritten_past_is_refused_even_if_it_is_longer(small, parties, tmp_path):
    parties.begin(parties.propose())
    agent = device(parties, tmp_path / "device")
    fork = Parties(small, tmp_path / "fork")
    fork.now_ms += 1
    fork.begin(fork.propose())
    with pytest.raises(LogError):
        catch_up(agent, fork)
    fork.end_round([1, 2, 3, 4])
    assert log.size(fork.db) > log.size(parties.db)
    with pytest.raises(LogError):
        catch_up(agent, fork)
    assert state.known_checkpoint(agent.db).size == log.size(parties.db)
    agent.db.close()
    fork.close_databases()


def test_a_past_that_was_announced_and_then_rewritten_is_refused(small, parties, tmp_path):
    # What the device searched is common to both; what it was told last is not.
    agent = device(parties, tmp_path / "device")
    assert agent.consider(announce_round(parties), parties.now_ms) == "ready"
    fork = Parties(small, tmp_path / "fork")
    fork.now_ms += 1
    fork.begin(fork.propose())
    fork.end_round([1, 2, 3, 4])
    with pytest.raises(LogError, match="first 5 entries of the log are not those we knew"):
        catch_up(agent, fork)
    agent.db.close()
    fork.close_databases()


def test_a_checkpoint_that_no_log_of_ours_signed_is_refused(parties, tmp_path):
    agent = device(parties, tmp_path / "device", caught_up=False)
    note = log.latest_checkpoint(parties.db)
    lines = note.splitlines(keepends=True)
    for bad in (note[:-10], b"", b"".join(lines[:-1]), note.replace(b"\n4\n", b"\n5\n")):
        with pytest.raises((LogError, SignatureError)):
            agent.catch_up(bad, lambda tile: log.tile_bytes(parties.db, tile))
    assert not agent.caught_up
    agent.db.close()


def test_a_plan_in_the_log_that_no_aggregator_signed_stops_the_device(parties, tmp_path):
    announce(parties, b"no plan at all")
    agent = device(parties, tmp_path / "device", caught_up=False)
    with pytest.raises(RecordError):
        catch_up(agent, parties)
    assert not agent.caught_up
    agent.db.close()


def test_a_round_that_a_study_does_not_have_stops_no_device(parties, restored):
    """One aggregator signed it, and who has no key any more cannot tell that nothing is its own."""
    plan = decode(RoundPlan, decode(Signed, rounds.latest(parties.db).signed_plan).payload)
    beyond = sign(
        replace(plan, round=plan.training.rounds + 1), parties.federation.aggregator_seeds[:1]
    )
    announce(parties, beyond)
    with parties.db:
        log.append(parties.db, [encode(AcceptedUpdate(digest(beyond), 0, bytes(32), bytes(96)))])
        log.sign_checkpoint(parties.db, parties.federation.log_key)
    restored._keys.erase(1)
    catch_up(restored, parties)
    assert restored.caught_up
    assert charges(restored) == [(UNACCOUNTED, 1)]
