"""The rosters after the first one, made and signed on the command line."""

import dataclasses
import shutil
from contextlib import closing

import pytest

from vitalring.gateway import enrolment
from vitalring.gateway.enrolment import EnrolledKey
from vitalring.gateway.store import open_store
from vitalring.protocol import lsag, rosters, signing, trust
from vitalring.tools.cli import main
from vitalring.tools.enrolments import write_keys

STUDY = """
federation = "north-sea"
study = "hearts"
cohort = "ward-1"
unit = "none"
records = 50
rounds = 3
min_cohort = 3
min_ring = 4
"""
TWO = STUDY + 'secure_sum = "two-server"\n'


class Folder:
    """A federation's folder and what the commands said of it."""

    def __init__(self, folder, authority, capsys):
        self.folder, self.authority, self.capsys = folder, authority, capsys

    def run(self, action, *words, code=0):
        arguments = ["federation", action, self.folder, "--authority", self.authority, *words]
        assert main([*map(str, arguments)]) == code
        said = self.capsys.readouterr()
        return said.out if code == 0 else said.err

    def roster(self, *words, code=0):
        return self.run("roster", *words, code=code)

    @property
    def public(self):
        return self.folder / "public"

    @property
    def study(self):
        key = bytes.fromhex(self.authority)
        return trust.open_study_files(lambda n: (self.public / n).read_bytes(), key).study

    @property
    def names(self):
        """Keys by name, as the host noted them."""
        (path,) = self.folder.glob("hospitals/*/enrolled.txt")
        lines = [line.split() for line in path.read_text().splitlines()]
        return {name: bytes.fromhex(key) for name, _, key in lines}

    def enrolments(self, epoch, *names):
        """A file of keys of an epoch, as an office exports it."""
        path = self.folder.parent / f"keys-{epoch}-{len(names)}.txt"
        keys = tuple(EnrolledKey(name, epoch, lsag.keygen().public) for name in names)
        write_keys(path, keys)
        return path


@pytest.fixture
def here(tmp_path, capsys):
    """A federation of one hospital, all of it on this machine."""
    (tmp_path / "study.toml").write_text(STUDY)
    words = ["federation", "init", tmp_path / "fed", "--config", tmp_path / "study.toml"]
    words += ["--devices", "6", "--broker-url", "mqtt://127.0.0.1:1883"]
    assert main([*map(str, words)]) == 0
    authority = next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith("authority")
    ).split()[-1]
    return Folder(tmp_path / "fed", authority, capsys)


@pytest.fixture
def apart(tmp_path, capsys):
    """Two hospitals on machines of their own."""
    (tmp_path / "study.toml").write_text(TWO)
    names = ("north", "south")
    for name in names:
        assert main(["federation", "hospital", str(tmp_path / name), "--name", name]) == 0
    config = ["--config", str(tmp_path / "study.toml"), "--devices", "6"]
    cards = [w for n in names for w in ("--card", str(tmp_path / n / f"{n}.card"))]
    capsys.readouterr()
    assert main(["federation", "assemble", str(tmp_path / "authority"), *config, *cards]) == 0
    said = capsys.readouterr().out
    authority = next(line for line in said.splitlines() if line.startswith("auth")).split()[-1]
    machines = [Folder(tmp_path / name, authority, capsys) for name in names]
    for machine in machines:
        shutil.copytree(tmp_path / "authority" / "public", machine.public)
    machines[0].run("enrol", *config)
    for giver, taker in (machines, machines[::-1]):
        for record in ("roster.cbor", "sum-key.cbor"):
            shutil.copy(giver.public / record, taker.public)
        taker.run("sign")
    return machines


def test_one_command_revokes_where_all_hospitals_are_on_one_machine(here):
    before = here.study
    said = here.roster("--revoke", "device-2", "--revoke", here.names["device-5"].hex())
    assert "4: 2 removed, 0 added, 4 as before" in said
    assert "signed by all hospitals and installed" in said
    after = here.study
    rosters.check_follows(after.roster, before.roster)
    gone = {here.names["device-2"], here.names["device-5"]}
    assert set(before.roster.keys) - set(after.roster.keys) == gone
    # The one before is kept: an aggregator that missed it can still follow.
    (kept,) = (here.public / "rosters").iterdir()
    assert trust.open_roster(kept.read_bytes(), before.federation) == before.roster
    assert not (here.public / "next-roster.cbor").exists()
    assert after.roster_digest.hex() in here.roster()


