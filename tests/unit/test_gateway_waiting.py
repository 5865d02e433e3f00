"""Updates that wait for their signatures to be verified together, with forged ones among them."""

import secrets
import sqlite3
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from federation_fixture import Parties, small_federation
from gateway_fixture import HandLink, gateway_of

from vitalring.errors import Reason, StorageError
from vitalring.gateway import admission, rounds, waiting
from vitalring.mqtt import Message
from vitalring.protocol import chunks, group, lsag, ring_suite, topics, trust
from vitalring.protocol.cbor import digest
from vitalring.protocol.ciphertext import decode_ciphertexts, encode_ciphertexts
from vitalring.protocol.records import SealedUpdate
from vitalring.protocol.rings import verifying
from vitalring.protocol.update import round_context, update_digest

DEVICES = 12


class Link(HandLink):
    """A broker that ends the gateway's work when it has nothing more to bring."""

    def __init__(self):
        super().__init__()
        self.stop = threading.Event()
        self.acked_ids = []
        self.counted_when_acked = []
        self.count = lambda: 0

    def receive(self, timeout_s):
        event = super().receive(timeout_s)
        if event is None:
            self.stop.set()
        return event

    def ack(self, message):
        super().ack(message)
        self.acked_ids.append(message.packet_id)
        self.counted_when_acked.append(self.count())


class Scene:
    """A gateway with an open round, and what devices and forgers send it."""

    def __init__(self, federation, folder):
        self.federation = federation
        self.parties = Parties(federation, folder)
        self.db = self.parties.db
        self.parties.begin(self.parties.propose())
        self.signed_plan = rounds.latest(self.db).signed_plan
        self.link = Link()
        self.link.count = lambda: rounds.latest(self.db).admitted
        self.gateway = gateway_of(
            federation, self.db, self.link, lambda: self.parties.now_ms, chunks.ChunkLimits()
        )
        self.sent = 0

    def send(self, *updates):
        for update in updates:
            box = self.federation.box(update)
            frame = chunks.split(box, 1 << 20, secrets.token_bytes(chunks.TRANSFER_ID_BYTES))[0]
            topic = topics.uplink_topic("fed", self.federation.study.roster.cohort, 1)
            self.sent += 1
            self.link.incoming.append(Message(topic, frame, packet_id=self.sent))

    def run(self):
        self.link.stop.clear()
        self.gateway.run(self.link.stop)

    def update(self, device):
        return self.federation.update(self.signed_plan, device)

    def forged(self):
        """An update by a key that is in no ring; in suite 2 its tag is proven all the same."""
        pair = lsag.keygen()
        ours = self.federation.rings[0]
        keys = sorted([*ours.keys[1:], pair.public])
        ring = ring_suite.prepare(self.federation.study.plan.ring_suite, keys)
        # The forger signs for the true ring with members of his own.
        object.__setattr__(ring.ring, "digest", ours.digest)
        name = digest(self.signed_plan)
        fields = self.federation.fields(name, rng_seed=secrets.randbelow(1 << 30))
        ciphertexts = self.federation.encrypt(fields)
        plan = trust.open_round_plan(self.signed_plan, self.federation.study)
        signature = ring.sign(pair.secret, round_context(plan), update_digest(name, 0, ciphertexts))
        return SealedUpdate(name, 0, ciphertexts, signature)

    def spoiled(self, device):
        """A member's update, a scalar of whose signature only a pass over the ring can miss."""
        update = self.update(device)
        at = len(update.signature) - 2 * group.SCALAR_BYTES
        one = (1).to_bytes(group.SCALAR_BYTES, "little")
        changed = group.scalar_add(update.signature[at : at + 32], one)
        signature = update.signature[:at] + changed + update.signature[at + 32 :]
        return replace(update, signature=signature)

    @property
    def refused(self):
        """What the report of the round says of refusals."""
        current = rounds.latest(self.db)
        if current.report is None:
            self.parties.now_ms += 20_000
            self.gateway.tick()
            current = rounds.latest(self.db)
        return trust.open_report(current.report, self.federation.study.federation).refused


def scene_of(tmp_path, **options):
    return Scene(small_federation(**{"devices": DEVICES, "n_max": DEVICES, **options}), tmp_path)


@pytest.fixture(params=[1, 2])
def scene(request, tmp_path):
    made = scene_of(tmp_path, ring_suite=request.param, ring_size=DEVICES)
    yield made
    made.parties.close_databases()


