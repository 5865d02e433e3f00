"""Tags, signatures and sizes: the same where they must be, and telling nothing where they may not.

Statistical tests draw fresh keys in every run and err with a probability below FALSE_ALARM where
there is nothing to find. Each is also shown something to find: a broken way to make tags, or
bytes that tell their signer.
"""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
from device_fixture import FLOORS, announced, device
from federation_fixture import START_MS, Parties, small_federation
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vitalring.edge_agent import agent as agents
from vitalring.edge_agent import state
from vitalring.errors import SignatureError
from vitalring.protocol import group, lsag, ring_suite, sealing
from vitalring.protocol.cbor import decode, encode
from vitalring.protocol.records import SealedUpdate
from vitalring.protocol.update import spare_bytes

SUITES = (ring_suite.LSAG, ring_suite.ONE_OF_MANY)
PAIRS = sorted((lsag.keygen() for _ in range(66)), key=lambda pair: pair.public)
KEYS = [pair.public for pair in PAIRS]
DIGEST = bytes(range(32))
FALSE_ALARM = 1e-6


def context_of(number):
    return lsag.context("fed", "study", 1, "ward", number)


# One tag in a round.


@given(
    st.sampled_from(SUITES),
    st.integers(0, 65),
    st.integers(2, 30),
    st.binary(min_size=32, max_size=32),
    st.integers(0, 2**64 - 1),
)
@settings(max_examples=40, deadline=None)
def test_key_and_round_alone_make_the_tag(suite, own, size, digest, number):
    begin = max(0, min(own, len(KEYS) - size))
    ring = ring_suite.prepare(suite, KEYS[begin : begin + size])
    signature = ring.sign(PAIRS[own].secret, context_of(number), digest)
    wanted = lsag.tag_of(PAIRS[own].secret, context_of(number))
    assert signature[:32] == ring.verify(context_of(number), digest, signature) == wanted
    # What the tag depends on: another round and another key make another one.
    assert wanted != lsag.tag_of(PAIRS[own].secret, context_of((number + 1) % 2**64))
    assert wanted != lsag.tag_of(PAIRS[own - 1].secret, context_of(number))


# Tags of other rounds.

DEVICES = 500
PAIRS_OF_TAGS = 2_000


@functools.cache
def base_of(number):
    return lsag.tag_base(context_of(number))


def honest(secret, number):
    return lsag.tag_of(secret, context_of(number), tag_base=base_of(number))


def fixed_base(secret, _number):
    """The base does not depend on the round."""
    return group.mul(secret, base_of(0))


def hashed_multiple(secret, number):
    """Hp = hash * G, as three published libraries had it: the ratio of two bases is public."""
    return group.mul(public_factor(number), group.base_mul(secret))


def carried_sign(secret, number):
    """One bit of 256 is the device's own: the sign of its public key."""
    tag = bytearray(honest(secret, number))
    tag[31] = tag[31] & 0x7F | group.base_mul(secret)[31] & 0x80
    return bytes(tag)


def public_factor(number):
    return group.hash_to_scalar(lsag.SUITE + b"/tag-base", context_of(number))


def inverse(scalar):
    value = pow(int.from_bytes(scalar, "little"), -1, group.ORDER)
    return value.to_bytes(32, "little")


def features_of(one, other, factor):
    """What is compared of two tags: all bits, and both carried to the other's round.

    `factor` is what leads from one round to the other where bases are public multiples of G.
    """
    try:
        carried = group.mul(factor, one)
    except SignatureError:
        carried = b""
    bits = np.unpackbits(np.frombuffer(one, np.uint8) ^ np.frombuffer(other, np.uint8))
    return np.concatenate((bits, [carried == other]))


