"""Gateways and hospitals that lie, against whole services: what is refused, and why.

Whatever a lying party does, no sum that the honest hospitals did not all recompute is decrypted
or applied, the refusal names its reason in the log where the gateway logs at all, and the study
goes on once the lie ends.
"""

import secrets
from dataclasses import replace

import pytest
from joint_fixture import GATEWAY, JointWorld, federation_of

from vitalring.errors import LogError
from vitalring.gateway import rounds as gateway_rounds
from vitalring.protocol import blobs, chunks, topics, trust
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.records import Bundle, EncryptedSum, Receipts, SealedUpdate
from vitalring.protocol.release import ReleaseRefusal, SetPart, SetRequest
from vitalring.protocol.secure_sum import threshold_params
from vitalring.protocol.signing import Signed, sign
from vitalring.protocol.update import digest_of

NORTH, SOUTH, EAST = range(3)


@pytest.fixture(scope="module")
def federation():
    return federation_of()


@pytest.fixture
def world(tmp_path, monkeypatch, federation):
    made = JointWorld(tmp_path, monkeypatch, federation)
    yield made
    made.stop()


def kept(world):
    """The updates that the gateway keeps, in the order of their digests."""
    rows = world.gateway.db.execute("SELECT digest, content FROM contributions ORDER BY digest")
    return [(name, content) for name, content in rows.fetchall()]


def show(world, name, content):
    """Have the gateway show other bytes under an update's digest; none show no such update."""
    db = world.gateway.db
    if content is None:
        db.execute("DELETE FROM contributions WHERE digest = ?", (name,))
    else:
        db.execute("UPDATE contributions SET content = ? WHERE digest = ?", (content, name))


def run_to_close(world):
    world.start()
    # Hospitals ask for a set only when they can: a lie is ready before.
    world.hub.tamper = lambda sender, receiver, topic, payload: (
        None if topics.parse(topic).kind is topics.Kind.WANT else payload
    )
    world.run(lambda: (at := world.gateway.standing) is not None and at.status == "closed")


def tell_truth(world):
    world.hub.tamper = lambda sender, receiver, topic, payload: payload


def spoken(world, *steps):
    return {topics.parse(t).step for s, t, p in world.hub.spoken if p} & set(steps)


def said_refusals(world, name):
    """Why a hospital refused, by what it ever said on its own topic."""
    said = set()
    for sender, topic, payload in world.hub.spoken:
        if sender == name and payload and topics.parse(topic).step == "refusal":
            signed = decode(Signed, blobs.whole(payload))
            said.add(decode(ReleaseRefusal, signed.payload).reason)
    return said


def check_refused(world, reasons, *, logged_by=("north", "south", "east"), sound=True):
    """The round ended without a sum, for these reasons; the next one is as any other."""
    lie, names = world.hub.tamper, [hospital.name for hospital in world.hospitals]
    # A quorum would end the round before everybody had its say.
    world.hub.tamper = lambda sender, receiver, topic, payload: (
        None if topics.parse(topic).step == "signature" else lie(sender, receiver, topic, payload)
    )
    world.run(lambda: all(said_refusals(world, name) for name in names))
    world.hub.tamper = lie
    world.hub.restart(forget=False)
    world.run(lambda: len(world.models()) == 1)
    (model,) = world.models()
    assert not model.applied
    assert model.contributions == 0
    assert not spoken(world, "check", "part"), "something was decrypted"
    assert [said_refusals(world, name) for name in names] == [reasons] * len(names)
    assert sorted(world.refusals()) == sorted((name, r) for name in logged_by for r in reasons)
    world.check(verified=sound)
    tell_truth(world)
    world.run_rounds(2)
    assert [model.applied for model in world.models()] == [False, True]
    for hospital in world.hospitals:
        assert (hospital.state[1] == world.expected([False, True])).all()
    world.check(verified=sound)


def test_an_update_that_is_dropped(world):
    run_to_close(world)
    show(world, kept(world)[1][0], None)
    tell_truth(world)
    check_refused(world, {"missing_update"})


def test_an_update_that_is_shown_twice(world):
    run_to_close(world)
    (_, first), (second, _), _ = kept(world)
    show(world, second, first)
    tell_truth(world)
    check_refused(world, {"double_update"})


