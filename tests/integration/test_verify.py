"""The outside verifier: it accepts honest logs and names the file of every fault.

Faults are made the way their makers could: a thief of files changes bytes; a malicious
gateway signs a new checkpoint, new reports and receipts over what it made up.
"""

import argparse
import base64
import hashlib
import random
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from federation_fixture import (
    FOLLOWING,
    SOME_PRIVACY,
    Parties,
    SmallFederation,
    small_federation,
)

from vitalring.errors import LogError, RecordError
from vitalring.gateway.export import export_log
from vitalring.protocol import checkpoint as notes
from vitalring.protocol import merkle, tiles
from vitalring.protocol.cbor import decode, digest, encode, type_of
from vitalring.protocol.records import (
    AcceptedUpdate,
    GlobalModel,
    LoggedObject,
    Receipts,
    RoundPlan,
    RoundReport,
)
from vitalring.protocol.signing import Signed, sign, sign_payload
from vitalring.protocol.update import update_digest
from vitalring.protocol.weights import pack_weights
from vitalring.tools import verify

ROUNDS = ((0, 1, 2, 3, 4, 5), (0, 2, 4), (0, 1, 2, 3, 5))


@dataclass(frozen=True)
class Honest:
    federation: SmallFederation
    folder: Path


def build(folder, rounds=ROUNDS, **options):
    federation = small_federation(**options)
    parties = Parties(federation, folder / "state")
    for devices in rounds:
        parties.run_round(devices)
    export_log(parties.db, federation.files, folder / "log")
    return federation, parties


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("honest")
    federation, parties = build(folder)
    parties.close_databases()
    return Honest(federation, folder / "log")


@pytest.fixture
def log_copy(made, tmp_path):
    return Path(shutil.copytree(made.folder, tmp_path / "log"))


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}


def fault(folder, authority=None):
    with pytest.raises(LogError) as caught:
        verify.verify_log(folder, authority)
    return str(caught.value)


class Forger:
    """The content of a log folder, and whoever holds the gateway's log key to rewrite it."""

    def __init__(self, made):
        self.federation = made.federation
        paths = files_of(made.folder)
        size = int((made.folder / "checkpoint").read_bytes().split(b"\n")[1])
        self.entries = []
        for tile in tiles.tiles(size):
            if tile.level is None:
                self.entries += tiles.decode_bundle(paths[tile.path].read_bytes(), tile.width)
        self.objects = {
            digest(p.read_bytes()): p.read_bytes()
            for name, p in paths.items()
            if name.startswith("objects/")
        }
        self.receipts = {
            int(name.split("/")[1]): p.read_bytes()
            for name, p in paths.items()
            if name.startswith("receipts/")
        }
        self.authority = paths["authority"].read_bytes()

    def position(self, kind, number=1):
        """Where the `number`-th entry of a kind stands."""
        found = [i for i, entry in enumerate(self.entries) if self._kind(entry) == kind]
        return found[number - 1]

    def _kind(self, entry):
        if type_of(entry) == AcceptedUpdate.TYPE:
            return "accepted-update"
        return decode(LoggedObject, entry).kind

    def signed(self, kind, number=1):
        return self.objects[decode(LoggedObject, self.entries[self.position(kind, number)]).digest]

    def record(self, cls, kind, number=1):
        return decode(cls, decode(Signed, self.signed(kind, number)).payload)

    def replace_signed(self, kind, content, number=1):
        """Put another signed record in the place of one; the entry then names it."""
        position = self.position(kind, number)
        del self.objects[decode(LoggedObject, self.entries[position]).digest]
        self.objects[digest(content)] = content
        self.entries[position] = encode(LoggedObject(kind, digest(content)))
        return f"objects/{digest(content).hex()}"

    def resign_report(self, number=1, **changes):
        report = replace(self.record(RoundReport, "round-report", number), **changes)
        content = sign(report, [self.federation.log_key.seed])
        path = self.replace_signed("round-report", content, number)
        # Let the model follow, so that the report alone is at fault.
        self.resign_model(number, report=digest(content))
        return path

    def resign_model(self, number=1, key=None, **changes):
        model = replace(self.record(GlobalModel, "global-model", number), **changes)
        content = sign(model, [key or self.federation.aggregator_seed])
        return self.replace_signed("global-model", content, number)

    def resign_receipts(self, number):
        """Receipts that agree with the entries as they are now."""
        plan = digest(self.signed("round-plan", number))
        updates = [decode(AcceptedUpdate, e) for e in self.entries if self._kind(e)[0] == "a"]
        digests = tuple(update.digest for update in updates if update.plan == plan)
        self.receipts[number] = sign(Receipts(plan, digests), [self.federation.log_key.seed])

    def write(self, folder, seed=None):
        """Write the folder with tiles, root and checkpoint that fit the entries."""
        seed = seed or self.federation.log_key.seed
        origin = self.federation.log_key.origin
        root = merkle.root_of(merkle.leaf_hash(entry) for entry in self.entries)
        note = notes.sign(notes.Checkpoint(origin, len(self.entries), root), seed, origin)
        files = {"authority": self.authority, "checkpoint": note}
        files |= tiles.encode_log(self.entries)
        files |= {f"objects/{name.hex()}": content for name, content in self.objects.items()}
        files |= {f"receipts/{number}": content for number, content in self.receipts.items()}
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder


