"""Chunks: any order, any duplicates, any hostility; the payload comes back or nothing does."""

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitalring.errors import ConfigError, Reason, RefusedError
from vitalring.protocol.chunks import (
    HEADER_BYTES,
    PART_OVERHEAD_BYTES,
    ChunkLimits,
    Reassembler,
    split,
)

LIMITS = ChunkLimits(
    max_transfer_bytes=4096, max_open_transfers=4, max_total_bytes=100_000, max_age_s=60.0
)
ID = bytes(range(16))

payloads = st.binary(max_size=300)
frame_limits = st.integers(HEADER_BYTES + 1, HEADER_BYTES + 310)


def craft(data, *, index=0, count=1, total=None, digest=None, transfer_id=ID, magic=b"VRC1"):
    total = len(data) if total is None else total
    digest = hashlib.sha256(data).digest() if digest is None else digest
    return struct.pack(">4s16sIIQ32s", magic, transfer_id, index, count, total, digest) + data


def reason_of(reassembler, frame, now=0.0):
    with pytest.raises(RefusedError) as refusal:
        reassembler.add(frame, now)
    return refusal.value.reason


@given(payloads, frame_limits, st.randoms())
def test_frames_in_any_order_with_duplicates_give_the_payload(payload, limit, random):
    frames = split(payload, limit, ID)
    assert all(len(frame) <= limit for frame in frames)
    last = random.choice(frames)
    others = [frame for frame in frames if frame is not last]
    shuffled = others * 2
    random.shuffle(shuffled)
    reassembler = Reassembler(LIMITS)
    for frame in shuffled:
        assert reassembler.add(frame, 0.0) is None
    assert reassembler.add(last, 0.0) == payload
    assert (reassembler.open_transfers, reassembler.held_bytes) == (0, 0)


@given(st.lists(payloads, min_size=2, max_size=4), frame_limits, st.randoms())
def test_interleaved_transfers_do_not_mix(several, limit, random):
    frames = [
        (number, frame)
        for number, payload in enumerate(several)
        for frame in split(payload, limit, bytes([number]) * 16)
    ]
    random.shuffle(frames)
    reassembler = Reassembler(LIMITS)
    done = {}
    for number, frame in frames:
        payload = reassembler.add(frame, 0.0)
        if payload is not None:
            done[number] = payload
    assert done == dict(enumerate(several))


hostile = st.builds(
    craft,
    st.binary(max_size=40),
    index=st.integers(0, 5) | st.integers(0, 2**32 - 1),
    count=st.integers(0, 5) | st.integers(0, 2**32 - 1),
    total=st.integers(0, 200) | st.integers(0, 2**64 - 1),
    digest=st.sampled_from([bytes(32), hashlib.sha256(b"").digest()]),
    transfer_id=st.integers(0, 40).map(lambda n: n.to_bytes(16, "big")),
    magic=st.sampled_from([b"VRC1", b"VRC1", b"VRC1", b"VRC2"]),
)


@given(
    st.lists(st.one_of(hostile, hostile, st.binary(max_size=120)), max_size=60),
    st.binary(min_size=120, max_size=120),
)
def test_hostile_frames_stay_within_the_limits_and_spoil_nothing(noise, payload):
    limits = ChunkLimits(
        max_transfer_bytes=200, max_open_transfers=3, max_total_bytes=2000, max_age_s=60.0
    )
    reassembler = Reassembler(limits)
    for frame in noise:
        try:
            answer = reassembler.add(frame, 0.0)
        except RefusedError as refusal:
            assert refusal.reason in (Reason.BAD_CHUNK, Reason.OVERSIZED)
        else:
            assert answer is None or len(answer) <= limits.max_transfer_bytes
        assert reassembler.open_transfers <= limits.max_open_transfers
        assert 0 <= reassembler.held_bytes <= limits.max_total_bytes
    first, *rest = split(payload, HEADER_BYTES + 50, b"\xff" * 16)
    assert reassembler.add(first, 0.0) is None
    assert [reassembler.add(frame, 0.0) for frame in rest][-1] == payload


@given(payloads, frame_limits, st.data())
def test_a_flipped_bit_never_yields_another_payload(payload, limit, data):
    frames = list(split(payload, limit, ID))
    place = data.draw(st.integers(0, len(frames) - 1))
    byte = data.draw(st.integers(0, len(frames[place]) - 1))
    broken = bytearray(frames[place])
    broken[byte] ^= 1 << data.draw(st.integers(0, 7))
    frames[place] = bytes(broken)
    reassembler = Reassembler(LIMITS)
    for frame in frames:
        try:
            answer = reassembler.add(frame, 0.0)
        except RefusedError:
            continue
        # Only the transfer id may change unnoticed, and then nobody's payload changes.
        assert answer is None or answer == payload


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        craft(b"")[:-1],
        craft(b"x", magic=b"VRC2"),
        craft(b"x", index=1, count=1),
        craft(b"x", count=0),
        craft(b"xx", total=1),
        craft(b"x", total=2),
        craft(b"", index=0, count=2, total=4),  # no data in a frame that needs some
        craft(b"xxxx", index=0, count=2, total=4),  # the last frame would be empty
        craft(b"xx", index=0, count=2, total=5),  # the last frame would be longer
        craft(b"xxx", index=1, count=2, total=4),  # the last frame is longer
        craft(b"x", index=2, count=3, total=4),  # the others cannot be equal
        craft(b"x", digest=bytes(32)),
    ],
)
def test_malformed_frames_are_refused(frame):
    reassembler = Reassembler(LIMITS)
    assert reason_of(reassembler, frame) is Reason.BAD_CHUNK
    assert reassembler.open_transfers == 0