@pytest.fixture
def passes(monkeypatch):
    """Passes over a ring, step by step."""
    steps, residue, step = [], verifying._residue, waiting.WaitingUpdates.step

    def counted(*values):
        steps[-1] += 1
        return residue(*values)

    def stepped(*values):
        steps.append(0)
        return step(*values)

    monkeypatch.setattr(verifying, "_residue", counted)
    monkeypatch.setattr(waiting.WaitingUpdates, "step", stepped)
    return steps


def test_forged_ones_within_a_batch_are_refused_and_the_others_counted(scene):
    good = [scene.update(device) for device in range(6)]
    bad = [scene.spoiled(6), scene.forged(), replace(good[0], signature=good[1].signature)]
    foreign = replace(scene.update(7), signature=scene.update(8).signature)
    scene.send(good[0], bad[0], good[1], bad[1], *good[2:4], foreign, *good[4:])
    scene.run()
    assert rounds.latest(scene.db).admitted == 6
    assert sorted(scene.link.acked_ids) == list(range(1, scene.sent + 1))
    assert scene.refused == {Reason.BAD_SIGNATURE.value: 3}


def test_one_message_is_acknowledged_only_after_its_update_is_counted(scene):
    scene.send(*(scene.update(device) for device in range(5)))
    scene.run()
    assert scene.link.acked_ids == [1, 2, 3, 4, 5]
    # One transaction for all of them.
    assert scene.link.counted_when_acked == [5] * 5


def test_the_update_that_fills_a_batch_is_acknowledged_once(tmp_path, monkeypatch):
    """Its number may be another message's by a second time, which a kill would then lose."""
    monkeypatch.setattr(waiting, "MOST", 4)
    scene = scene_of(tmp_path, ring_suite=2, ring_size=DEVICES)
    scene.send(*(scene.update(device) for device in range(6)))
    for _ in range(4):
        scene.gateway._receive()
    # Full: nobody waits for the clock, and memory stays bounded.
    assert rounds.latest(scene.db).admitted == 4
    assert scene.link.acked_ids == [1, 2, 3, 4]
    scene.run()
    assert rounds.latest(scene.db).admitted == 6
    assert scene.link.acked_ids == [1, 2, 3, 4, 5, 6]
    scene.parties.close_databases()


def test_a_full_batch_that_the_disk_refuses_waits_for_the_next_attempt(tmp_path, monkeypatch):
    monkeypatch.setattr(waiting, "MOST", 4)
    scene = scene_of(tmp_path, ring_suite=2, ring_size=DEVICES)
    scene.gateway._stop.set()  # no waiting for the disk here
    with monkeypatch.context() as patch:

        def failing(*_values, **_options):
            raise StorageError("the disk is full")

        patch.setattr(admission, "count", failing)
        scene.send(*(scene.update(device) for device in range(4)))
        for _ in range(4):
            scene.gateway._receive()
        assert scene.link.acked_ids == []
    scene.run()
    assert rounds.latest(scene.db).admitted == 4
    assert scene.link.acked_ids == [1, 2, 3, 4]
    scene.parties.close_databases()


def test_many_are_counted_by_one_sum(scene):
    devices = (0, 3, 5, 8)
    scene.send(*(scene.update(device) for device in devices))
    scene.run()
    current, name = rounds.latest(scene.db), digest(scene.signed_plan)
    expected = sum(scene.federation.fields(name, rng_seed=device) for device in devices)
    scheme = scene.federation.scheme
    np.testing.assert_array_equal(scheme.decode_sum(current.sum), expected)
    assert current.admission_us > 0


def test_an_update_waits_for_others_until_its_time_is_over_or_all_are_here(scene):
    gateway, link = scene.gateway, scene.link
    scene.send(*(scene.update(device) for device in range(DEVICES)))
    for _ in range(DEVICES - 1):
        gateway._receive()
        gateway.tick()
    assert rounds.latest(scene.db).admitted == 0
    assert link.acked_ids == []
    gateway._receive()
    while rounds.latest(scene.db).status == "open":
        # None of these waits for time to pass; LSAG takes several steps.
        assert gateway._is_step_due()
        gateway.tick()
    assert rounds.latest(scene.db).admitted == DEVICES
    assert len(link.acked_ids) == DEVICES


