"""Rosters that follow one another with the real services of three hospitals and a real broker.

One study: a device is revoked, a new one joins, an epoch begins; in between everything is killed.
The operator makes each roster with the project's own command. The second and third hospital have
folders of their own, in which nobody puts anything: they learn of rosters by the drafts.
"""

import contextlib
import json
import re
import shutil
import sqlite3

import pytest
from services_fixture import DEVICES, Hospital, vitalring, wait_for

from vitalring.edge_agent import rosters
from vitalring.edge_agent.keyring import Keyring
from vitalring.gateway.enrolment import EnrolledKey
from vitalring.protocol import lsag
from vitalring.protocol.cbor import decode
from vitalring.protocol.records import Roster, RoundPlan
from vitalring.protocol.signing import Signed
from vitalring.tools.enrolments import write_keys
from vitalring.tools.verify import verify_log

pytestmark = pytest.mark.mosquitto

GONE, NEWCOMER = DEVICES[0], DEVICES[5]
FOUNDERS = DEVICES[:5]
REVOKED = "this device's key is revoked: roster 1 of ward-1"
STAYS = FOUNDERS[1:]


class Ward(Hospital):
    """Three hospitals whose operator changes who takes part."""

    @property
    def public(self):
        return self.folder / "federation" / "public"

    def keys(self, name):
        return Keyring(self.device(name) / "keys")

    def apart(self):
        """Give the hospitals that are not the host their own copies of the public files."""
        for home in self.homes[1:]:
            shutil.copytree(self.public, home / "public")
            config = home / "aggregator.toml"
            text, count = re.subn(r'(?m)^study = ".*"$', 'study = "public"', config.read_text())
            assert count == 1
            config.write_text(text)

    def roster(self, *words):
        """Make the next roster and install it at the host."""
        toml = (self.home / "gateway.toml").read_text()
        authority = re.search(r'authority_key = "([0-9a-f]{64})"', toml)[1]
        return vitalring(
            "federation", "roster", self.folder / "federation", "--authority", authority, *words
        )

    def key_file(self, epoch, *names):
        """What an enrolment office exports of keys that devices drew."""
        path = self.folder / f"keys-{epoch}.txt"
        drawn = [EnrolledKey(name, epoch, self.keys(name).draw(epoch).public) for name in names]
        write_keys(path, tuple(drawn))
        return path

    def add_device(self, name):
        """A device's folder as an installer makes it: the cohort's files, its own name and data."""
        other = self.device(FOUNDERS[-1])
        shutil.copytree(other, self.device(name), ignore=shutil.ignore_patterns("state", "keys"))
        config = self.device(name) / "agent.toml"
        config.write_text(config.read_text().replace(f'"{FOUNDERS[-1]}"', f'"{name}"'))
        self.devices = (*self.devices, name)
        self.agents.append(self._role(f"agent-{name}", ["agent", "run", "--config", config], ()))
        self.agents[-1].start()

    def rosters(self):
        """Serials of the rosters under which a round with updates is done."""
        path = self.home / "gateway" / "gateway.sqlite"
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db,
        ):
            plans = db.execute(
                "SELECT signed_plan FROM rounds WHERE status = 'done' AND admitted"
            ).fetchall()
            rosters = db.execute(
                "SELECT digest, content FROM objects WHERE digest IN (SELECT record FROM rosters)"
            ).fetchall()
            serials = {name: self._payload(Roster, record).serial for name, record in rosters}
            return {serials[self._payload(RoundPlan, plan).roster] for (plan,) in plans}
        return set()

    @staticmethod
    def _payload(kind, record):
        return decode(kind, decode(Signed, record).payload)

    def until(self, serial):
        wait_for(f"a round under roster {serial}", lambda: serial in self.rosters())

    def known(self, name):
        """The newest roster that a device saw."""
        path = self.device(name) / "state" / "agent.sqlite"
        with contextlib.closing(sqlite3.connect(path)) as db:
            return rosters.known(db, "ward-1")

    def status(self, name):
        return json.loads(
            vitalring("agent", "status", "--config", self.device(name) / "agent.toml")
        )


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    ward = Ward(
        tmp_path_factory.mktemp("rosters") / "study",
        rounds=400,
        devices=len(FOUNDERS),
        timeout_s=120,
        hospitals=3,
        # Room for one who joins.
        study="n_max = 8\nmin_ring = 3\n",
        agents=None,
    )
    ward.apart()
    ward.old = {name: ward.keys(name).require(1) for name in FOUNDERS}
    with ward:
        try:
            ward.until(0)
            ward.said_of_revocation = ward.roster("--revoke", GONE)
            ward.until(1)
            # A round does not wait for it.
            wait_for("the revoked device is told so", lambda: ward.said("agent-0", REVOKED))
            for process in (ward.gateway, *ward.aggregators, *ward.agents):
                process.kill()
                process.start()
            ward.add_device(NEWCOMER)
            ward.new = ward.keys(NEWCOMER).draw(1)
            ward.roster("--enrol-from", ward.key_file(1, NEWCOMER))
            ward.until(2)
            # Whoever was revoked draws a key of the new epoch too; it does not help.
            ward.said_of_epoch = ward.roster(
                "--new-epoch", "--enrol-from", ward.key_file(2, *FOUNDERS, NEWCOMER)
            )
            ward.until(3)
            wait_for(
                "all devices go by the newest roster",
                lambda: all(ward.known(name).serial == 3 for name in ward.devices),
            )
            for process in ward.processes[1:]:
                assert process.code is None, f"{process.name} ended"
            for process in (*ward.aggregators, *ward.agents, ward.gateway):
                assert process.end() == 0
            ward.outcome = ward.export()
            ward.verdict = verify_log(ward.folder / "log", None)
            yield ward
        except AssertionError as error:
            error.add_note(ward.tail())
            raise


