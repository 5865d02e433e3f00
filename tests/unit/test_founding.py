"""Hospitals on machines of their own found a federation on the command line."""

import shutil

import pytest

from vitalring.protocol import trust
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

    def founded(self):
        """Hospitals with keys and the authority's files; returns the authority's key."""
        self.fingerprints = {
            name: self.run("hospital", name, "--name", name).splitlines()[-1] for name in NAMES
        }
        said = self.assemble(*NAMES)
        for name, fingerprint in self.fingerprints.items():
            assert f"{name}: {fingerprint}" in said
        for name in NAMES:
            shutil.copytree(self.folder / "authority" / "public", self.folder / name / "public")
        return next(line for line in said.splitlines() if line.startswith("authority")).split()[-1]

    def enrol(self, name, authority, code=0):
        config = ("--config", self.folder / "study.toml", "--devices", "8")
        return self.run("enrol", name, *config, "--authority", authority, code=code)


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
    (tmp_path / "study.toml").write_text(
        STUDY.replace("threshold-he", "two-server")
        .replace("hospitals = 3", "hospitals = 2")
        .replace("threshold = 2", "")
    )
    for name in NAMES[:2]:
        machines.run("hospital", name, "--name", name)
    said = machines.assemble(*NAMES[:2])
    authority = next(line for line in said.splitlines() if line.startswith("auth")).split()[-1]
    for name in NAMES[:2]:
        shutil.copytree(tmp_path / "authority" / "public", tmp_path / name / "public")
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
