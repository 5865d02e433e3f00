"""A new epoch with the real services: call, keys drawn on devices, roster, and old keys gone.

One study, in three parts between which no round is begun: epoch 1; epoch 2, which one device
slept through and one joined; and that device's return by its key of epoch 1.
"""

import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from services_fixture import DATA, DEVICES, Hospital, vitalring, wait_for

from vitalring.edge_agent import budget, state
from vitalring.edge_agent.keyring import Keyring
from vitalring.files import read_file
from vitalring.protocol import lsag, topics
from vitalring.protocol.cbor import decode
from vitalring.protocol.records import Roster, RoundPlan
from vitalring.protocol.signing import Signed

pytestmark = pytest.mark.mosquitto

FOUNDERS, NEWCOMER = DEVICES[:5], DEVICES[5]
SLEEPER = FOUNDERS[4]
ROUNDS = 9


class Ward(Hospital):
    """A hospital whose operator opens calls and signs rosters."""

    @property
    def public(self):
        return self.folder / "federation" / "public"

    @property
    def authority(self):
        federation = decode(Signed, read_file(self.public / "federation.cbor"))
        return federation.signatures[0].key

    def keys(self, name):
        return Keyring(self.device(name) / "keys")

    def operator(self, *words):
        return vitalring("gateway", "enrolment", *words, "--config", self.gateway_toml)

    def pause(self):
        """Let no further round begin, and the one that is open end."""
        assert self.aggregator.end() == 0
        wait_for("the round's end", lambda: (at := self.standing()) and at[1] != "open")

    def enrolled(self, epoch):
        path = self.home / "gateway" / "gateway.sqlite"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            query = "SELECT device FROM enrolled WHERE epoch = ?"
            return {name for (name,) in db.execute(query, (epoch,))}

    def take_up_roster(self, *words):
        """Make the next roster; with one hospital it is signed and installed at once."""
        authority = self.authority.hex()
        said = vitalring(
            "federation", "roster", self.folder / "federation", "--authority", authority, *words
        )
        assert "signed by all hospitals and installed" in said
        return decode(Roster, decode(Signed, read_file(self.public / "roster.cbor")).payload)

    def join(self, name):
        """Make a device's folder with a ticket, and start its agent."""
        (self.folder / "new.txt").write_text(name)
        vitalring(
            "federation", "tickets", self.folder / "federation",
            "--authority", self.authority.hex(), "--devices", self.folder / "new.txt",
            "--broker-folder", self.folder / "broker",
            "--broker-url", f"mqtts://localhost:{self.broker.port}",
            "--data", DATA, "--retry", 2,
        )  # fmt: skip
        config = self.device(name) / "agent.toml"
        config.write_text('accountant = "in-process"\n' + config.read_text())
        self.operator("tickets", self.home / "tickets.txt")
        self.agents.append(self._role("agent-5", ["agent", "run", "--config", config], ()))
        self.agents[-1].start()

    def rounds_done(self):
        with closing(sqlite3.connect(self.home / "gateway" / "gateway.sqlite")) as db:
            return db.execute("SELECT COUNT(*) FROM rounds WHERE status = 'done'").fetchone()[0]

    def plans(self):
        """All round plans of the log, in order."""
        with closing(sqlite3.connect(self.home / "gateway" / "gateway.sqlite")) as db:
            rows = db.execute("SELECT signed_plan FROM rounds ORDER BY round").fetchall()
        return [decode(RoundPlan, decode(Signed, row).payload) for (row,) in rows]

    def position(self, number):
        """Where a round's plan stands in the log."""
        with closing(sqlite3.connect(self.home / "gateway" / "gateway.sqlite")) as db:
            query = "SELECT position FROM rounds WHERE round = ?"
            return db.execute(query, (number,)).fetchone()[0]

    def run_until(self, epoch, serial):
        """Let rounds go on until one is done under a roster; return how many were by then."""
        self.aggregator.start()
        wait_for(
            f"a round under roster {serial}",
            lambda: (
                any(
                    plan.epoch == epoch and plan.round <= self.rounds_done()
                    for plan in self.plans()
                )
                and self.serial() == serial
            ),
        )

    def serial(self):
        """Serial of the newest roster of the log."""
        with closing(sqlite3.connect(self.home / "gateway" / "gateway.sqlite")) as db:
            (record,) = db.execute(
                "SELECT content FROM objects WHERE digest = "
                "(SELECT record FROM rosters ORDER BY position DESC LIMIT 1)"
            ).fetchone()
        return decode(Roster, decode(Signed, record).payload).serial


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    ward = Ward(
        tmp_path_factory.mktemp("ward") / "study",
        rounds=ROUNDS,
        devices=len(FOUNDERS),
        # Room for one who joins: rounds wait for all.
        study="n_max = 8\n",
        agents=None,
    )
    ward.old = {name: ward.keys(name).require(1) for name in FOUNDERS}
    with ward:
        try:
            # 1. Epoch 1. Then one device goes to sleep.
            wait_for("a round of epoch 1", lambda: ward.standing() and ward.rounds_done() >= 1)
            ward.pause()
            wait_for("receipts of epoch 1", lambda: ward.unsettled() == 0)
            asleep = ward.agents[4]
            assert asleep.end() == 0
            # 2. A call, which all others answer, and a newcomer with them.
            ward.join(NEWCOMER)
            ward.operator("open", "--epoch", 2, "--days", 1)
            awake = {*FOUNDERS, NEWCOMER} - {SLEEPER}
            wait_for("answers to the call", lambda: ward.enrolled(2) == awake)
            ward.listed = ward.operator("list")
            ward.operator("close")
            ward.rosters = [ward.take_up_roster("--new-epoch")]
            ward.run_until(2, 1)
            ward.pause()
            # 3. The sleeper is back, too late for the call, and answers the next, which a killed
            #    gateway says again.
            asleep.start()
            ward.operator("open", "--epoch", 2, "--days", 1)
            ward.gateway.kill()
            ward.gateway.start()
            wait_for("the sleeper's answer", lambda: ward.enrolled(2) == awake | {SLEEPER})
            ward.before = {name: ward.keys(name).epochs() for name in FOUNDERS}
            ward.operator("close")
            ward.rosters.append(ward.take_up_roster("--enrol"))
            ward.run_until(2, 2)
            wait_for(
                "the end of the study", lambda: (ward.standing() or ())[:2] == (ROUNDS, "done")
            )
            wait_for("all receipts", lambda: ward.unsettled() == 0)
            yield ward
        except AssertionError as error:
            error.add_note(ward.tail())
            raise


