"""Suite 2: frozen vectors, a second implementation, properties, batches and their bounds."""

import hashlib
import importlib
import json
import math
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.errors import ConfigError, SignatureError
from vitalring.protocol import group, limits, lsag
from vitalring.protocol.rings import signing, statement, verifying
from vitalring.protocol.rings.statement import Ring

VECTORS = Path(__file__).parents[1] / "vectors"
sys.path.insert(0, str(VECTORS))
curve = importlib.import_module("reference_lsag")
reference = importlib.import_module("reference_one_of_many")
frozen = importlib.import_module("make_lsag")
make_one_of_many = importlib.import_module("make_one_of_many")
FROZEN = json.loads((VECTORS / "one_of_many.json").read_text())

COMPLAINTS = {
    "ring": r"^ring of|^ring key",
    "length": r"^signature of",
    "scalar": r"^scalar is",
    "point": r"not a canonical point|no group element",
    "closure": r"does not verify",
}
SIZE = 10
PAIRS = frozen.members(SIZE)
RING = Ring.of([pair.public for pair in PAIRS])
CONTEXT = lsag.context(*frozen.EVENT)
BASE = lsag.tag_base(CONTEXT)
DIGEST = hashlib.sha256(b"update").digest()
SIGNATURE = signing.sign(RING, PAIRS[6].secret, CONTEXT, DIGEST)
OTHERS = [signing.sign(RING, pair.secret, CONTEXT, DIGEST) for pair in PAIRS]
TAGS = [lsag.tag_of(pair.secret, CONTEXT) for pair in PAIRS]


def read(vector):
    keys = [bytes.fromhex(key) for key in vector["ring"]]
    ctx = lsag.context(*vector["event"])
    return keys, ctx, bytes.fromhex(vector["digest"]), bytes.fromhex(vector["signature"])


def verify(data, ring=RING, ctx=CONTEXT, digest=DIGEST):
    (verdict,) = verifying.verify_batch(ring, ctx, [(digest, data)], max_passes=1)
    if verdict.error is not None:
        raise verdict.error
    return verdict.tag


def changed(data, at, delta):
    """A signature with the scalar at a byte position moved by delta."""
    value = (int.from_bytes(data[at:][:32], "little") + delta) % group.ORDER
    return data[:at] + value.to_bytes(32, "little") + data[at:][32:]


OPENING = len(SIGNATURE) - 64


def insider(data):
    """Spoil what only a pass over the ring can find: the tag's equation still holds."""
    return changed(data, OPENING, 1)


# Vectors.


def test_vectors_are_what_the_script_builds():
    assert make_one_of_many.build() == FROZEN


def test_the_suite_is_the_one_of_the_vectors_and_no_other():
    assert statement.SUITE.decode() == FROZEN["suite"] == reference.SUITE.decode()
    assert statement.SUITE != lsag.SUITE


@pytest.mark.parametrize("vector", FROZEN["valid"], ids=lambda v: v["name"])
def test_valid_signatures(vector):
    keys, ctx, digest, signature = read(vector)
    ring, secret = Ring.of(keys), bytes.fromhex(vector["secret"])
    assert " ".join(map(str, ring.radices)) == vector["radices"]
    assert verify(signature, ring, ctx, digest) == lsag.tag_of(secret, ctx)
    assert verify(signature, ring, ctx, digest) == signature[:32]


@pytest.mark.parametrize("vector", FROZEN["valid"], ids=lambda v: v["name"])
def test_the_second_implementation_signs_and_verifies_the_same_bytes(vector):
    keys, ctx, digest, signature = read(vector)
    assert reference.ring_digest(keys) == Ring.of(keys).digest
    x = int.from_bytes(bytes.fromhex(vector["secret"]), "little")
    own = keys.index(curve.encode_point(curve.mul(x, curve.BASE)))
    entropy = bytes.fromhex(vector["entropy"])
    assert reference.sign(keys, own, x, ctx, digest, entropy) == signature
    assert reference.verify(keys, ctx, digest, signature) == signature[:32]


