"""`vitalring claim` on a real log: a device, its verifier, and all who try to cheat either."""

import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from device_fixture import keyring
from federation_fixture import ORIGIN, Parties, small_federation
from hypothesis import given, settings
from hypothesis import strategies as st
from mutation_fixture import change_record, storm
from record_strategies import of
from two_gateways_fixture import ShareGateway, agree, split_update

from vitalring.edge_agent import state
from vitalring.edge_agent.config import AgentConfig
from vitalring.edge_agent.keyring import Keyring
from vitalring.errors import ConfigError, LogError, RecordError, SignatureError, VitalRingError
from vitalring.gateway.export import export_log
from vitalring.mqtt import BrokerConfig
from vitalring.protocol import checkpoint as notes
from vitalring.protocol import claim_records, claims, lsag, merkle
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.claim_records import Claim, ClaimRequest
from vitalring.protocol.records import AcceptedUpdate
from vitalring.protocol.two_server import ROLES
from vitalring.protocol.update import round_context
from vitalring.tools import claims as tool
from vitalring.tools import cli

CLAIMANT, NEIGHBOUR, ABSENT = 0, 1, 5
ROUNDS = ((0, 1, 2, 3), (0, 1, 2, 3, 4))
VERIFIER = lsag.keygen()
NONCE = digest(b"nonce")
ASKED = claim_records.open_request(claim_records.request(VERIFIER, NONCE))


class Study:
    """A small federation with an exported log, an older export of it, and devices' folders."""

    def __init__(self, folder, **options):
        self.folder = folder
        self.federation = small_federation(**options)
        parties = Parties(self.federation, folder / "state")
        for number, devices in enumerate(ROUNDS, 1):
            parties.run_round(devices)
            export_log(parties.db, self.federation.files, folder / f"log-of-round-{number}")
        parties.close_databases()
        self.log = folder / f"log-of-round-{len(ROUNDS)}"
        self.older = folder / "log-of-round-1"

    @property
    def authority(self):
        return self.federation.authority_key

    def keys(self, device):
        return self.federation.devices[device]

    def evidence(self, device=CLAIMANT, number=1, log=None):
        keys = self.keys(device)
        return tool.find_update(log or self.log, self.authority, lambda _epoch: keys, number)[0]

    def claim(self, device=CLAIMANT, number=1, asked=ASKED, log=None):
        evidence = self.evidence(device, number, log)
        return claim_records.claim(asked, self.keys(device), evidence, self.authority)

    def config(self, folder, device=CLAIMANT):
        """What `agent.toml` of a device says, in a folder with its key."""
        folder.mkdir()
        keyring(folder / "keys", self.keys(device))
        return AgentConfig(
            federation=folder / "federation.cbor",
            authority_key=self.authority.hex(),
            cohort="ward",
            ring_keys=folder / "keys",
            state_dir=folder / "state",
            broker=BrokerConfig(url="mqtt://localhost:1883"),
            data=folder,
            device="d0",
        )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module", params=[1, 2], ids=["lsag", "one-of-many"])
def of_suite(request, tmp_path_factory):
    return Study(tmp_path_factory.mktemp("suite"), ring_suite=request.param)


@pytest.fixture
def agent(study, tmp_path):
    return study.config(tmp_path / "device")


@pytest.fixture
def asked(tmp_path):
    """A request in a file, its secret beside it."""
    tool.ask(tmp_path / "request", tmp_path / "request.secret")
    return tmp_path / "request"


def opened(study, data, asked=ASKED):
    return claim_records.open_claim(data, asked, study.authority)


def refused(study, data, words, asked=ASKED, error=VitalRingError):
    with pytest.raises(error, match=words):
        opened(study, data, asked)


def altered(data, **changes):
    return encode(replace(decode(Claim, data), **changes))


def with_evidence(data, **changes):
    return altered(data, evidence=replace(decode(Claim, data).evidence, **changes))


# What holds.


@pytest.mark.parametrize("number", [1, 2])
def test_a_claim_of_either_suite_is_shown_to_its_verifier(of_suite, number):
    claim, counted = opened(of_suite, of_suite.claim(number=number))
    keys = of_suite.keys(CLAIMANT)
    assert claim.key == keys.public
    assert counted.plan.round == number
    assert counted.tag == lsag.tag_of(keys.secret, round_context(counted.plan))
    assert counted.study.plan.ring_suite == of_suite.federation.study.plan.ring_suite


