"""The outside verifier: it accepts honest logs and names the file of every fault.

Faults are made the way their makers could: a thief of files changes bytes; a malicious
gateway signs a new checkpoint, new reports and receipts over what it made up.
"""

import base64
import hashlib
import random
import re
import shutil
from pathlib import Path

import pytest
from federation_fixture import SOME_PRIVACY
from verify_fixture import ROUNDS, build, fault, files_of

from vitalring.gateway.export import export_log
from vitalring.protocol import checkpoint as notes
from vitalring.protocol import merkle
from vitalring.protocol.cbor import digest
from vitalring.protocol.records import GlobalModel
from vitalring.tools import verify

# Honest logs.


def test_an_honest_log_is_accepted(made):
    verdict = verify.verify_log(made.folder, made.federation.authority_key)
    assert (verdict.federation, verdict.plan.study) == ("fed", "study")
    assert [(r.number, r.status, r.expected, r.admitted) for r in verdict.rounds] == [
        (1, "summed", 6, 6),
        (2, "below_min_cohort", 6, 3),
        (3, "summed", 6, 5),
    ]
    assert verdict.updates == 14
    assert verdict.size == 4 + 3 * 3 + 14
    assert verdict.rounds[1].weights == verdict.rounds[0].weights != verdict.rounds[2].weights
    assert verdict.final_weights == verdict.rounds[2].weights
    assert verdict.epsilon == 0.0
    assert not [text for text in verdict.findings if "fingerprint" in text]


def test_the_forgers_own_tools_make_a_sound_log_when_nothing_is_forged(forger, tmp_path):
    # Otherwise the tests below might fail for another reason than their fault.
    verify.verify_log(forger.write(tmp_path / "log"), None)


def test_an_encrypted_sum_with_privacy_is_accepted_and_its_epsilon_recomputed(tmp_path):
    federation, parties = build(
        tmp_path, rounds=ROUNDS[:2], secure_sum="single-he", privacy=SOME_PRIVACY
    )
    parties.close_databases()
    verdict = verify.verify_log(tmp_path / "log", federation.authority_key)
    assert verdict.updates == 9
    assert 0.5 < verdict.epsilon < SOME_PRIVACY.epsilon
    key = digest(federation.decryption.public_key()).hex()
    assert (tmp_path / "log" / "objects" / key).is_file()
    # An encrypted sum would let a later holder of the key decrypt it.
    for path in files_of(tmp_path / "log").values():
        assert b"vitalring/encrypted-sum" not in path.read_bytes()


@pytest.mark.parametrize("stage", ["nothing", "open", "closed"])
def test_a_study_in_progress_is_accepted(tmp_path, stage):
    federation, parties = build(tmp_path, rounds=ROUNDS[:1])
    if stage != "nothing":
        parties.begin(parties.propose())
        parties.submit([0, 1, 2, 3])
    if stage == "closed":
        parties.close()
    export_log(parties.db, federation.files, tmp_path / "log")
    verdict = verify.verify_log(tmp_path / "log", None)
    last = verdict.rounds[-1]
    expected = {"nothing": (1, "summed"), "open": (2, "open"), "closed": (2, "summed")}
    assert (last.number, last.status) == expected[stage]
    assert any("not finished" in text for text in verdict.findings) == (stage != "nothing")
    assert verdict.final_weights == verdict.rounds[0].weights
    # Before the close nothing tells who has sent already.
    assert verdict.updates == {"nothing": 6, "open": 6, "closed": 10}[stage]


def test_a_log_before_its_first_round_is_accepted(tmp_path):
    build(tmp_path, rounds=())
    verdict = verify.verify_log(tmp_path / "log", None)
    assert (verdict.size, verdict.rounds, verdict.final_weights) == (4, (), None)


@pytest.fixture(scope="module")
def long_log(tmp_path_factory):
    """More than 256 entries: full tiles, partial tiles and a second level."""
    folder = tmp_path_factory.mktemp("long")
    _, parties = build(folder, rounds=[range(6)] * 30)
    parties.close_databases()
    return folder / "log"


