"""A hospital verifies the signatures of one ring of the whole cohort together."""

from dataclasses import replace

import pytest
from federation_fixture import small_federation
from recompute_fixture import DEVICES, answer, closed_round, recomputation, refused, result

from vitalring.aggregator import recompute
from vitalring.aggregator.recompute import RefusalError
from vitalring.errors import ConfigError
from vitalring.protocol.cbor import encode
from vitalring.protocol.rings import verifying
from vitalring.protocol.update import digest_of, round_context


@pytest.fixture(scope="module")
def one_ring(tmp_path_factory):
    federation = small_federation(
        secure_sum="threshold-he",
        hospitals=3,
        threshold=2,
        min_cohort=2,
        ring_suite=2,
        ring_size=6,
    )
    with closed_round(federation, tmp_path_factory.mktemp("one-ring")) as made:
        yield made


def test_updates_in_one_ring_add_up(one_ring, spool):
    made = result(one_ring, spool)
    context = round_context(one_ring.opened)
    (ring,) = one_ring.federation.study.rings
    assert len(ring.keys) == 6
    signed = [
        ring.verify(context, digest_of(update), update.signature) for update in one_ring.updates
    ]
    assert list(made.tags) == signed


@pytest.mark.parametrize("window", [1, 1 << 22])
@pytest.mark.parametrize("bad", [{2}, {1, 3}, {0, 1, 2, 3, 4}])
def test_the_first_of_several_forged_ones_is_named(one_ring, spool, bad, window):
    contents = list(one_ring.contents)
    for place in bad:
        signature = bytearray(one_ring.updates[place].signature)
        signature[-64] ^= 1
        contents[place] = encode(replace(one_ring.updates[place], signature=bytes(signature)))
    reason = refused(one_ring, spool, contents=contents, window_bytes=window)
    first = digest_of(one_ring.updates[min(bad)])
    assert (reason.reason, reason.subject) == ("bad_update", first)


@pytest.mark.parametrize("forged", [True, False])
def test_what_came_is_judged_before_a_gateway_is_called_silent(one_ring, spool, forged):
    signature = bytearray(one_ring.updates[0].signature)
    signature[-64] ^= forged
    first = encode(replace(one_ring.updates[0], signature=bytes(signature)))
    state = recomputation(one_ring, spool, window_bytes=1)
    answer(state, [first, *one_ring.contents[1:]])
    with pytest.raises(RefusalError) as caught:
        state.give_up()
    named = ("bad_update", digest_of(one_ring.updates[0])) if forged else ("missing_update", b"")
    assert (caught.value.refused.reason, caught.value.refused.subject) == named


@pytest.mark.parametrize("window", [1, 1 << 22])
@pytest.mark.parametrize("later", ["no update", "left out", "all left out"])
def test_a_forged_one_is_named_before_what_is_cheaper_to_see_further_on(
    one_ring, spool, later, window
):
    contents = list(one_ring.contents)
    other = one_ring.updates[3].signature
    contents[1] = encode(replace(one_ring.updates[1], signature=other))
    if later == "no update":
        contents[2] = b"no update"
    else:
        del contents[2 : 3 if later == "left out" else None]
    reason = refused(one_ring, spool, contents=contents, window_bytes=window)
    assert (reason.reason, reason.subject) == ("bad_update", digest_of(one_ring.updates[1]))


@pytest.mark.parametrize(("batch", "passes"), [(1_024, 1), (3, 2)])
def test_signatures_of_many_windows_are_verified_together(
    one_ring, spool, monkeypatch, batch, passes
):
    made, real = [], verifying._residue
    monkeypatch.setattr(verifying, "_residue", lambda *args: made.append(args) or real(*args))
    monkeypatch.setattr(recompute, "_BATCH", batch)
    state = recomputation(one_ring, spool, window_bytes=1)
    for _ in range(DEVICES):
        with pytest.raises(ConfigError, match="every update is here"):
            state.result()
        answer(state, one_ring.contents)
    assert len(state.result().tags) == DEVICES
    assert len(made) == passes


def test_one_signer_twice_in_one_ring(one_ring, spool):
    fields = one_ring.federation.fields(one_ring.name, rng_seed=77)
    again = one_ring.federation.update(
        one_ring.plan, 0, ciphertexts=one_ring.federation.encrypt(fields)
    )
    updates = sorted([*one_ring.updates, again], key=digest_of)
    reason = refused(one_ring, spool, *one_ring.lie(updates))
    assert reason.reason == "double_update"
