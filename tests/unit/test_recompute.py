"""A hospital's own sum, from an honest gateway and from every kind of lying one."""

import secrets
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from federation_fixture import NAMES, small_federation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recompute_fixture import DEVICES, answer, closed_round, recomputation, refused, result

from vitalring.aggregator.recompute import RefusalError, encoded_update_bytes
from vitalring.aggregator.traffic import round_traffic
from vitalring.errors import ConfigError, RecordError, SignatureError, StorageError
from vitalring.gateway import rounds
from vitalring.gateway.contributions import KeptUpdates, SetServer
from vitalring.protocol import chunks, lsag, trust
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.packing import unpack_fields
from vitalring.protocol.records import EncryptedSum, Receipts, SealedUpdate
from vitalring.protocol.release import SetPart, SetRequest, set_digest
from vitalring.protocol.secure_sum import threshold_params
from vitalring.protocol.signing import sign
from vitalring.protocol.threshold.decryption import combine, key_share, open_checks
from vitalring.protocol.update import digest_of, round_context

HOSTILE = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def federation():
    return small_federation(secure_sum="threshold-he", hospitals=3, threshold=2, min_cohort=2)


@pytest.fixture(scope="module")
def closed(federation, tmp_path_factory):
    with closed_round(federation, tmp_path_factory.mktemp("closed")) as made:
        yield made


# Honest.


@pytest.mark.parametrize("window", [1, 120_000, 1 << 22])
def test_the_sum_is_that_of_the_report_whatever_the_windows(closed, spool, window):
    made = result(closed, spool, window_bytes=window)
    receipts = tuple(map(digest_of, closed.updates))
    assert made.contributions == receipts
    total = EncryptedSum(closed.name, made.contributions, made.total_bytes)
    report = rounds.latest(closed.parties.db).report
    assert digest(encode(total)) == closed_report(closed, report).sum
    assert made.total_bytes == closed.federation.scheme.encode_sum(made.total)
    context = round_context(closed.opened)
    tags = {lsag.tag_of(pair.secret, context) for pair in closed.federation.devices[:DEVICES]}
    assert set(made.tags) == tags


def closed_report(closed, report):
    return trust.open_report(report, closed.federation.study.federation)


def test_sums_of_groups_are_the_exact_sums_of_their_updates(closed, spool):
    """Opened with the joint key itself, check and all."""
    made, federation = result(closed, spool), closed.federation
    groups = [[4, 0], [1, 3, 2]]
    params = threshold_params(
        federation.study.plan.codec, federation.study.plan.model.dimension, federation.study.joint
    )
    name = digest(closed.plan)
    by_digest = {}
    for device in range(DEVICES):
        update = federation.update(closed.plan, device)
        by_digest[update.signature[:32]] = federation.fields(name, rng_seed=device)
    for group, total in zip(groups, made.sums(groups), strict=True):
        members, asked = (0, 2), b"c" * 32
        shares = {
            h: key_share(
                h,
                [p for p in federation.pieces if p.index in params.access.held_by(h)],
                members,
                params,
            ).decrypt(total, asked)
            for h in members
        }
        open_checks(total, {h: check for h, (check, _) in shares.items()}, asked, params)
        opened = combine(total, {h: part for h, (_, part) in shares.items()}, params)
        fields = unpack_fields(opened, params.bfv, len(group))
        expected = np.sum([by_digest[made.tags[place]] for place in group], axis=0)
        np.testing.assert_array_equal(fields, expected)


def test_groups_too_small_or_with_an_update_twice_are_not_added(closed, spool):
    made = result(closed, spool)
    for groups in ([], [[0], [1, 2, 3, 4]], [[0, 1], [1, 2]], [[0, 0]], [[0, 1], []]):
        with pytest.raises(ConfigError, match="groups"):
            made.sums(groups)
    np.testing.assert_array_equal(made.sums([[3, 0, 1, 2, 4]])[0], made.total)


def test_what_was_spooled_is_gone_when_it_has_served(closed, spool):
    made = result(closed, spool)
    assert spool.stat().st_mode & 0o777 == 0o600
    assert spool.stat().st_size == DEVICES * closed.federation.scheme.update_bytes
    made.discard()
    assert list(spool.parent.iterdir()) == []
    with pytest.raises(StorageError):
        made.sums([[0, 1], [2, 3]])
    state = recomputation(closed, spool)
    answer(state, closed.contents)
    state.discard()
    assert list(spool.parent.iterdir()) == []


