"""A gateway under fire: it lives, its sum stands, its memory is flat, every refusal has its name.

The gateway is the real service on a link that the test holds; most messages are honest ones
with something changed, since random bytes alone would only ever meet the first check.
"""

import dataclasses
import logging
import random
from collections import Counter

import cbor2
import numpy as np
import psutil
import pytest
from federation_fixture import Parties, seed, small_federation
from gateway_fixture import HandLink, gateway_of

from vitalring.errors import Reason
from vitalring.gateway import rounds
from vitalring.mqtt import Message
from vitalring.protocol import blobs, chunks, lsag, sealing, topics, trust
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.records import Bundle, RoundReport
from vitalring.protocol.signing import sign
from vitalring.protocol.update import round_context, update_digest

LIMITS = chunks.ChunkLimits(
    max_transfer_bytes=1 << 20, max_open_transfers=64, max_total_bytes=4 << 20, max_age_s=60.0
)
FRAME_BYTES = 8 * 1024
MAX_GROWTH_BYTES = 32 << 20
WARM_UP = 500


class Clock:
    """Stands in for `time` in the service: waiting takes no time, and time passes all the same."""

    def __init__(self, real):
        self._real = real
        self.now_s = 0.0

    def monotonic(self):
        self.now_s += 0.05
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds

    def perf_counter_ns(self):
        return self._real.perf_counter_ns()