@pytest.fixture
def forger(made):
    return Forger(made)


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


# Faults that only the gateway's own log key can make: the checkpoint is sound.


def test_a_round_plan_signed_by_another_key(forger, tmp_path):
    plan = forger.record(RoundPlan, "round-plan", 3)
    path = forger.replace_signed("round-plan", sign(plan, [forger.federation.log_key.seed]), 3)
    assert re.match(f"{path}: .*unknown key", fault(forger.write(tmp_path / "log")))


@pytest.mark.parametrize("kind", ["federation", "study-plan", "roster", "sum-key"])
def test_a_study_record_signed_by_another_key(forger, tmp_path, kind):
    payload = decode(Signed, forger.signed(kind)).payload
    path = forger.replace_signed(kind, sign_payload(payload, [forger.federation.log_key.seed]))
    message = fault(forger.write(tmp_path / "log"))
    assert "key" in message
    assert message.startswith("authority" if kind == "federation" else path)


def test_a_model_signed_by_another_key(forger, tmp_path):
    path = forger.resign_model(3, key=forger.federation.log_key.seed)
    assert re.match(f"{path}: .*unknown key", fault(forger.write(tmp_path / "log")))


def test_a_signer_counted_twice(forger, tmp_path):
    """Device 0 signs a second update, and the gateway makes everything else fit."""
    federation = forger.federation
    update = federation.update(forger.signed("round-plan", 3), 0, rng_seed=77)
    entry = encode(
        AcceptedUpdate(
            update.plan,
            update.ring,
            update_digest(update.plan, update.ring, update.ciphertexts),
            update.signature,
        )
    )
    first = forger.position("round-plan", 3) + 1
    end = forger.position("round-report", 3)
    forger.entries[first:end] = sorted(
        [*forger.entries[first:end], entry], key=lambda e: decode(AcceptedUpdate, e).digest
    )
    forger.resign_report(3, admitted=6)
    forger.resign_model(3, contributions=6)
    forger.resign_receipts(3)
    assert "a second time" in fault(forger.write(tmp_path / "log"))


def test_an_update_that_nobody_signed(forger, tmp_path):
    position = forger.position("accepted-update", 2)
    update = decode(AcceptedUpdate, forger.entries[position])
    forged = replace(update, digest=update.digest[:-1] + bytes([update.digest[-1] ^ 1]))
    forger.entries[position] = encode(forged)
    forger.resign_receipts(1)
    message = fault(forger.write(tmp_path / "log"))
    assert re.match(f"tile/entries.*entry {position} is not signed by its ring", message)