@pytest.mark.parametrize("vector", FROZEN["invalid"], ids=lambda v: v["name"])
def test_invalid_signatures(vector):
    keys, ctx, digest, signature = read(vector)
    with pytest.raises(SignatureError, match=COMPLAINTS[vector["failure"]]):
        verify(signature, Ring.of(keys), ctx, digest)
    with pytest.raises(reference.InvalidError, match=vector["failure"]):
        reference.verify(keys, ctx, digest, signature)


def named(part):
    return [vector for vector in FROZEN["invalid"] if part in vector["name"]]


def test_torsion_vectors_are_real_forgeries():
    forgeries = [vector for vector in FROZEN["invalid"] if " plus " in vector["name"]]
    forgeries = [vector for vector in forgeries if vector["failure"] == "point"]
    assert len(forgeries) == 11
    tags = set()
    for vector in forgeries:
        lenient = curve.decode_any_point
        tags.add(reference.verify(*read(vector), decode=lenient))
    assert len(tags) == 8, "seven more tags for one key, beside its own"


def test_digits_that_are_no_bits_are_a_real_forgery():
    # Two members make a third key of theirs, and with it one more tag.
    (vector,) = named("digits that are no bits")
    tag = reference.verify(*read(vector), digits_checked=False)
    assert tag not in TAGS


@pytest.mark.parametrize("size", FROZEN["sizes"])
def test_sizes_are_those_of_the_vectors(size):
    expected, keys = FROZEN["sizes"][size], int(size)
    assert statement.radices(keys) == tuple(expected["radices"])
    assert statement.signature_bytes(keys) == expected["signature_bytes"]
    assert math.prod(expected["radices"]) - keys == expected["padding"]


def test_radices_hold_every_ring_with_little_padding():
    for size in range(2, limits.MAX_DEVICES + 1):
        shape = statement.radices(size)
        assert shape == tuple(reference.radices(size))
        assert size <= math.prod(shape) <= size * 1.25
        assert 2 <= min(shape) <= max(shape) <= statement.LARGEST_RADIX


# Tags.


@given(st.integers(0, SIZE - 1), st.binary(min_size=32, max_size=32), st.integers(0, 2**64 - 1))
@settings(max_examples=40, deadline=None)
def test_what_is_signed_verifies_and_has_the_tag_of_key_and_round(own, digest, number):
    ctx = lsag.context("f", "s", 1, "c", number)
    signature = signing.sign(RING, PAIRS[own].secret, ctx, digest)
    assert len(signature) == statement.signature_bytes(SIZE) == 448
    assert verify(signature, RING, ctx, digest) == lsag.tag_of(PAIRS[own].secret, ctx)


def test_one_key_has_one_tag_in_a_round_whatever_the_suite_the_ring_and_the_message():
    crowd = Ring.of([pair.public for pair in frozen.members(20)])
    tags = {
        verify(signing.sign(ring, PAIRS[2].secret, CONTEXT, digest), ring, CONTEXT, digest)
        for ring in (RING, crowd)
        for digest in (DIGEST, bytes(32))
    }
    old = lsag.Ring.of(RING.keys)
    tags.add(lsag.verify(old, CONTEXT, DIGEST, lsag.sign(old, PAIRS[2].secret, CONTEXT, DIGEST)))
    assert tags == {TAGS[2]}


def test_signing_twice_gives_other_bytes_and_the_same_tag():
    assert OTHERS[6] != SIGNATURE
    assert verify(OTHERS[6]) == verify(SIGNATURE) == TAGS[6]


def bits(data):
    return int.from_bytes(data, "big")


def test_tags_of_other_rounds_do_not_tell_the_key():
    # All inputs are frozen: this passes or fails for ever. Bounds are five deviations wide.
    keys, rounds = 16, 64
    bases = [lsag.tag_base(lsag.context("f", "s", 1, "c", number)) for number in range(rounds)]
    secrets = [frozen.secret(f"device {index}") for index in range(keys)]
    tags = [[group.mul(secret, base) for base in bases] for secret in secrets]
    flat = [tag for row in tags for tag in row]
    assert len(set(flat)) == keys * rounds
    # 1. Bytes are those of a fair source; the last holds the sign and seven bits of y.
    counts = Counter(byte for tag in flat for byte in tag)
    expected = 32 * keys * rounds / 256
    statistic = sum((counts[byte] - expected) ** 2 / expected for byte in range(256))
    assert abs(statistic - 255) < 5 * math.sqrt(2 * 255)
    # 2. The tag nearest in another round is no more often the same key's than any other's.
    hits = 0
    for row in range(keys):
        for number in range(rounds):
            later = (number + 1) % rounds
            distances = [
                (bits(tags[row][number]) ^ bits(other[later])).bit_count() for other in tags
            ]
            hits += distances.index(min(distances)) == row
    trials = keys * rounds
    assert abs(hits - trials / keys) < 5 * math.sqrt(trials * (1 / keys) * (1 - 1 / keys))


