"""Parts of a decryption and shortened ciphertexts have one encoding each."""

from dataclasses import replace
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from residues_fixture import centred, integers

from vitalring.errors import CiphertextError
from vitalring.protocol.bfv import BfvParams, largest_primes
from vitalring.protocol.ciphertext import add, decode_ciphertexts, encode_ciphertexts, shorten
from vitalring.protocol.threshold.decryption import decode_part, encode_part
from vitalring.protocol.threshold.params import ThresholdParams
from vitalring.protocol.threshold.pieces import Access

SMALL = ThresholdParams(
    BfvParams(8, largest_primes(8, 20, 3), 10, 3, 1, 16), Access(3, 2), 1, 128, 40, 5
)
PART_BYTES = 2 * 2 * 20


@settings(max_examples=200)
@given(st.one_of(st.binary(min_size=PART_BYTES, max_size=PART_BYTES), st.binary(max_size=200)))
def test_any_bytes_are_refused_or_the_one_encoding_of_a_part(data):
    try:
        part = decode_part(data, SMALL)
    except CiphertextError as error:
        assert len(data) != PART_BYTES or "not below its prime" in str(error)
    else:
        assert encode_part(part, SMALL) == data


def test_residues_are_packed_as_the_document_says():
    rows = np.arange(2 * 2 * 8, dtype=np.uint64).reshape(2, 2, 8) * 1_000
    number = sum(int(value) << 20 * place for place, value in enumerate(rows.reshape(-1)))
    assert encode_part(rows, SMALL) == number.to_bytes(PART_BYTES, "little")


SHORT = replace(SMALL.bfv, short=True)
SHORT_BYTES = 2 * (20 + 2 * 20)


@settings(max_examples=200)
@given(st.one_of(st.binary(min_size=SHORT_BYTES, max_size=SHORT_BYTES), st.binary(max_size=200)))
def test_any_bytes_are_refused_or_the_one_encoding_of_short_ciphertexts(data):
    try:
        residues = decode_ciphertexts(data, SHORT)
    except CiphertextError as error:
        text = str(error)
        assert len(data) != SHORT_BYTES or "not below its prime" in text or "transparent" in text
    else:
        assert not residues[:, 0, 0].any()
        assert encode_ciphertexts(residues, SHORT) == data


@given(st.data())
def test_shortening_rounds_c0_to_a_multiple_of_the_first_prime(data):
    """Checked on integers, and kept by every sum."""
    primes = SHORT.data_primes
    q, first = prod(primes), primes[0]
    values = st.lists(st.integers(0, q - 1), min_size=8, max_size=8)
    plain = np.array([[data.draw(values) for _ in range(2)] for _ in range(2)], dtype=object)
    residues = np.stack([(plain % p).astype(np.uint64) for p in primes], axis=2)
    short = shorten(residues, SHORT)
    assert (short[:, 1] == residues[:, 1]).all()
    for ciphertext in range(2):
        value = integers(short[ciphertext, 0], primes)
        assert not (value % first).any()
        assert int(np.abs(centred(value - plain[ciphertext, 0], q)).max()) <= first // 2
    assert not add(short, short, SHORT)[:, 0, 0].any()
    assert (shorten(short, SHORT) == short).all()
    assert (shorten(residues, SMALL.bfv) == residues).all()


def test_what_is_not_short_is_not_encoded_as_if_it_were():
    residues = np.ones((2, 2, 2, 8), dtype=np.uint64)
    with pytest.raises(CiphertextError, match="not a multiple of the first prime"):
        encode_ciphertexts(residues, SHORT)
    data = encode_ciphertexts(shorten(residues, SHORT), SHORT)
    assert len(data) == SHORT_BYTES == SHORT.update_bytes