def test_a_log_of_several_tiles_is_accepted(long_log):
    verdict = verify.verify_log(long_log, None)
    assert (verdict.size, verdict.updates) == (4 + 30 * 9, 180)
    assert (long_log / "tile" / "1" / "000.p" / "1").is_file()
    assert second_verifier(long_log) == (verdict.size, verdict.root)


# An independent reader of the same folder.


def second_verifier(folder):
    """RFC 9162 over the bundles, from the standard's text; nothing of the project is used."""

    def tree_hash(leaves):
        if len(leaves) <= 1:
            return hashlib.sha256(b"\x00" + leaves[0] if leaves else b"").digest()
        split = 1
        while split * 2 < len(leaves):
            split *= 2
        return hashlib.sha256(
            b"\x01" + tree_hash(leaves[:split]) + tree_hash(leaves[split:])
        ).digest()

    leaves = []
    bundles = sorted(p for p in (folder / "tile" / "entries").rglob("*") if p.is_file())
    for bundle in bundles:
        data = bundle.read_bytes()
        while data:
            length = int.from_bytes(data[:2], "big")
            leaves.append(data[2 : 2 + length])
            data = data[2 + length :]
    lines = (folder / "checkpoint").read_text("utf-8").split("\n")
    assert int(lines[1]) == len(leaves)
    assert base64.b64decode(lines[2]) == tree_hash(leaves)
    return len(leaves), tree_hash(leaves)


def test_a_second_verifier_agrees_on_size_and_root(made):
    verdict = verify.verify_log(made.folder, None)
    assert second_verifier(made.folder) == (verdict.size, verdict.root)


# Faults that anybody who can write to the folder can make.


