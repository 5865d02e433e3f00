"""A gateway takes up rosters with the plan that names them, and counts nobody under another."""

import dataclasses

import pytest
from device_fixture import announced
from federation_fixture import NAMES, START_MS, Parties, seed, small_federation
from gateway_fixture import HandLink, gateway_of
from two_gateways_fixture import ShareGateway, split_update

from vitalring.errors import Reason, RecordError, RefusedError, SignatureError
from vitalring.gateway import log, rosters, rounds
from vitalring.mqtt import Message
from vitalring.protocol import blobs, chunks, topics, trust
from vitalring.protocol import rosters as succession
from vitalring.protocol.cbor import decode, digest, encode, type_of
from vitalring.protocol.checkpoint import VerifierKey, parse_and_verify
from vitalring.protocol.merkle import leaf_hash, verify_inclusion
from vitalring.protocol.records import Bundle, LoggedObject, PlanAnnouncement
from vitalring.protocol.signing import sign
from vitalring.protocol.two_server import ROLES


@pytest.fixture(scope="module")
def federation():
    return small_federation(ring_size=6)


@pytest.fixture
def parties(federation, tmp_path):
    made = Parties(federation, tmp_path / "parties")
    yield made
    made.close_databases()


def kinds(db):
    entries = log.entries(db, 0, log.size(db))
    return [decode(LoggedObject, e).kind for e in entries if type_of(e) == LoggedObject.TYPE]


def test_a_roster_is_logged_with_the_first_plan_that_names_it(parties):
    parties.run_round(range(4))
    record = parties.federation.next_roster(devices=range(5))
    parties.take_up(record)
    checkpoints = parties.db.execute("SELECT COUNT(*) FROM checkpoints").fetchone()[0]
    parties.begin(parties.propose())
    assert kinds(parties.db)[-2:] == ["roster", "round-plan"]
    # One step, one checkpoint: no log ever ends with a roster.
    assert parties.db.execute("SELECT COUNT(*) FROM checkpoints").fetchone()[0] == checkpoints + 1
    assert rosters.newest(parties.db) == record
    told = decode(PlanAnnouncement, announced(parties))
    note = parse_and_verify(
        told.checkpoint, (VerifierKey("log.example/ward", parties.federation.log_key.public),)
    )
    entry = leaf_hash(encode(LoggedObject("roster", digest(record))))
    verify_inclusion(entry, told.roster_index, note.size, told.roster_inclusion, note.root)
    assert told.roster_index == told.index - 1


def test_a_failed_step_leaves_neither_roster_nor_plan(parties, monkeypatch):
    parties.run_round(range(4))
    parties.take_up(parties.federation.next_roster(devices=range(5)))
    proposal, size = parties.propose(), log.size(parties.db)

    def full(*_):
        raise RecordError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(log, "sign_checkpoint", full)
        with pytest.raises(RecordError):
            rounds.begin(
                parties.db,
                parties.federation.log_key,
                parties.federation.study,
                proposal,
                START_MS,
                parties._new_rosters,
            )
    assert log.size(parties.db) == size
    assert len(rosters.all_logged(parties.db)) == 1
    assert parties.begin(proposal) is not None


def test_updates_under_the_roster_of_before_are_refused_with_their_reason(parties):
    before = parties.federation
    parties.run_round(range(6))
    first = rounds.latest(parties.db).signed_plan
    parties.take_up(parties.federation.next_roster(devices=range(1, 6)))
    parties.begin(parties.propose())
    second = rounds.latest(parties.db).signed_plan

    def refusal(federation, signed_plan, device):
        with pytest.raises(RefusedError) as caught:
            parties.admit(parties.federation.box(federation.update(signed_plan, device)))
        return caught.value.reason

    # A plan binds its roster: an update made in the ring of before signs another digest.
    old = dataclasses.replace(
        before,
        files=dataclasses.replace(
            before.files,
            study=dataclasses.replace(
                before.study, roster_digest=parties.federation.study.roster_digest
            ),
        ),
    )
    for device in (0, 1):
        assert refusal(old, second, device) is Reason.BAD_SIGNATURE
    # An update to the plan of before is too late, whoever it is from.
    late = dataclasses.replace(before.update(first, 1), ciphertexts=b"other")
    with pytest.raises(RefusedError) as caught:
        parties.admit(parties.federation.box(late))
    assert caught.value.reason is Reason.TOO_LATE
    parties.submit(range(1, 5))
    assert rounds.latest(parties.db).admitted == 4


