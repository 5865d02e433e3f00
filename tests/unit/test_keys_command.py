"""Hospitals with folders of their own make a key on the command line, by carrying files."""

import re
import shutil
from dataclasses import replace

import pytest
from federation_fixture import seed, small_federation

from vitalring.aggregator import key_backup, key_share
from vitalring.files import write_secret
from vitalring.protocol import trust
from vitalring.protocol.records import Hospital
from vitalring.protocol.secure_sum import threshold_params
from vitalring.protocol.signing import public_key, sign
from vitalring.tools.cli import main

NAMES = ("north", "south", "west")
AUTHORITY = seed("authority")
PASSPHRASE = "six words that the dice chose"


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(key_backup, "Cost", lambda: key_backup_cost)


key_backup_cost = key_backup.Cost(1, 8192)


def study_of(folder, threshold):
    """Write the two records that a ceremony begins with."""
    small = small_federation().study
    hospitals = tuple(
        Hospital(
            name,
            *(public_key(seed(f"{kind} of {name}")) for kind in ("identity", "log")),
            seed(f"sealing of {name}"),
            public_key(seed(f"aggregator of {name}")),
        )
        for name in NAMES
    )
    federation = replace(small.federation, hospitals=hospitals, authority_key=public_key(AUTHORITY))
    plan = replace(small.plan, secure_sum="threshold-he", threshold=threshold, quorum=threshold)
    folder.mkdir()
    (folder / "federation.cbor").write_bytes(sign(federation, [AUTHORITY]))
    (folder / "study.cbor").write_bytes(sign(plan, [AUTHORITY]))


class Hospitals:
    """Three machines, and somebody who carries files between them."""

    def __init__(self, folder, threshold, capsys):
        self.folder, self.capsys = folder, capsys
        study_of(folder / "study", threshold)
        for name in NAMES:
            write_secret(folder / name / "identity.seed", seed(f"identity of {name}"))

    def keys(self, step, name, *words, code=0):
        assert main(["federation", "keys", step, str(self.home(name)), *words]) == code
        return self.capsys.readouterr().out

    def home(self, name):
        return self.folder / name / "key"

    def start(self, name):
        return self.keys(
            "start",
            name,
            *("--study", str(self.folder / "study")),
            *("--identity", str(self.folder / name / "identity.seed")),
            *("--authority", public_key(AUTHORITY).hex()),
        )

    def carry(self, *names):
        """Send what `keys` said to send."""
        for name in names or NAMES:
            for path in re.findall(r"^(?:send|evidence) +(\S+?):?(?: |$)", self.said[name], re.M):
                for other in NAMES:
                    if other != name:
                        (self.home(other) / "exchange").mkdir(parents=True, exist_ok=True)
                        shutil.copy(path, self.home(other) / "exchange")

    def all(self, step, *words, code=0):
        self.said = {name: self.keys(step, name, *words, code=code) for name in NAMES}
        return self.said

    def until_compare(self):
        self.said = {name: self.start(name) for name in NAMES}
        for _ in range(4):
            self.carry()
            self.all("next")
        self.carry()
        return self.all("next")


@pytest.mark.parametrize("threshold", [2, 3])
def test_a_whole_ceremony_by_hand(tmp_path, capsys, threshold):
    hospitals = Hospitals(tmp_path, threshold, capsys)
    said = hospitals.until_compare()
    fingerprints = {hospitals.keys("fingerprint", name).strip() for name in NAMES}
    assert len(fingerprints) == 1
    (heard,) = fingerprints
    assert all(heard in text and "telephone" in text for text in said.values())
    assert hospitals.keys("fingerprint", "north", "--heard", "12ab" * 8, code=2) == ""
    assert "telephone" in hospitals.keys("next", "north")
    hospitals.all("fingerprint", "--heard", heard)
    hospitals.all("next")
    hospitals.carry()
    said = hospitals.all("next")
    assert all("signed by all hospitals" in text for text in said.values())
    # What came out is what every party opens, and the shares belong to it.
    federation = trust.open_federation(
        (tmp_path / "study" / "federation.cbor").read_bytes(), public_key(AUTHORITY)
    )
    plan = trust.open_study_plan((tmp_path / "study" / "study.cbor").read_bytes(), federation)
    joint = trust.joint_of(plan, 3)
    assert joint is not None
    params = threshold_params(plan.codec, plan.model.dimension, joint)
    for name in NAMES:
        envelope = (hospitals.home(name) / "sum-key.cbor").read_bytes()
        key = (hospitals.home(name) / "sum-key.bin").read_bytes()
        record = trust.open_sum_key(envelope, federation, plan)
        share = key_share.load_share(
            hospitals.home(name) / "private" / "attempt-1" / "key.share", params
        )
        assert share.public_key == key
        assert record.key == trust.digest(key)
        assert len(share.pieces) == (2 if threshold == 2 else 1)
    # What is done is done: again says the same and changes nothing.
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert "signed by all hospitals" in hospitals.keys("next", "south")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    hospitals.keys("start", "south", "--again", code=2)
    restore_drill(hospitals, tmp_path)