def test_rounds_go_on_from_epoch_to_epoch(ward):
    epochs = [plan.epoch for plan in ward.plans()]
    assert epochs == sorted(epochs)
    assert set(epochs) == {1, 2}
    assert len(epochs) == ROUNDS
    assert "is sound" in vitalring("verify", _exported(ward))


def _exported(ward):
    folder = ward.folder / "log"
    vitalring("gateway", "export", folder, "--config", ward.gateway_toml)
    return folder


def test_old_keys_are_gone_from_every_disk_and_marked(ward):
    for name in FOUNDERS:
        keys = ward.keys(name)
        assert keys.epochs() == (2,), name
        assert keys.is_erased(1)
        assert [path.name for path in sorted(keys.folder.iterdir())] == [
            "ring-1.erased",
            "ring-2.key",
        ]
    newcomer = ward.keys(NEWCOMER)
    assert newcomer.epochs() == (2,)
    assert not newcomer.is_erased(1)


def test_a_device_keeps_its_old_key_until_a_roster_has_the_new_one(ward):
    # Looked at while the sleeper's new key waited for a roster; the others were through by then.
    assert ward.before[SLEEPER] == (1, 2)
    assert all(ward.before[name] == (2,) for name in FOUNDERS if name != SLEEPER)


def test_tags_of_a_device_in_two_epochs_share_nothing(ward):
    outcome = ward.export()
    plans = {plan.round: plan for plan in ward.plans()}
    seen = set()
    for number, logged in enumerate(outcome.rounds, 1):
        assert seen.isdisjoint(logged.tags)
        seen.update(logged.tags)
        old = {lsag.tag_of(pair.secret, logged.context) for pair in ward.old.values()}
        if plans[number].epoch == 1:
            assert set(logged.tags) <= old
        else:
            assert old.isdisjoint(logged.tags)
            new = {
                lsag.tag_of(ward.keys(name).require(2).secret, logged.context)
                for name in (*FOUNDERS, NEWCOMER)
            }
            assert set(logged.tags) <= new