class Service:
    """The real service on a link that the test holds."""

    def __init__(self, parties, federation):
        self.link = HandLink()
        self.gateway = gateway_of(
            federation, parties.db, self.link, lambda: parties.now_ms, chunks.ChunkLimits()
        )

    def propose(self, bundle):
        payload, _ = blobs.split(encode(bundle), 1 << 20)
        self.gateway.take(Message(topics.propose_topic("fed"), payload, retained=True, packet_id=1))

    @property
    def study(self):
        return self.gateway._study


def with_rosters(bundle, *records):
    return dataclasses.replace(bundle, objects=(*bundle.objects, *records))


def test_the_service_goes_on_with_the_rings_of_the_new_roster(parties, federation):
    parties.run_round(range(4))
    record = parties.federation.next_roster(devices=range(5))
    parties.take_up(record)
    proposal = with_rosters(parties.propose(), record)
    service = Service(parties, federation)
    service.propose(proposal)
    assert service.study.roster_digest == digest(record)
    assert service.gateway._open.plan.round == 2
    assert service.link.retained[topics.object_topic("fed", digest(record))]
    # The same again changes nothing; a restart, with whatever file, goes on with it.
    size = log.size(parties.db)
    service.propose(proposal)
    assert log.size(parties.db) == size
    for files in (federation, parties.federation):
        again = Service(parties, files)
        assert again.study.roster_digest == digest(record)
        assert again.gateway._open is not None


@pytest.mark.parametrize("fault", ["missing", "unsigned", "gap", "older", "too small"])
def test_a_proposal_whose_roster_does_not_hold_opens_no_round(federation, tmp_path, fault, caplog):
    federation = small_federation(hospitals=2, min_ring=3, ring_size=6)
    parties = Parties(federation, tmp_path / "two")
    parties.run_round(range(4))
    good = federation.next_roster(devices=range(5))
    study = succession.next_study(federation.study, good)
    bad, complaint = {
        "missing": (b"", "did not come along"),
        "unsigned": (sign(study.roster, [seed(f"hospital {NAMES[1]}")]), "sign"),
        "gap": (federation.next_roster(devices=range(5), serial=2), "roster 1 is missing"),
        "older": (federation.next_roster(devices=range(5), serial=0), "nobody goes back"),
        "too small": (federation.next_roster(devices=range(2)), "asks for 3 at least"),
    }[fault]
    parties.aggregator = dataclasses.replace(parties.aggregator, study=study)
    proposal = parties.propose()
    plan = trust.peek_round_plan(proposal.record, federation.study.federation)
    named = dataclasses.replace(plan, roster=digest(bad) if bad else plan.roster)
    proposal = Bundle(
        sign(named, [federation.aggregator_seed]), (*proposal.objects, *([bad] if bad else []))
    )
    service = Service(parties, federation)
    size = log.size(parties.db)
    service.propose(proposal)
    assert complaint in caplog.text
    assert log.size(parties.db) == size
    assert service.study.roster == federation.study.roster
    parties.close_databases()


def test_two_gateways_take_up_the_same_roster(tmp_path):
    federation = small_federation(secure_sum="two-server", hospitals=2)
    parties = Parties(federation, tmp_path / "aggregator")
    pair = [ShareGateway(federation, role, tmp_path) for role in ROLES]
    record = federation.next_roster(devices=range(5))
    parties.take_up(record)
    proposal = parties.propose()
    for gateway in pair:
        study, new = succession.follow(gateway.federation.study, digest(record), (record,))
        gateway.federation = parties.federation
        rounds.begin(gateway.db, gateway.log_key, study, proposal, gateway.now_ms, new)
        assert kinds(gateway.db)[-2:] == ["roster", "round-plan"]
    for device in range(5):
        halves, _ = split_update(parties.federation, proposal.record, device)
        assert all(g.admit(half) for g, half in zip(pair, halves, strict=True))
    halves, _ = split_update(
        dataclasses.replace(
            federation,
            files=dataclasses.replace(
                federation.files,
                study=dataclasses.replace(federation.study, roster_digest=digest(record)),
            ),
        ),
        proposal.record,
        5,
    )
    for gateway, half in zip(pair, halves, strict=True):
        with pytest.raises(RefusedError):
            gateway.admit(half)
        gateway.db.close()
    parties.close_databases()


def test_a_roster_that_one_hospital_did_not_sign_is_named(federation):
    two = small_federation(hospitals=2)
    record = sign(
        dataclasses.replace(two.study.roster, serial=1, keys=two.study.roster.keys[1:]),
        two.identity_seeds[:1],
    )
    with pytest.raises(SignatureError):
        succession.follow(two.study, digest(record), [record])
