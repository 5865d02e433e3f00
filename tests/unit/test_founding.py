"""Hospitals on machines of their own found a federation on the command line."""

import shutil
from dataclasses import replace

import pytest

from vitalring.gateway.store import open_store
from vitalring.protocol import signing, trust
from vitalring.protocol.cbor import decode
from vitalring.protocol.records import Roster, SumKey
from vitalring.tools.cli import main

NAMES = ("north", "south", "west")
STUDY = """
federation = "north-sea"
study = "hearts"
cohort = "ward-1"
unit = "none"
records = 50
rounds = 3
min_cohort = 4
ring_size = 4
secure_sum = "threshold-he"
hospitals = 3
threshold = 2
"""
TWO_SERVER = (
    STUDY.replace("threshold-he", "two-server")
    .replace("hospitals = 3", "hospitals = 2")
    .replace("threshold = 2", "")
)


class Machines:
    """One folder for each party, and what it said last."""

    def __init__(self, folder, capsys):
        self.folder, self.capsys = folder, capsys
        (folder / "study.toml").write_text(STUDY)

    def run(self, action, party, *words, code=0):
        arguments = ["federation", action, str(self.folder / party), *map(str, words)]
        assert main(arguments) == code
        said = self.capsys.readouterr()
        return said.out if code == 0 else said.err

    def card(self, name):
        return self.folder / name / f"{name}.card"

    def assemble(self, *names, code=0):
        cards = [word for name in names for word in ("--card", self.card(name))]
        config = ("--config", self.folder / "study.toml", "--devices", "8")
        return self.run("assemble", "authority", *config, *cards, code=code)

    def founded(self, names=NAMES):
        """Hospitals with keys and the authority's files; returns the authority's key."""
        self.fingerprints = {
            name: self.run("hospital", name, "--name", name).splitlines()[-1] for name in names
        }
        said = self.assemble(*names)
        for name, fingerprint in self.fingerprints.items():
            assert f"{name}: {fingerprint}" in said
        for name in names:
            shutil.copytree(self.folder / "authority" / "public", self.folder / name / "public")
        return next(line for line in said.splitlines() if line.startswith("authority")).split()[-1]

    def enrol(self, name, authority, *words, devices=8, code=0):
        config = ("--config", self.folder / "study.toml", "--devices", devices)
        return self.run("enrol", name, *config, "--authority", authority, *words, code=code)

    def files(self, name):
        """All files of a party, with their content."""
        paths = (path for path in (self.folder / name).rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in paths}


@pytest.fixture
def machines(tmp_path, capsys):
    return Machines(tmp_path, capsys)


def test_three_hospitals_found_a_federation(machines, tmp_path):
    authority = machines.founded()
    machines.enrol("north", authority)
    where = tmp_path / "north"
    for name, missing in (("south", "west"), ("west", "signed by all")):
        shutil.copy(where / "public" / "roster.cbor", tmp_path / name / "public")
        assert missing in machines.run("sign", name, "--authority", authority)
        where = tmp_path / name
    public = where / "public"
    key = bytes.fromhex(authority)
    federation = trust.open_federation((public / "federation.cbor").read_bytes(), key)
    plan = trust.open_study_plan((public / "study.cbor").read_bytes(), federation)
    roster = trust.open_roster((public / "roster.cbor").read_bytes(), federation)
    assert [hospital.name for hospital in federation.hospitals] == list(NAMES)
    assert (plan.secure_sum, plan.threshold, len(roster.keys)) == ("threshold-he", 2, 8)
    assert (public / "artefact.tflite").exists()
    assert len(list((tmp_path / "north" / "devices").iterdir())) == 8
    # Signing twice changes nothing; nobody has another's secrets.
    before = (public / "roster.cbor").read_bytes()
    machines.run("sign", "west", "--authority", authority)
    assert (public / "roster.cbor").read_bytes() == before
    for name in NAMES:
        assert [p.name for p in (tmp_path / name / "hospitals").iterdir()] == [name]
        for secret in (tmp_path / name / "hospitals" / name).iterdir():
            assert secret.stat().st_mode & 0o777 == 0o600


def test_the_key_of_such_a_federation_begins(machines, tmp_path):
    authority = machines.founded()
    arguments = ("--study", tmp_path / "south" / "public", "--authority", authority)
    identity = tmp_path / "south" / "hospitals" / "south" / "identity.seed"
    words = ["federation", "keys", "start", tmp_path / "south" / "key", *arguments]
    assert main([*map(str, words), "--identity", str(identity)]) == 0
    assert "waiting      for the files 1-commit of north, west" in machines.capsys.readouterr().out