def test_an_update_that_is_swapped(world):
    run_to_close(world)
    device = 0
    other = world.update(world.gateway.standing.signed_plan, device, rng_seed=77)
    show(world, kept(world)[2][0], encode(other))
    tell_truth(world)
    check_refused(world, {"bad_update"})


def test_an_update_whose_signature_is_not_a_devices(world):
    run_to_close(world)
    name, content = kept(world)[0]
    update = decode(SealedUpdate, content)
    broken = bytearray(update.signature)
    broken[-1] ^= 1
    show(world, name, encode(replace(update, signature=bytes(broken))))
    tell_truth(world)
    check_refused(world, {"bad_update"})


def lying_close(monkeypatch, *, total=None, min_cohort=None):
    """Have the gateway close its first round with a sum, or a threshold, of its choice."""
    honest = gateway_rounds.close

    def close(db, key, plan, *rest):
        if plan.round == 1:
            if total is not None:
                content = db.execute("SELECT content FROM contributions LIMIT 1").fetchone()[0]
                db.execute("UPDATE rounds SET sum = ?", (total(decode(SealedUpdate, content)),))
            plan = replace(plan, min_cohort=min_cohort or plan.min_cohort)
        honest(db, key, plan, *rest)

    monkeypatch.setattr(gateway_rounds, "close", close)


def test_one_devices_ciphertext_as_a_sum(world, monkeypatch):
    scheme = world.federation.scheme
    lying_close(
        monkeypatch,
        total=lambda update: scheme.encode_sum(scheme.decode(update.ciphertexts)),
    )
    world.start()
    check_refused(world, {"sum_mismatch"})


def test_a_sum_over_too_few(world, monkeypatch):
    lying_close(monkeypatch, min_cohort=1)
    world.devices = range(1)
    world.start()
    world.run(lambda: (at := world.gateway.standing) is not None and at.admitted == 1)
    # The round's time is over with one update.
    world.clock.now += 700.0
    world.run(lambda: world.gateway.standing.status == "closed")
    world.devices = range(3)
    check_refused(world, {"too_few"}, sound=False)
    # And whoever reads its log sees that it broke its promise.
    with pytest.raises(LogError, match="status is not what the log shows"):
        world.check()


class OtherSet:
    """What a lying gateway shows one hospital: a report, receipts and updates of its own."""

    def __init__(self, world, updates, victim):
        self.world, self.victim = world, victim
        federation, closed = world.federation, world.gateway.standing
        self.updates = sorted(updates, key=digest_of)
        total = None
        for update in self.updates:
            residues = federation.scheme.decode(update.ciphertexts)
            total = residues if total is None else federation.scheme.add(total, residues)
        digests = tuple(map(digest_of, self.updates))
        encoded = EncryptedSum(closed.plan, digests, federation.scheme.encode_sum(total))
        report = replace(
            trust.open_report(closed.report, federation.study.federation),
            admitted=len(digests),
            sum=digest(encode(encoded)),
        )
        seed = federation.log_key.seed
        receipts = sign(Receipts(closed.plan, digests), [seed])
        self.told = encode(Bundle(sign(report, [seed]), (receipts,)))

    def tamper(self, sender, receiver, topic, payload):
        kind = topics.parse(topic).kind
        if receiver == self.victim and kind is topics.Kind.SUM and payload:
            return blobs.WHOLE + self.told
        if receiver == GATEWAY and sender == self.victim and kind is topics.Kind.WANT:
            self.answer(decode(SetRequest, payload))
            return None
        return payload

    def answer(self, asked):
        chosen = self.updates[asked.first : asked.first + asked.count]
        part = SetPart(asked.plan, asked.first, tuple(map(encode, chosen)))
        name = secrets.token_bytes(chunks.TRANSFER_ID_BYTES)
        for frame in chunks.split(encode(part), 1 << 16, name):
            self.world.hub.take(GATEWAY, topics.set_topic("fed", self.victim), frame, retain=False)