def test_a_changed_leaf(log_copy):
    bundle = next(p for name, p in files_of(log_copy).items() if name.startswith("tile/entries"))
    content = bytearray(bundle.read_bytes())
    content[len(content) // 2] ^= 1
    bundle.write_bytes(content)
    assert fault(log_copy).startswith("tile/entries/000.p/27: ")


def test_a_changed_leaf_with_tiles_to_match(forger, made, tmp_path):
    update = forger.position("accepted-update")
    forger.entries[update] = forger.entries[update][:-1] + b"\x00"
    forger.write(tmp_path / "log")
    shutil.copy(made.folder / "checkpoint", tmp_path / "log" / "checkpoint")
    assert fault(tmp_path / "log").startswith("tile/entries")


def test_a_truncated_log(forger, made, tmp_path):
    forger.entries.pop()
    forger.write(tmp_path / "log")
    shutil.copy(made.folder / "checkpoint", tmp_path / "log" / "checkpoint")
    assert fault(tmp_path / "log").startswith("tile/entries/000.p/27: missing")


def test_an_older_log_with_newer_objects(tmp_path):
    federation, parties = build(tmp_path, rounds=ROUNDS[:1])
    earlier = Path(shutil.copytree(tmp_path / "log", tmp_path / "earlier"))
    parties.run_round(range(6))
    export_log(parties.db, federation.files, tmp_path / "log")
    shutil.copy(earlier / "checkpoint", tmp_path / "log" / "checkpoint")
    shutil.rmtree(tmp_path / "log" / "tile")
    shutil.copytree(earlier / "tile", tmp_path / "log" / "tile")
    assert "does not belong to this log" in fault(tmp_path / "log")


def test_a_swapped_model(log_copy, forger):
    """The weights of one round's model under the name of another's."""
    first, last = (forger.record(GlobalModel, "global-model", n).weights.hex() for n in (1, 3))
    shutil.copy(log_copy / "objects" / first, log_copy / "objects" / last)
    assert fault(log_copy).startswith(f"objects/{last}: ")


@pytest.mark.parametrize("key", ["stranger", "log"])
def test_a_forged_checkpoint(forger, tmp_path, key):
    """A log cut short and signed anew; with the log's own key it is a lie of another kind."""
    for _ in range(2):
        forger.entries.pop()
    if key == "log":
        forger.write(tmp_path / "log")
        assert fault(tmp_path / "log").startswith("tile/entries")
    else:
        forger.write(tmp_path / "log", seed=hashlib.sha256(b"stranger").digest())
        assert fault(tmp_path / "log").startswith("checkpoint: ")


def test_a_checkpoint_of_another_origin(forger, log_copy):
    key = forger.federation.log_key
    root = merkle.root_of(merkle.leaf_hash(entry) for entry in forger.entries)
    other = notes.Checkpoint("other.example/log", len(forger.entries), root)
    (log_copy / "checkpoint").write_bytes(notes.sign(other, key.seed, key.origin))
    assert fault(log_copy).startswith("checkpoint: ")


def test_a_checkpoint_with_a_line_that_nobody_vouches_for(log_copy):
    path = log_copy / "checkpoint"
    line = base64.b64encode(b"keyid and something").decode()
    path.write_bytes(path.read_bytes() + f"\u2014 witness.example {line}\n".encode())
    assert fault(log_copy).startswith("checkpoint: ")


def test_another_authority(log_copy, made):
    assert fault(log_copy, hashlib.sha256(b"x").digest()).startswith("authority: ")
    (log_copy / "authority").write_bytes(made.federation.identity_seed.hex().encode() + b"\n")
    assert fault(log_copy).startswith("authority: ")
    (log_copy / "authority").write_bytes(made.federation.authority_key.hex().upper().encode())
    assert fault(log_copy).startswith("authority: ")


@pytest.mark.parametrize("number", range(6))
def test_a_missing_file(made, log_copy, number):
    """One file of each kind, taken away."""
    kinds = {}
    for name, path in files_of(log_copy).items():
        kinds.setdefault("/".join(name.split("/")[:2]) if "tile" in name else name[:7], path)
    path = list(kinds.values())[number]
    name = path.relative_to(log_copy).as_posix()
    path.unlink()
    assert re.match(rf"({re.escape(name)}|objects).*missing", fault(log_copy))


def test_every_missing_object_is_missed(made, log_copy):
    for path in files_of(log_copy / "objects").values():
        content = path.read_bytes()
        path.unlink()
        assert "missing" in fault(log_copy)
        path.write_bytes(content)


@pytest.mark.parametrize(
    "name",
    ["README", ".hidden", "receipts/9", "receipts/01", "tile/7/000", "tile/0/000.p/5", "x/y"],
)
def test_a_superfluous_file(log_copy, name):
    (log_copy / name).parent.mkdir(parents=True, exist_ok=True)
    (log_copy / name).write_bytes(b"something")
    assert fault(log_copy).startswith(f"{name}: ")


def test_a_superfluous_object(log_copy):
    name = f"objects/{hashlib.sha256(b'something').hexdigest()}"
    (log_copy / name).write_bytes(b"something")
    assert fault(log_copy).startswith(f"{name}: ")


def test_a_symbolic_link(log_copy):
    target = log_copy.parent / "elsewhere"
    (log_copy / "authority").rename(target)
    (log_copy / "authority").symlink_to(target)
    assert fault(log_copy).startswith("authority: ")


def flips():
    """Sampled flips: 300 anywhere, by a generator with a fixed seed."""
    generator = random.Random(20240917)
    return [
        (generator.random(), generator.random(), 1 << generator.randrange(8)) for _ in range(300)
    ]


def test_any_flipped_bit_is_found_and_its_file_named(log_copy):
    files = files_of(log_copy)
    names = list(files)
    positions = [(names[int(which * len(names))], where, bit) for which, where, bit in flips()]
    positions += [(name, end, 1) for name in names for end in (0.0, 1.0)]
    for name, where, bit in positions:
        original = files[name].read_bytes()
        content = bytearray(original)
        at = min(int(where * len(content)), len(content) - 1)
        content[at] ^= bit
        files[name].write_bytes(content)
        message = fault(log_copy)
        assert message.startswith(f"{name}: "), (name, at, bit, message)
        files[name].write_bytes(original)
    verify.verify_log(log_copy, None)