class Battlefield:
    """A federation in its second round, with three updates counted and attackers of all kinds."""

    def __init__(self, folder, monkeypatch):
        from vitalring.gateway import service  # noqa: PLC0415

        monkeypatch.setattr(service, "time", Clock(service.time))
        self.rng = random.Random(2024)
        self.federation = small_federation(secure_sum="single-he", min_cohort=4)
        self.parties = Parties(self.federation, folder)
        self.link = HandLink()
        self.gateway = gateway_of(
            self.federation, self.parties.db, self.link, lambda: self.parties.now_ms, LIMITS
        )
        # Round 1 is over: updates of it come late, unless they are copies of counted ones.
        self.inner(topics.propose_topic("fed"), encode(self.parties.propose()))
        self.first = rounds.latest(self.parties.db)
        self.receipted = [self.federation.update(self.first.signed_plan, d) for d in range(4)]
        self.late = [self.federation.update(self.first.signed_plan, d) for d in (4, 5)]
        for update in self.receipted:
            self.send(self.frames(self.federation.box(update)))
        self.parties.now_ms += 20_000
        self.gateway.tick()
        self.inner(topics.model_topic("fed"), encode(self.parties.conclude()))
        # Round 2 stands open with three updates.
        self.proposal = self.parties.propose()
        self.inner(topics.propose_topic("fed"), encode(self.proposal))
        self.current = rounds.latest(self.parties.db)
        self.plan = trust.open_round_plan(self.current.signed_plan, self.federation.study)
        signed = self.current.signed_plan
        self.counted = [self.federation.update(signed, d) for d in range(3)]
        for update in self.counted:
            self.send(self.frames(self.federation.box(update)))
        # Devices 3 and 4 will take part later; 5 has gone over to the attackers.
        self.fresh = [self.federation.update(signed, d) for d in (3, 4)]
        self.traitor = self.federation.update(signed, 5)
        self.strangers = lsag.Ring.of(sorted(p.public for p in self._pairs()))
        self.expected = Counter()
        self.manifests = 0

    def _pairs(self):
        self._stranger_keys = [lsag.keygen() for _ in range(3)]
        return self._stranger_keys

    # Ways in.

    def take(self, topic, payload):
        self.gateway.take(Message(topic, payload, packet_id=1))
        self.gateway.tick()

    def inner(self, topic, content):
        self.take(topic, blobs.WHOLE + content)

    def send(self, frames):
        for frame in frames:
            self.take(topics.uplink_topic("fed", "ward", 2), frame)

    def frames(self, box):
        return chunks.split(box, FRAME_BYTES, self.rng.randbytes(16))

    def box(self, content):
        return sealing.seal(content, bytes(self.federation.sealing_key.public_key))

    def refused(self, reason, update_or_bytes):
        """Send a well-packed update that must be refused for this reason."""
        plain = update_or_bytes
        content = plain if isinstance(plain, bytes) else encode(plain)
        self.send(self.frames(self.box(content)))
        self.expected[reason] += 1

    # What is observed.

    def state(self):
        now = rounds.latest(self.parties.db)
        rows = self.parties.db.execute("SELECT tag, digest, entry FROM admitted ORDER BY tag")
        entries = self.parties.db.execute("SELECT COUNT(*), MAX(position) FROM entries")
        retained = {t: digest(m) for t, m in self.link.retained.items()}
        return now, rows.fetchall(), entries.fetchone(), retained

    def disk_pages(self):
        return self.parties.db.execute("PRAGMA page_count").fetchone()[0]

    # Attacks: each sends one message, or one transfer.

    def changed(self, data):
        """Flip, cut, extend or splice bytes."""
        changed, rng = bytearray(data), self.rng
        match rng.randrange(6):
            case 0:
                for _ in range(rng.randint(1, 8)):
                    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            case 1:
                del changed[rng.randrange(len(changed)) :]
            case 2:
                changed += rng.randbytes(rng.randint(1, 64))
            case 3:
                at = rng.randrange(len(changed))
                changed[at:at] = rng.randbytes(rng.randint(1, 16))
            case 4:
                at, size = rng.randrange(len(changed)), rng.randint(1, 200)
                del changed[at : at + size]
            case 5:
                at, from_ = rng.randrange(len(changed)), rng.randrange(len(changed))
                size = rng.randint(1, 500)
                changed[at : at + size] = changed[from_ : from_ + size]
        return bytes(changed)

    def any_update(self):
        return self.rng.choice([*self.counted, *self.late, *self.fresh, self.traitor])

    def random_bytes(self):
        self.send([self.rng.randbytes(self.rng.randint(1, 3000))])

    def changed_frame(self):
        frames = list(self.frames(self.box(encode(self.any_update()))))
        self.send([self.changed(self.rng.choice(frames))])

    def spliced_frames(self):
        one, other = (self.frames(self.box(encode(self.any_update()))) for _ in range(2))
        at = self.rng.randrange(len(one))
        header = one[at][: chunks.HEADER_BYTES]
        self.send([*one[:at], header + other[at][chunks.HEADER_BYTES :], *one[at + 1 :]])

    def changed_box(self):
        good = self.box(encode(self.any_update()))
        bad = self.changed(good)
        if bad != good:
            self.send(self.frames(bad))
            self.expected[Reason.BAD_SEAL] += 1

    def changed_update(self):
        # Not of devices that are still to come: their unchanged bytes would count.
        good = encode(self.rng.choice([*self.counted, self.traitor]))
        bad = self.changed(good)
        if bad != good:
            self.send(self.frames(self.box(bad)))

    def random_update(self):
        size = self.rng.randint(1, 4000)
        self.refused(Reason.MALFORMED, b"\xff" + self.rng.randbytes(size))

    def replayed(self):
        update = self.rng.choice(self.counted + self.receipted)
        self.send(self.frames(self.federation.box(update)))

    def late_update(self):
        self.refused(Reason.TOO_LATE, self.rng.choice(self.late))

    def other_plan(self):
        update = dataclasses.replace(self.any_update(), plan=self.rng.randbytes(32))
        self.refused(Reason.UNKNOWN_PLAN, update)

    def unknown_ring(self):
        update = dataclasses.replace(self.traitor, ring=self.rng.randint(2, 10_000))
        self.refused(Reason.UNKNOWN_RING, update)

    def second_vote(self):
        # Signed by the rightful key, over other ciphertexts.
        device = self.rng.randrange(3)
        other = self.rng.choice(self.counted[:device] + self.counted[device + 1 :]).ciphertexts
        update = self.federation.update(self.current.signed_plan, device, ciphertexts=other)
        self.refused(Reason.DOUBLE_SIGNED, update)

    def copied_ciphertexts(self):
        # The traitor's signature over ciphertexts that a device of its own ring sent.
        ring = self.traitor.ring
        copied = self.rng.choice([u for u in self.counted if u.ring == ring] or [self.traitor])
        if copied is not self.traitor:
            update = self.federation.update(
                self.current.signed_plan, 5, ciphertexts=copied.ciphertexts
            )
            self.refused(Reason.DOUBLE_SIGNED, update)

    def strangers_signature(self):
        ciphertexts = self.traitor.ciphertexts
        name = digest(self.current.signed_plan)
        signature = lsag.sign(
            self.strangers,
            self.rng.choice(self._stranger_keys).secret,
            round_context(self.plan),
            update_digest(name, 1, ciphertexts),
        )
        update = dataclasses.replace(self.traitor, ring=1, signature=signature)
        self.refused(Reason.BAD_SIGNATURE, update)

    def changed_signature(self):
        signature = bytearray(self.traitor.signature)
        # Behind the tag: a changed tag is a bad signature too, but so is everything there.
        signature[self.rng.randrange(len(signature))] ^= 1 << self.rng.randrange(8)
        update = dataclasses.replace(self.traitor, signature=bytes(signature))
        self.refused(Reason.BAD_SIGNATURE, update)

    def signature_of_another_length(self):
        size = self.rng.choice([96, 128, 160, 192, 1024, 60_000])
        signature = self.traitor.signature[:32] + self.rng.randbytes(size - 32)
        if size != len(self.traitor.signature):
            update = dataclasses.replace(self.traitor, signature=signature)
            self.refused(Reason.BAD_SIGNATURE, update)

    def bad_ciphertexts(self):
        good = self.traitor.ciphertexts
        bad = self.rng.choice(
            [bytes(len(good)), b"\xff" * len(good), good[:-1], good + b"\x00", b"", good * 2]
        )
        update = self.federation.update(self.current.signed_plan, 5, ciphertexts=bad)
        self.refused(Reason.BAD_CIPHERTEXT, update)

    def not_canonical(self):
        plain = {"type": self.traitor.TYPE, **dataclasses.asdict(self.traitor)}
        keys = list(plain)
        self.rng.shuffle(keys)
        shuffled = cbor2.dumps({key: plain[key] for key in keys})
        content = self.rng.choice(
            [
                shuffled if shuffled != encode(self.traitor) else b"",
                b"\xd9\xd9\xf7" + encode(self.traitor),
                encode(self.traitor) + b"\x00",
                b"\xbf" + encode(self.traitor)[1:] + b"\xff",
                cbor2.dumps({**plain, "more": 1}, canonical=True),
                cbor2.dumps({**plain, "ring": 2**70}, canonical=True),
                encode(self.traitor).replace(b"sealed-update/1", b"sealed-update/2"),
            ]
        )
        self.refused(Reason.MALFORMED, content)

    def other_record(self):
        self.refused(Reason.MALFORMED, self.current.signed_plan)

    def bomb(self):
        bomb = self.rng.choice(
            [
                b"\x81" * 500_000,
                b"\x9b\x3f" + b"\xff" * 7,
                b"\xc4\x82\x01\xc2\x5a" + (400_000).to_bytes(4, "big") + b"\xff" * 400_000,
            ]
        )
        self.send(chunks.split(self.box(bomb), 1 << 20, self.rng.randbytes(16)))
        self.expected[Reason.MALFORMED] += 1

    def open_transfer(self):
        # One frame of many that never come.
        count = self.rng.randint(2, 100)
        content = self.rng.randbytes(4096 * count)
        frames = chunks.split(content, 4096 + chunks.HEADER_BYTES, self.rng.randbytes(16))
        self.send([self.rng.choice(frames)])

    def oversized(self):
        frame = bytearray(self.frames(self.rng.randbytes(100))[0])
        frame[28:36] = self.rng.randint(LIMITS.max_transfer_bytes + 1, 2**64 - 1).to_bytes(8, "big")
        self.send([bytes(frame)])
        self.expected[Reason.OVERSIZED] += 1

    def wrong_topic(self):
        topic = self.rng.choice(
            [
                "",
                "vr1",
                "vr1/fed/up/ward/2/more",
                "vr1/fed/up/ward/-1",
                "vr1/fed/up/ward/" + "9" * 50_000,
                "vr1/fed/plan/ward",
                "vr1/fed/inner/sum",
                "vr1/fed/log/checkpoint",
                "vr1/fed/log/entries/0",
                "vr1/fed/receipts/ward/1",
                "vr2/fed/up/ward/2",
                "vr1/\ud800/up/ward/2",
                "vr1/fed/object/" + self.rng.randbytes(32).hex(),
                "$SYS/broker/uptime",
                "/" * 60_000,
            ]
        )
        self.take(topic, self.rng.randbytes(self.rng.randint(0, 5000)))

    def inner_topic(self):
        kind = self.rng.choice([topics.propose_topic, topics.model_topic])
        rng, proposal = self.rng, self.proposal
        thief = seed("a thief")
        payload = rng.choice(
            [
                lambda: rng.randbytes(rng.randint(1, 3000)),
                lambda: blobs.WHOLE + self.changed(encode(proposal)),
                lambda: blobs.WHOLE + encode(proposal),
                lambda: blobs.WHOLE + encode(Bundle(self.current.signed_plan, ())),
                lambda: blobs.WHOLE + encode(self.resigned(thief)),
                # Even the rightful aggregator may not skip rounds or start from other weights.
                lambda: blobs.WHOLE + encode(self.resigned(self.federation.aggregator_seed)),
                lambda: self.manifest(rng.randint(1, 50)),
                lambda: blobs.IN_PIECES + rng.randbytes(rng.randint(0, 500)),
                lambda: blobs.IN_PIECES + b"\x81" * 60_000,
            ]
        )()
        self.take(kind("fed"), payload)

    def resigned(self, key):
        plan = self.rng.choice(
            [
                dataclasses.replace(self.plan, round=3),
                dataclasses.replace(self.plan, round=1),
                dataclasses.replace(self.plan, weights=bytes(32)),
                dataclasses.replace(self.plan, min_cohort=2),
                dataclasses.replace(self.plan, federation="other"),
                dataclasses.replace(self.plan, deadline_ms=self.plan.deadline_ms + 1),
            ]
        )
        return Bundle(sign(plan, [key]), self.proposal.objects)

    def manifest(self, pieces):
        self.manifests += 1
        names = tuple(self.rng.randbytes(32) for _ in range(pieces))
        return blobs.IN_PIECES + encode(blobs.Manifest(1000, bytes(32), names))

    def attacks(self):
        often = [
            self.random_bytes,
            self.changed_frame,
            self.spliced_frames,
            self.changed_box,
            self.changed_update,
            self.random_update,
            self.replayed,
            self.late_update,
            self.other_plan,
            self.unknown_ring,
            self.not_canonical,
            self.changed_signature,
            self.bad_ciphertexts,
            self.open_transfer,
            self.oversized,
            self.wrong_topic,
            self.inner_topic,
        ]
        seldom = [
            self.second_vote,
            self.copied_ciphertexts,
            self.strangers_signature,
            self.signature_of_another_length,
            self.other_record,
            self.bomb,
        ]
        return 4 * often + seldom