def in_rounds(ward, serial):
    """The rounds of a roster that counted anybody, as the log has them."""
    first = {roster.serial: roster.first_round for roster in ward.verdict.rosters}
    last = first.get(serial + 1, len(ward.outcome.rounds) + 1)
    found = [each for each in ward.outcome.rounds[first[serial] - 1 : last - 1] if each.tags]
    assert found
    return found


def test_rounds_go_on_from_roster_to_roster_in_a_sound_log(ward):
    assert [(r.serial, r.epoch, r.devices) for r in ward.verdict.rosters] == [
        (0, 1, 5),
        (1, 1, 4),
        (2, 1, 5),
        (3, 2, 5),
    ]
    assert "1 removed, 0 added, 4 as before" in ward.said_of_revocation


def test_the_revoked_device_is_out_and_the_others_sign_with_the_keys_of_before(ward):
    gone = ward.old[GONE].secret
    for logged in in_rounds(ward, 0):
        assert set(logged.tags) <= {
            lsag.tag_of(pair.secret, logged.context) for pair in ward.old.values()
        }
    for serial in (1, 2):
        for logged in in_rounds(ward, serial):
            assert lsag.tag_of(gone, logged.context) not in logged.tags
            allowed = {lsag.tag_of(ward.old[name].secret, logged.context) for name in STAYS}
            if serial == 2:
                allowed.add(lsag.tag_of(ward.new.secret, logged.context))
            assert set(logged.tags) <= allowed


def test_the_revoked_device_is_told_so(ward):
    assert REVOKED in ward.agents[0].log.read_text(errors="replace")


def test_the_newcomer_takes_part(ward):
    assert any(
        lsag.tag_of(ward.new.secret, logged.context) in logged.tags for logged in in_rounds(ward, 2)
    )


def test_the_new_epoch_has_new_keys_and_nobody_who_was_revoked(ward):
    assert f"left out    {GONE}: revoked before, or barred" in ward.said_of_epoch
    for logged in in_rounds(ward, 3):
        for pair in (*ward.old.values(), ward.new):
            assert lsag.tag_of(pair.secret, logged.context) not in logged.tags


def test_devices_show_the_roster_that_they_go_by(ward):
    newest = ward.verdict.rosters[-1]
    shown = ward.status(NEWCOMER)["roster"]
    assert shown["digest"] == newest.digest.hex()
    for name in ward.devices:
        known = ward.known(name)
        assert (known.serial, known.epoch, known.digest) == (3, 2, newest.digest)
        assert known.enrolled_in == (1 if name == GONE else 2)


def test_the_other_hospitals_learned_of_rosters_without_a_file(ward):
    for home in ward.homes[1:]:
        assert not (home / "public" / "rosters").exists()
    text = vitalring("gateway", "status", "--config", ward.gateway_toml)
    assert json.loads(text)["roster"]["serial"] == 3