def test_after_a_crash_everything_is_fetched_anew(closed, spool):
    state = recomputation(closed, spool, window_bytes=1)
    answer(state, closed.contents)
    del state
    assert result(closed, spool).contributions == tuple(map(digest_of, closed.updates))


def test_a_request_is_repeated_after_its_time_and_not_before(closed, spool):
    state = recomputation(closed, spool, window_bytes=1, patience_s=30.0)
    assert state.requests(100.0) == SetRequest(closed.name, 0, 1)
    assert state.requests(129.0) is None
    assert state.requests(131.0) == SetRequest(closed.name, 0, 1)
    state.feed_part(SetPart(closed.name, 0, tuple(closed.contents[:1])))
    # Late copies of an answer, and answers to what nobody asked, change nothing.
    state.feed_part(SetPart(closed.name, 0, tuple(closed.contents[:1])))
    state.feed_part(SetPart(closed.name, 3, tuple(closed.contents[3:])))
    state.feed_part(SetPart(b"\x01" * 32, 1, tuple(closed.contents[1:2])))
    assert state.requests(131.0) == SetRequest(closed.name, 1, 1)
    with pytest.raises(ConfigError, match="every update"):
        state.result()


def test_through_the_gateways_own_frames(closed, spool):
    fed = closed.federation.study.federation
    server = SetServer(closed.parties.db, fed, 1 << 14, KeptUpdates(window_bytes=1 << 17))
    state = recomputation(closed, spool)
    while not state.complete:
        if (request := state.requests(0.0)) is not None:
            server.ask(NAMES[1], encode(request))
        while (frame := server.next()) is not None:
            state.feed(frame[1], 0.0)
    assert state.result().contributions == tuple(map(digest_of, closed.updates))


# A gateway that lies.


def test_one_devices_ciphertext_presented_as_the_sum(closed, spool):
    one = closed.updates[2]
    report, receipts, _ = closed.lie(closed.updates, total=one.ciphertexts)
    reason = refused(closed, spool, report, receipts)
    assert (reason.reason, reason.subject) == (
        "sum_mismatch",
        closed_report(closed, report).sum,
    )


def test_one_device_alone_is_too_few(closed, spool):
    report, receipts, contents = closed.lie(closed.updates[:1])
    assert refused(closed, spool, report, receipts, contents).reason == "too_few"
    assert not spool.exists()


def test_a_dropped_contribution(closed, spool):
    """Left out of what it shows, but not of what it said: at any place, the last one too."""
    for place in range(DEVICES):
        contents = closed.contents[:place] + closed.contents[place + 1 :]
        reason = refused(closed, spool, contents=contents)
        assert reason.reason == "missing_update"
        assert reason.subject == digest_of(closed.updates[place])


def test_a_contribution_dropped_from_the_sum_alone(closed, spool):
    total = closed.add(closed.updates[1:])
    report, receipts, _ = closed.lie(closed.updates, total=total)
    assert refused(closed, spool, report, receipts).reason == "sum_mismatch"


def test_a_duplicated_contribution(closed, spool):
    twice = [closed.contents[0], *closed.contents[:-1]]
    reason = refused(closed, spool, contents=twice)
    assert (reason.reason, reason.subject) == ("double_update", digest_of(closed.updates[0]))
    # In the sum as well, under another digest of the same signer.
    again = closed.federation.update(closed.plan, 0, rng_seed=77)
    tags = [update.signature[:32] for update in closed.updates]
    assert again.signature[:32] in tags
    report, receipts, contents = closed.lie([*closed.updates, again])
    reason = refused(closed, spool, report, receipts, contents)
    same = {digest_of(again), digest_of(closed.updates[tags.index(again.signature[:32])])}
    assert reason.reason == "double_update"
    assert reason.subject == max(same)
    # Added twice, told once.
    total = closed.add([*closed.updates, closed.updates[0]])
    report, receipts, _ = closed.lie(closed.updates, total=total)
    assert refused(closed, spool, report, receipts).reason == "sum_mismatch"


def test_receipts_that_name_an_update_twice_are_none(closed, spool):
    digests = [digest_of(update) for update in closed.updates]
    report, receipts = closed.told([digests[0], *digests], closed.add(closed.updates))
    with pytest.raises(RecordError, match="sorted without repeats"):
        recomputation(closed, spool, report, receipts)