def test_what_came_in_time_is_counted_before_the_round_closes(scene):
    scene.send(*(scene.update(device) for device in range(5)))
    for _ in range(5):
        scene.gateway._receive()
    scene.parties.now_ms += 20_000
    scene.gateway.tick()
    current = rounds.latest(scene.db)
    assert (current.status, current.admitted) == ("closed", 5)


def test_retries_and_second_votes_within_a_batch(scene):
    one, again = scene.update(1), scene.update(2)
    name = digest(scene.signed_plan)
    other = scene.federation.encrypt(scene.federation.fields(name, rng_seed=99))
    second = scene.federation.update(scene.signed_plan, 1, ciphertexts=other)
    copied = scene.federation.update(scene.signed_plan, 3, ciphertexts=again.ciphertexts)
    same = scene.federation.update(scene.signed_plan, 2, ciphertexts=again.ciphertexts)
    assert same.signature != again.signature
    scene.send(one, again, second, copied, same, one)
    scene.run()
    assert rounds.latest(scene.db).admitted == 2
    assert sorted(scene.link.acked_ids) == list(range(1, 7))
    assert scene.refused == {Reason.DOUBLE_SIGNED.value: 2}


def test_a_forged_signature_takes_nobody_s_place(scene):
    """A forgery with another's tag comes first; the honest update is counted all the same."""
    honest = scene.update(4)
    scene.send(scene.spoiled(4), honest)
    scene.run()
    assert rounds.latest(scene.db).admitted == 1
    assert scene.refused == {Reason.BAD_SIGNATURE.value: 1}


def test_a_batch_fills_the_round_and_no_more(tmp_path):
    scene = scene_of(tmp_path, ring_suite=2, ring_size=DEVICES, n_max=5)
    scene.send(*(scene.update(device) for device in range(3)))
    scene.run()
    scene.send(*(scene.update(device) for device in range(3, 8)))
    for _ in range(5):
        scene.gateway._receive()
    scene.gateway.tick()
    assert rounds.latest(scene.db).admitted == 5
    assert scene.refused == {Reason.ROUND_FULL.value: 3}
    scene.parties.close_databases()


def test_updates_that_cancel_one_another_within_a_batch(tmp_path):
    scene = scene_of(tmp_path, secure_sum="single-he", ring_suite=2, ring_size=DEVICES)
    params, one = scene.federation.scheme.params, scene.update(0)
    residues = decode_ciphertexts(one.ciphertexts, params)
    moduli = np.array(params.data_primes, dtype=np.uint64)[:, None]
    negative = encode_ciphertexts((moduli - residues) % moduli, params)
    against = scene.federation.update(scene.signed_plan, 1, ciphertexts=negative)
    scene.send(one, against)
    scene.run()
    assert rounds.latest(scene.db).admitted == 1
    assert scene.refused == {Reason.BAD_CIPHERTEXT.value: 1}
    assert sorted(scene.link.acked_ids) == [1, 2]
    scene.parties.close_databases()


def test_a_disk_that_fails_loses_nothing(scene, monkeypatch):
    scene.gateway._stop.set()  # no waiting for the disk here
    monkeypatch.setattr(scene.gateway._stop, "wait", lambda _: True)
    count = admission.count

    def failing(*_values, **_options):
        raise StorageError("the disk is full")

    updates = [scene.update(device) for device in range(4)]
    scene.send(*updates)
    for _ in range(4):
        scene.gateway._receive()
    monkeypatch.setattr(admission, "count", failing)
    scene.gateway._guarded(scene.gateway._settle)
    assert scene.link.acked_ids == []
    assert rounds.latest(scene.db).admitted == 0
    # The broker brings them again after a reconnection, and then the disk has room.
    scene.send(*updates)
    monkeypatch.setattr(admission, "count", count)
    scene.run()
    assert rounds.latest(scene.db).admitted == 4
    assert sorted(scene.link.acked_ids) == list(range(1, 9))
    assert scene.refused == {}


def test_a_forger_costs_bounded_work_and_stalls_nobody(tmp_path, passes):
    scene = scene_of(tmp_path, ring_suite=2, ring_size=DEVICES, n_max=100)
    honest = [scene.update(device) for device in range(DEVICES)]
    forged = [scene.forged() for _ in range(20)]
    sent = [*forged[:10], *honest[:6], *forged[10:], *honest[6:]]
    scene.send(*sent)
    for _ in sent:
        scene.gateway._receive()
    scene.gateway._settle()
    assert rounds.latest(scene.db).admitted == DEVICES
    assert max(passes) <= waiting.PASSES
    # 32 updates: at worst a step that decides nothing, then two batches that always are decided.
    assert len(passes) <= 3
    assert sum(passes) <= len(sent) + waiting.PASSES
    assert scene.refused == {Reason.BAD_SIGNATURE.value: 20}
    scene.parties.close_databases()