def test_a_changed_card_is_refused(machines):
    for name in NAMES:
        machines.run("hospital", name, "--name", name)
    card = machines.card("south")
    data = card.read_bytes()
    card.write_bytes(data.replace(b"south", b"sauth"))
    assert "does not verify" in machines.assemble(*NAMES, code=2)


def test_as_many_cards_as_hospitals(machines):
    for name in NAMES:
        machines.run("hospital", name, "--name", name)
    assert "2 cards" in machines.assemble("north", "south", code=2)
    assert "lists a hospital twice" in machines.assemble("north", "south", "south", code=2)


def test_the_authority_changes_nothing_that_it_signed(machines, tmp_path):
    machines.founded()
    assert "differs: take a new folder" in machines.assemble("south", "north", "west", code=2)
    machines.assemble(*NAMES)


def test_only_the_host_enrols_and_only_once(machines):
    authority = machines.founded()
    assert "north is the host" in machines.enrol("south", authority, code=2)
    machines.enrol("north", authority)
    assert "enrolled" in machines.enrol("north", authority, code=2)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ([], "0 devices make no ring"),
        (["one"], "1 devices make no ring"),
        (["one", "two"], "no round would have a sum; the cohort takes 4 devices at least"),
        # Rings of 3 and 2 keys, where the plan, made for 8 devices, has them of 3 at least.
        (list("abcde"), "study hearts asks for 3 at least; take other devices"),
    ],
)
def test_a_first_roster_that_nobody_could_use_is_not_made(machines, tmp_path, names, why):
    authority = machines.founded()
    listed = tmp_path / "names.txt"
    listed.write_text("\n".join(names))
    before = machines.files("north")
    assert why in machines.enrol("north", authority, devices=listed, code=2)
    # Nothing is in the way of the file that is corrected.
    assert machines.files("north") == before
    listed.write_text("\n".join(f"device-{number}" for number in range(8)))
    machines.enrol("north", authority, devices=listed)


def test_where_no_device_has_enrolled_yet_there_is_no_roster(machines, tmp_path):
    authority = machines.founded()
    home = tmp_path / "north" / "hospitals" / "north"
    open_store(home / "gateway").close()
    config = ("--config", tmp_path / "study.toml", "--authority", authority)
    said = machines.run("enrol", "north", *config, "--enrolled", code=2)
    assert "0 devices make no ring" in said
    assert "wait until as many have enrolled" in said
    assert not (home / "signed-rosters.txt").exists()
    assert not (tmp_path / "north" / "public" / "roster.cbor").exists()


@pytest.mark.parametrize("days", ["nan", "-3", "0", "1e12", "inf"])
def test_the_office_is_open_for_days_that_there_are(machines, tmp_path, days):
    authority = machines.founded()
    config = ("--config", tmp_path / "study.toml", "--authority", authority)
    broker = ("--broker-url", "mqtt://127.0.0.1:1")
    said = machines.run("office", "north", *config, *broker, f"--days={days}", code=2)
    assert f"--days {float(days):g}: use more than 0 and at most 366" in said
    assert not (tmp_path / "north" / "hospitals" / "north" / "gateway").exists()


def test_names_that_a_hospital_did_not_sign_change_nothing_that_it_knows(machines, tmp_path):
    authority = machines.founded()
    machines.enrol("north", authority)
    (tmp_path / "north" / "public" / "roster.cbor").unlink()
    home = tmp_path / "north" / "hospitals" / "north"
    before = (home / "enrolled.txt").read_bytes()
    assert "give --instead" in machines.enrol("north", authority, devices=9, code=2)
    assert (home / "enrolled.txt").read_bytes() == before
    machines.enrol("north", authority, "--instead", devices=9)
    assert len((home / "enrolled.txt").read_text().splitlines()) == 9


