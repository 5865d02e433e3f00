"""Signatures, rosters and claims under mutations that know their structure: none is accepted.

The quick form runs always; 100,000 mutations of each run with `make long-test`. A ring signature
can be made again in other bytes by its signer, and by nobody else: so none of these verifies.
Seeds are fresh in each run and named where one fails.
"""

import random
import secrets
from dataclasses import replace

import cbor2
import pytest
from federation_fixture import NAMES, SmallFederation, seed, small_federation
from mutation_fixture import TORSION, change_record, change_words, heads, storm

from vitalring.errors import RecordError, SignatureError, VitalRingError
from vitalring.protocol import cbor, claim_records, claims, group, lsag, ring_suite, trust
from vitalring.protocol.cbor import decode, encode
from vitalring.protocol.claim_records import ClaimRequest
from vitalring.protocol.records import Roster
from vitalring.protocol.signing import Signed, sign_payload

COUNTS = [2_000, pytest.param(100_000, marks=pytest.mark.long)]
PAIRS = sorted((lsag.keygen() for _ in range(10)), key=lambda pair: pair.public)
KEYS = [pair.public for pair in PAIRS]
CONTEXT = lsag.context("fed", "study", 1, "ward", 3)
BASE = lsag.tag_base(CONTEXT)
DIGEST = bytes(range(32))
IDENTITIES = [SmallFederation.identity_seed, *(seed(f"hospital {name}") for name in NAMES[1:3])]


# Signatures.


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("suite", "size"), [(ring_suite.LSAG, 4), (ring_suite.ONE_OF_MANY, 10)])
def test_no_mutated_signature_verifies(suite, size, count, record_property):
    ring = ring_suite.prepare(suite, KEYS[:size])
    made = [ring.sign(pair.secret, CONTEXT, DIGEST) for pair in PAIRS[:size]]

    def read(_, data):
        ring.verify(CONTEXT, DIGEST, data)

    for index, signature in enumerate(made):
        read(index, signature)
    record_property("memory_growth_bytes", storm(made, change_words, read, count))


@pytest.mark.parametrize("suite", [ring_suite.LSAG, ring_suite.ONE_OF_MANY])
def test_mutated_signatures_in_a_batch_are_found_and_spoil_no_other(suite):
    ring, rng = ring_suite.prepare(suite, KEYS[:6]), random.Random(start := secrets.randbits(64))
    good = [ring.sign(pair.secret, CONTEXT, DIGEST) for pair in PAIRS[:6]]
    for _ in range(20):
        bad = [change_words(rng, rng.choice(good), good) for _ in range(2)]
        items = [(DIGEST, data) for data in (*good, *bad)]
        verdicts = ring.verify_batch(CONTEXT, items, max_passes=len(items))
        for (_, data), verdict in zip(items, verdicts, strict=True):
            assert (verdict.tag == data[:32]) == (data in good), f"seed {start}"
            assert (verdict.error is None) == (data in good), f"seed {start}"


# Rosters.


@pytest.fixture(scope="module")
def federation():
    """A federation of three hospitals, all of which sign a roster of one ring."""
    return small_federation(hospitals=3, devices=9, ring_size=9).study.federation


def roster_of(**changes):
    return replace(Roster("fed", "ward", 1, 9, tuple(KEYS[:9])), **changes)


@pytest.mark.parametrize("count", COUNTS)
def test_no_mutated_roster_is_opened(federation, count, record_property):
    """Of another epoch, of fewer keys and of the same: their parts fit into one another."""
    others = (roster_of(), roster_of(epoch=2), roster_of(keys=tuple(KEYS[1:])))
    made = [sign_payload(encode(other), IDENTITIES) for other in others]
    for data, other in zip(made, others, strict=True):
        assert trust.open_roster(data, federation) == other
    growth = storm(made, change_record, lambda _, data: trust.open_roster(data, federation), count)
    record_property("memory_growth_bytes", growth)


@pytest.mark.parametrize("count", COUNTS)
def test_a_roster_that_all_hospitals_signed_is_in_its_one_encoding_or_refused(federation, count):
    """The decoder behind the signatures: what it takes is what is written, and makes rings."""
    rng = random.Random(start := secrets.randbits(64))
    original, taken = encode(roster_of()), 0
    for number in range(count):
        payload = change_record(rng, original, [original, encode(roster_of(epoch=77))])
        where = f"seed {start}, mutation {number}: {payload.hex()}"
        try:
            decode(Roster, payload)  # most fall here, and are not worth three signatures
            opened = trust.open_roster(sign_payload(payload, IDENTITIES), federation)
            assert encode(opened) == payload, where
            assert list(opened.keys) == sorted(set(opened.keys)), where
            assert opened.federation == "fed", where
            rings = ring_suite.cut(ring_suite.LSAG, opened.keys, opened.ring_size)
        except VitalRingError:
            continue
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {where}") from error
        assert all(group.decode_point(key) for ring in rings for key in ring.keys), where
        taken += 1
    # Another epoch, another cohort, a key fewer: the mutations reach behind the decoder.
    assert taken > count // 200