def test_a_claim_made_when_the_log_was_shorter_holds_and_the_longer_log_goes_on_from_it(study):
    _, counted = opened(study, study.claim(log=study.older))
    checkpoint, leaves = tool._leaves(study.log, study.authority)
    older = counted.checkpoint
    assert older.size < checkpoint.size
    claim_records.require_prefix(older, leaves, checkpoint)
    with pytest.raises(LogError, match="different histories"):
        claim_records.require_prefix(older, leaves[::-1], checkpoint)
    with pytest.raises(LogError, match="known is log"):
        claim_records.require_prefix(older, leaves, replace(checkpoint, origin="other.example"))
    with pytest.raises(LogError, match="fetch it again"):
        claim_records.require_prefix(checkpoint, leaves[: older.size], older)


def test_every_device_can_claim_its_own_and_no_other_update(study):
    evidence = [study.evidence(device) for device in ROUNDS[0]]
    for owner, shown in zip(ROUNDS[0], evidence, strict=True):
        for device in ROUNDS[0]:
            keys = study.keys(device)
            if device == owner:
                opened(study, claim_records.claim(ASKED, keys, shown, study.authority))
            else:
                with pytest.raises(SignatureError, match=r"is not of key|is not in ring"):
                    claim_records.claim(ASKED, keys, shown, study.authority)


def test_a_claim_holds_by_the_log_of_either_of_two_gateways(tmp_path):
    federation = small_federation(secure_sum="two-server", hospitals=2, min_cohort=3)
    parties = Parties(federation, tmp_path / "parties")
    pair = [ShareGateway(federation, role, tmp_path) for role in ROLES]
    proposal = parties.propose()
    for gateway in pair:
        gateway.begin(proposal)
    for device in range(4):
        for gateway, half in zip(
            pair, split_update(federation, proposal.record, device)[0], strict=True
        ):
            assert gateway.admit(half)
    agree(*pair)
    keys, authority, origins = federation.devices[CLAIMANT], federation.authority_key, set()
    for gateway in pair:
        log = tmp_path / f"log-{gateway.role}"
        export_log(gateway.db, federation.files, log)
        gateway.db.close()
        shown, _ = tool.find_update(log, authority, lambda _epoch, own=keys: own, 1)
        data = claim_records.claim(ASKED, keys, shown, authority)
        _, counted = claim_records.open_claim(data, ASKED, authority)
        origins.add(counted.checkpoint.origin)
    assert len(origins) == 2
    parties.close_databases()


# What is refused.


def test_a_claim_for_another_verifier(study):
    other = claim_records.open_request(claim_records.request(lsag.keygen(), NONCE))
    refused(study, study.claim(), "is made for verifier", other, SignatureError)
    # Nor does it help to write the other verifier's name on it.
    renamed = altered(study.claim(), verifier=other.key)
    refused(study, renamed, "does not verify", other, SignatureError)


def test_a_claim_that_answered_an_earlier_request_of_the_same_verifier(study):
    later = claim_records.open_request(claim_records.request(VERIFIER, digest(b"later")))
    refused(study, study.claim(), "answers another request", later, SignatureError)
    renamed = altered(study.claim(), nonce=later.nonce)
    refused(study, renamed, "does not verify", later, SignatureError)


def test_a_claim_with_another_key(study):
    ring = opened(study, study.claim())[1].ring
    for key in ring:
        if key != study.keys(CLAIMANT).public:
            refused(study, altered(study.claim(), key=key), "does not verify")
    stranger = lsag.keygen().public
    refused(study, altered(study.claim(), key=stranger), "is not in ring")


def test_a_claim_with_anothers_update(study):
    """The tag is another's: taken from the same ring, so that nothing else is wrong."""
    ring = opened(study, study.claim())[1].ring
    others = [d for d in ROUNDS[0] if d != CLAIMANT and study.keys(d).public in ring]
    assert others
    for device in others:
        shown = study.evidence(device)
        refused(study, altered(study.claim(), evidence=shown), "does not verify")