@pytest.fixture
def field(tmp_path, monkeypatch, caplog):
    # The runner would keep every warning, and its memory would not be flat.
    caplog.set_level(logging.CRITICAL, "vitalring")
    field = Battlefield(tmp_path, monkeypatch)
    yield field
    field.parties.close_databases()


def storm(field, messages):
    """Send attacks; return the largest growth of this process's memory after the warm-up."""
    attacks, process = field.attacks(), psutil.Process()
    sent, base, growth = 0, 0, 0
    while sent < messages:
        before = field.link.acked
        field.rng.choice(attacks)()
        sent += max(1, field.link.acked - before)
        if sent < WARM_UP:
            base = process.memory_info().rss
        elif sent % 100 < 2:
            growth = max(growth, process.memory_info().rss - base)
        reassembler = field.gateway._reassembler
        assert reassembler.held_bytes <= LIMITS.max_total_bytes
        assert reassembler.open_transfers <= LIMITS.max_open_transfers
    return growth


def survive(field, messages):
    before, pages = field.state(), field.disk_pages()
    assert before[0].admitted == 3
    growth = storm(field, messages)
    # 1. Nothing of what counts has changed, in the database or at the broker.
    assert field.state() == before
    assert field.disk_pages() == pages
    # A bundle whose pieces are missing is asked for again; nothing else is.
    assert field.link.reconnections == field.manifests
    # 2. Memory is flat.
    assert growth < MAX_GROWTH_BYTES
    # 3. The gateway is alive: honest devices are counted, and the round ends as it should.
    for update in field.fresh:
        field.send(field.frames(field.federation.box(update)))
    assert rounds.latest(field.parties.db).admitted == 5
    field.parties.now_ms += 20_000
    field.gateway.tick()
    closed = rounds.latest(field.parties.db)
    report = trust.open_report(closed.report, field.federation.study.federation)
    assert (report.status, report.admitted) == ("summed", 5)
    check_reasons(field, report)
    check_sum(field)
    return growth, report.refused