def test_oversized_claims_are_refused_before_anything_is_held():
    reassembler = Reassembler(LIMITS)
    assert reason_of(reassembler, craft(b"x", count=5000, total=5000)) is Reason.OVERSIZED
    # Within the payload limit, but in frames so small that holding them costs too much.
    assert reason_of(reassembler, craft(b"x", count=4096, total=4096)) is Reason.OVERSIZED
    assert (reassembler.open_transfers, reassembler.held_bytes) == (0, 0)


def test_a_contradicting_frame_does_not_end_the_transfer():
    payload = b"abcdef"
    first, second, third = split(payload, HEADER_BYTES + 2, ID)
    reassembler = Reassembler(LIMITS)
    reassembler.add(first, 0.0)
    digest = hashlib.sha256(payload).digest()
    other_data = craft(b"XX", index=0, count=3, total=6, digest=digest)
    other_layout = craft(b"cd", index=1, count=3, total=5, digest=digest)
    assert reason_of(reassembler, other_data) is Reason.BAD_CHUNK
    assert reason_of(reassembler, other_layout) is Reason.BAD_CHUNK
    reassembler.add(third, 0.0)
    assert reassembler.add(second, 0.0) == payload


def test_a_completed_payload_with_a_wrong_digest_is_refused_and_forgotten():
    reassembler = Reassembler(LIMITS)
    reassembler.add(craft(b"ab", index=0, count=2, total=4, digest=bytes(32)), 0.0)
    last = craft(b"cd", index=1, count=2, total=4, digest=bytes(32))
    assert reason_of(reassembler, last) is Reason.BAD_CHUNK
    assert (reassembler.open_transfers, reassembler.held_bytes) == (0, 0)


def test_old_transfers_are_given_up():
    first, second = split(b"abcd", HEADER_BYTES + 2, ID)
    reassembler = Reassembler(LIMITS)
    reassembler.add(first, 0.0)
    reassembler.expire(60.0)
    assert reassembler.open_transfers == 1
    assert reassembler.add(second, 60.5) is None
    assert reassembler.evicted == 1
    assert reassembler.add(first, 61.0) == b"abcd"


def test_the_oldest_transfer_makes_room_for_a_new_one():
    reassembler = Reassembler(LIMITS)
    started = [split(b"abcd", HEADER_BYTES + 2, bytes([n]) * 16) for n in range(5)]
    for first, _ in started:
        reassembler.add(first, 0.0)
    assert (reassembler.open_transfers, reassembler.evicted) == (4, 1)
    assert reassembler.add(started[4][1], 0.0) == b"abcd"
    assert reassembler.add(started[1][1], 0.0) == b"abcd"
    assert reassembler.add(started[0][1], 0.0) is None


def test_the_oldest_transfer_makes_room_for_bytes():
    cost = 10 + PART_OVERHEAD_BYTES
    limits = ChunkLimits(
        max_transfer_bytes=30, max_open_transfers=9, max_total_bytes=4 * cost, max_age_s=60.0
    )
    reassembler = Reassembler(limits)
    old = split(b"a" * 30, HEADER_BYTES + 10, b"a" * 16)
    new = split(b"b" * 30, HEADER_BYTES + 10, b"b" * 16)
    newest = split(b"c" * 20, HEADER_BYTES + 10, b"c" * 16)
    for frame in (old[0], old[1], new[0], new[1]):
        reassembler.add(frame, 0.0)
    assert reassembler.held_bytes == 4 * cost
    reassembler.add(newest[0], 0.0)
    assert (reassembler.evicted, reassembler.held_bytes) == (1, 3 * cost)
    assert reassembler.add(new[2], 0.0) == b"b" * 30
    assert reassembler.add(newest[1], 0.0) == b"c" * 20


def test_split_refuses_what_cannot_work():
    with pytest.raises(ConfigError):
        split(b"x", HEADER_BYTES, ID)
    with pytest.raises(ConfigError):
        split(b"x", 1000, b"short")


@pytest.mark.parametrize(
    "change",
    [
        {"max_transfer_bytes": -1},
        {"max_open_transfers": 0},
        {"max_age_s": 0.0},
        {"max_age_s": float("nan")},
        {"max_total_bytes": 4096},
    ],
)
def test_limits_that_admit_nothing_are_refused(change):
    with pytest.raises(ConfigError):
        ChunkLimits(**{"max_transfer_bytes": 4096, "max_total_bytes": 8192} | change)