def test_a_claim_with_the_own_update_of_another_round(study):
    moved = altered(study.claim(number=1), evidence=study.evidence(number=2))
    refused(study, moved, "does not verify")
    # The entry of one round with the plan of another.
    plan = study.evidence(number=2).round_plan
    refused(study, with_evidence(study.claim(), round_plan=plan), "another round plan")


def test_a_claim_with_a_changed_checkpoint(study):
    data = study.claim()
    note = decode(Claim, data).evidence.checkpoint
    origin, size, root, *rest = note.split(b"\n")
    changed = b"\n".join([origin, str(int(size) + 1).encode(), root, *rest])
    refused(study, with_evidence(data, checkpoint=changed), "does not verify", error=LogError)
    # Another true checkpoint of the same log, with the inclusion proof that goes with it.
    shown = study.evidence(log=study.older)
    assert shown.entry == decode(Claim, data).evidence.entry
    refused(study, altered(data, evidence=shown), "does not verify", error=SignatureError)
    # One that the log's key signed, over a tree that has not got the entry.
    key = study.federation.log_key
    made_up = notes.sign(notes.Checkpoint(ORIGIN, int(size), bytes(32)), key.seed, ORIGIN)
    refused(study, with_evidence(data, checkpoint=made_up), "does not hold this entry")
    # A line more, which nobody known vouches for.
    witness = notes.sign(notes.Checkpoint("witness", 1, bytes(32)), bytes(32), "witness")
    longer = note + witness.split(b"\n\n")[1]
    refused(study, with_evidence(data, checkpoint=longer), "more than the log's own signature")
    # One of a stranger's log.
    strange = notes.sign(notes.Checkpoint(ORIGIN, int(size), bytes(32)), bytes(32), ORIGIN)
    refused(study, with_evidence(data, checkpoint=strange), "no signature of a known key")


def test_a_claim_of_what_the_log_does_not_hold(study):
    data = study.claim()
    shown = decode(Claim, data).evidence
    entry = decode(AcceptedUpdate, shown.entry)
    made_up = encode(replace(entry, digest=digest(b"made up")))
    refused(study, with_evidence(data, entry=made_up), "does not hold this entry", error=LogError)
    moved = with_evidence(data, index=shown.index + 1)
    refused(study, moved, "does not hold this entry|hashes where exactly", error=LogError)
    # An entry that is there and no update.
    files = tool.LogFolder(study.log)
    checkpoint = files.checkpoint(files.federation(study.authority))
    entries = [encode(e.value) for e in files.entries(checkpoint)]
    proof = merkle.inclusion_proof([merkle.leaf_hash(e) for e in entries], 0)
    no_update = with_evidence(data, entry=entries[0], index=0, inclusion=tuple(proof))
    refused(study, no_update, "not an update", error=RecordError)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"digest": digest(b"made up")}, "ring signature does not verify"),
        ({"ring": 1 << 8}, "names ring 256, which the roster has not"),
        ({"plan": digest(b"made up")}, "another round plan"),
    ],
)
def test_a_claim_of_an_update_that_a_lying_gateway_logged(study, change, words):
    """The log is the gateway's; that a member signed the update is not for it to say."""
    shown = study.evidence()
    entry = encode(replace(decode(AcceptedUpdate, shown.entry), **change))
    _, leaves = tool._leaves(study.log, study.authority)
    leaves[shown.index] = merkle.leaf_hash(entry)
    made_up = notes.Checkpoint(ORIGIN, len(leaves), merkle.root_of(leaves))
    forged = replace(
        shown,
        entry=entry,
        inclusion=tuple(merkle.inclusion_proof(leaves, shown.index)),
        checkpoint=notes.sign(made_up, study.federation.log_key.seed, ORIGIN),
    )
    with pytest.raises(VitalRingError, match=words):
        claim_records.claim(ASKED, study.keys(CLAIMANT), forged, study.authority)
    refused(study, altered(study.claim(), evidence=forged), words)


def test_a_claim_under_a_key_that_is_not_the_authoritys(study, tmp_path):
    with pytest.raises(SignatureError, match="unknown key"):
        claim_records.open_claim(study.claim(), ASKED, lsag.keygen().public)
    other = Study(tmp_path, name="other")
    for name in ("study_plan", "roster", "sum_key", "round_plan"):
        foreign = getattr(other.evidence(), name)
        with pytest.raises(VitalRingError):
            opened(study, with_evidence(study.claim(), **{name: foreign}))