def check_reasons(field, report: RoundReport):
    """Every refusal is in the report, by its name."""
    for reason, count in field.expected.items():
        assert report.refused[reason.value] >= count, reason
    assert set(report.refused) == {r.value for r in Reason} - {Reason.ROUND_FULL.value}
    # Only frames and updates that were changed at random have no reason foretold.
    assert report.refused[Reason.TOO_LATE.value] == field.expected[Reason.TOO_LATE]


def check_sum(field):
    """The sum holds the five updates, and decrypts to exactly their fields."""
    federation = field.federation
    name = digest(field.current.signed_plan)
    wanted = np.sum([federation.fields(name, rng_seed=d) for d in range(5)], axis=0)
    bundle = rounds.sum_bundle(field.parties.db, rounds.latest(field.parties.db), federation.study)
    total = cbor2.loads(decode(Bundle, bundle).objects[0])
    residues = federation.scheme.decode_sum(total["ciphertexts"])
    opened = federation.scheme.open_sum(residues, 5, federation.decryption.decrypt)
    np.testing.assert_array_equal(opened, wanted)


def test_3000_hostile_messages(field):
    survive(field, 3_000)


@pytest.mark.long
def test_100000_hostile_messages(field, record_property):
    growth, refused = survive(field, 100_000)
    record_property("memory_growth_bytes", growth)
    record_property("refused", refused)


def test_a_proposal_above_the_brokers_limit_arrives_in_pieces(tmp_path):
    federation = small_federation(dimension=2_000)
    parties, link = Parties(federation, tmp_path), HandLink()
    gateway = gateway_of(federation, parties.db, link, lambda: parties.now_ms, LIMITS)
    content = encode(parties.propose())
    message, pieces = blobs.split(content, 1_000)
    assert len(pieces) > 8
    for piece in pieces:
        link.publish(topics.object_topic("fed", digest(piece)), blobs.WHOLE + piece, retain=True)
    topic = topics.propose_topic("fed")
    # While it waits for the pieces, the same proposal comes again: it has its turn afterwards.
    link.incoming.append(Message(topic, message, packet_id=2))
    gateway.take(Message(topic, message, packet_id=1))
    gateway.tick()
    assert rounds.latest(parties.db).number == 1
    assert rounds.latest(parties.db).status == "open"
    assert link.acked == 2 * len(pieces) + 2
    assert link.filters == set()
    parties.close_databases()
