"""Linkable ring signatures: frozen vectors, a second implementation, properties."""

import hashlib
import importlib
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.errors import SignatureError
from vitalring.protocol import group, limits, lsag

VECTORS = Path(__file__).parents[1] / "vectors"
sys.path.insert(0, str(VECTORS))
reference = importlib.import_module("reference_lsag")
make_lsag = importlib.import_module("make_lsag")
FROZEN = json.loads((VECTORS / "lsag.json").read_text())

COMPLAINTS = {
    "ring": r"^ring of|^ring key",
    "length": r"^signature of|^proof of possession has",
    "point": r"not a canonical point",
    "scalar": r"^scalar is",
    "closure": r"does not verify",
}
PAIRS = make_lsag.members(4)
RING = lsag.Ring.of([pair.public for pair in PAIRS])
CONTEXT = lsag.context(*make_lsag.EVENT)
DIGEST = hashlib.sha256(b"update").digest()
SIGNATURE = lsag.sign(RING, PAIRS[2].secret, CONTEXT, DIGEST)
CROWD = [pair.public for pair in make_lsag.members(40)]


def read(vector):
    keys = [bytes.fromhex(key) for key in vector["ring"]]
    ctx = lsag.context(*vector["event"])
    return keys, ctx, bytes.fromhex(vector["digest"]), bytes.fromhex(vector["signature"])


def test_vectors_are_what_the_script_builds():
    assert make_lsag.build() == FROZEN


def test_the_suite_is_the_one_of_the_vectors():
    assert lsag.SUITE.decode() == FROZEN["suite"] == reference.SUITE.decode()


@pytest.mark.parametrize("vector", FROZEN["valid"], ids=lambda v: v["name"])
def test_valid_signatures(vector):
    keys, ctx, digest, signature = read(vector)
    secret = bytes.fromhex(vector["secret"])
    assert ctx.hex() == vector["context"]
    assert lsag.tag_base(ctx).hex() == vector["tag_base"]
    ring = lsag.Ring.of(keys)
    assert lsag.verify(ring, ctx, digest, signature) == lsag.tag_of(secret, ctx)
    base = bytes.fromhex(vector["tag_base"])
    assert lsag.verify(ring, ctx, digest, signature, tag_base=base) == signature[:32]


@pytest.mark.parametrize("vector", FROZEN["valid"], ids=lambda v: v["name"])
def test_the_second_implementation_signs_and_verifies_the_same_bytes(vector):
    keys, ctx, digest, signature = read(vector)
    assert reference.context(*vector["event"]) == ctx
    assert reference.ring_digest(keys) == lsag.Ring.of(keys).digest
    x = int.from_bytes(bytes.fromhex(vector["secret"]), "little")
    public = reference.encode_point(reference.mul(x, reference.BASE))
    made = reference.sign(
        keys, keys.index(public), x, ctx, digest, bytes.fromhex(vector["entropy"])
    )
    assert made == signature
    assert reference.verify(keys, ctx, digest, signature) == signature[:32]


@pytest.mark.parametrize("vector", FROZEN["invalid"], ids=lambda v: v["name"])
def test_invalid_signatures(vector):
    keys, ctx, digest, signature = read(vector)
    with pytest.raises(SignatureError, match=COMPLAINTS[vector["failure"]]):
        lsag.verify(lsag.Ring.of(keys), ctx, digest, signature)
    with pytest.raises(reference.InvalidError, match=vector["failure"]):
        reference.verify(keys, ctx, digest, signature)


def test_torsion_vectors_are_real_forgeries():
    forgeries = [vector for vector in FROZEN["invalid"] if "plus" in vector["name"]]
    forgeries = [vector for vector in forgeries if vector["failure"] == "point"]
    assert len(forgeries) == 8
    tags = set()
    for vector in forgeries:
        keys, ctx, digest, signature = read(vector)
        lenient = reference.decode_any_point
        tags.add(reference.verify(keys, ctx, digest, signature, decode=lenient))
    assert len(tags) == 8, "seven more tags for one key, beside its own"