def test_a_request_whose_maker_does_not_have_its_secret():
    """Else its maker could let a claim convince everybody."""
    nobodys = lsag.tag_base(b"a point whose logarithm nobody knows")
    request = encode(replace(ASKED, key=nobodys))
    with pytest.raises(SignatureError, match="does not show that its maker has the secret"):
        claim_records.open_request(request)
    with pytest.raises(SignatureError, match="does not show that its maker has the secret"):
        claim_records.open_request(encode(replace(ASKED, nonce=bytes(32))))


# What nobody but the verifier is shown.


def test_the_verifier_can_make_a_claim_for_any_device_of_any_update(study):
    """Whoever he shows a claim to has therefore learnt nothing."""
    data = study.claim()
    shown, counted = opened(study, data)
    for key in counted.ring:
        statement = claim_records.statement(counted, shown.evidence, key, ASKED)
        proof = claims.simulate(statement, VERIFIER.secret)
        made_up = altered(data, key=key, proof=proof)
        assert opened(study, made_up)[0].key == key
        assert len(made_up) == len(data)


# The command.


def test_ask_prove_verify(study, tmp_path, capsys):
    config = study.config(tmp_path / "device")
    toml = tmp_path / "device" / "agent.toml"
    toml.write_text(
        f'federation = "federation.cbor"\nauthority_key = "{config.authority_key}"\n'
        'cohort = "ward"\nring_keys = "keys"\nstate_dir = "state"\ndata = "."\n'
        'device = "d0"\n[broker]\nurl = "mqtt://localhost:1883"\n'
    )
    request, claim = tmp_path / "request", tmp_path / "claim"
    assert cli.main(["claim", "ask", "--out", str(request)]) == 0
    read_out = capsys.readouterr().out.split("fingerprint ")[1].split(",")[0]
    told = f"--config {toml} --round 2 --request {request} --log {study.log} --out {claim}"
    assert cli.main(["claim", "prove", *told.split()]) == 0
    assert read_out in capsys.readouterr().out
    for path in (claim, request.with_name("request.secret")):
        assert path.stat().st_mode & 0o777 == 0o600
    asks = ["claim", "verify", str(claim), "--request", str(request)]
    for known in (
        ["--authority", study.authority.hex()],
        ["--log", str(study.log)],
        ["--log", str(study.log), "--authority", study.authority.hex()],
    ):
        assert cli.main([*asks, *known]) == 0
        said = capsys.readouterr().out
        assert f"ring key {study.keys(CLAIMANT).public.hex()} made this update" in said
        assert "round        2 of cohort ward, epoch 1" in said
        assert ("outcome      summed" in said) == ("--log" in known)
        assert ("taken from the folder itself" in said) == ("--authority" not in known)
    # Somebody else's authority; a claim changed on its way; nothing to hold it against.
    assert cli.main([*asks, "--authority", lsag.keygen().public.hex()]) == 1
    assert capsys.readouterr().err.startswith("not shown: ")
    claim.write_bytes(altered(claim.read_bytes(), key=study.keys(NEIGHBOUR).public))
    assert cli.main([*asks, "--log", str(study.log)]) == 1
    assert cli.main(asks) == 2
    assert "give the log's folder or the authority's key" in capsys.readouterr().err
    # Nothing is overwritten: a secret that a request is out for least of all.
    assert cli.main(["claim", "prove", *told.split()]) == 2
    assert cli.main(["claim", "ask", "--out", str(request)]) == 2


def test_without_the_requests_secret_a_claim_shows_nothing(study, agent, asked, tmp_path):
    made = tool.prove(agent, 1, asked, study.log)
    (tmp_path / "claim").write_bytes(made.data)
    tool.ask(tmp_path / "another", tmp_path / "another.secret")
    with pytest.raises(ConfigError, match="is not the secret of"):
        tool.verify(tmp_path / "claim", asked, tmp_path / "another.secret", study.log, None)
    with pytest.raises(ConfigError, match="cannot be read"):
        tool.verify(tmp_path / "claim", asked, tmp_path / "nothing", study.log, None)


