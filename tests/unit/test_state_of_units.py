"""Killed, restored, copied, or with a wrong clock: what leaves a device stays paid, whatever unit.

With the real agent, its files and the log; what a sum or a model does with an update is no
matter here. Catching up as such, and the budget's chain, have tests of their own.
"""

import os
import shutil
import signal
from dataclasses import replace

import pytest
from audit_fixture import terms_of
from device_fixture import FLOORS, announced, catch_up, charges, device, statuses
from federation_fixture import SOME_PRIVACY, Parties, small_federation

from vitalring.edge_agent import agent as agent_module
from vitalring.edge_agent import state
from vitalring.edge_agent.budget import AUTHORISED, CHARGED, UNACCOUNTED, Budget
from vitalring.errors import PrivacyError, RefusedError
from vitalring.gateway import rounds, store
from vitalring.protocol.cbor import decode
from vitalring.protocol.guarantee import budget_spend, round_spend
from vitalring.protocol.records import SealedUpdate

UNITS = ("record/local", "record/distributed", "device/local", "device/distributed")
YEAR_MS = 31_557_600_000
ANY_NOISE = replace(FLOORS, allow_shared_noise=True)


def federation_of(name):
    """A federation whose smallest sum has four devices, one of which may be a colluder."""
    if name == "record/local":
        return small_federation(privacy=SOME_PRIVACY)
    terms = terms_of(*name.split("/"), 8, shares=3, bits=12)
    return small_federation(
        privacy=terms.privacy,
        codec=terms.codec,
        training=replace(terms.training, rounds=40, records=100),
        # A sum in clear is refused where noise is shared.
        secure_sum="single-he",
    )


@pytest.fixture(scope="module", params=UNITS)
def small(request):
    return federation_of(request.param)


@pytest.fixture
def parties(small, tmp_path):
    parties = Parties(small, tmp_path / "parties")
    yield parties
    parties.close_databases()


def of(parties, folder, **options):
    options = {"floors": ANY_NOISE, **options}
    return device(parties, folder, **options)


def take_part(agent, parties):
    assert agent.consider(announced(parties), parties.now_ms) == "ready"
    return submit(agent, parties)


def submit(agent, parties):
    """Send what waits; True where the gateway counted it."""
    (pending,) = state.outbox(agent.db)
    return parties.admit(parties.federation.box(decode(SealedUpdate, pending.update)))


def spends(agent):
    """What each round on the budget was charged."""
    return {e.spend for e in Budget(agent.db).entries() if e.kind != AUTHORISED}


def killed(parties, folder, module, name, moment):
    """Let a device consider the open round in a process that dies at a point of the code."""
    announcement, now_ms = announced(parties), parties.now_ms
    child = os.fork()
    if child == 0:
        try:
            # A connection of its own: SQLite's do not survive a fork.
            parties.db = store.open_store(parties.folder / "gateway")
            original = getattr(module, name)

            def struck(*args, **kwargs):
                result = original(*args, **kwargs) if moment == "after" else None
                os.kill(os.getpid(), signal.SIGKILL)
                return result

            setattr(module, name, struck)
            of(parties, folder).consider(announcement, now_ms)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize(
    ("module", "name", "moment"),
    [
        (agent_module, "learn", "before"),
        (agent_module, "learn", "after"),
        (agent_module, "protect", "after"),
        (state, "put_outbox", "before"),
        (state, "put_outbox", "after"),
    ],
)
def test_a_killed_device_pays_once_and_makes_one_update(parties, tmp_path, module, name, moment):
    parties.begin(parties.propose())
    killed(parties, tmp_path / "device", module, name, moment)
    agent = of(parties, tmp_path / "device")
    # Paid before anything was made of the records.
    assert charges(agent) == [(CHARGED, 1)]
    kept = [pending.update for pending in state.outbox(agent.db)]
    made = agent.consider(announced(parties), parties.now_ms)
    if (name, moment) == ("put_outbox", "after"):
        assert made == "already ready"
        assert [pending.update for pending in state.outbox(agent.db)] == kept
    else:
        assert (made, kept) == ("ready", [])
    assert charges(agent) == [(CHARGED, 1)]
    assert spends(agent) == {budget_spend(parties.federation.study.plan.terms, 1)}
    assert submit(agent, parties)
    agent.db.close()


def test_a_process_that_dies_before_the_charge_has_spent_and_made_nothing(parties, tmp_path):
    parties.begin(parties.propose())
    killed(parties, tmp_path / "device", Budget, "reserve", "after")
    agent = of(parties, tmp_path / "device")
    assert (charges(agent), statuses(agent), state.outbox(agent.db)) == ([], {}, [])
    agent.db.close()


def test_an_older_folder_is_charged_from_the_log_what_its_unit_costs(parties, tmp_path):
    folder, backup = tmp_path / "device", tmp_path / "backup"
    of(parties, folder).db.close()
    shutil.copytree(folder, backup)
    for _ in range(2):
        parties.begin(parties.propose())
        agent = of(parties, folder)
        assert take_part(agent, parties)
        parties.end_round((1, 2, 3, 4))
        assert agent.receipts(rounds.latest(parties.db).receipts)
        agent.db.close()
    restored = of(parties, backup, caught_up=False)
    assert charges(restored) == []
    catch_up(restored, parties)
    assert charges(restored) == [(UNACCOUNTED, 1), (UNACCOUNTED, 2)]
    terms = parties.federation.study.plan.terms
    assert spends(restored) == {budget_spend(terms, 1)}
    # A record's budget bears more of a device's rounds than the study claims for the device.
    noise = round_spend(terms, 1).noise_multiplier
    half = 2.0 if terms.privacy.unit == "device" else 1.0
    assert budget_spend(terms, 1).noise_multiplier == noise / half
    restored.db.close()


