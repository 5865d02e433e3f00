"""Both suites of ring signatures behind their one interface."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.errors import ConfigError, SignatureError
from vitalring.protocol import limits, lsag, ring_suite
from vitalring.protocol.rings import signing, statement

SUITES = (ring_suite.LSAG, ring_suite.ONE_OF_MANY)
PAIRS = sorted((lsag.keygen() for _ in range(40)), key=lambda pair: pair.public)
CROWD = [pair.public for pair in PAIRS]
CONTEXT = lsag.context("fed", "study", 1, "ward", 3)
DIGEST = bytes(range(32))


@pytest.fixture(params=SUITES)
def ring(request):
    return ring_suite.prepare(request.param, CROWD[:5])


def items_of(ring, count):
    """Signatures over as many digests, by the ring's members in turn."""
    digests = [bytes([number]) * 32 for number in range(count)]
    signers = [PAIRS[number % len(ring.keys)].secret for number in range(count)]
    return [(d, ring.sign(s, CONTEXT, d)) for d, s in zip(digests, signers, strict=True)]


def test_a_ring_signs_and_verifies_in_its_suite(ring):
    for pair in PAIRS[:5]:
        signature = ring.sign(pair.secret, CONTEXT, DIGEST)
        assert len(signature) == ring.signature_bytes
        tag = ring.verify(CONTEXT, DIGEST, signature)
        assert tag == lsag.tag_of(pair.secret, CONTEXT)
        with pytest.raises(SignatureError):
            ring.verify(CONTEXT, bytes(32), signature)
    with pytest.raises(SignatureError, match="not in the ring"):
        ring.sign(PAIRS[7].secret, CONTEXT, DIGEST)


def test_suites_differ_in_all_but_keys_and_tags():
    one, two = (ring_suite.prepare(suite, CROWD[:11]) for suite in SUITES)
    assert one.keys == two.keys
    assert one.digest != two.digest
    signed = [ring.sign(PAIRS[0].secret, CONTEXT, DIGEST) for ring in (one, two)]
    assert one.verify(CONTEXT, DIGEST, signed[0]) == two.verify(CONTEXT, DIGEST, signed[1])
    for ring, signature in ((one, signed[1]), (two, signed[0])):
        with pytest.raises(SignatureError):
            ring.verify(CONTEXT, DIGEST, signature)


def test_a_batch_names_each_that_is_bad(ring):
    items = items_of(ring, 7)
    bad = {2, 5}
    for place in bad:
        items[place] = (DIGEST, items[place][1])
    verdicts = ring.verify_batch(CONTEXT, items, max_passes=len(items))
    for place, verdict in enumerate(verdicts):
        assert (verdict.error is not None) == (place in bad)
        signer = PAIRS[place % 5].secret
        assert verdict.tag == (None if place in bad else lsag.tag_of(signer, CONTEXT))
    assert ring.verify_batch(CONTEXT, [], max_passes=1) == []


def test_passes_bound_the_work_and_what_they_leave_is_undecided():
    ring = ring_suite.prepare(ring_suite.LSAG, CROWD[:5])
    verdicts = ring.verify_batch(CONTEXT, items_of(ring, 5), max_passes=3)
    assert [v.tag is not None for v in verdicts] == [True] * 3 + [False] * 2
    assert all(v.error is None for v in verdicts)


def test_no_pass_checks_nothing(ring):
    with pytest.raises(ConfigError, match="allow 1 or more"):
        ring.verify_batch(CONTEXT, items_of(ring, 1), max_passes=0)


def test_what_is_signed_by_the_suites_own_modules_is_the_same():
    inner = statement.Ring.of(CROWD[:5])
    signature = signing.sign(inner, PAIRS[1].secret, CONTEXT, DIGEST)
    ring = ring_suite.prepare(ring_suite.ONE_OF_MANY, CROWD[:5])
    assert ring.digest == inner.digest
    assert ring.verify(CONTEXT, DIGEST, signature) == lsag.tag_of(PAIRS[1].secret, CONTEXT)


def test_the_suite_follows_from_the_size():
    assert ring_suite.for_size(2) == ring_suite.for_size(11) == ring_suite.LSAG
    assert ring_suite.for_size(12) == ring_suite.for_size(10_000) == ring_suite.ONE_OF_MANY


def test_from_where_suite_2_is_chosen_its_signatures_are_no_larger():
    def is_smaller(keys):
        return lsag.signature_bytes(keys) < statement.signature_bytes(keys)

    assert [keys for keys in range(2, 1025) if is_smaller(keys)] == list(range(2, 12))


def test_each_suite_has_a_limit_of_its_own(monkeypatch):
    assert [ring_suite.most_keys(suite) for suite in SUITES] == [1_024, 10_000]
    monkeypatch.setattr(limits, "MAX_RING", 4)
    with pytest.raises(SignatureError, match="2 to 4 allowed"):
        ring_suite.prepare(ring_suite.LSAG, CROWD[:5])
    assert len(ring_suite.prepare(ring_suite.ONE_OF_MANY, CROWD[:5]).keys) == 5


@pytest.mark.parametrize("suite", [0, 3, -1])
def test_an_unknown_suite_is_refused(suite):
    with pytest.raises(SignatureError, match="not known here"):
        ring_suite.prepare(suite, CROWD[:4])


@given(st.sampled_from(SUITES), st.integers(2, 40), st.integers(2, 45))
@settings(deadline=None)
def test_a_roster_is_cut_into_even_rings(suite, count, ring_size):
    keys = CROWD[:count]
    expected = -(-count // ring_size)
    if count // expected < 2:
        with pytest.raises(SignatureError, match="ring of 1"):
            ring_suite.cut(suite, keys, ring_size)
        return
    rings = ring_suite.cut(suite, keys, ring_size)
    sizes = [len(ring.keys) for ring in rings]
    assert [key for ring in rings for key in ring.keys] == list(keys)
    assert len(rings) == expected
    assert max(sizes) <= ring_size
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize(("count", "ring_size"), [(0, 16), (1, 16), (4, 1), (4, 0)])
def test_rosters_that_hide_nobody_are_refused(suite, count, ring_size):
    with pytest.raises(SignatureError, match="ring of"):
        ring_suite.cut(suite, CROWD[:count], ring_size)