@given(st.integers(0, 3), st.binary(min_size=32, max_size=32), st.integers(0, 2**64 - 1))
@settings(max_examples=40, deadline=None)
def test_what_is_signed_verifies(own, digest, round_number):
    ctx = lsag.context("f", "s", 1, "c", round_number)
    signature = lsag.sign(RING, PAIRS[own].secret, ctx, digest)
    assert len(signature) == lsag.signature_bytes(4) == 192
    assert lsag.verify(RING, ctx, digest, signature) == lsag.tag_of(PAIRS[own].secret, ctx)


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_mutated_signatures_never_verify(data):
    mutated = bytearray(SIGNATURE)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        if data.draw(st.booleans()):
            mutated[at] ^= 1 << data.draw(st.integers(0, 7))
        elif data.draw(st.booleans()):
            mutated[at] = data.draw(st.integers(0, 255))
        else:
            mutated.insert(at, data.draw(st.integers(0, 255)))
            del mutated[-1]
    if bytes(mutated) == SIGNATURE:
        return
    with pytest.raises(SignatureError):
        lsag.verify(RING, CONTEXT, DIGEST, bytes(mutated))


@given(st.binary(max_size=400))
def test_any_bytes_are_refused(data):
    with pytest.raises(SignatureError):
        lsag.verify(RING, CONTEXT, DIGEST, data)


@given(st.binary(min_size=192, max_size=192))
@settings(deadline=None)
def test_any_bytes_of_the_right_length_are_refused(data):
    with pytest.raises(SignatureError):
        lsag.verify(RING, CONTEXT, DIGEST, data)


def test_one_key_has_one_tag_in_a_round_whatever_it_signs_and_with_whom():
    other_ring = lsag.Ring.of(CROWD)  # holds the same devices and more
    tags = {
        lsag.verify(ring, CONTEXT, digest, lsag.sign(ring, PAIRS[2].secret, CONTEXT, digest))
        for ring in (RING, other_ring)
        for digest in (DIGEST, bytes(32))
    }
    assert tags == {lsag.tag_of(PAIRS[2].secret, CONTEXT)}


def test_other_rounds_and_other_keys_have_other_tags():
    contexts = [
        lsag.context("f", "s", epoch, cohort, number)
        for epoch in (1, 2)
        for cohort in ("a", "b")
        for number in range(3)
    ]
    tags = {lsag.tag_of(pair.secret, ctx) for pair in PAIRS for ctx in contexts}
    assert len(tags) == len(PAIRS) * len(contexts)


def test_tags_of_two_rounds_have_no_public_ratio():
    # With Hp = hash * G anybody could carry a tag from one round to the next.
    first, second = CONTEXT, lsag.context(*make_lsag.EVENT[:4], 8)
    k1, k2 = (group.hash_to_scalar(lsag.SUITE + b"/tag-base", ctx) for ctx in (first, second))
    inverse = pow(int.from_bytes(k1, "little"), -1, group.ORDER).to_bytes(32, "little")
    secret = PAIRS[0].secret
    carried = group.mul(group.scalar_mul(k2, inverse), lsag.tag_of(secret, first))
    assert carried != lsag.tag_of(secret, second)
    assert group.mul(k1, PAIRS[0].public) != lsag.tag_of(secret, first)


def test_signing_twice_gives_other_bytes_and_the_same_tag():
    again = lsag.sign(RING, PAIRS[2].secret, CONTEXT, DIGEST)
    assert again != SIGNATURE
    assert lsag.verify(RING, CONTEXT, DIGEST, again) == SIGNATURE[:32]


def test_a_generator_that_repeats_itself_does_not_reveal_the_key(monkeypatch):
    monkeypatch.setattr(lsag.secrets, "token_bytes", bytes)
    first = lsag.sign(RING, PAIRS[2].secret, CONTEXT, DIGEST)
    second = lsag.sign(RING, PAIRS[2].secret, CONTEXT, bytes(32))
    third = lsag.sign(RING, PAIRS[1].secret, CONTEXT, DIGEST)
    scalars = [s[at : at + 32] for s in (first, second, third) for at in range(64, 192, 32)]
    assert len(set(scalars)) == 12, "no nonce serves twice"


def test_a_challenge_of_zero_is_refused(monkeypatch):
    monkeypatch.setattr(group, "hash_to_scalar", lambda *_: bytes(32))
    with pytest.raises(SignatureError, match="challenge is zero"):
        lsag.verify(RING, CONTEXT, DIGEST, SIGNATURE)