def test_an_update_of_a_ring_that_is_not_there(forger, tmp_path):
    position = forger.position("accepted-update", 2)
    update = replace(decode(AcceptedUpdate, forger.entries[position]), ring=2)
    forger.entries[position] = encode(update)
    message = fault(forger.write(tmp_path / "log"))
    assert re.match(f"tile/entries.*entry {position} names ring 2", message)


def test_more_updates_than_a_sum_can_hold(tmp_path):
    """One more than `n_max`: fields of the sum may have overflowed into one another."""
    federation, _ = build(tmp_path, rounds=[range(4)], n_max=4)
    forger = Forger(Honest(federation, tmp_path / "log"))
    update = federation.update(forger.signed("round-plan"), 4)
    name = update_digest(update.plan, update.ring, update.ciphertexts)
    entry = encode(AcceptedUpdate(update.plan, update.ring, name, update.signature))
    first, end = forger.position("round-plan") + 1, forger.position("round-report")
    forger.entries[first:end] = sorted(
        [*forger.entries[first:end], entry], key=lambda e: decode(AcceptedUpdate, e).digest
    )
    forger.resign_report(1, admitted=5)
    forger.resign_model(1, contributions=5)
    forger.resign_receipts(1)
    assert "whose sum holds 4" in fault(forger.write(tmp_path / "forged"))


def test_receipts_of_another_round(forger, tmp_path):
    receipts = decode(Receipts, decode(Signed, forger.receipts[1]).payload)
    other = replace(receipts, plan=b"\x01" * 32)
    forger.receipts[1] = sign(other, [forger.federation.log_key.seed])
    assert fault(forger.write(tmp_path / "log")).startswith("receipts/1: its plan")


def test_an_artefact_that_describes_another_network(tmp_path):
    build(tmp_path, rounds=(), described_dimension=9)
    assert re.match("objects/.*another network", fault(tmp_path / "log"))


@pytest.mark.parametrize("size", [0, 1, 3])
def test_a_log_without_all_study_records(forger, tmp_path, size):
    del forger.entries[size:]
    assert fault(forger.write(tmp_path / "log")).startswith("checkpoint: the log ends before")


def test_a_record_of_the_study_among_the_rounds(forger, tmp_path):
    forger.entries.append(forger.entries[forger.position("sum-key")])
    message = fault(forger.write(tmp_path / "log"))
    assert re.match("tile/entries.*entry 27 is a sum-key, must be a round-plan", message)


def test_study_records_out_of_order(forger, tmp_path):
    swap(forger.entries, 1, 2)
    assert re.match("tile/entries.*entry 1 is a roster", fault(forger.write(tmp_path / "log")))


def test_an_update_of_another_round(forger, tmp_path):
    """An entry of round 1 once more in round 3."""
    entry = forger.entries[forger.position("accepted-update", 1)]
    forger.entries.insert(forger.position("round-plan", 3) + 1, entry)
    assert "another plan" in fault(forger.write(tmp_path / "log"))


def test_a_dropped_update(forger, tmp_path):
    del forger.entries[forger.position("accepted-update", 2)]
    assert "admitted" in fault(forger.write(tmp_path / "log"))
    forger.resign_report(1, admitted=5)
    forger.resign_model(1, contributions=5)
    # The receipts that devices were given still tell.
    assert fault(forger.write(tmp_path / "log2")).startswith("receipts/1: ")


@pytest.mark.parametrize(
    "changes",
    [
        {"admitted": 5},
        {"admitted": 7},
        {"status": "below_min_cohort", "sum": b""},
        {"sum": b""},
        {"status": "below_min_cohort"},
        {"expected": 5},
        {"expected": 7},
        {"round": 2},
        {"plan": b"\x01" * 32},
    ],
    ids=repr,
)
def test_a_wrong_report(forger, tmp_path, changes):
    path = forger.resign_report(1, **changes)
    assert fault(forger.write(tmp_path / "log")).startswith(f"{path}: ")