def test_what_a_restored_folder_finds_counts_against_its_limit(parties, tmp_path):
    """Two rounds were sent and lost; the limit has no room for the study's forty any more."""
    folder = tmp_path / "device"
    parties.begin(parties.propose())
    agent = of(parties, folder)
    assert take_part(agent, parties)
    parties.end_round((1, 2, 3, 4))
    agent.db.close()
    shutil.rmtree(folder)
    plan = parties.federation.study.plan
    every_round = plan.training.steps * plan.training.rounds / 100
    restored = of(parties, folder, floors=replace(ANY_NOISE, epsilon=every_round))
    assert charges(restored) == [(UNACCOUNTED, 1)]
    # The round found is one of the forty, so the study still fits, to the last step.
    parties.begin(parties.propose())
    assert take_part(restored, parties)
    parties.end_round((1, 2, 3, 4))
    restored.db.close()
    tight = of(parties, folder, floors=replace(ANY_NOISE, epsilon=every_round * 0.99))
    parties.begin(parties.propose())
    with pytest.raises(PrivacyError, match="its limit is"):
        tight.consider(announced(parties), parties.now_ms)
    assert charges(tight) == [(UNACCOUNTED, 1), (CHARGED, 2)]
    tight.db.close()


def test_copies_of_one_state_count_once_and_learn_of_each_other_at_a_start(parties, tmp_path):
    """Between two starts each knows of its own rounds alone: see docs/privacy.md."""
    folders = [tmp_path / "one", tmp_path / "other"]
    of(parties, folders[0]).db.close()
    shutil.copytree(folders[0], folders[1])
    one, other = (of(parties, folder) for folder in folders)
    # 1. Both in one round: the gateway counts one, by its tag; both have paid.
    parties.begin(parties.propose())
    assert take_part(one, parties)
    with pytest.raises(RefusedError, match="double_signed"):
        take_part(other, parties)
    parties.end_round((1, 2, 3, 4))
    assert charges(one) == charges(other) == [(CHARGED, 1)]
    receipts = rounds.latest(parties.db).receipts
    assert one.receipts(receipts) and other.receipts(receipts)
    assert (statuses(one), statuses(other)) == ({1: "counted"}, {1: "missed"})
    # 2. In turns: each has half of the account, and the whole of it after a start.
    for agent in (one, other):
        parties.begin(parties.propose())
        assert take_part(agent, parties)
        parties.end_round((1, 2, 3, 4))
    assert charges(one) == [(CHARGED, 1), (CHARGED, 2)]
    assert charges(other) == [(CHARGED, 1), (CHARGED, 3)]
    for agent in (one, other):
        agent.db.close()
    one, other = (of(parties, folder) for folder in folders)
    assert charges(one) == [(CHARGED, 1), (CHARGED, 2), (UNACCOUNTED, 3)]
    assert charges(other) == [(CHARGED, 1), (CHARGED, 3), (UNACCOUNTED, 2)]
    for agent in (one, other):
        agent.db.close()


@pytest.mark.parametrize("jump_ms", [-YEAR_MS, YEAR_MS])
def test_clock_jumps_neither_refund_nor_repeat_a_round(parties, tmp_path, jump_ms):
    parties.begin(parties.propose())
    agent = of(parties, tmp_path / "device")
    wrong = parties.now_ms + jump_ms
    if jump_ms > 0:
        # Ahead: the round seems to be over, and costs nothing.
        assert agent.consider(announced(parties), wrong) == "the round is over"
        assert charges(agent) == []
    else:
        assert agent.consider(announced(parties), wrong) == "ready"
    agent.consider(announced(parties), parties.now_ms)
    assert charges(agent) == [(CHARGED, 1)]
    # The update is dropped as late by a clock far ahead; put right again, none is made anew.
    agent.expire(parties.now_ms + YEAR_MS)
    assert state.outbox(agent.db) == []
    for now_ms in (parties.now_ms, parties.now_ms - YEAR_MS, parties.now_ms + 1):
        assert agent.consider(announced(parties), now_ms) == "already missed"
    assert charges(agent) == [(CHARGED, 1)]
    agent.db.close()


def test_a_damaged_chain_lets_nothing_leave(parties, tmp_path):
    parties.begin(parties.propose())
    agent = of(parties, tmp_path / "device")
    assert take_part(agent, parties)
    parties.end_round((1, 2, 3, 4))
    agent.receipts(rounds.latest(parties.db).receipts)
    parties.begin(parties.propose())
    agent.db.execute("UPDATE privacy_budget SET noise_multiplier = 1e9 WHERE position = 2")
    with pytest.raises(PrivacyError, match="entry 2 of the privacy budget is damaged"):
        agent.consider(announced(parties), parties.now_ms)
    assert state.outbox(agent.db) == []
    agent.db.close()
    with pytest.raises(PrivacyError, match="entry 2 of the privacy budget is damaged"):
        of(parties, tmp_path / "device")