@pytest.mark.parametrize(
    "key",
    [*TORSION, group.add(KEYS[0], TORSION[3]), bytes(32), b"\xff" * 32],
    # Not by their bytes: a key is drawn anew in each process that collects these tests.
    ids=[*(f"torsion-{n}" for n in range(len(TORSION))), "key-and-torsion", "zeros", "ones"],
)
def test_a_roster_with_a_key_outside_the_group_makes_no_ring(federation, key):
    keys = tuple(sorted([*KEYS[:8], key]))
    opened = trust.open_roster(sign_payload(encode(roster_of(keys=keys)), IDENTITIES), federation)
    for suite in (ring_suite.LSAG, ring_suite.ONE_OF_MANY):
        with pytest.raises(SignatureError, match="not a canonical point"):
            ring_suite.cut(suite, opened.keys, opened.ring_size)


# Claims.

VERIFIER, NONCE = lsag.keygen(), bytes(range(32))


@pytest.mark.parametrize("count", COUNTS)
def test_no_mutated_request_is_opened(count, record_property):
    made = [claim_records.request(VERIFIER, NONCE), claim_records.request(lsag.keygen(), DIGEST)]
    made.append(claim_records.request(VERIFIER, bytes(32)))
    growth = storm(made, change_record, lambda _, data: claim_records.open_request(data), count)
    record_property("memory_growth_bytes", growth)


@pytest.mark.parametrize("count", COUNTS)
def test_no_mutated_proof_of_a_claim_verifies(count, record_property):
    said = [
        claims.Statement(
            context=CONTEXT,
            roster=DIGEST,
            log=b"log",
            entry=b"entry",
            tag=lsag.tag_of(pair.secret, CONTEXT, tag_base=BASE),
            key=pair.public,
            verifier=VERIFIER.public,
            nonce=NONCE,
        )
        for pair in PAIRS[:3]
    ]
    # By the device, and by the verifier itself: neither kind can be changed by anybody else.
    made = [claims.prove(s, pair.secret) for s, pair in zip(said, PAIRS[:3], strict=True)]
    made += [claims.simulate(s, VERIFIER.secret) for s in said]

    def read(index, data):
        claims.verify(said[index % 3], data)

    for index, proof in enumerate(made):
        read(index, proof)
    record_property("memory_growth_bytes", storm(made, change_words, read, count))


# The mutations themselves.


def test_mutations_reach_behind_the_first_checks():
    """Some must fail at the ring's own equation, or a storm would try lengths alone."""
    ring = ring_suite.prepare(ring_suite.LSAG, KEYS[:4])
    good, rng = ring.sign(PAIRS[0].secret, CONTEXT, DIGEST), random.Random(5)
    reasons = {"does not verify": 0, "prime order": 0, "scalar": 0, "signature of": 0}
    for _ in range(1_000):
        data = change_words(rng, good, [good])
        if data == good:
            continue
        with pytest.raises(SignatureError) as caught:
            ring.verify(CONTEXT, DIGEST, data)
        reasons[next(reason for reason in reasons if reason in str(caught.value))] += 1
    assert min(reasons.values()) > 50, reasons


def test_a_decoder_that_took_scalars_above_the_order_would_be_found(monkeypatch):
    reduce_ = group.bindings.crypto_core_ed25519_scalar_reduce
    monkeypatch.setattr(group, "decode_scalar", lambda data: reduce_(data + bytes(32)))
    ring = ring_suite.prepare(ring_suite.LSAG, KEYS[:4])
    made = [ring.sign(PAIRS[0].secret, CONTEXT, DIGEST)]
    with pytest.raises(AssertionError, match=r"accepted: seed \d+"):
        storm(made, change_words, lambda _, data: ring.verify(CONTEXT, DIGEST, data), 2_000)


def test_a_decoder_of_more_than_one_encoding_would_be_found(monkeypatch):
    made = [claim_records.request(VERIFIER, NONCE)]

    def lenient(_, data):
        plain = cbor2.loads(data)
        opened = ClaimRequest(plain["key"], plain["nonce"], plain["possession"])
        claim_records.open_request(encode(opened))

    with pytest.raises(AssertionError, match=r"accepted: seed|(Error|EOF): seed"):
        storm(made, change_record, lenient, 2_000)
    with pytest.raises(
        AssertionError, match=r"((Key|Type|Value|CBORDecode)Error|CBORDecodeEOF): seed"
    ):
        storm(made, change_record, lambda _, data: cbor2.loads(data)["x"] or 1 / 0, 10)


def test_heads_are_those_of_a_record():
    data = encode(roster_of())
    found = heads(data)
    assert found[0][2:] == (5, 7)
    assert sum(kind == 2 for _, _, kind, _ in found) == 9
    assert cbor.decode(Roster, data) == roster_of()
    with pytest.raises(RecordError):
        heads(data + b"\xff")


def test_records_inside_records_are_changed():
    payload = encode(roster_of())
    data = encode(Signed(payload, decode(Signed, sign_payload(payload, IDENTITIES)).signatures))
    rng, inner = random.Random(7), 0
    for _ in range(300):
        try:
            inner += decode(Signed, change_record(rng, data, [data])).payload != payload
        except VitalRingError:
            continue
    assert inner > 20