def test_devices_join_and_a_revoked_one_does_not_come_back_with_them(here):
    here.roster("--revoke", "device-1")
    joining = here.enrolments(1, "new-1", "new-2")
    said = here.roster("--enrol", "--enrol-from", joining)
    assert "7: 0 removed, 2 added, 5 as before" in said
    assert here.names["device-1"] not in here.study.roster.keys
    # One ring stays one ring: a second one would be a smaller crowd for all.
    assert len(here.study.rings) == 1


def test_a_new_epoch_has_those_who_enrolled_for_it_and_none_that_was_revoked(here):
    here.roster("--revoke", "device-1")
    names = [f"device-{n}" for n in range(1, 6)]
    said = here.roster("--new-epoch", "--enrol-from", here.enrolments(2, *names))
    assert "epoch       2, a new one" in said
    assert "left out    device-1: revoked before, or barred" in said
    assert len(here.study.roster.keys) == 4
    said = here.roster(
        "--new-epoch", "--readmit", "device-1", "--enrol-from", here.enrolments(3, *names)
    )
    assert "left out" not in said
    assert (here.study.roster.epoch, here.study.roster.serial) == (3, 3)
    assert len(here.study.roster.keys) == 5


def test_who_was_revoked_in_an_epoch_does_not_join_the_next_one_later_on(here):
    here.roster("--revoke", "device-1")
    first = here.enrolments(2, *[f"device-{n}" for n in range(1, 6)])
    here.roster("--new-epoch", "--enrol-from", first)
    # Those who came later join; the revoked device's key of this epoch was in no roster yet.
    late = here.enrolments(2, "device-6")
    said = here.roster("--enrol-from", first, "--enrol-from", late)
    assert "5: 0 removed, 1 added, 4 as before" in said
    assert "left out    device-1" in said
    said = here.roster("--enrol-from", first, code=2)
    assert "nothing changes" in said
    assert "device-1, revoked before or barred" in said
    said = here.roster("--enrol-from", first, "--readmit", "device-1")
    assert "6: 0 removed, 1 added, 5 as before" in said


def test_who_was_barred_after_enrolling_is_not_taken_in(here):
    """A thief who used a ticket stands in the office until the host bars the name."""
    (config,) = here.folder.glob("hospitals/*/gateway.toml")
    with closing(open_store(config.parent / "gateway")) as db:
        joining = [EnrolledKey(name, 1, lsag.keygen().public) for name in ("new-1", "new-2")]
        enrolment.import_keys(db, joining)
        enrolment.bar(db, "new-1")
    said = here.roster("--enrol")
    assert "left out    new-1: revoked before, or barred" in said
    assert joining[0].key not in here.study.roster.keys
    assert joining[1].key in here.study.roster.keys
    # A key in a roster stays there until it is revoked.
    with closing(open_store(config.parent / "gateway")) as db:
        enrolment.bar(db, "new-2")
    here.roster("--revoke", "device-1")
    assert joining[1].key in here.study.roster.keys


def test_a_device_has_one_key_in_a_roster(here):
    another = here.enrolments(1, "device-1")
    assert "device-1 would have two keys in epoch 1" in here.roster("--enrol-from", another, code=2)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--revoke", "nobody"), "nobody has no key in roster 0 of ward-1"),
        (("--revoke", "ab" * 32), "has no key in roster 0"),
        (("--enrol",), "nothing changes"),
        (("--new-epoch",), "0 devices have a key of epoch 2: open the enrolment"),
        (("--readmit", "device-1"), "--readmit goes with --new-epoch"),
        (("--revoke", "device-1", "--ring-size", "2000"), "rings of suite 1 have 1024 at most"),
        (("--ring-size", "3"), "asks for 4 at least"),
        ([w for n in "1234" for w in ("--revoke", f"device-{n}")], "no round would have a sum"),
    ],
)
def test_what_cannot_be_is_said(here, words, complaint):
    before = here.study
    assert complaint in here.roster(*words, code=2)
    assert here.study == before
    assert not (here.public / "next-roster.cbor").exists()