def test_a_log_folder_that_is_not_sound_shows_nothing(study, agent, asked, tmp_path):
    made = tool.prove(agent, 1, asked, study.log)
    (tmp_path / "claim").write_bytes(made.data)
    copy = Path(shutil.copytree(study.log, tmp_path / "log"))
    secret = asked.with_name("request.secret")
    assert tool.verify(tmp_path / "claim", asked, secret, copy, None).verdict is not None
    (copy / "receipts" / "1").write_bytes(b"")
    with pytest.raises(LogError, match="receipts/1"):
        tool.verify(tmp_path / "claim", asked, secret, copy, None)
    with pytest.raises(LogError, match="fetch it again"):
        tool.verify(tmp_path / "claim", asked, secret, study.older, None)


def test_a_device_whose_key_is_erased_can_claim_nothing(study, agent, asked):
    keys = Keyring(agent.ring_keys)
    keys.draw(2)
    keys.erase(1)
    # Nor with the key of its next epoch.
    with pytest.raises(ConfigError, match="ring key of epoch 1 is erased"):
        tool.prove(agent, 1, asked, study.log)


def test_a_device_that_was_not_enrolled_can_claim_nothing(study, agent, asked, tmp_path):
    keyring(agent.ring_keys, lsag.keygen())
    with pytest.raises(ConfigError, match="not in the log's roster, of cohort ward and epoch 1"):
        tool.prove(agent, 1, asked, study.log)
    never = replace(agent, ring_keys=tmp_path / "none")
    with pytest.raises(ConfigError, match="was not enrolled in epoch 1"):
        tool.prove(never, 1, asked, study.log)


def test_a_device_that_took_no_part_can_claim_nothing(study, asked, tmp_path):
    absent = study.config(tmp_path / "absent", ABSENT)
    with pytest.raises(LogError, match="round 1 of the log holds no update of this device"):
        tool.prove(absent, 1, asked, study.log)
    for number in (0, -1, 3):
        with pytest.raises(LogError, match=f"has 2 rounds; round {number} is none of them"):
            tool.prove(absent, number, asked, study.log)


def test_a_device_makes_no_claim_in_a_log_of_another_authority(study, agent, asked, tmp_path):
    copy = Path(shutil.copytree(study.log, tmp_path / "log"))
    (copy / "authority").write_text(lsag.keygen().public.hex() + "\n")
    with pytest.raises(LogError, match="authority: holds key"):
        tool.prove(agent, 1, asked, copy)


def test_a_device_makes_no_claim_in_a_log_that_is_not_the_one_it_follows(study, agent, asked):
    checkpoint, _ = tool._leaves(study.older, study.authority)
    with closing(state.open_state(agent.state_dir)) as db:
        state.remember_checkpoint(db, checkpoint)
        tool.prove(agent, 2, asked, study.log)
        state.remember_checkpoint(db, replace(checkpoint, root=bytes(32)))
        with pytest.raises(LogError, match="different histories"):
            tool.prove(agent, 2, asked, study.log)


def test_a_device_whose_state_has_no_tables_yet_follows_no_log(study, agent, asked, tmp_path):
    agent.state_dir.mkdir()
    (agent.state_dir / "agent.sqlite").touch()  # its agent has just begun
    made = tool.prove(agent, 2, asked, study.log)
    (tmp_path / "claim").write_bytes(made.data)
    shown = tool.verify(tmp_path / "claim", asked, tmp_path / "request.secret", study.log, None)
    assert shown.counted.plan.round == 2


def test_a_device_answers_no_request_of_nobodys(study, agent, asked):
    broken = replace(decode(ClaimRequest, asked.read_bytes()), key=lsag.keygen().public)
    asked.write_bytes(encode(broken))
    with pytest.raises(SignatureError, match="its maker has the secret"):
        tool.prove(agent, 1, asked, study.log)


# Decoders.


@pytest.mark.parametrize("cls", [Claim, ClaimRequest])
@settings(max_examples=25)
@given(data=st.data())
def test_round_trip(cls, data):
    record = data.draw(of(cls))
    assert decode(cls, encode(record)) == record


@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_no_mutated_claim_is_taken(study, count, record_property):
    """Nor one with parts of another round's, or of the same in a shorter log."""
    made = [study.claim(), study.claim(number=2), study.claim(log=study.older)]
    for data in made:
        opened(study, data)
    growth = storm(made, change_record, lambda _, data: opened(study, data), count)
    record_property("memory_growth_bytes", growth)