def pairs_of_tags(make, pairs, first_round):
    """Features (pairs, 257) of pairs of tags of two rounds, and which are of one device.

    No tag is in two pairs, so that what is found of one pair is independent of the others.
    """
    secrets = [lsag.keygen().secret for _ in range(DEVICES)]
    features, same = [], []
    for first in range(first_round, first_round + 2 * pairs // DEVICES, 2):
        second = first + 1
        factor = group.scalar_mul(public_factor(second), inverse(public_factor(first)))
        early = [make(secret, first) for secret in secrets]
        late = [make(secret, second) for secret in secrets]
        # The first half of the devices is paired with itself, the second with its neighbour.
        half = DEVICES // 2
        partners = [*range(half), *range(half + 1, DEVICES), half]
        for own, partner in enumerate(partners):
            features.append(features_of(early[own], late[partner], factor))
            same.append(own == partner)
    return np.array(features, dtype=float), np.array(same)


def hits_of_classifier(train, test):
    """Naive Bayes over bits: how often it says rightly whether a pair is of one device."""
    (x, same), (later, truth) = train, test
    ones = [(x[same == side].sum(axis=0) + 1) / ((same == side).sum() + 2) for side in (0, 1)]
    score = later @ (np.log(ones[1]) - np.log(ones[0]))
    score += (1 - later) @ (np.log1p(-ones[1]) - np.log1p(-ones[0]))
    return int(((score > 0) == truth).sum()), len(truth)


def is_linked(make, pairs):
    """Tell whether the classifier, trained on pairs of some devices, links those of others.

    If tags tell nothing each of its answers is right with probability 1/2.
    """
    train, test = (pairs_of_tags(make, pairs, first_round) for first_round in (0, 10_000))
    hits, answers = hits_of_classifier(train, test)
    assert answers == pairs
    return stats.binomtest(hits, answers, 0.5).pvalue < FALSE_ALARM


def test_tags_of_two_rounds_cannot_be_linked():
    assert not is_linked(honest, 2 * PAIRS_OF_TAGS)


@pytest.mark.parametrize("broken", [fixed_base, hashed_multiple, carried_sign])
def test_a_broken_tag_is_linked(broken):
    assert is_linked(broken, PAIRS_OF_TAGS // 2)


# Signatures.

SIGNERS, ROUNDS = 4, 160


@pytest.fixture(scope="module", params=SUITES)
def signed(request):
    """Bits (signers, rounds, bits) of signatures by each member of a ring, in many rounds."""
    ring = ring_suite.prepare(request.param, KEYS[:SIGNERS])
    rows = [
        [ring.sign(pair.secret, context_of(number), DIGEST) for number in range(ROUNDS)]
        for pair in PAIRS[:SIGNERS]
    ]
    return np.array([[np.unpackbits(np.frombuffer(s, np.uint8)) for s in row] for row in rows])


def is_named(bits):
    """Tell whether a classifier, trained on half of the rounds, names signers in the others."""
    half = ROUNDS // 2
    ones = (bits[:, :half].sum(axis=1) + 1) / (half + 2)
    later = bits[:, half:].reshape(-1, bits.shape[2])
    scores = later @ np.log(ones).T + (1 - later) @ np.log1p(-ones).T
    hits = int((scores.argmax(axis=1) == np.arange(SIGNERS).repeat(ROUNDS - half)).sum())
    return stats.binomtest(hits, len(later), 1 / SIGNERS).pvalue < FALSE_ALARM


def test_bytes_of_a_signature_do_not_name_its_signer(signed):
    assert not is_named(signed)


def test_a_response_that_is_shorter_for_the_signer_names_it(signed):
    """As with a nonce, or an answer, that is not reduced like the made-up ones."""
    broken = signed.copy()
    for signer in range(SIGNERS):
        # The fourth highest bits of a scalar: little-endian, and three are always zero.
        broken[signer, :, 8 * (64 + 32 * signer + 31) + 4] = 0
        broken[signer, :, 8 * (64 + 32 * signer + 30)] = 0
        broken[signer, :, 8 * (64 + 32 * signer + 30) + 1] = 0
    assert is_named(broken)


# Sizes.


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("size", [2, 3, 8, 9, 16, 17, 33, 64, 65])
def test_signatures_for_a_ring_have_one_size(suite, size):
    ring = ring_suite.prepare(suite, KEYS[:size])
    signers = PAIRS[:size] if size < 10 else PAIRS[: size : size // 4]
    sizes = {
        len(ring.sign(pair.secret, context_of(number), DIGEST))
        for number, pair in enumerate(signers)
    }
    assert sizes == {ring.signature_bytes}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A ring of which only the length of its signatures counts."""

    signature_bytes: int


def sealed_sizes(rings, ciphertexts):
    """Lengths of the boxes of updates of these rings."""
    key = bytes(sealing.new_secret().public_key)
    found = set()
    # The last one's number takes more bytes.
    for number, ring in (*list(enumerate(rings))[:3], (len(rings) - 1, rings[-1])):
        message = encode(
            SealedUpdate(bytes(32), number, bytes(ciphertexts), bytes(ring.signature_bytes))
        )
        found.add(len(sealing.seal(message, key, spare_bytes(rings, number))))
    return found


def bytes_of(suite, keys):
    if suite == ring_suite.LSAG:
        return lsag.signature_bytes(keys)
    return ring_suite.statement.signature_bytes(keys)


@pytest.mark.parametrize("suite", SUITES)
def test_rings_whose_sizes_differ_by_one_make_boxes_of_one_length(suite):
    """For every length that ciphertexts can have within a step of padding."""
    for keys, ciphertexts in itertools.product((3, 9, 27, 65, 513), range(0, 1_024, 32)):
        rings = [Sizes(bytes_of(suite, keys))] * 2 + [Sizes(bytes_of(suite, keys - 1))] * 30
        assert len(sealed_sizes(rings, ciphertexts)) == 1, (keys, ciphertexts)


def test_without_spare_bytes_boxes_would_tell_the_ring(monkeypatch):
    monkeypatch.setattr(f"{__name__}.spare_bytes", lambda _rings, _own: 0)
    rings = [Sizes(bytes_of(ring_suite.LSAG, 27)), Sizes(bytes_of(ring_suite.LSAG, 26))]
    assert max(len(sealed_sizes(rings, size)) for size in range(1_024)) == 2


@pytest.mark.parametrize("suite", SUITES)
def test_spare_bytes_are_below_a_step(suite):
    """However a cohort is cut; a gateway takes padding of one step more and not of two."""
    largest = ring_suite.most_keys(suite)
    sizes = [bytes_of(suite, keys) for keys in range(2, largest + 1)]
    most = max(abs(a - b) for a, b in itertools.pairwise(sizes))
    rings = [Sizes(1_000 + most), *[Sizes(1_000)] * 5_000]
    assert max(spare_bytes(rings, 0), spare_bytes(rings, 1)) < sealing.PAD_STEP


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("secure_sum", ["plain", "single-he"])
def test_updates_of_all_devices_have_one_size(suite, secure_sum):
    """Whatever the data, the count of records and the seeds; and boxes whatever the ring."""
    federation = small_federation(
        devices=11, ring_size=4, ring_suite=suite, secure_sum=secure_sum, n_max=16
    )
    assert [len(ring.keys) for ring in federation.rings] == [4, 4, 3]
    key = bytes(federation.sealing_key.public_key)
    boxes, encoded = set(), {0: set(), 1: set(), 2: set()}
    for number, pair in enumerate(federation.devices):
        place = next(i for i, ring in enumerate(federation.rings) if pair.public in ring.keys)
        for samples in (1, 10):
            fields = federation.fields(bytes(32), samples=samples, rng_seed=number)
            ring = federation.rings[place]
            made = encode(
                SealedUpdate(
                    bytes(32),
                    place,
                    federation.encrypt(fields),
                    ring.sign(pair.secret, context_of(number), DIGEST),
                )
            )
            encoded[place].add(len(made))
            boxes.add(len(sealing.seal(made, key, spare_bytes(federation.rings, place))))
    assert [len(sizes) for sizes in encoded.values()] == [1, 1, 1]
    assert len(boxes) == 1


# What a device decides about its submission.


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """A round of ten minutes, with five more until its deadline."""
    parties = Parties(small_federation(), tmp_path_factory.mktemp("parties"))
    made = parties.begin(parties.propose())
    parties.close_databases()
    return dataclasses.replace(
        made, opens_ms=START_MS, window_ms=600_000, deadline_ms=START_MS + 900_000
    )


def submit_at(plan, now_ms, took_s):
    """When a device that heard of a round at `now_ms`, by its own clock, sends its update."""
    current = agents._Round(None, plan, b"", b"", 0, None, None, now_ms, 0.0)
    return agents._submit_at_ms(current, took_s)


@pytest.mark.parametrize("took_s", [0.0, 30.0, 200.0])
@pytest.mark.parametrize("behind_ms", [-60_000, 0, 60_000])
def test_the_time_of_a_submission_is_uniform_over_what_is_left_of_the_window(
    plan, took_s, behind_ms
):
    """A device that trains for long is not found at the moment when it is ready."""
    now_ms = START_MS - behind_ms
    drawn = np.array([submit_at(plan, now_ms, took_s) for _ in range(2_000)])
    ready = now_ms + 1_000 * took_s
    ends = min(START_MS, now_ms) + 600_000
    assert ready <= drawn.min() <= drawn.max() <= ends
    test = stats.kstest(drawn, "uniform", args=(ready, ends - ready))
    assert test.pvalue > FALSE_ALARM


def test_who_is_ready_when_the_window_is_over_sends_at_once(plan):
    assert submit_at(plan, START_MS, 700.0) == START_MS + 700_000
    short = dataclasses.replace(plan, window_ms=0)
    assert submit_at(short, START_MS, 1.0) == START_MS + 1_000


def test_the_expiry_covers_a_round_and_comes_from_its_plan_alone(plan):
    assert agents._expiry_s(plan) == 901
    assert agents._expiry_s(dataclasses.replace(plan, deadline_ms=START_MS)) == 1
    assert agents._expiry_s(dataclasses.replace(plan, deadline_ms=2**53)) == 2**31


def test_devices_of_a_round_keep_the_same_spare_bytes_and_expiry(tmp_path):
    """Of rings of unequal size, with clocks that are off, before and after a restart."""
    federation = small_federation(devices=5, ring_size=3, min_cohort=4)
    parties = Parties(federation, tmp_path / "parties")
    parties.begin(parties.propose())
    seen = set()
    for number in range(5):
        folder = tmp_path / f"device{number}"
        floors = dataclasses.replace(FLOORS, ring=2, allow_no_privacy=True)
        made = device(parties, folder, number, floors=floors)
        assert made.consider(announced(parties), parties.now_ms + 300 * number) == "ready"
        made.db.close()
        again = state.open_state(folder)
        (pending,) = state.outbox(again)
        again.close()
        seen.add((len(pending.update) + pending.spare_bytes, pending.expiry_s))
        assert decode(SealedUpdate, pending.update).ring in (0, 1)
    assert len(seen) == 1
    parties.close_databases()