def test_a_swapped_contribution(closed, spool):
    """An update that a device really signed, which the gateway never counted."""
    other = encode(closed.federation.update(closed.plan, DEVICES))
    for place in range(DEVICES):
        contents = [*closed.contents]
        contents[place] = other
        reason = refused(closed, spool, contents=contents)
        assert reason.reason == "bad_update"
        assert reason.subject == digest_of(decode(SealedUpdate, other))
    turned = [closed.contents[1], closed.contents[0], *closed.contents[2:]]
    assert refused(closed, spool, contents=turned).reason == "missing_update"


def test_two_hospitals_that_are_shown_sets_which_differ_by_one_device(closed, tmp_path):
    """Each set is sound by itself; what the hospitals would commit to differs."""
    signed = {}
    for hospital, updates in (("a", closed.updates), ("b", closed.updates[:-1])):
        report, receipts, contents = closed.lie(updates)
        made = result(closed, tmp_path / hospital, report, receipts, contents)
        signed[hospital] = set_digest(
            closed.name, digest(report), made.contributions, made.total_bytes
        )
    assert signed["a"] != signed["b"]


def test_an_update_with_a_foreign_signature(closed, spool):
    one, other = closed.updates[0], closed.updates[1]
    stranger = small_federation(secure_sum="plain", devices=6)
    foreign = stranger.rings[0].sign(
        next(p.secret for p in stranger.devices if p.public in stranger.rings[0].keys),
        round_context(closed.opened),
        digest_of(one),
    )
    for changed in (
        replace(one, signature=other.signature),
        replace(one, signature=foreign),
        replace(one, signature=one.signature[:-1] + bytes([one.signature[-1] ^ 1])),
        replace(one, signature=one.signature + bytes(32)),
    ):
        contents = [encode(changed), *closed.contents[1:]]
        reason = refused(closed, spool, contents=contents)
        assert (reason.reason, reason.subject) == ("bad_update", digest_of(one))


def test_updates_that_no_gateway_may_count(closed, spool):
    """Receipts name them, so they are wrong themselves."""
    one = closed.updates[0]
    size = closed.federation.scheme.update_bytes
    for bad in (
        replace(one, plan=b"\x01" * 32),
        replace(one, ring=9),
        replace(one, ciphertexts=bytes(size)),
        replace(one, ciphertexts=b"\xff" * size),
        replace(one, ciphertexts=one.ciphertexts[:-1]),
    ):
        updates = sorted([bad, *closed.updates[1:]], key=digest_of)
        report, receipts = closed.told(map(digest_of, updates), one.ciphertexts)
        contents = [encode(update) for update in updates]
        reason = refused(closed, spool, report, receipts, contents)
        assert (reason.reason, reason.subject) == ("bad_update", digest_of(bad))


@pytest.mark.parametrize("content", [b"", b"\xa0", b"no update", b"\x00" * 60_000])
def test_bytes_that_are_no_update(closed, spool, content):
    reason = refused(closed, spool, contents=[content, *closed.contents[1:]])
    assert (reason.reason, reason.subject) == ("bad_update", digest_of(closed.updates[0]))


def test_more_updates_than_were_counted(closed, spool):
    state = recomputation(closed, spool)
    request = state.requests(0.0)
    extra = encode(closed.federation.update(closed.plan, DEVICES))
    with pytest.raises(RefusalError) as caught:
        state.feed_part(SetPart(request.plan, 0, (*closed.contents, extra)))
    assert caught.value.refused.reason == "bad_update"


def test_a_count_that_is_not_that_of_the_receipts(closed, spool):
    digests = [digest_of(update) for update in closed.updates]
    for admitted in (DEVICES - 1, DEVICES + 1):
        report, receipts = closed.told(digests, closed.add(closed.updates), admitted=admitted)
        assert refused(closed, spool, report, receipts).reason == "sum_mismatch"


def test_records_that_a_gateway_did_not_sign(closed, spool):
    digests = tuple(map(digest_of, closed.updates))
    foreign = sign(Receipts(closed.name, digests), [b"x" * 32])
    with pytest.raises(SignatureError):
        recomputation(closed, spool, receipts=foreign)
    seed = closed.federation.log_key.seed
    with pytest.raises(RecordError, match="not of the plan"):
        recomputation(closed, spool, receipts=sign(Receipts(b"\x01" * 32, digests), [seed]))