def test_honest_updates_take_one_pass(tmp_path, passes):
    scene = scene_of(tmp_path, ring_suite=2, ring_size=DEVICES)
    scene.send(*(scene.update(device) for device in range(DEVICES)))
    scene.run()
    assert rounds.latest(scene.db).admitted == DEVICES
    assert passes == [1]
    scene.parties.close_databases()


# The waiting itself.


class Admitted:
    """An admission that takes memory."""

    def __init__(self, number, held_bytes=1):
        self.entry, self.held_bytes = bytes([number]), held_bytes


def message(number):
    return Message("topic", b"", packet_id=number)


def test_a_batch_is_full_by_number_and_by_bytes():
    updates = waiting.WaitingUpdates()
    assert not updates.full
    assert updates.left_s(7.0) is None
    updates.add(Admitted(1), message(1), 0, 5.0)
    assert updates.left_s(5.2) == pytest.approx(waiting.LINGER_S - 0.2)
    assert updates.left_s(9.0) == 0.0
    assert not updates.full
    updates.add(Admitted(2, waiting.MOST_BYTES), message(2), 0, 5.0)
    assert updates.full
    many = waiting.WaitingUpdates()
    for number in range(waiting.MOST):
        assert not many.full
        many.add(Admitted(number), message(number), 0, 0.0)
    assert many.full


def test_an_update_that_comes_again_takes_its_own_place():
    updates = waiting.WaitingUpdates()
    first, again = message(1), message(2)
    assert updates.add(Admitted(1, waiting.MOST_BYTES // 2), first, 0, 0.0) is None
    assert updates.holds(first)
    assert updates.add(Admitted(1, waiting.MOST_BYTES // 2), again, 0, 0.4) is first
    assert len(updates) == 1
    assert not updates.full
    assert updates.holds(again)
    assert not updates.holds(first)
    assert updates.left_s(0.4) == pytest.approx(waiting.LINGER_S - 0.4)
    # Whoever has one delivered again and again does not keep it from its turn.
    assert updates.add(Admitted(2), message(3), 0, 0.4) is None
    assert updates.add(Admitted(1), message(4), 0, 0.45) is again
    order = []

    def judge(batch, _):
        order.extend(each.entry for each in batch)
        return admission.Judged(again=tuple(batch))

    assert [each.packet_id for each in updates.step(judge, None).done] == [4, 3]
    assert order == [b"\x01", b"\x02"]
    assert not updates.holds(message(4))


def test_batches_shrink_while_passes_do_not_suffice_and_grow_again():
    sizes, updates = [], waiting.WaitingUpdates()

    def judge(batch, max_passes):
        sizes.append(len(batch))
        few = len(batch) <= max_passes
        return (
            admission.Judged(again=tuple(batch))
            if few
            else admission.Judged(undecided=tuple(batch))
        )

    for number in range(waiting.MOST):
        updates.add(Admitted(number), message(number), 0, 0.0)
    done = Counter()
    while updates:
        done.update(each.packet_id for each in updates.step(judge, None).done)
    assert sizes[:3] == [64, 32, 16]
    assert max(sizes[3:]) <= 32
    assert done == Counter(range(waiting.MOST))


def test_a_fault_while_counting_forgets_nothing():
    updates = waiting.WaitingUpdates()
    updates.add(Admitted(1), message(1), 5, 0.0)

    def count(_valid, _spent_us):
        raise sqlite3.OperationalError("disk I/O error")

    with pytest.raises(sqlite3.OperationalError):
        updates.step(lambda batch, _: admission.Judged(valid=tuple(batch)), count)
    assert len(updates) == 1
    counted = []
    step = updates.step(
        lambda batch, _: admission.Judged(valid=tuple(batch)),
        lambda valid, spent_us: counted.append((valid, spent_us)) or [],
    )
    assert len(counted) == len(step.done) == 1
    assert counted[0][1] >= 5
    assert not updates
    assert not updates.full