@pytest.mark.parametrize("victim", [NORTH, EAST])
def test_two_hospitals_that_are_shown_sets_that_differ_by_one_device(world, victim):
    run_to_close(world)
    updates = [decode(SealedUpdate, content) for _, content in kept(world)]
    names = [hospital.name for hospital in world.hospitals]
    lie = OtherSet(world, updates[:2], names[victim])
    world.hub.tamper = lie.tamper
    world.hub.restart(forget=False)
    # The refusal of the hospital that was lied to names a report that the log does not hold.
    honest = [name for name in names if name != names[victim]]
    check_refused(world, {"set_mismatch"}, logged_by=honest)
    assert world.hospitals[victim].refusals == ["set_mismatch"]
    for hospital in world.hospitals:
        # The signed word of the other side is kept, for whoever asks who lied.
        evidence = hospital._read("SELECT content FROM release_messages WHERE step = 'evidence'")
        assert evidence


def wrong_pieces(world, index):
    """Start a hospital with pieces of a joint key of another study."""
    other = federation_of(name="another")
    right = world.federation
    world.federation = replace(right, pieces=other.pieces)
    world.hospitals[index].start()
    world.federation = right


def test_a_hospital_with_a_wrong_share_spoils_no_other_set_of_members(tmp_path, monkeypatch):
    world = JointWorld(tmp_path, monkeypatch, federation_of())
    wrong_pieces(world, EAST)
    world.start("east")
    world.run_rounds(1)
    # North and South decrypt without it.
    assert [model.applied for model in world.models()] == [True]
    assert (world.hospitals[EAST].state[1] == world.expected([True])).all()
    world.check()
    world.stop()


def test_a_wrong_share_among_the_members_ends_the_round(world):
    wrong_pieces(world, NORTH)
    world.start("north")
    world.run_rounds(1)
    assert [model.applied for model in world.models()] == [False]
    # The sum is not decrypted.
    assert {reason for _, reason in world.refusals()} == {"bad_check"}
    assert not spoken(world, "part")
    world.check()
    # What a failed check shows of a key so small leaves no room for a second one (SPEC 5.20).
    study = world.federation.study
    params = threshold_params(study.plan.codec, study.plan.model.dimension, study.joint)
    assert params.tolerated_failures == 0
    world.hospitals[NORTH].stop()
    world.hospitals[NORTH].start()
    world.run_rounds(2)
    assert {reason for _, reason in world.refusals()} == {"bad_check", "spent_key"}
    assert [model.applied for model in world.models()] == [False, False]
    world.check()


def test_a_part_of_another_set_is_no_part(world):
    """North promised one part and shows another; others decrypt without it."""
    world.start()

    def tamper(sender, receiver, topic, payload):
        parsed = topics.parse(topic)
        lie = sender == "north" != receiver and parsed.step == "part" and parsed.attempt == 0
        return blobs.WHOLE + b"another part" if lie and payload else payload

    world.hub.tamper = tamper
    world.run_rounds(1)
    assert [model.applied for model in world.models()] == [True]
    assert (world.hospitals[EAST].state[1] == world.expected([True])).all()
    world.check()


@pytest.mark.parametrize("step", ["commitment", "nonce", "promise", "check", "part"])
def test_a_hospital_that_falls_silent(world, step):
    """East, or North, says no more from one step on; a later set of members goes on."""
    world.start()
    world.hub.tamper = lambda sender, receiver, topic, payload: (
        None if sender == "north" != receiver and topics.parse(topic).step == step else payload
    )
    world.run_rounds(1)
    # All three must commit; after that any two decrypt.
    assert [model.applied for model in world.models()] == [step != "commitment"]
    if step == "commitment":
        assert ("south", "silent_hospital") in world.refusals()
    world.check()
    tell_truth(world)
    world.run_rounds(2)
    assert world.models()[1].applied
    world.check()


def test_a_database_that_is_put_back_from_a_backup_releases_no_second_time(world):
    world.start()
    world.run_rounds(1)
    south = world.hospitals[SOUTH]
    south.stop()
    backup = {path: path.read_bytes() for path in south.folder.iterdir()}
    south.start()
    world.run(
        lambda: (
            "nonce"
            in {
                topics.parse(t).step
                for s, t, p in world.hub.spoken
                if s == "south" and p and 2 in south.releases
            }
        )
    )
    south.stop()
    south.lose_database()
    for path, content in backup.items():
        path.write_bytes(content)
    south.start()
    world.run_rounds(2)
    assert "second_request" in south.refusals
    world.run_rounds(3)
    assert world.models()[2].applied
    world.check()