def test_the_rosters_have_who_answered(ward):
    first, second = ward.rosters
    named = {name: ward.keys(name).require(2).public for name in (*FOUNDERS, NEWCOMER)}
    assert set(second.keys) == set(named.values())
    assert set(second.keys) - set(first.keys) == {named[SLEEPER]}
    assert {pair.public for pair in ward.old.values()}.isdisjoint(second.keys)


def test_the_operator_saw_who_was_missing(ward):
    assert "call for epoch 2, until" in ward.listed
    assert f"epoch 2  {SLEEPER:32} no key yet" in ward.listed
    assert ward.listed.count("waits for a roster") == 5
    assert "refused" not in ward.listed


def test_devices_paid_for_their_own_rounds_alone_and_a_restart_finds_nothing_new(ward):
    """The old epoch's rounds stand in the log, and the keys that would recognise them are gone."""
    name, agent = FOUNDERS[0], ward.agents[0]
    before = _budget(ward, name)
    connected = ward.said("agent-0", "connected to")
    assert agent.end() == 0
    agent.start()
    wait_for("the agent's return", lambda: ward.said("agent-0", "connected to") > connected)
    with closing(state.open_state(ward.device(name) / "state")) as db:
        searched, known = state.read_range(db).size, state.known_checkpoint(db).size
        last_of_epoch_1 = max(plan.round for plan in ward.plans() if plan.epoch == 1)
    assert searched > ward.position(last_of_epoch_1)
    assert known >= searched
    assert _budget(ward, name) == before
    for each in (*FOUNDERS, NEWCOMER):
        assert budget.UNACCOUNTED not in {kind for kind, _ in _budget(ward, each)}


def _budget(ward, name):
    with closing(sqlite3.connect(ward.device(name) / "state" / "agent.sqlite")) as db:
        return [(entry.kind, entry.round) for entry in budget.Budget(db).entries()]


def test_an_update_of_the_old_epoch_can_no_longer_be_claimed(ward, tmp_path):
    log = _exported(ward)
    request = tmp_path / "request"
    vitalring("claim", "ask", "--out", request)
    words = ["--config", ward.device(FOUNDERS[0]) / "agent.toml", "--request", request]
    words += ["--log", log, "--out", tmp_path / "claim"]
    old = subprocess.run(
        [sys.executable, "-m", "vitalring.tools.cli", "claim", "prove", *words, "--round", "1"],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert old.returncode == 2
    assert "the ring key of epoch 1 is erased" in old.stderr
    vitalring("claim", "prove", *words, "--round", ROUNDS)
    shown = vitalring("claim", "verify", tmp_path / "claim", "--request", request, "--log", log)
    assert "epoch 2" in shown


def test_the_call_is_cleared_and_enrolments_are_not_kept_at_the_broker(ward):
    retained = ward.retained("call/+", "enrol/#")
    assert not any(
        topics.parse(topic).kind in (topics.Kind.CALL, topics.Kind.ENROL) for topic in retained
    )


def test_no_name_and_no_ticket_left_the_hospital(ward):
    ticket = (ward.device(NEWCOMER) / "ticket").read_bytes()
    names = [name.encode() for name in (*FOUNDERS, NEWCOMER)]
    for content in ward.retained().values():
        assert ticket not in content
        assert not any(name in content for name in names)
    log = ward.folder / "log"
    for path in log.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert ticket not in content
            assert not any(name in content for name in names)


def test_the_state_remembers_in_which_epoch_it_is(ward):
    for name in (*FOUNDERS, NEWCOMER):
        with closing(state.open_state(ward.device(name) / "state")) as db:
            assert db.execute("SELECT serial, epoch, enrolled_in FROM rosters").fetchall() == [
                (2, 2, 2)
            ]