def test_a_sum_released_below_the_minimum(forger, tmp_path):
    path = forger.resign_report(2, status="summed", sum=b"\x01" * 32)
    assert fault(forger.write(tmp_path / "log")).startswith(f"{path}: ")


def swap(entries, one, other):
    entries[one], entries[other] = entries[other], entries[one]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("federation", 1), ("study-plan", 1)),
        (("roster", 1), ("sum-key", 1)),
        (("accepted-update", 1), ("accepted-update", 2)),
        (("round-plan", 1), ("accepted-update", 1)),
        (("round-report", 1), ("global-model", 1)),
        (("accepted-update", 6), ("round-report", 1)),
        (("round-plan", 1), ("round-plan", 3)),
        (("global-model", 1), ("global-model", 3)),
        (("round-report", 1), ("round-report", 3)),
        (("global-model", 1), ("round-plan", 2)),
    ],
)
def test_reordered_entries(forger, tmp_path, one, other):
    swap(forger.entries, forger.position(*one), forger.position(*other))
    assert re.match("tile/entries|objects/", fault(forger.write(tmp_path / "log")))


@pytest.mark.parametrize(
    "changes",
    [
        {"report": b"\x01" * 32},
        {"plan": b"\x01" * 32},
        {"round": 2},
        {"contributions": 4},
        {"applied": False},
        {"study": "other"},
        {"federation": "other"},
    ],
    ids=repr,
)
def test_a_model_that_does_not_follow_from_its_report(forger, tmp_path, changes):
    path = forger.resign_model(3, **changes)
    assert fault(forger.write(tmp_path / "log")).startswith(f"{path}: ")


def test_weights_that_change_without_a_sum(forger, tmp_path):
    last = forger.record(GlobalModel, "global-model", 3).weights
    path = forger.resign_model(2, weights=last)
    assert fault(forger.write(tmp_path / "log")).startswith(f"{path}: ")


def test_a_round_that_starts_from_other_weights(forger, tmp_path):
    """The aggregator signs that round 3 starts from what round 3 ended with."""
    last = forger.record(GlobalModel, "global-model", 3).weights
    plan = replace(forger.record(RoundPlan, "round-plan", 3), weights=last)
    path = forger.replace_signed("round-plan", sign(plan, [forger.federation.aggregator_seed]), 3)
    assert re.match(f"{path}: .*weights", fault(forger.write(tmp_path / "log")))


def test_a_first_round_that_starts_from_other_weights_than_the_seed_gives(forger, tmp_path):
    content = pack_weights(forger.federation.start() + 0.25)
    forger.objects[digest(content)] = content
    plan = replace(forger.record(RoundPlan, "round-plan", 1), weights=digest(content))
    path = forger.replace_signed("round-plan", sign(plan, [forger.federation.aggregator_seed]), 1)
    assert re.match(f"{path}: .*weights", fault(forger.write(tmp_path / "log")))


@pytest.mark.parametrize("content", [b"", b"\x00" * 36, b"\xff" * 32])
def test_weights_that_are_none(forger, tmp_path, content):
    forger.objects[digest(content)] = content
    forger.resign_model(3, weights=digest(content))
    message = fault(forger.write(tmp_path / "log"))
    assert message.startswith(f"objects/{digest(content).hex()}: weights")


def test_nothing_may_follow_a_final_model(forger, tmp_path):
    forger.resign_model(2, final=True)
    assert "final" in fault(forger.write(tmp_path / "log"))


def test_a_round_left_without_its_model(forger, tmp_path):
    del forger.entries[forger.position("global-model", 2)]
    assert "has no model" in fault(forger.write(tmp_path / "log"))


def test_an_unknown_kind_of_entry(forger, tmp_path):
    forger.entries.append(b"an entry of another kind")
    assert "entry 27 cannot be read" in fault(forger.write(tmp_path / "log"))


