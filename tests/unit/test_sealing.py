"""Sealed boxes: only their owner opens them, equal sizes, one padding."""

import nacl.public
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.errors import Reason, RecordError, RefusedError
from vitalring.protocol.sealing import PAD_STEP, load_secret, new_secret, seal, sealed_bytes, unseal

SECRET = load_secret(bytes(range(32)))
PUBLIC = bytes(SECRET.public_key)
BOX = seal(b"an update", PUBLIC)


def box_of(padded):
    """A real box around bytes that are padded in whatever way."""
    return nacl.public.SealedBox(SECRET.public_key).encrypt(padded)


def refused(box):
    with pytest.raises(RefusedError) as caught:
        unseal(box, SECRET)
    assert caught.value.reason is Reason.BAD_SEAL


@given(st.binary(max_size=3000) | st.integers(0, 2100).map(lambda n: b"\x80" * n))
def test_what_is_sealed_opens(message):
    box = seal(message, PUBLIC)
    assert unseal(box, SECRET) == message
    assert len(box) == sealed_bytes(len(message))


@given(st.integers(0, 5000))
def test_lengths_tell_no_more_than_a_multiple_of_the_step(size):
    padded = sealed_bytes(size) - sealed_bytes(0) + PAD_STEP
    assert padded % PAD_STEP == 0
    assert size < padded <= size + PAD_STEP


@given(st.integers(0, 3000), st.integers(0, PAD_STEP - 1))
def test_a_shorter_message_takes_the_box_of_a_longer_one(size, spare):
    box = seal(bytes(size), PUBLIC, spare)
    assert len(box) == len(seal(bytes(size + spare), PUBLIC))
    assert unseal(box, SECRET) == bytes(size)


def test_a_retry_shares_nothing_with_the_first_box():
    again = seal(b"an update", PUBLIC)
    blocks = {BOX[i : i + 8] for i in range(len(BOX) - 8)}
    assert not blocks & {again[i : i + 8] for i in range(len(again) - 8)}


def test_another_gateway_cannot_open_it():
    with pytest.raises(RefusedError):
        unseal(BOX, new_secret())


@settings(max_examples=300)
@given(st.integers(0, len(BOX) * 8 - 1))
def test_every_flipped_bit_is_refused(bit):
    changed = bytearray(BOX)
    changed[bit // 8] ^= 1 << bit % 8
    refused(bytes(changed))


@given(st.integers(0, len(BOX) - 1), st.binary(min_size=1, max_size=50))
def test_cut_and_extended_boxes_are_refused(size, more):
    refused(BOX[:size])
    refused(BOX + more)
    refused(more + BOX)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(box):
    refused(box)


@pytest.mark.parametrize(
    ("what", "padded"),
    [
        ("nothing", b""),
        ("no mark", bytes(PAD_STEP)),
        ("no padding at all", b"message"),
        ("padding of another value", b"message\x80" + b"\x01" * (PAD_STEP - 8)),
        ("one byte of padding too few", b"message\x80" + bytes(PAD_STEP - 9)),
        ("one byte of padding too many", b"message\x80" + bytes(PAD_STEP - 7)),
        ("two steps too many", b"message\x80" + bytes(3 * PAD_STEP - 8)),
        ("a step and a byte too many", b"message\x80" + bytes(2 * PAD_STEP - 7)),
        ("a mark at the end of a full step and no step of its own", bytes(PAD_STEP) + b"\x80"),
        ("bytes behind the zeros", b"message\x80" + bytes(PAD_STEP - 9) + b"\x01"),
    ],
)
def test_other_paddings_are_refused(what, padded):
    refused(box_of(padded))


def test_a_box_from_a_point_of_small_order_is_refused():
    refused(bytes(32) + BOX[32:])


def test_keys_have_32_bytes():
    with pytest.raises(RecordError, match="has 32 bytes, not 31"):
        load_secret(bytes(31))
    assert "PrivateKey" in repr(SECRET)
    assert bytes(SECRET).hex() not in repr(SECRET)
