"""Ciphertexts and public keys as bytes, and their sum (SPEC 5.4 to 5.6)."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.errors import CiphertextError
from vitalring.protocol.bfv import BfvParams, choose_params
from vitalring.protocol.ciphertext import (
    add,
    decode_ciphertexts,
    decode_public_key,
    encode_ciphertexts,
    encode_public_key,
)
from vitalring.protocol.quantise import Codec

CODEC = Codec(n_max=1_000, clip=1.0, weight_cap=1)
CHOICES = [choose_params(CODEC, dimension) for dimension in (2_000, 6_000, 20_000)]
PARAMS = CHOICES[0]


def some_residues(params: BfvParams, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = [
        rng.integers(0, prime, (params.ciphertexts, 2, params.degree), dtype=np.uint64)
        for prime in params.data_primes
    ]
    return np.stack(rows, axis=2)


def some_key(params: BfvParams) -> np.ndarray:
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, p, (2, params.degree), dtype=np.uint64) for p in params.primes]
    return np.stack(rows, axis=1)


@pytest.mark.parametrize("params", CHOICES)
def test_decoding_inverts_encoding(params):
    residues = some_residues(params)
    data = encode_ciphertexts(residues, params)
    assert len(data) == params.update_bytes
    assert (decode_ciphertexts(data, params) == residues).all()
    key = some_key(params)
    assert (decode_public_key(encode_public_key(key, params), params) == key).all()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_flipped_bit_is_refused_or_is_another_ciphertext(data):
    encoded = bytearray(encode_ciphertexts(some_residues(PARAMS), PARAMS))
    at = data.draw(st.integers(0, 8 * len(encoded) - 1))
    encoded[at // 8] ^= 1 << (at % 8)
    try:
        residues = decode_ciphertexts(bytes(encoded), PARAMS)
    except CiphertextError:
        return
    assert (residues < np.array(PARAMS.data_primes)[:, None]).all()
    assert encode_ciphertexts(residues, PARAMS) == bytes(encoded)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_short_random_bytes_are_refused(data):
    with pytest.raises(CiphertextError, match="bytes, not the"):
        decode_ciphertexts(data, PARAMS)
    with pytest.raises(CiphertextError, match="bytes, not the"):
        decode_public_key(data, PARAMS)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_of_the_right_length_decode_to_residues_in_range_or_not_at_all(seed):
    data = np.random.default_rng(seed).bytes(PARAMS.update_bytes)
    try:
        residues = decode_ciphertexts(data, PARAMS)
    except CiphertextError:
        return
    assert encode_ciphertexts(residues, PARAMS) == data


@pytest.mark.parametrize("change", [-1, 1, 1_000_000])
def test_another_length_is_refused(change):
    data = encode_ciphertexts(some_residues(PARAMS), PARAMS)
    longer = (data + bytes(max(0, change)))[: len(data) + change]
    with pytest.raises(CiphertextError, match=f"not the {len(data)} of these parameters"):
        decode_ciphertexts(longer, PARAMS)


@pytest.mark.parametrize("params", CHOICES)
def test_a_residue_that_is_not_reduced_is_refused(params):
    for j, prime in enumerate(params.data_primes):
        width = prime.bit_length()
        data = bytearray(encode_ciphertexts(some_residues(params), params))
        # The first residue modulo this prime: the prime itself is the least that is refused.
        start = sum(p.bit_length() for p in params.data_primes[:j]) * params.degree // 8
        word = int.from_bytes(data[start : start + 8], "little") >> width << width
        data[start : start + 8] = (word | prime).to_bytes(8, "little")
        with pytest.raises(CiphertextError, match=f"residue {prime} is not below"):
            decode_ciphertexts(bytes(data), params)
        data[start : start + 8] = (word | (prime - 1)).to_bytes(8, "little")
        assert decode_ciphertexts(bytes(data), params)[0, 0, j, 0] == prime - 1


@pytest.mark.parametrize("params", CHOICES)
def test_a_transparent_ciphertext_is_refused_in_both_directions(params):
    for at in {0, params.ciphertexts - 1}:
        for j in range(len(params.data_primes)):
            residues = some_residues(params)
            residues[at, 1, j] = 0
            with pytest.raises(CiphertextError, match=f"ciphertext {at} is transparent"):
                encode_ciphertexts(residues, params)
    zeros = bytes(params.update_bytes)
    with pytest.raises(CiphertextError, match="transparent"):
        decode_ciphertexts(zeros, params)


def test_an_empty_public_key_is_refused():
    key = some_key(PARAMS)
    key[0, 0] = 0
    with pytest.raises(CiphertextError, match="zero"):
        encode_public_key(key, PARAMS)
    size = len(encode_public_key(some_key(PARAMS), PARAMS))
    with pytest.raises(CiphertextError, match="zero"):
        decode_public_key(bytes(size), PARAMS)


@pytest.mark.parametrize("params", CHOICES)
def test_adding_is_addition_modulo_each_prime(params):
    one, two = some_residues(params, 1), some_residues(params, 2)
    one[0, 0, 0, :3] = two[0, 0, 0, :3] = [0, params.data_primes[0] - 1, 1]
    two[0, 0, 0, 2] = params.data_primes[0] - 1
    before = one.copy()
    total = add(one, two, params)
    for j, prime in enumerate(params.data_primes):
        expected = (one[:, :, j].astype(object) + two[:, :, j].astype(object)) % prime
        assert (total[:, :, j] == expected).all()
    assert (one == before).all()


def test_adding_other_shapes_is_refused():
    residues = some_residues(PARAMS)
    with pytest.raises(CiphertextError, match="shapes"):
        add(residues, residues[:, :1], PARAMS)
    with pytest.raises(CiphertextError, match="shapes"):
        add(np.concatenate([residues, residues]), residues, PARAMS)


def test_encoding_another_shape_type_or_range_is_refused():
    residues = some_residues(PARAMS)
    for bad in (residues[:, :, :, :-8], residues.astype(np.int64), residues + np.uint64(1 << 40)):
        with pytest.raises(CiphertextError):
            encode_ciphertexts(bad, PARAMS)


def test_a_gateway_does_not_load_seal():
    code = (
        "import sys\n"
        "import vitalring.protocol.ciphertext, vitalring.protocol.packing\n"
        "import vitalring.protocol.quantise, vitalring.protocol.bfv\n"
        "assert 'tenseal' not in sys.modules and 'vitalring.protocol.seal' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