def restore_drill(hospitals, tmp_path):
    words = tmp_path / "passphrase"
    words.write_text(PASSPHRASE + "\n")
    safe, home = tmp_path / "safe.backup", hospitals.home("west")
    hospitals.keys("backup", "west", "--out", str(safe), "--passphrase-file", str(words))
    assert safe.stat().st_mode & 0o777 == 0o600
    share = home / "private" / "attempt-1" / "key.share"
    good = share.read_bytes()
    # The machine burns down; what was not secret comes from anywhere.
    shutil.rmtree(home / "private")
    (tmp_path / "west" / "identity.seed").unlink()
    arguments = ("--backup", str(safe), "--passphrase-file", str(words))
    said = hospitals.keys("restore", "west", *arguments, "--out", str(tmp_path / "back"))
    assert "fit the study's key" in said
    assert (tmp_path / "back").read_bytes() == good
    assert (tmp_path / "back").stat().st_mode & 0o777 == 0o600
    words.write_text("another passphrase")
    hospitals.keys("restore", "west", *arguments, "--out", str(tmp_path / "no"), code=2)
    words.write_text(PASSPHRASE)
    for path in (home / "exchange").glob("*reveal.north*"):
        path.unlink()
    hospitals.keys("restore", "west", *arguments, "--out", str(tmp_path / "no"), code=2)
    assert not (tmp_path / "no").exists()


def test_status_says_for_whom_one_waits(tmp_path, capsys):
    hospitals = Hospitals(tmp_path, 2, capsys)
    said = hospitals.start("north")
    assert "2 of 3 hospitals" in said
    hospitals.said = {"south": hospitals.start("south")}
    hospitals.carry("south")
    status = hospitals.keys("status", "north")
    assert re.search(r"waiting +for the files 1-commit of west\b", status)
    assert "attempt-1.1-commit.north.cbor" in status


def test_a_hostile_hospital_ends_the_attempt_and_all_begin_anew(tmp_path, capsys):
    hospitals = Hospitals(tmp_path, 2, capsys)
    hospitals.said = {name: hospitals.start(name) for name in NAMES}
    # West loses its state and begins again in the same attempt: two commitments.
    hospitals.carry()
    first = (hospitals.home("west") / "exchange" / "attempt-1.1-commit.west.cbor").read_bytes()
    shutil.rmtree(hospitals.home("west"))
    hospitals.start("west")
    shutil.copy(
        hospitals.home("west") / "exchange" / "attempt-1.1-commit.west.cbor",
        hospitals.home("north") / "exchange" / "west again.cbor",
    )
    assert first in [p.read_bytes() for p in (hospitals.home("north") / "exchange").iterdir()]
    said = hospitals.keys("next", "north", code=1)
    assert "ENDED" in said
    assert "names west" in said
    assert "--again" in said
    hospitals.said = {"north": said}
    hospitals.carry("north")
    assert "two different messages" in hospitals.keys("next", "south", code=1)
    assert "two different messages" in hospitals.keys("status", "south", code=1)
    for name in NAMES:
        hospitals.said[name] = hospitals.keys("start", name, "--again")
        assert "attempt 2" in hospitals.said[name]
        assert not (hospitals.home(name) / "private" / "attempt-1").exists()
    hospitals.carry()
    assert "2-reveal" in hospitals.keys("next", "north")
    assert "left aside" in hospitals.keys("status", "north")


def test_a_share_whose_key_was_signed_is_not_thrown_away(tmp_path, capsys):
    hospitals = Hospitals(tmp_path, 3, capsys)
    hospitals.until_compare()
    share = hospitals.home("north") / "private" / "attempt-1" / "key.share"
    heard = hospitals.keys("fingerprint", "north").strip()
    hospitals.keys("fingerprint", "north", "--heard", heard)
    hospitals.keys("next", "north")
    assert "attempt 2" in hospitals.keys("start", "north", "--again")
    assert share.exists()
    # South has signed nothing, so what it drew is of no use to anybody.
    hospitals.keys("start", "south", "--again")
    assert not (hospitals.home("south") / "private" / "attempt-1").exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ({"--authority": public_key(seed("thief")).hex()}, "unknown key"),
        ({"--authority": "no"}, "authority_key"),
        ({"--identity": "nobody.seed"}, "identity of no hospital"),
        ({"--study": "nothing"}, "cannot be read"),
    ],
)
def test_a_wrong_beginning_leaves_nothing(tmp_path, capsys, words, error):
    hospitals = Hospitals(tmp_path, 2, capsys)
    write_secret(tmp_path / "nobody.seed", seed("nobody"))
    given = {
        "--study": "study",
        "--identity": "north/identity.seed",
        "--authority": public_key(AUTHORITY).hex(),
    } | words
    given = {k: v if k == "--authority" else str(tmp_path / v) for k, v in given.items()}
    arguments = [word for pair in given.items() for word in pair]
    home = hospitals.home("north")
    assert main(["federation", "keys", "start", str(home), *arguments]) == 2
    assert error in capsys.readouterr().err
    assert not home.exists()


def test_a_study_without_a_joint_key_has_no_ceremony(tmp_path, capsys):
    hospitals = Hospitals(tmp_path, 2, capsys)
    small = small_federation(secure_sum="single-he").study
    federation = replace(small.federation, authority_key=public_key(AUTHORITY))
    (tmp_path / "study" / "federation.cbor").write_bytes(sign(federation, [AUTHORITY]))
    (tmp_path / "study" / "study.cbor").write_bytes(sign(small.plan, [AUTHORITY]))
    with pytest.raises(AssertionError):
        hospitals.start("north")
    assert "no joint key" in capsys.readouterr().err


def test_a_folder_that_began_is_not_begun_again(tmp_path, capsys):
    hospitals = Hospitals(tmp_path, 2, capsys)
    hospitals.start("north")
    with pytest.raises(AssertionError):
        hospitals.start("north")
    assert "has begun already" in capsys.readouterr().err
    hospitals.keys("next", "south", code=2)