def test_a_second_round_of_one_number(forger, tmp_path):
    first = forger.position("round-plan", 1)
    forger.entries += forger.entries[first : forger.position("round-plan", 2)]
    assert re.search("round 1 where round 4 is next", fault(forger.write(tmp_path / "log")))


def test_a_privacy_claim_that_its_own_numbers_break(tmp_path):
    """The authority claims epsilon 0.1 with numbers that spend more."""
    privacy = replace(SOME_PRIVACY, epsilon=0.1)
    build(tmp_path, rounds=(), privacy=privacy)
    assert re.match("objects/.*claims epsilon 0.1", fault(tmp_path / "log"))


def test_rings_below_what_the_study_asks(tmp_path):
    with pytest.raises(RecordError, match="rings of 3 keys"):
        build(tmp_path, rounds=(), ring_size=3, min_ring=4)


# A run's folder and the command.


def arguments(*words):
    parser = argparse.ArgumentParser()
    verify.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


@pytest.fixture
def run_folder(log_copy):
    return log_copy.parent


def final_weights(folder):
    verdict = verify.verify_log(folder, None)
    return (folder / "objects" / verdict.final_weights.hex()).read_bytes()


def test_a_runs_folder_is_checked_with_its_weights(run_folder, capsys):
    content = final_weights(run_folder / "log")
    assert any("weights.bin" in text for text in verify.verify_folder(run_folder, None).findings)
    (run_folder / "weights.bin").write_bytes(content)
    assert verify.run(arguments(run_folder)) == 0
    (run_folder / "weights.bin").write_bytes(content[:-1] + b"\x00")
    assert verify.run(arguments(run_folder)) == 1
    assert "weights.bin" in capsys.readouterr().err


def test_the_command_says_which_key_it_believed(made, capsys):
    assert verify.run(arguments(made.folder)) == 0
    said = capsys.readouterr().out
    assert verify.fingerprint(made.federation.authority_key) in said
    assert "compare its fingerprint" in said
    key = made.federation.authority_key.hex()
    assert verify.run(arguments(made.folder, "--authority", key)) == 0
    said = capsys.readouterr().out
    assert "compare its fingerprint" not in said
    assert "14 updates" in said


def test_the_command_tells_of_class_schedule_and_clip(tmp_path, capsys):
    changing = replace(FOLLOWING["privacy"], schedule=(1.1, 0.9))
    options = {**FOLLOWING, "privacy": changing, "data_class": "heart-rhythm"}
    _, parties = build(tmp_path, rounds=ROUNDS[:1], secure_sum="single-he", **options)
    parties.close_databases()
    assert verify.run(arguments(tmp_path / "log")) == 0
    said = capsys.readouterr().out
    assert "  data         heart-rhythm\n" in said
    assert ", noise times 1.1 in rounds 1 to 20, 0.9 in rounds 21 to 40\n" in said
    assert "  clip         update_clip follows the 0.5 quantile from 1 on, at rate 0.2; its" in said


def test_the_command_names_a_fault_in_one_line(run_folder, capsys):
    (run_folder / "log" / "checkpoint").write_bytes(b"\x1b[2J\n\nnothing")
    assert verify.run(arguments(run_folder)) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "log/checkpoint: " in said
    assert "\x1b" not in said


@pytest.mark.parametrize("name", ["\x1b[2J", "two\nlines"])
def test_a_file_name_cannot_write_to_the_terminal(log_copy, capsys, name):
    (log_copy / name).write_bytes(b"")
    assert verify.run(arguments(log_copy)) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "\x1b" not in said


@pytest.mark.parametrize("what", ["nothing", "file", "empty"])
def test_a_folder_that_is_no_log(tmp_path, capsys, what):
    path = tmp_path / "here"
    if what == "file":
        path.write_bytes(b"")
    elif what == "empty":
        path.mkdir()
    assert verify.run(arguments(path)) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("key", ["", "ab", "AB" * 32, "g" * 64, "ab" * 33])
def test_an_authority_key_that_is_none(key):
    with pytest.raises(SystemExit):
        arguments("folder", "--authority", key)