def test_bytes_of_a_signature_do_not_tell_its_signer():
    # A signer's mean over many rounds would differ from the others' at some bit.
    ring, rounds = Ring.of([pair.public for pair in PAIRS[:4]]), 60
    samples = []
    for own in range(4):
        row = []
        for number in range(rounds):
            ctx = lsag.context("f", "s", 1, "c", number)
            noise = frozen.entropy(f"{own} {number}")
            data = signing._sign(
                ring, PAIRS[own].secret, ctx, DIGEST, base=lsag.tag_base(ctx), entropy=noise
            )
            row.append(bits(data))
        samples.append(row)
    width = 8 * statement.signature_bytes(4)
    worst = 0.0
    for bit in range(width):
        ones = [sum(value >> bit & 1 for value in row) for row in samples]
        mean = sum(ones) / (4 * rounds)
        if mean in (0.0, 1.0):
            continue  # the three highest bits of a scalar below the order
        deviation = math.sqrt(mean * (1 - mean) * rounds)
        worst = max(worst, *(abs(count - mean * rounds) / deviation for count in ones))
    assert worst < 5.5


def test_all_signatures_for_a_ring_have_one_size():
    assert {len(data) for data in OTHERS} == {statement.signature_bytes(SIZE)}


def test_the_work_of_signing_does_not_depend_on_the_place(monkeypatch):
    names = ("mul", "base_mul", "add", "sub", "scalar_add", "scalar_mul", "scalar_sub")
    calls = Counter()

    def counted(name, function):
        def call(*args):
            calls[name] += 1
            return function(*args)

        return call

    for name in names:
        monkeypatch.setattr(group, name, counted(name, getattr(group, name)))
    seen = []
    for pair in PAIRS:
        calls.clear()
        signing.sign(RING, pair.secret, CONTEXT, DIGEST)
        seen.append(dict(calls))
    assert seen[0]["mul"] > 30
    assert all(counts == seen[0] for counts in seen)


def test_a_generator_that_repeats_itself_does_not_reveal_the_key(monkeypatch):
    monkeypatch.setattr(signing.secrets, "token_bytes", bytes)
    made = [
        signing.sign(RING, PAIRS[own].secret, ctx, digest)
        for own, ctx, digest in (
            (6, CONTEXT, DIGEST),
            (6, CONTEXT, bytes(32)),
            (6, lsag.context("f", "s", 1, "c", 1), DIGEST),
            (5, CONTEXT, DIGEST),
        )
    ]
    parts = [data[at : at + 32] for data in made for at in range(32, len(data), 32)]
    assert len(set(parts)) == len(parts), "no nonce serves twice"


# What is refused.


@given(st.binary(max_size=500))
def test_any_bytes_are_refused(data):
    with pytest.raises(SignatureError):
        verify(data)


@given(st.binary(min_size=448, max_size=448))
@settings(deadline=None)
def test_any_bytes_of_the_right_length_are_refused(data):
    with pytest.raises(SignatureError):
        verify(data)


@given(st.integers(2, 60), st.integers(2, 60))
@settings(max_examples=30, deadline=None)
def test_a_signature_is_of_one_ring(size, other):
    pairs = frozen.members(size)
    ring = Ring.of([pair.public for pair in pairs])
    signature = signing.sign(ring, pairs[0].secret, CONTEXT, DIGEST)
    assert verify(signature, ring) == signature[:32]
    if size != other:
        larger = Ring.of([pair.public for pair in frozen.members(other)])
        with pytest.raises(SignatureError):
            verify(signature, larger)