# Hostile frames.


def frames_of(part, size=1 << 14):
    return chunks.split(encode(part), size, secrets.token_bytes(16))


def test_truncated_and_oversized_frames_delay_and_do_nothing_else(closed, spool):
    state = recomputation(closed, spool)
    request = state.requests(0.0)
    part = SetPart(request.plan, 0, tuple(closed.contents))
    good, cut = frames_of(part), frames_of(part)
    big = SetPart(request.plan, 0, (bytes(1 << 24),))
    for frame in (
        b"",
        cut[0][:40],
        cut[1][:-1],
        *cut[2:],
        *frames_of(big, 1 << 25),
        *frames_of(big)[:3],
        *chunks.split(b"not a part", 1 << 14, secrets.token_bytes(16)),
        *chunks.split(encode(Receipts(closed.name, ())), 1 << 14, secrets.token_bytes(16)),
    ):
        state.feed(frame, 0.0)
    assert not state.complete
    for frame in good:
        state.feed(frame, 0.0)
    assert state.result().contributions == tuple(map(digest_of, closed.updates))


@HOSTILE
@given(data=st.data())
def test_flipped_bits_of_frames_never_change_the_sum(closed, tmp_path_factory, data):
    """Whatever arrives, the result is the right sum, a refusal, or nothing yet."""
    spool = Path(tmp_path_factory.mktemp("spool")) / "contributions"
    state = recomputation(closed, spool)
    request = state.requests(0.0)
    frames = [bytearray(f) for f in frames_of(SetPart(request.plan, 0, tuple(closed.contents)))]
    for _ in range(data.draw(st.integers(1, 3))):
        frame = frames[data.draw(st.integers(0, len(frames) - 1))]
        frame[data.draw(st.integers(0, len(frame) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    for frame in frames:
        state.feed(bytes(frame), 0.0)
    if state.complete:
        assert state.result().contributions == tuple(map(digest_of, closed.updates))
    state.discard()


@HOSTILE
@given(data=st.data())
def test_flipped_bits_of_updates_in_good_frames_are_refused(closed, tmp_path_factory, data):
    spool = Path(tmp_path_factory.mktemp("spool")) / "contributions"
    place = data.draw(st.integers(0, DEVICES - 1))
    content = bytearray(closed.contents[place])
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    contents = [*closed.contents]
    contents[place] = bytes(content)
    reason = refused(closed, spool, contents=contents)
    assert reason.reason in ("bad_update", "missing_update", "double_update")


def test_memory_is_bounded_by_one_window(closed, spool):
    """A transfer larger than what was asked for is refused at its first frame."""
    state = recomputation(closed, spool, window_bytes=1)
    state.requests(0.0)
    size = encoded_update_bytes(closed.federation.study)
    for frame in frames_of(SetPart(closed.name, 0, (bytes(2 * size),))):
        state.feed(frame, 0.0)
        assert state._reassembler.held_bytes == 0


def test_a_transfer_that_was_spoilt_comes_again(closed, spool):
    """Whoever can write there and saw a frame can spoil its transfer, and delay a hospital."""
    state = recomputation(closed, spool, patience_s=30.0)
    part = SetPart(state.requests(0.0).plan, 0, tuple(closed.contents))
    spoilt = frames_of(part)
    state.feed(spoilt[1][:-1], 0.0)
    for frame in spoilt:
        state.feed(frame, 0.0)
    assert not state.complete
    assert state.requests(30.0) is not None
    for frame in frames_of(part):
        state.feed(frame, 30.0)
    assert state.complete


# What it costs.


def test_the_traffic_that_is_told_is_an_upper_bound_and_a_close_one(closed):
    traffic = round_traffic(closed.federation.study, DEVICES)
    real = sum(map(len, closed.contents))
    assert real <= traffic.set_down <= real + DEVICES * 256
    assert traffic.up < traffic.down < traffic.down_most
    assert "down to recompute" in str(traffic)
    more = round_traffic(closed.federation.study, 10 * DEVICES)
    assert more.set_down == 10 * traffic.set_down
    assert (more.up, more.down) == (traffic.up, traffic.down)
    with pytest.raises(ConfigError, match="no joint key"):
        round_traffic(small_federation().study, DEVICES)