def test_only_members_sign():
    with pytest.raises(SignatureError, match="not in the ring"):
        lsag.sign(RING, lsag.keygen().secret, CONTEXT, DIGEST)


@pytest.mark.parametrize("digest", [b"", bytes(31), bytes(33), bytes(64)])
def test_a_message_digest_has_32_bytes(digest):
    with pytest.raises(SignatureError, match="32 bytes"):
        lsag.sign(RING, PAIRS[0].secret, CONTEXT, digest)
    with pytest.raises(SignatureError, match="32 bytes"):
        lsag.verify(RING, CONTEXT, digest, SIGNATURE)


@pytest.mark.parametrize(
    "secret", [bytes(32), b"\xff" * 32, b"", group.ORDER.to_bytes(32, "little")]
)
def test_bad_secrets_are_refused(secret):
    with pytest.raises(SignatureError):
        lsag.KeyPair.of(secret)
    with pytest.raises(SignatureError):
        lsag.sign(RING, secret, CONTEXT, DIGEST)
    with pytest.raises(SignatureError):
        lsag.tag_of(secret, CONTEXT)


def test_secrets_do_not_show():
    pair = lsag.keygen()
    assert repr(pair.secret) not in repr(pair)
    assert pair.secret.hex() not in repr(pair)
    assert lsag.KeyPair.of(pair.secret) == pair
    assert lsag.keygen() != pair


def test_a_ring_has_a_largest_size(monkeypatch):
    monkeypatch.setattr(limits, "MAX_RING", 4)
    assert lsag.Ring.of(CROWD[:4]).keys == tuple(CROWD[:4])
    with pytest.raises(SignatureError, match="2 to 4"):
        lsag.Ring.of(CROWD[:5])


def test_ring_digests_name_their_keys():
    rings = [lsag.Ring.of(CROWD[begin:end]) for begin in range(4) for end in range(begin + 2, 8)]
    assert len({ring.digest for ring in rings}) == len(rings)
    assert lsag.Ring.of(RING.keys) == RING


names = st.text(max_size=5)
events = st.tuples(names, names, st.integers(0, 300), names, st.integers(0, 300))


@given(events, events)
def test_contexts_are_unambiguous(a, b):
    assert (lsag.context(*a) == lsag.context(*b)) == (a == b)


@pytest.mark.parametrize("number", [-1, 2**64])
def test_contexts_have_bounds(number):
    with pytest.raises(SignatureError, match="round"):
        lsag.context("f", "s", 0, "c", number)
    with pytest.raises(SignatureError, match="epoch"):
        lsag.context("f", "s", number, "c", 0)


@pytest.mark.parametrize("vector", FROZEN["possession"]["valid"])
def test_valid_possession(vector):
    secret, public, ctx, entropy, proof = (
        bytes.fromhex(vector[name]) for name in ("secret", "public", "context", "entropy", "proof")
    )
    lsag.verify_possession(public, ctx, proof)
    reference.verify_possession(public, ctx, proof)
    assert reference.prove_possession(int.from_bytes(secret, "little"), ctx, entropy) == proof


@pytest.mark.parametrize("vector", FROZEN["possession"]["invalid"], ids=lambda v: v["name"])
def test_invalid_possession(vector):
    public, ctx, proof = (bytes.fromhex(vector[name]) for name in ("public", "context", "proof"))
    with pytest.raises(SignatureError, match=COMPLAINTS[vector["failure"]]):
        lsag.verify_possession(public, ctx, proof)
    with pytest.raises(reference.InvalidError, match=vector["failure"]):
        reference.verify_possession(public, ctx, proof)


@given(st.binary(max_size=60), st.integers(0, 511))
@settings(max_examples=60, deadline=None)
def test_possession_is_of_one_key_in_one_context(ctx, bit):
    pair = lsag.keygen()
    proof = lsag.prove_possession(pair.secret, ctx)
    lsag.verify_possession(pair.public, ctx, proof)
    flipped = (int.from_bytes(proof, "big") ^ (1 << bit)).to_bytes(64, "big")
    for key, shown, data in (
        (PAIRS[0].public, ctx, proof),
        (pair.public, ctx + b"\x00", proof),
        (pair.public, ctx, flipped),
    ):
        with pytest.raises(SignatureError):
            lsag.verify_possession(key, shown, data)