def test_a_signature_over_the_ring_in_another_order_is_refused():
    (vector,) = named("the ring in another order")
    keys, ctx, digest, signature = read(vector)
    with pytest.raises(SignatureError, match="does not verify"):
        verify(signature, Ring.of(keys), ctx, digest)
    with pytest.raises(SignatureError, match="out of order"):
        Ring.of(keys[::-1])


@pytest.mark.parametrize("data", [None, "x" * 448, bytearray(448), [0] * 448])
def test_a_signature_is_bytes(data):
    with pytest.raises(SignatureError, match="signature of"):
        verify(data)


def test_encoding_is_the_only_one():
    assert statement.encode(statement.decode(RING, SIGNATURE)) == SIGNATURE


def test_a_challenge_of_zero_is_refused(monkeypatch):
    monkeypatch.setattr(group, "hash_to_scalar", lambda *_: bytes(32))
    with pytest.raises(SignatureError, match="challenge is zero"):
        verify(SIGNATURE)


def test_a_digit_that_a_signer_made_zero_is_refused_like_any_other():
    # Every member whose digit it is would drop out of the sum.
    signature = statement.decode(RING, SIGNATURE)
    bound = statement.bind(RING, CONTEXT, signature.tag, DIGEST)
    c = int.from_bytes(statement.challenge(bound, signature.commitments), "little")
    first = sum(int.from_bytes(f, "little") for f in signature.digits[0])
    zeroed = changed(SIGNATURE, 32 * 7, c - first)
    claim = verifying._claim(RING, CONTEXT, DIGEST, zeroed, BASE)
    assert claim.digits[0][0] == 0
    with pytest.raises(SignatureError, match="does not verify"):
        verify(zeroed)


def test_only_members_sign():
    with pytest.raises(SignatureError, match="not in the ring"):
        signing.sign(RING, lsag.keygen().secret, CONTEXT, DIGEST)


@pytest.mark.parametrize(
    "secret", [bytes(32), b"\xff" * 32, b"", group.ORDER.to_bytes(32, "little")]
)
def test_bad_secrets_are_refused(secret):
    with pytest.raises(SignatureError):
        signing.sign(RING, secret, CONTEXT, DIGEST)


@pytest.mark.parametrize("digest", [b"", bytes(31), bytes(33), bytearray(32)])
def test_a_message_digest_has_32_bytes(digest):
    with pytest.raises(SignatureError, match="32 bytes"):
        signing.sign(RING, PAIRS[0].secret, CONTEXT, digest)
    with pytest.raises(SignatureError, match="32 bytes"):
        verify(SIGNATURE, digest=digest)


def test_a_ring_has_a_largest_size(monkeypatch):
    monkeypatch.setattr(limits, "MAX_DEVICES", 4)
    assert len(Ring.of(RING.keys[:4]).keys) == 4
    with pytest.raises(SignatureError, match="2 to 4"):
        Ring.of(RING.keys[:5])


def test_members_are_the_keys_and_padding_of_this_ring_alone():
    assert RING.members[:SIZE] == RING.keys
    other = Ring.of([pair.public for pair in frozen.members(SIZE, "stranger")])
    padding = [*RING.members[SIZE:], *other.members[SIZE:]]
    assert len(set(padding)) == len(padding) == 4
    generators = [
        point for rows in (RING.bit_bases, RING.square_bases) for row in rows for point in row
    ]
    assert len({*RING.members, *generators, BASE}) == len(RING.members) + 2 * sum(RING.radices) + 1
    assert other.bit_bases == RING.bit_bases


# Batches.


def batch(signatures, max_passes=1):
    items = [(DIGEST, data) for data in signatures]
    return verifying.verify_batch(RING, CONTEXT, items, max_passes=max_passes)


@pytest.fixture
def passes(monkeypatch):
    """How many passes over the ring were made."""
    made = Counter()
    real = verifying._residue

    def counted(ring, claims):
        made["passes"] += 1
        return real(ring, claims)

    monkeypatch.setattr(verifying, "_residue", counted)
    return made


def test_a_batch_of_valid_signatures_takes_one_pass(passes):
    assert [verdict.tag for verdict in batch(OTHERS)] == TAGS
    assert passes["passes"] == 1


def test_an_empty_batch_takes_none(passes):
    assert batch([]) == []
    assert passes["passes"] == 0


