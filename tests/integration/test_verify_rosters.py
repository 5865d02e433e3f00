"""A log whose rosters changed: each round is checked under the one that counted, and no other."""

import dataclasses
import re
from types import SimpleNamespace

import pytest
from federation_fixture import Parties, small_federation
from verify_fixture import fault

from vitalring.errors import ConfigError
from vitalring.gateway.export import export_log
from vitalring.protocol import lsag, rosters
from vitalring.protocol.cbor import digest, encode
from vitalring.protocol.records import LoggedObject, RoundPlan
from vitalring.protocol.signing import sign
from vitalring.tools import claims, verify


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Round 2 without device 0; round 3 with a new one; round 4 in another epoch."""
    folder = tmp_path_factory.mktemp("rosters")
    federation = small_federation(hospitals=2)
    parties = Parties(federation, folder / "state")
    parties.run_round(range(6))
    parties.take_up(parties.federation.next_roster(devices=range(1, 6)))
    parties.run_round(range(1, 6))
    new = lsag.keygen()
    keys = tuple(sorted([*parties.federation.study.roster.keys, new.public]))
    parties.take_up(parties.federation.next_roster(keys=keys), new)
    parties.run_round(range(2, 7))
    pairs = [lsag.keygen() for _ in range(4)]
    keys = tuple(sorted(pair.public for pair in pairs))
    parties.take_up(parties.federation.next_roster(keys=keys, epoch=2), *pairs)
    parties.run_round(range(7, 11))
    export_log(parties.db, parties.federation.files, folder / "log")
    parties.close_databases()
    return SimpleNamespace(
        federation=federation, last=parties.federation, folder=folder / "log", state=folder
    )


def log_roster(forger, position, record):
    """Put a roster into the log, as a gateway might that logs whatever it likes."""
    forger.objects[digest(record)] = record
    forger.entries.insert(position, encode(LoggedObject("roster", digest(record))))
    return f"objects/{digest(record).hex()}"


def changed(made, number, **changes):
    """A roster of the log with changes, signed by all; `number` counts from 0."""
    roster = dataclasses.replace(made.rosters[number], **changes)
    return sign(roster, made.federation.identity_seeds)


@pytest.fixture
def rosters_of(made, forger):
    made.rosters = [
        rosters.trust.open_roster(forger.signed("roster", n), made.federation.study.federation)
        for n in (1, 2, 3, 4)
    ]
    return made


def test_each_round_is_checked_under_its_own_roster(made):
    verdict = verify.verify_log(made.folder, made.federation.authority_key)
    assert [(r.serial, r.epoch, r.devices, r.first_round) for r in verdict.rosters] == [
        (0, 1, 6, 1),
        (1, 1, 5, 2),
        (2, 1, 6, 3),
        (3, 2, 4, 4),
    ]
    assert verdict.rosters[-1].digest == made.last.study.roster_digest
    expected = [(r.expected, r.admitted) for r in verdict.rounds]
    assert expected == [(6, 6), (5, 5), (6, 5), (4, 4)]


def test_verify_prints_the_rosters(made, capsys):
    assert verify.run(SimpleNamespace(folder=made.folder, authority=None)) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "  roster  " in line]
    assert len(lines) == 4
    assert "3 of epoch 2, 4 devices, from round 4 on" in lines[-1]
    assert made.last.study.roster_digest.hex() in lines[-1]


def test_a_roster_that_no_plan_follows(forger, rosters_of, tmp_path):
    record = changed(rosters_of, 3, serial=4)
    log_roster(forger, len(forger.entries), record)
    message = fault(forger.write(tmp_path / "log"))
    assert re.match("tile/entries.*is a roster that no round-plan follows", message)


def test_a_roster_in_the_midst_of_a_round(forger, rosters_of, tmp_path):
    log_roster(forger, forger.position("round-plan", 4) + 1, changed(rosters_of, 3, serial=4))
    message = fault(forger.write(tmp_path / "log"))
    assert re.match("tile/entries.*is a accepted-update, must be a round-plan", message) or (
        "which has no model" in message
    )


def test_a_roster_that_the_plan_does_not_name(forger, rosters_of, tmp_path):
    """The gateway logs one that the aggregators did not choose."""
    log_roster(forger, forger.position("round-plan", 4), changed(rosters_of, 3, serial=4))
    message = fault(forger.write(tmp_path / "log"))
    assert re.match("objects/.*round 4 has another roster than study study agreed", message)


def test_a_plan_that_goes_back_to_an_older_roster(forger, made, tmp_path):
    """A quorum of aggregators keeps a revoked device."""
    plan = forger.record(RoundPlan, "round-plan", 3)
    back = dataclasses.replace(plan, roster=made.federation.study.roster_digest)
    path = forger.replace_signed("round-plan", sign(back, [made.federation.aggregator_seed]), 3)
    assert fault(forger.write(tmp_path / "log")).startswith(f"{path}: round 3 has another roster")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"serial": 1}, "nobody goes back to an older one"),
        ({"serial": 3}, "roster 2 is missing"),
        ({"cohort": "other"}, "cohort other does not follow"),
        ({"epoch": 2}, "5 keys of epoch 1"),
        ({"epoch": 0}, "is of epoch 0"),
    ],
)
def test_a_roster_that_does_not_follow(forger, rosters_of, tmp_path, changes, complaint):
    path = forger.replace_signed("roster", changed(rosters_of, 2, **changes), 3)
    message = fault(forger.write(tmp_path / "log"))
    assert message.startswith(f"{path}: ")
    assert complaint in message


def test_a_roster_without_a_hospitals_signature(forger, rosters_of, tmp_path):
    seeds = rosters_of.federation.identity_seeds
    path = forger.replace_signed("roster", sign(rosters_of.rosters[1], seeds[:1]), 2)
    assert fault(forger.write(tmp_path / "log")).startswith(f"{path}: ")


def test_a_roster_that_is_left_out(forger, tmp_path):
    position = forger.position("roster", 2)
    name = digest(forger.signed("roster", 2))
    del forger.entries[position], forger.objects[name]
    assert "another roster than study study agreed" in fault(forger.write(tmp_path / "log"))


def test_an_update_of_a_revoked_device(made, tmp_path):
    """Device 0 signs in the ring of before; the gateway counts it in place of another."""
    federation = made.federation
    parties = Parties(federation, tmp_path / "state")
    parties.run_round(range(6))
    parties.take_up(parties.federation.next_roster(devices=range(1, 6)))
    parties.begin(parties.propose())
    honest = parties.federation
    # The gateway is made to check with the rings of before.
    parties.federation = dataclasses.replace(
        honest,
        files=dataclasses.replace(
            honest.files,
            study=dataclasses.replace(federation.study, roster_digest=honest.study.roster_digest),
        ),
    )
    parties.end_round(range(4))
    export_log(parties.db, honest.files, tmp_path / "log")
    parties.close_databases()
    assert re.search("entry [0-9]+ is not signed by its ring", fault(tmp_path / "log"))


def test_a_claim_is_of_the_roster_that_counted(made):
    """Device 0 claims its update of round 1, after it was revoked."""
    pair = made.federation.devices[0]
    evidence, _ = claims.find_update(made.folder, made.federation.authority_key, lambda _: pair, 1)
    assert digest(evidence.roster) == made.federation.study.roster_digest
    with pytest.raises(ConfigError, match="that counted in round 2: the device was not enrolled"):
        claims.find_update(made.folder, made.federation.authority_key, lambda _: pair, 2)
    new = made.last.devices[7]
    evidence, _ = claims.find_update(made.folder, made.federation.authority_key, lambda _: new, 4)
    assert digest(evidence.roster) == made.last.study.roster_digest