def test_hospitals_apart_are_told_what_changes_and_sign_one_after_the_other(apart):
    north, south = apart
    before = north.study
    said = north.roster("--revoke", "device-3")
    assert "5: 1 removed, 0 added, 5 as before" in said
    assert "south: each puts it into its folder `public`" in said
    # Nothing that services read has changed.
    assert north.study == before
    assert "lacks the signature of south" in north.run("install", code=2)
    assert "is being signed" in north.roster("--revoke", "device-4", code=2)
    assert "missing     south" in north.roster()
    shutil.copy(north.public / "next-roster.cbor", south.public)
    said = south.run("sign")
    assert "1 removed, 0 added" in said
    assert "signed by all hospitals: send it back" in said
    shutil.copy(south.public / "next-roster.cbor", north.public)
    assert "the next round's plan names it" in north.run("install")
    rosters.check_follows(north.study.roster, before.roster)
    # The other hospital learns of it by the plan, or installs it too.
    south.run("install")
    assert south.study == north.study
    # A power cut before the last step leaves the file: installing once more ends it.
    shutil.copy(south.public / "roster.cbor", south.public / "next-roster.cbor")
    south.run("install")
    assert south.study == north.study
    assert not (south.public / "next-roster.cbor").exists()


def test_only_the_host_makes_rosters_and_strangers_signatures_are_refused(apart):
    north, south = apart
    assert "north is the host of north-sea and makes its rosters" in south.roster(
        "--revoke", "device-1", code=2
    )
    north.roster("--revoke", "device-3")
    data = bytearray((north.public / "next-roster.cbor").read_bytes())
    data[-1] ^= 1
    (south.public / "next-roster.cbor").write_bytes(data)
    assert south.run("sign", code=2)
    # One that comes after nothing known here is not signed either.
    shutil.copy(south.public / "roster.cbor", south.public / "next-roster.cbor")
    assert "nobody goes back to an older one" in south.run("sign", code=2)


def test_a_hospital_signs_one_roster_of_a_number(apart):
    """A host that has two signed by everybody could show each to some of the devices."""
    north, south = apart
    north.roster("--revoke", "device-3")
    shutil.copy(north.public / "next-roster.cbor", south.public)
    south.run("sign")
    south.run("sign")  # the same again changes nothing
    complete = (south.public / "next-roster.cbor").read_bytes()
    # The host takes it back, and makes another one of the same number.
    (north.public / "next-roster.cbor").unlink()
    assert "north has signed another roster 1 of ward-1 before" in north.roster(
        "--revoke", "device-4", code=2
    )
    assert not (north.public / "next-roster.cbor").exists()
    north.roster("--revoke", "device-4", "--instead")
    other = (north.public / "next-roster.cbor").read_bytes()
    (south.public / "next-roster.cbor").write_bytes(other)
    said = south.run("sign", code=2)
    assert "south has signed another roster 1 of ward-1 before" in said
    assert (south.public / "next-roster.cbor").read_bytes() == other
    # What both have signed can be installed, and the next number is free.
    (north.public / "next-roster.cbor").write_bytes(complete)
    north.run("install")
    north.roster("--revoke", "device-4")
    shutil.copy(north.public / "next-roster.cbor", south.public)
    assert "signed by all hospitals" in south.run("sign")


def test_a_hospital_signs_one_first_roster_unless_its_operator_says_so(apart):
    _, south = apart
    record = south.study.roster
    (seed,) = south.folder.glob("hospitals/*/identity.seed")
    twin = dataclasses.replace(record, keys=record.keys[1:])
    # As if this hospital alone had signed it; the host's signature makes no difference.
    (south.public / "roster.cbor").write_bytes(signing.sign(twin, [seed.read_bytes()]))
    assert "has signed another roster 0 of ward-1" in south.run("sign", code=2)
    assert "5 devices" in south.run("sign", "--instead")