def test_a_batch_needs_a_pass():
    with pytest.raises(ConfigError, match="allow 1 or more"):
        batch(OTHERS, max_passes=0)


def test_each_message_is_its_own():
    other = bytes(32)
    items = [
        (DIGEST, OTHERS[0]),
        (other, OTHERS[1]),
        (other, signing.sign(RING, PAIRS[2].secret, CONTEXT, other)),
    ]
    verdicts = verifying.verify_batch(RING, CONTEXT, items, max_passes=4)
    assert [verdict.tag for verdict in verdicts] == [TAGS[0], None, TAGS[2]]


def test_vectors_that_do_not_verify_do_not_verify_in_company(passes):
    keys, ctx = list(RING.keys), CONTEXT
    bad = [read(v) for v in FROZEN["invalid"] if v["failure"] != "ring"]
    bad = [(digest, data) for ring, event, digest, data in bad if ring == keys and event == ctx]
    assert len(bad) > 100
    items = [*bad, *((DIGEST, data) for data in OTHERS)]
    verdicts = verifying.verify_batch(RING, CONTEXT, items, max_passes=1000)
    assert all(verdict.error and verdict.tag is None for verdict in verdicts[: len(bad)])
    assert [verdict.tag for verdict in verdicts[len(bad) :]] == TAGS


def test_garbage_is_refused_without_a_pass_of_its_own(passes):
    spoiled = [changed(OTHERS[0], OPENING + 32, 1), OTHERS[1][:-1], bytes(448)]
    verdicts = batch([*spoiled, *OTHERS[2:]])
    assert all(verdict.error for verdict in verdicts[:3])
    assert [verdict.tag for verdict in verdicts[3:]] == TAGS[2:]
    assert passes["passes"] == 1


@given(st.sets(st.integers(0, SIZE - 1)))
@settings(max_examples=25, deadline=None)
def test_bad_signatures_are_found_among_good_ones(bad):
    signatures = [insider(data) if at in bad else data for at, data in enumerate(OTHERS)]
    for at, verdict in enumerate(batch(signatures, max_passes=SIZE)):
        assert verdict.tag == (None if at in bad else TAGS[at])
        assert (verdict.error is not None) == (at in bad)


@given(st.sets(st.integers(0, SIZE - 1), min_size=1), st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_a_search_that_is_cut_short_is_right_in_what_it_says(bad, allowed):
    signatures = [insider(data) if at in bad else data for at, data in enumerate(OTHERS)]
    made = 0
    real = verifying._residue

    def counted(ring, claims):
        nonlocal made
        made += 1
        return real(ring, claims)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verifying, "_residue", counted)
        verdicts = batch(signatures, max_passes=allowed)
    assert made <= allowed
    for at, verdict in enumerate(verdicts):
        assert verdict.tag in (None, TAGS[at])
        assert not (verdict.tag and verdict.error)
        assert not (at in bad and verdict.tag)
        assert not (at not in bad and verdict.error)


def test_one_bad_signature_is_found_with_two_passes(passes):
    many = OTHERS * 10
    many[37] = insider(many[37])
    verdicts = batch(many, max_passes=100)
    assert [at for at, verdict in enumerate(verdicts) if verdict.error] == [37]
    assert passes["passes"] == 2


def test_errors_that_cancel_each_other_are_found(monkeypatch):
    # Two signers move their openings by opposite amounts: without weights nobody would see.
    pair = [changed(OTHERS[0], OPENING, 5), changed(OTHERS[1], OPENING, -5)]
    assert all(verdict.error for verdict in batch(pair, max_passes=10))
    monkeypatch.setattr(verifying.secrets, "randbits", lambda _: 0)
    assert all(verdict.tag for verdict in batch(pair)), "the attack is real"


def test_weights_are_fresh_and_of_128_bits(monkeypatch):
    drawn = []
    real = verifying.secrets.randbits

    def randbits(count):
        assert count == 128
        drawn.append(real(count))
        return drawn[-1]

    monkeypatch.setattr(verifying.secrets, "randbits", randbits)
    batch(OTHERS)
    batch(OTHERS)
    assert len(set(drawn)) == len(drawn) == 2 * 2 * SIZE
