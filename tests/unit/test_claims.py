"""Claims: frozen vectors, a second implementation, and who can make one."""

import functools
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.errors import SignatureError
from vitalring.protocol import claims, group, lsag
from vitalring.protocol.rings import signing, statement

VECTORS = Path(__file__).parents[1] / "vectors"
sys.path.insert(0, str(VECTORS))
curve = importlib.import_module("reference_lsag")
reference = importlib.import_module("reference_claim")
make_claim = importlib.import_module("make_claim")
FROZEN = json.loads((VECTORS / "claim.json").read_text())

COMPLAINTS = {
    "length": r"^a claim's proof has 128 bytes",
    "scalar": r"^scalar is",
    "point": r"not a canonical point",
    "closure": r"does not verify",
}
STATEMENT = claims.Statement(**make_claim.FIELDS)
SECRET = make_claim.OWN.secret
PROOF = claims.prove(STATEMENT, SECRET)


def read(vector):
    fields = FROZEN["fields"] | vector["other"]
    said = {name: bytes.fromhex(value) for name, value in fields.items()}
    return said, bytes.fromhex(vector["proof"])


def integer(text):
    return int.from_bytes(bytes.fromhex(text), "little")


def verifies(said, proof):
    try:
        claims.verify(said, proof)
    except SignatureError:
        return False
    return True


# Vectors, for both implementations.


def test_vectors_are_those_of_their_script():
    assert make_claim.build() == FROZEN


@pytest.mark.parametrize("vector", FROZEN["valid"], ids=lambda v: v["name"])
def test_both_implementations_make_and_take_the_same_bytes(vector):
    said, proof = read(vector)
    claims.verify(claims.Statement(**said), proof)
    reference.verify(said, proof)
    entropy = bytes.fromhex(vector["entropy"])
    if "secret" in vector:
        assert reference.prove(said, integer(vector["secret"]), entropy) == proof
    else:
        assert reference.simulate(said, integer(vector["verifier_secret"]), entropy) == proof


@pytest.mark.parametrize("vector", FROZEN["invalid"], ids=lambda v: v["name"])
def test_invalid_proofs(vector):
    said, proof = read(vector)
    with pytest.raises(SignatureError, match=COMPLAINTS[vector["failure"]]):
        claims.verify(claims.Statement(**said), proof)
    with pytest.raises(reference.InvalidError, match=vector["failure"]):
        reference.verify(said, proof)


@pytest.mark.parametrize("field", reference.FIELDS)
def test_a_challenge_that_left_a_field_out_would_let_it_be_exchanged(field, monkeypatch):
    """The vectors of such provers are what a verifier with that mistake takes."""
    name = f"a prover whose challenge does not cover {field}"
    said, proof = read(next(v for v in FROZEN["invalid"] if v["name"] == name))
    rest = [other for other in reference.FIELDS if other != field]
    monkeypatch.setattr(reference, "FIELDS", rest)
    reference.verify(said, proof)


# Who can make one.


@given(st.binary(max_size=40), st.binary(max_size=40), st.integers(0, 2**64 - 1))
@settings(max_examples=25, deadline=None)
def test_what_a_device_proves_verifies_by_both_implementations(entry, log, round_number):
    context = lsag.context("f", "s", 1, "c", round_number)
    tag = lsag.tag_of(SECRET, context)
    said = replace(STATEMENT, context=context, entry=entry, log=log, tag=tag)
    proof = claims.prove(said, SECRET)
    claims.verify(said, proof)
    reference.verify({name: getattr(said, name) for name in reference.FIELDS}, proof)


def test_a_device_cannot_claim_what_is_another_devices():
    other = make_claim.OTHER
    with pytest.raises(SignatureError, match="is not that of ring key"):
        claims.prove(STATEMENT, other.secret)
    with pytest.raises(SignatureError, match=r"^tag .* is not of key"):
        claims.prove(replace(STATEMENT, key=other.public), other.secret)


def test_the_verifier_can_make_claims_of_his_own_true_or_not():
    """So that nobody whom he shows one to has reason to believe it."""
    secret = make_claim.VERIFIER.secret
    untrue = replace(STATEMENT, key=make_claim.OTHER.public)
    for said in (STATEMENT, untrue):
        claims.verify(said, claims.simulate(said, secret))
    with pytest.raises(SignatureError, match="is not that of verifier"):
        claims.simulate(STATEMENT, make_claim.STRANGER.secret)


def test_a_simulated_claim_serves_no_other_verifier():
    made = claims.simulate(STATEMENT, make_claim.VERIFIER.secret)
    assert not verifies(replace(STATEMENT, verifier=make_claim.STRANGER.public), made)


@pytest.mark.parametrize("bit", range(8))
def test_real_and_simulated_claims_have_the_same_spread(bit):
    """Each of the four scalars is uniform in both; here one bit of a low byte of each.

    With 200 of each kind a fair coin leaves 60..140 with probability below 1e-7.
    """
    for make, secret in ((claims.prove, SECRET), (claims.simulate, make_claim.VERIFIER.secret)):
        made = _many(make, secret)
        for place in range(4):
            assert 60 <= sum(proof[32 * place] >> bit & 1 for proof in made) <= 140


@functools.cache
def _many(make, secret):
    return [make(STATEMENT, secret) for _ in range(200)]


def test_a_claim_is_made_anew_each_time():
    assert claims.prove(STATEMENT, SECRET) != claims.prove(STATEMENT, SECRET)


def test_a_generator_that_repeats_itself_does_not_reveal_the_key():
    """Nonces depend on what is claimed: two challenges for one nonce would give x away."""
    entropy = bytes(64)
    other = replace(STATEMENT, nonce=bytes(32))
    first, second = (claims._prove(said, SECRET, entropy) for said in (STATEMENT, other))
    c, d = (int.from_bytes(proof[:32], "little") for proof in (first, second))
    r, s = (int.from_bytes(proof[64:96], "little") for proof in (first, second))
    assert (r - s) * pow(d - c, -1, group.ORDER) % group.ORDER != int.from_bytes(SECRET, "little")


def test_tags_of_both_suites_can_be_claimed():
    pairs = sorted([make_claim.OWN, make_claim.OTHER], key=lambda pair: pair.public)
    keys = [pair.public for pair in pairs]
    for ring, sign in (
        (lsag.Ring.of(keys), lsag.sign),
        (statement.Ring.of(keys), signing.sign),
    ):
        signature = sign(ring, SECRET, STATEMENT.context, bytes(32))
        said = replace(STATEMENT, tag=signature[:32])
        claims.verify(said, claims.prove(said, SECRET))