def test_a_study_of_another_federation_is_not_enrolled_for(machines, tmp_path):
    authority = machines.founded()
    (tmp_path / "study.toml").write_text(STUDY.replace("north-sea", "south-sea"))
    before = machines.files("north")
    assert "are of federation south-sea" in machines.enrol("north", authority, code=2)
    assert machines.files("north") == before


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda roster: {"keys": roster.keys[:2]}, "no round would have a sum"),
        (lambda roster: {"keys": roster.keys[:5]}, "asks for 3 at least"),
        (lambda roster: {"ring_size": 2_000}, "have 1024 at most"),
        (lambda roster: {"keys": roster.keys[::-1]}, "not sorted"),
        (lambda roster: {"keys": (*roster.keys[:-1], b"\xff" * 32)}, "no roster of 8 keys"),
        (lambda roster: {"federation": "south-sea"}, "is of federation south-sea"),
    ],
)
def test_a_first_roster_that_nobody_could_use_is_not_signed(machines, tmp_path, change, why):
    authority = machines.founded()
    machines.enrol("north", authority)
    good = (tmp_path / "north" / "public" / "roster.cbor").read_bytes()
    seed = (tmp_path / "north" / "hospitals" / "north" / "identity.seed").read_bytes()
    roster = decode(Roster, decode(signing.Signed, good).payload)
    path = tmp_path / "south" / "public" / "roster.cbor"
    path.write_bytes(signing.sign(replace(roster, **change(roster)), [seed]))
    before = machines.files("south")
    assert why in machines.run("sign", "south", "--authority", authority, code=2)
    assert machines.files("south") == before
    path.write_bytes(good)
    machines.run("sign", "south", "--authority", authority)


def test_no_record_is_signed_where_the_one_beside_it_is_refused(machines, tmp_path):
    """Neither the roster nor the word that there is no key, which is signed along with it."""
    (tmp_path / "study.toml").write_text(TWO_SERVER)
    authority = machines.founded(NAMES[:2])
    machines.enrol("north", authority)
    for record in ("roster.cbor", "sum-key.cbor"):
        shutil.copy(tmp_path / "north" / "public" / record, tmp_path / "south" / "public")
    seed = (tmp_path / "north" / "hospitals" / "north" / "identity.seed").read_bytes()
    path = tmp_path / "south" / "public" / "sum-key.cbor"
    none = decode(SumKey, decode(signing.Signed, path.read_bytes()).payload)
    path.write_bytes(signing.sign(replace(none, study="other"), [seed]))
    before = machines.files("south")
    assert "not that of study hearts" in machines.run(
        "sign", "south", "--authority", authority, code=2
    )
    assert machines.files("south") == before


def test_a_hospital_is_not_drawn_twice_and_has_a_name(machines, tmp_path):
    machines.run("hospital", "north", "--name", "north")
    assert "not overwritten" in machines.run("hospital", "north", "--name", "north", code=2)
    assert "must match" in machines.run("hospital", "other", "--name", "North Sea", code=2)
    assert not (tmp_path / "other").exists()


def test_secrets_of_two_hospitals_in_one_place_are_refused(machines, tmp_path):
    authority = machines.founded()
    shutil.copytree(
        tmp_path / "south" / "hospitals" / "south", tmp_path / "north" / "hospitals" / "south"
    )
    assert "of 2 hospitals" in machines.enrol("north", authority, code=2)
    assert "64 hexadecimal" in machines.enrol("north", "xyz", code=2)


def test_two_hospitals_found_a_federation_without_a_key(machines, tmp_path):
    """Their gateways hold shares: each configures its own, the host the aggregator too."""
    (tmp_path / "study.toml").write_text(TWO_SERVER)
    authority = machines.founded(NAMES[:2])
    assert "sum-key.cbor" in machines.enrol("north", authority)
    for record in ("roster.cbor", "sum-key.cbor"):
        shutil.copy(tmp_path / "north" / "public" / record, tmp_path / "south" / "public")
    assert "signed by all" in machines.run("sign", "south", "--authority", authority)
    for record in ("roster.cbor", "sum-key.cbor"):
        shutil.copy(tmp_path / "south" / "public" / record, tmp_path / "north" / "public")
    broker = ("--broker-url", "mqtt://127.0.0.1:1883", "--data", "data")
    for name, services in (("north", ["gateway", "aggregator"]), ("south", ["gateway"])):
        said = machines.run("configure", name, "--authority", authority, *broker)
        home = tmp_path / name / "hospitals" / name
        assert sorted(path.stem for path in home.glob("*.toml")) == sorted(services)
        assert [f"vitalring {service} run" in said for service in ("gateway", "aggregator")] == [
            service in services for service in ("gateway", "aggregator")
        ]
