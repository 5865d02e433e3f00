"""A thousand devices in one ring: their rounds, and everybody who does not belong in it."""

import dataclasses

import pytest
from device_fixture import FLOORS, announce, announce_round, announced, devices
from federation_fixture import Parties, small_federation

from vitalring.errors import LogError, Reason, RefusedError, SignatureError
from vitalring.gateway import rounds
from vitalring.protocol import lsag, ring_suite, trust
from vitalring.protocol.cbor import digest
from vitalring.protocol.records import SealedUpdate
from vitalring.protocol.signing import sign
from vitalring.protocol.update import round_context, update_digest
from vitalring.tools.bench.rounds import measure_rounds

DEVICES = 1_000
DOUBLE, REVOKED, STALE, HONEST = 3, 5, 7, 11


@pytest.mark.long
def test_a_thousand_devices_in_one_ring_complete_rounds(capsys):
    """Real parties, three hospitals, a joint key. A missing update is an error of the bench."""
    found = measure_rounds(DEVICES, 3, "threshold-he")
    assert (found["ring"], found["ring_suite"]) == (DEVICES, ring_suite.ONE_OF_MANY)
    with capsys.disabled():
        print(f"\n  {found['rounds_per_second']:.4f} rounds a second")  # noqa: T201


@pytest.fixture(scope="module")
def thousand():
    return small_federation(
        devices=DEVICES, ring_size=DEVICES, ring_suite=2, n_max=DEVICES, min_ring=900
    )


@pytest.fixture
def parties(thousand, tmp_path):
    parties = Parties(thousand, tmp_path / "parties")
    yield parties
    parties.close_databases()


def refusal(parties, update):
    with pytest.raises(RefusedError) as refused:
        parties.admit(parties.federation.box(update))
    return refused.value.reason


def signed_in(parties, ring, pair):
    """An update to the open round, signed in a ring of one's own choice."""
    current = rounds.latest(parties.db)
    plan = trust.open_round_plan(current.signed_plan, parties.federation.study)
    ciphertexts = parties.federation.encrypt(parties.federation.fields(current.plan))
    signature = ring.sign(
        pair.secret, round_context(plan), update_digest(current.plan, 0, ciphertexts)
    )
    return SealedUpdate(current.plan, 0, ciphertexts, signature)


def test_who_does_not_belong_is_refused_with_its_reason(parties, thousand):
    parties.begin(parties.propose())
    (ring,) = thousand.rings
    assert len(ring.keys) == DEVICES
    parties.submit([DOUBLE, REVOKED, STALE, HONEST])
    # 1. A device that signs twice: other content, the same tag.
    signed = rounds.latest(parties.db).signed_plan
    assert refusal(parties, thousand.update(signed, DOUBLE, rng_seed=99)) is Reason.DOUBLE_SIGNED
    # 2. A stranger: the roster's ring has no place for the key, and another ring is not it.
    stranger = lsag.keygen()
    with pytest.raises(SignatureError, match="not in the ring"):
        signed_in(parties, ring, stranger)
    own = ring_suite.prepare(2, sorted([*ring.keys[1:], stranger.public]))
    assert refusal(parties, signed_in(parties, own, stranger)) is Reason.BAD_SIGNATURE
    # 3. The next round goes by a roster without one device.
    parties.now_ms += 20_000
    parties.close({Reason.DOUBLE_SIGNED: 1, Reason.BAD_SIGNATURE: 1})
    parties.finish(parties.conclude())
    left = [number for number in range(DEVICES) if number != REVOKED]
    parties.take_up(thousand.next_roster(devices=left))
    parties.begin(parties.propose())
    for number in (REVOKED, STALE):
        update = signed_in(parties, ring, thousand.devices[number])
        assert refusal(parties, update) is Reason.BAD_SIGNATURE
    parties.submit([DOUBLE, STALE, HONEST])
    assert rounds.latest(parties.db).admitted == 3


@pytest.fixture
def make(parties, tmp_path):
    with devices(parties, tmp_path) as made:
        yield made


def test_a_false_ring_and_a_revocation_are_told_by_the_device_itself(parties, thousand, make):
    floors = dataclasses.replace(FLOORS, allow_no_privacy=True)
    agent, revoked = (make(number, floors=floors) for number in (HONEST, REVOKED))
    parties.begin(parties.propose())
    # A ring of the gateway's choice, signed by everybody, which the log does not hold.
    own = thousand.next_roster(devices=range(HONEST + 1))
    plan = trust.open_round_plan(rounds.latest(parties.db).signed_plan, thousand.study)
    false = dataclasses.replace(plan, roster=digest(own))
    with pytest.raises(LogError, match="false ring"):
        agent.consider(announce(parties, sign(false, thousand.aggregator_seeds)), parties.now_ms)
    for each in (agent, revoked):
        assert each.consider(announced(parties), parties.now_ms) == "ready"
    parties.end_round([0, 1, 2, 4])
    left = [number for number in range(DEVICES) if number != REVOKED]
    parties.take_up(thousand.next_roster(devices=left))
    said = revoked.consider(announce_round(parties), parties.now_ms)
    assert said.startswith("this device's key is revoked")
