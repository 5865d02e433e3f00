"""What the network shows of devices: a run's real traffic, searched for anything that names one.

Real agents, each with a state, a clock, records and connections of its own, send through a
recording tap to a real Mosquitto without TLS; the gateway and the aggregator are the project's
services. Which device a submission is from is learnt as nobody else can: the gateway's key opens
the box, and the ring keys of all devices tell whose tag is in it.

The devices' clock stands still until all of them have trained and then runs fast, so that one
machine with two cores shows when 53 devices would send, and not which one it served first.
"""

import base64
import string
import time
from collections import Counter
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import pytest
from federation_fixture import seed, small_federation
from scipy import stats
from wire_fixture import (
    CONNACK,
    CONNECT,
    DISCONNECT,
    DOWN,
    PINGREQ,
    PUBACK,
    PUBLISH,
    SUBSCRIBE,
    UNSUBSCRIBE,
    UP,
    Tap,
    packets,
)
from wire_run_fixture import (
    FRAME_BYTES,
    WAIT_S,
    Parties,
    PlainMosquitto,
    name_of,
)

from vitalring.edge_agent import daemon
from vitalring.mqtt import submit
from vitalring.protocol import chunks, lsag, sealing, topics
from vitalring.protocol.cbor import decode
from vitalring.protocol.records import SealedUpdate
from vitalring.protocol.update import digest_of, tag_of

pytestmark = pytest.mark.mosquitto

DEVICES = 53
RING_SIZE = 27
"""53 devices make rings of 27 and 26 keys, whose updates lie on both sides of a step of padding."""
ROUNDS = {"quick": 5, "long": 20}
MASKED = b"?"
FALSE_ALARM = 1e-6
"""Chance of each statistical test here to fail although nothing tells devices apart."""


@dataclass
class Sent:
    """One submission: a connection that published, with what an outsider cannot read."""

    capture: object
    up: list
    down: list
    device: int = -1
    round: int = -1

    @property
    def client(self):
        return self.up[0].fields["client"]

    @property
    def published(self):
        return [packet for packet in self.up if packet.kind == PUBLISH]

    @property
    def random(self):
        """Parts that are fresh random bytes, or what a fresh key encrypts, or its digest."""
        headers = [packet.fields["payload"][: chunks.HEADER_BYTES] for packet in self.published]
        datas = [packet.fields["payload"][chunks.HEADER_BYTES :] for packet in self.published]
        # Every frame repeats its transfer's number and digest.
        return [self.client, headers[0][4:20], headers[0][-32:], *datas]

    @property
    def masked(self):
        """All bytes that the device sent, those of `random` made equal; their lengths stay."""
        raw = self.capture.bytes(UP)
        for part in sorted(self.random, key=len, reverse=True):
            assert part in raw
            raw = raw.replace(part, MASKED * len(part))
        return raw

    @property
    def answered(self):
        return self.capture.bytes(DOWN)

    @property
    def began(self):
        return self.capture.opened


def submissions(captures):
    """Every connection that published something, in the order that they were opened."""
    found = []
    for capture in captures:
        up = packets(capture.bytes(UP))
        if any(packet.kind == PUBLISH for packet in up):
            found.append(Sent(capture, up, packets(capture.bytes(DOWN))))
    return found


class Captured:
    """A run's traffic with the truth about it."""

    def __init__(self, parties):
        federation, captures = parties.federation, parties.tap.captures
        self.federation = federation
        self.sent = submissions(captures)
        self.links = [c for c in captures if c not in [sent.capture for sent in self.sent]]
        self.updates = [self._identify(sent) for sent in self.sent]

    def _identify(self, sent):
        parts = chunks.Reassembler(chunks.ChunkLimits())
        boxes = [parts.add(packet.fields["payload"], 0.0) for packet in sent.published]
        update = decode(SealedUpdate, sealing.unseal(boxes[-1], self.federation.sealing_key))
        topic = topics.parse(sent.published[0].fields["topic"].decode())
        sent.round = topic.round_number
        sent.device = self.tags(sent.round).index(tag_of(update))
        return update

    def tags(self, number):
        context = lsag.context("fed", "study", 1, "ward", number)
        base = lsag.tag_base(context)
        return [lsag.tag_of(p.secret, context, tag_base=base) for p in self.federation.devices]

    @property
    def rounds(self):
        ordered = sorted(self.sent, key=lambda sent: sent.round)
        return [list(group) for _, group in groupby(ordered, key=lambda sent: sent.round)]

    def ranks(self, value):
        """Rank (rounds, devices) of each device in each round, by `value` of its submission."""
        table = np.empty((len(self.rounds), DEVICES))
        for row, group in enumerate(self.rounds):
            for sent in group:
                table[row, sent.device] = value(sent)
        return stats.rankdata(table, axis=1)


