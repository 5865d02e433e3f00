"""Signed records: who signed counts, in one encoding, and over the whole of the bytes."""

from dataclasses import dataclass
from typing import ClassVar

import nacl.signing
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitalring.errors import RecordError, SignatureError, VitalRingError
from vitalring.protocol.cbor import decode, encode
from vitalring.protocol.signing import (
    DOMAIN,
    Signature,
    Signed,
    public_key,
    sign,
    sign_payload,
    verify,
)


@dataclass(frozen=True)
class Note:
    TYPE: ClassVar[str] = "vitalring/note/1"
    MAX_BYTES: ClassVar[int] = 1000

    text: str


@dataclass(frozen=True)
class Other:
    TYPE: ClassVar[str] = "vitalring/other/1"
    MAX_BYTES: ClassVar[int] = 1000

    text: str


SEEDS = [bytes([i]) * 32 for i in range(1, 6)]
KEYS = [public_key(seed) for seed in SEEDS]
NOTE = Note("take part")
TWO = sign(NOTE, SEEDS[:2])


def rebuilt(data, signatures):
    return encode(Signed(decode(Signed, data).payload, tuple(signatures)))


@given(st.text(max_size=50), st.sets(st.integers(0, 4), min_size=1), st.integers(1, 5))
def test_enough_known_signers_are_needed(text, who, threshold):
    data = sign(Note(text), [SEEDS[i] for i in who])
    if len(who) >= threshold:
        assert verify(Note, data, KEYS, threshold) == Note(text)
    else:
        with pytest.raises(SignatureError, match=f"has {len(who)} signatures, needs {threshold}"):
            verify(Note, data, KEYS, threshold)


def test_the_order_of_seeds_does_not_change_the_bytes():
    assert sign(NOTE, SEEDS) == sign(NOTE, SEEDS[::-1])


def test_an_unknown_signer_is_refused_although_enough_others_signed():
    with pytest.raises(SignatureError, match=f"unknown key {KEYS[1].hex()}"):
        verify(Note, TWO, {KEYS[0]}, 1)


def test_a_signer_counts_once():
    one = decode(Signed, sign(NOTE, SEEDS[:1])).signatures[0]
    with pytest.raises(SignatureError, match="without repeats"):
        verify(Note, rebuilt(TWO, [one, one]), KEYS, 2)


def test_signatures_stand_in_one_order():
    signatures = decode(Signed, TWO).signatures
    with pytest.raises(SignatureError, match="not sorted"):
        verify(Note, rebuilt(TWO, signatures[::-1]), KEYS, 2)


def test_no_signature_is_no_signed_record():
    with pytest.raises(RecordError):
        verify(Note, rebuilt(TWO, []), KEYS, 0)


def test_a_signature_of_another_signer_or_record_does_not_serve():
    first, second = decode(Signed, TWO).signatures
    swapped = [Signature(first.key, second.value), Signature(second.key, first.value)]
    with pytest.raises(SignatureError, match="does not verify"):
        verify(Note, rebuilt(TWO, swapped), KEYS, 2)
    other = decode(Signed, sign(Note("stay out"), SEEDS[:2]))
    with pytest.raises(SignatureError, match="does not verify"):
        verify(Note, rebuilt(TWO, other.signatures), KEYS, 2)


def test_a_signature_without_our_domain_does_not_serve():
    key = nacl.signing.SigningKey(SEEDS[0])
    for message in (encode(NOTE), b"other/1\x00" + encode(NOTE), DOMAIN[:-1] + encode(NOTE)):
        data = encode(Signed(encode(NOTE), (Signature(KEYS[0], key.sign(message).signature),)))
        with pytest.raises(SignatureError, match="does not verify"):
            verify(Note, data, KEYS, 1)


def test_a_signature_on_a_record_of_another_type_does_not_serve():
    with pytest.raises(RecordError, match="not a record of type vitalring/note/1"):
        verify(Note, sign(Other("take part"), SEEDS[:1]), KEYS, 1)


def test_a_signed_payload_that_is_no_record_is_refused():
    with pytest.raises(RecordError):
        verify(Note, sign_payload(b"\xff", SEEDS[:1]), KEYS, 1)


def test_a_key_that_is_no_point_signs_nothing():
    for key in (bytes(32), b"\xff" * 32):
        data = encode(Signed(encode(NOTE), (Signature(key, bytes(64)),)))
        with pytest.raises(SignatureError):
            verify(Note, data, {key}, 1)


@given(st.integers(0, len(TWO) * 8 - 1))
def test_every_flipped_bit_is_refused(bit):
    changed = bytearray(TWO)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises((SignatureError, RecordError)):
        verify(Note, bytes(changed), KEYS, 2)


@given(st.binary(max_size=300))
def test_random_bytes(data):
    with pytest.raises(VitalRingError):
        verify(Note, data, KEYS, 1)