@pytest.fixture(
    scope="module",
    params=["quick", pytest.param("long", marks=pytest.mark.long)],
)
def captured(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wire")
    rounds = ROUNDS[request.param]
    federation = small_federation(
        devices=DEVICES,
        ring_size=RING_SIZE,
        n_max=DEVICES,
        min_cohort=DEVICES,
        secure_sum="single-he",
        study_rounds=rounds,
    )
    broker = PlainMosquitto(folder / "broker")
    broker.start()
    with pytest.MonkeyPatch.context() as patch, Tap("127.0.0.1", broker.port) as tap:
        # The devices' clock is faster than that of the thread that waits by it.
        patch.setattr(daemon, "_IDLE_S", 0.05)
        try:
            parties = Parties(federation, folder, broker, tap)
            parties.run()
        finally:
            broker.stop()
        made = Captured(parties)
        made.asked_rounds = rounds
        yield made


# The search. Each check returns what it found, in words.


def unlike(sent):
    """What differs between submissions of one round outside what is random."""
    parts = ("masked", "answered")
    found = [f"bytes {what} differ" for what in parts if len({getattr(s, what) for s in sent}) > 1]
    if len({tuple((p.kind, p.flags, p.size) for p in one.up) for one in sent}) > 1:
        found.append("packets differ")
    return found


def windows_of(parts):
    """All runs of 8 bytes inside each part, as numbers."""
    bytes_of = [np.frombuffer(part, np.uint8) for part in parts if len(part) >= 8]
    slides = [np.lib.stride_tricks.sliding_window_view(each, 8) for each in bytes_of]
    return np.concatenate(slides).view(np.uint64).ravel()


def shared(sent):
    """Windows of 8 bytes that two submissions have in common inside what should be random.

    Of 1,060 submissions, 15 million windows, two agree by chance with probability 1e-5; of
    client ids, whose windows have 62^8 values, with probability 1e-6.
    """
    windows = [np.unique(windows_of(one.random)) for one in sent]
    values, counts = np.unique(np.concatenate(windows), return_counts=True)
    return [f"{int(value):016x} comes more than once" for value in values[counts > 1][:5]]


def uneven(clients):
    """Client ids that are not 23 letters and digits, evenly drawn and never twice."""
    found = []
    alphabet = (string.ascii_letters + string.digits).encode()
    if any(len(client) != 23 or set(client) - set(alphabet) for client in clients):
        found.append("a client id of another form")
    if len(set(clients)) < len(clients):
        found.append("a client id comes twice")
    counts = Counter(b"".join(clients))
    expected = sum(counts.values()) / len(alphabet)
    statistic = sum((counts[letter] - expected) ** 2 / expected for letter in alphabet)
    if statistic > stats.chi2.isf(FALSE_ALARM, len(alphabet) - 1):
        found.append("letters of client ids are not evenly drawn")
    return found


def by_device(ranks):
    """Tell whether ranks (rounds, devices) depend on the device, or run with its number.

    Friedman's test finds devices that are early or late whichever they are; Page's finds a trend.
    If every round ranks the devices in an order of its own, each errs with FALSE_ALARM: Page's
    sum is normal to good approximation, and Friedman's statistic has shorter tails than the
    chi-square distribution that it is held against.
    """
    rounds, devices = ranks.shape
    sums = ranks.sum(axis=0) - rounds * (devices + 1) / 2
    friedman = 12 * (sums**2).sum() / (rounds * devices * (devices + 1))
    place = np.arange(devices) - (devices - 1) / 2
    spread = np.sqrt(rounds * (place**2).sum() * devices * (devices + 1) / 12)
    trend = abs((sums * place).sum()) / spread
    return bool(
        friedman > stats.chi2.isf(FALSE_ALARM, devices - 1)
        or trend > stats.norm.isf(FALSE_ALARM / 2)
    )


# What the search finds in a real run.


def test_every_device_was_seen_in_every_round(captured):
    assert len(captured.rounds) == captured.asked_rounds
    for group in captured.rounds:
        assert sorted(sent.device for sent in group) == list(range(DEVICES))
    if captured.asked_rounds == ROUNDS["long"]:
        assert len(captured.sent) >= 1_000
        assert sum(len(sent.published) for sent in captured.sent) >= 3_000
    # Nobody was asked twice, so every submission is a first one over a connection that ended.
    assert all(sent.capture.closed for sent in captured.sent)
    # The rings' updates really differ in length across a step of padding.
    lengths = {len(update.signature) for update in captured.updates}
    assert lengths == {lsag.signature_bytes(size) for size in (26, 27)}


def test_a_submission_has_one_form(captured):
    for sent in captured.sent:
        kinds = [packet.kind for packet in sent.up]
        assert kinds == [CONNECT, *[PUBLISH] * len(sent.published), DISCONNECT]
        assert {packet.kind for packet in sent.down} == {CONNACK, PUBACK}
        connect, *frames, goodbye = sent.up
        # Clean start alone: no will, no user name, no password; no session to come back to.
        assert connect.fields["flags"] == 2
        assert {name for name, _ in connect.fields["props"]} == {0x21, 0x27}
        assert [packet.fields["id"] for packet in frames] == list(range(1, len(frames) + 1))
        for packet in frames:
            # QoS 1, not retained, not a duplicate; message expiry alone.
            assert packet.flags == 2
            assert [name for name, _ in packet.fields["props"]] == [0x02]
        assert goodbye.fields == {"reason": 0, "props": ()}


def test_submissions_of_a_round_differ_in_random_parts_alone(captured):
    for group in captured.rounds:
        assert unlike(group) == []
    # And rounds differ in their number.
    forms = {
        tuple(
            (
                packet.kind,
                packet.flags,
                packet.fields.get("keepalive"),
                packet.fields.get("props"),
                packet.fields.get("topic", b"").rpartition(b"/")[0],
                len(packet.fields.get("payload", b"")),
            )
            for packet in sent.up
        )
        for sent in captured.sent
    }
    assert len(forms) == 1


def test_random_parts_have_nothing_in_common(captured):
    assert shared(captured.sent) == []


def test_client_ids_are_fresh_and_evenly_drawn(captured):
    every = [sent.client for sent in captured.sent]
    every += [packets(link.bytes(UP))[0].fields["client"] for link in captured.links]
    assert uneven(every) == []


def test_nothing_that_names_a_device_or_an_update_is_sent_in_clear(captured):
    """By the first 8 bytes of each name; 15 million windows have one by chance once in 10^8."""
    names = {name_of(number).encode() for number in range(DEVICES)}
    names |= {b"agent.sqlite", b"x-device", b"vitalring"}
    names |= {digest_of(update) for update in captured.updates}
    names |= {update.signature[at : at + 8] for update in captured.updates for at in (0, 32, 64)}
    names |= {update.ciphertexts[at : at + 8] for update in captured.updates for at in (0, 6_000)}
    for pair in captured.federation.devices:
        for key in (pair.public, pair.secret):
            names |= {key, key.hex().encode(), base64.b64encode(key)}
    said = [c.bytes(UP) for c in [*(s.capture for s in captured.sent), *captured.links]]
    first = {np.frombuffer(name[:8], np.uint64)[0]: name for name in names}
    found = np.intersect1d(windows_of(said), np.array(list(first)))
    assert [first[value] for value in found] == []


def test_times_and_order_do_not_depend_on_the_device(captured):
    assert not by_device(captured.ranks(lambda sent: sent.began))
    assert not by_device(captured.ranks(lambda sent: sent.capture.chunks[-1][0]))
    assert not by_device(captured.ranks(lambda sent: sent.capture.number))


def test_downlinks_of_a_cohort_are_alike(captured):
    """What a device listens to and asks for, from its first connection to the end of the study."""
    assert len(captured.links) == DEVICES
    forms, asked = set(), set()
    for link in captured.links:
        up = packets(link.bytes(UP))
        assert {packet.kind for packet in up} <= {
            CONNECT,
            SUBSCRIBE,
            UNSUBSCRIBE,
            PUBACK,
            PINGREQ,
            DISCONNECT,
        }
        first = up[0].fields | {"client": len(up[0].fields["client"])}
        forms.add(tuple(first.items()))
        asked.add(
            tuple(
                (packet.kind, packet.flags, packet.fields["props"], *packet.fields["filters"])
                for packet in up
                if packet.kind in (SUBSCRIBE, UNSUBSCRIBE)
            )
        )
    assert len(forms) == 1
    assert len(asked) == 1


# That the search would find something.


@pytest.fixture(scope="module")
def tapped(tmp_path_factory):
    broker = PlainMosquitto(tmp_path_factory.mktemp("tapped") / "broker")
    broker.start()
    with Tap("127.0.0.1", broker.port) as tap:
        try:
            yield broker, tap
        finally:
            broker.stop()


def send(tapped, *, size=9_000, tell=b"", fixed=b"", expiry_s=60, user=None, **changes):
    """Submit something as a device does, but for what is asked."""
    broker, tap = tapped
    config = replace(broker.plain(tap.port), username=user, **changes)
    box = tell + sealing.seal(bytes(size), seed("a point"))
    frames = chunks.split(box, FRAME_BYTES, fixed or np.random.default_rng().bytes(16))
    submit(config, topics.uplink_topic("fed", "ward", 1), frames, WAIT_S, expiry_s=expiry_s)
    deadline = time.monotonic() + WAIT_S
    while not tap.captures[-1].closed:
        assert time.monotonic() < deadline, "the connection did not end"
        time.sleep(0.01)
    return submissions([tap.captures[-1]])[0]


def test_honest_submissions_pass(tapped):
    sent = [send(tapped) for _ in range(3)]
    assert unlike(sent) == shared(sent) == []


@pytest.mark.parametrize(
    "change",
    [
        {"keepalive_s": 61},
        {"user": "ward-3-bed-2"},
        {"max_payload_bytes": 6_000},
        {"expiry_s": 61},
        {"size": 9_000 + sealing.PAD_STEP},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_device_with_another_setting_is_found(tapped, change):
    sent = [send(tapped), send(tapped, **change)]
    assert unlike(sent) != []


@pytest.mark.parametrize("change", [{"tell": b"bed-0042"}, {"fixed": b"0123456789abcdef"}])
def test_bytes_that_come_again_are_found(tapped, change):
    assert shared([send(tapped, **change), send(tapped, **change)]) != []


def test_client_ids_that_come_again_are_found(tapped, monkeypatch):
    sent = send(tapped)
    monkeypatch.setattr("vitalring.mqtt_connection.new_client_id", sent.client.decode)
    again = send(tapped)
    assert again.client == sent.client
    assert shared([sent, again]) != []
    assert "a client id comes twice" in uneven([sent.client, again.client])
    assert uneven([b"device-%016d" % number for number in range(60)]) != []


def test_devices_that_are_early_or_late_are_found():
    rng, shape = np.random.default_rng(), (ROUNDS["long"], DEVICES)
    even = rng.random(shape)
    assert not by_device(stats.rankdata(even, axis=1))
    # From the first device to the last later by a third of the window.
    assert by_device(stats.rankdata(even + np.linspace(0, 1 / 3, DEVICES), axis=1))
    # Each in a third of the window that is its own, whatever its number.
    assert by_device(stats.rankdata(even / 3 + rng.random(DEVICES) * 2 / 3, axis=1))
