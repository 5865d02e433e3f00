"""The door to SEAL, and the noise bound against the noise itself (SPEC 5.3, 5.7, 5.8)."""

import os
from dataclasses import replace
from math import prod

import numpy as np
import pytest
from tenseal import sealapi

from vitalring.errors import CiphertextError, ConfigError
from vitalring.protocol import seal
from vitalring.protocol.bfv import BfvParams, choose_params, noise_bound
from vitalring.protocol.ciphertext import add, decode_public_key, encode_public_key
from vitalring.protocol.quantise import Codec

CODEC = Codec(n_max=200, clip=1.0, weight_cap=1)
SHAPES = {
    "one prime": BfvParams(2048, (18014398509404161,), 200, 255, 2, 3_000),
    "one and a special": choose_params(CODEC, 1_500),
    "two and a special": BfvParams(4096, (34359697409, 17179754497, 1032193), 200, 255, 3, 12_000),
}


@pytest.fixture(scope="module", params=SHAPES, ids=lambda name: name.replace(" ", "-"))
def party(request):
    params = SHAPES[request.param]
    secret, public = seal.make_key_pair(params)
    encryptor = seal.Encryptor(params, encode_public_key(public, params))
    return params, secret, encryptor, seal.Decryptor(params, secret)


def some_coefficients(params: BfvParams, seed: int, limit: int | None = None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = (params.ciphertexts, params.degree)
    return rng.integers(0, limit or params.plain_modulus, shape, dtype=np.uint64)


def noise_of(pair: np.ndarray, plain: np.ndarray, secret: np.ndarray, params: BfvParams) -> int:
    """Return the largest coefficient of c0 + c1 s - q m / t, by integers of any length."""
    util = sealapi._sealapi_cpp.util
    q, t = prod(params.data_primes), params.plain_modulus
    value = np.zeros(params.degree, dtype=object)
    for j, prime in enumerate(params.data_primes):
        tables = util.NTTTables(params.degree.bit_length() - 1, sealapi.Modulus(prime))
        c1 = np.array(util.ntt_negacyclic_harvey(pair[1, j].tolist(), tables), dtype=object)
        product = [int(x) for x in c1 * secret[j].astype(object) % prime]
        product = np.array(util.inverse_ntt_negacyclic_harvey(product, tables), dtype=object)
        residue = (product + pair[0, j].astype(object)) % prime
        rest = q // prime
        value = (value + residue * (rest * pow(rest, -1, prime))) % q
    # t times the noise, centred: exact, because q / t is not an integer.
    scaled = (t * value - q * plain.astype(object)) % (q * t)
    scaled = np.where(scaled > q * t // 2, scaled - q * t, scaled)
    return int(max(abs(scaled)) // t)


def test_decryption_inverts_encryption(party):
    params, _, encryptor, decryptor = party
    for coefficients in (
        some_coefficients(params, 1),
        np.zeros((params.ciphertexts, params.degree), dtype=np.uint64),
        np.full((params.ciphertexts, params.degree), params.plain_modulus - 1, dtype=np.uint64),
    ):
        residues = encryptor.encrypt(coefficients)
        assert (residues < np.array(params.data_primes, dtype=np.uint64)[:, None]).all()
        assert (decryptor.decrypt(residues) == coefficients).all()


def test_encryption_is_randomised(party):
    params, _, encryptor, _ = party
    coefficients = some_coefficients(params, 2)
    assert (encryptor.encrypt(coefficients) != encryptor.encrypt(coefficients)).mean() > 0.99


def test_our_addition_is_seals(party):
    params, _, encryptor, _ = party
    one, two = (encryptor.encrypt(some_coefficients(params, i)) for i in (3, 4))
    ours = add(one, two, params)
    context = seal.make_context(params)
    evaluator = sealapi.Evaluator(context)
    data_id = seal._data_id(context)
    for pair, other, expected in zip(one, two, ours, strict=True):
        left, right = (
            seal._load(sealapi.Ciphertext(), context, seal._ciphertext_frame(p, data_id, ntt=False))
            for p in (pair, other)
        )
        evaluator.add_inplace(left, right)
        read = seal._read_ciphertext(left, expected.shape, data_id, ntt=False)
        assert (read == expected).all()


def test_the_noise_of_a_full_sum_is_within_its_bound_and_not_far_below(party):
    params, secret, encryptor, decryptor = party
    limit = params.plain_modulus // params.additions
    total, plain = None, np.zeros((params.ciphertexts, params.degree), dtype=np.uint64)
    for i in range(params.additions):
        coefficients = some_coefficients(params, i, limit)
        residues = encryptor.encrypt(coefficients)
        total = residues if total is None else add(total, residues, params)
        plain += coefficients
    assert (decryptor.decrypt(total) == plain).all()
    noise = max(noise_of(pair, row, secret, params) for pair, row in zip(total, plain, strict=True))
    bound = noise_bound(params)
    assert bound / 8 < noise <= bound
    assert bound < prod(params.data_primes) / (4 * params.plain_modulus)


def test_a_sum_with_a_ciphertext_that_is_no_encryption_is_refused(party):
    params, _, encryptor, decryptor = party
    honest = encryptor.encrypt(some_coefficients(params, 5))
    rng = np.random.default_rng(6)
    shape = (params.ciphertexts, 2, params.degree)
    rows = [rng.integers(0, prime, shape, dtype=np.uint64) for prime in params.data_primes]
    with pytest.raises(CiphertextError, match="noise of ciphertext 0"):
        decryptor.decrypt(add(honest, np.stack(rows, axis=2), params))


def test_another_key_does_not_decrypt(party):
    params, _, encryptor, _ = party
    secret, _ = seal.make_key_pair(params)
    with pytest.raises(CiphertextError, match="noise"):
        seal.Decryptor(params, secret).decrypt(encryptor.encrypt(some_coefficients(params, 7)))


def test_doubling_until_the_noise_is_too_large_is_noticed(party):
    params, _, encryptor, decryptor = party
    total = encryptor.encrypt(np.zeros((params.ciphertexts, params.degree), dtype=np.uint64))
    for _ in range(80):
        total = add(total, total, params)
        try:
            result = decryptor.decrypt(total)
        except CiphertextError:
            return
        # As long as nothing is noticed, the result is right: zero doubled is zero.
        assert not result.any()
    pytest.fail("noise never reached the limit")


def test_wrong_coefficients_are_refused(party):
    params, _, encryptor, _ = party
    with pytest.raises(CiphertextError, match="plain modulus"):
        encryptor.encrypt(np.full((1, params.degree), params.plain_modulus, dtype=np.uint64))
    with pytest.raises(CiphertextError, match="shape"):
        encryptor.encrypt(np.zeros((1, params.degree - 8), dtype=np.uint64))


def test_the_public_key_encrypts_to_its_own_secret_after_a_round_trip_of_bytes(party):
    params, secret, _, _ = party
    _, public = seal.make_key_pair(params)
    data = encode_public_key(public, params)
    assert encode_public_key(decode_public_key(data, params), params) == data
    # A key of another pair: valid, but not for this secret.
    residues = seal.Encryptor(params, data).encrypt(some_coefficients(params, 8))
    with pytest.raises(CiphertextError):
        seal.Decryptor(params, secret).decrypt(residues)


def test_a_public_key_of_other_parameters_is_refused():
    one, two = SHAPES["one and a special"], SHAPES["two and a special"]
    _, public = seal.make_key_pair(one)
    with pytest.raises(CiphertextError, match="bytes"):
        seal.Encryptor(two, encode_public_key(public, one))


def test_parameters_below_128_bits_are_refused_by_seal_too():
    weak = replace(SHAPES["two and a special"], degree=2048)
    with pytest.raises(ConfigError, match="SEAL refuses"):
        seal.make_context(weak)


class Saved:
    """A SEAL object that writes what a test wants."""

    def __init__(self, frame: bytes) -> None:
        self.frame = frame

    def save(self, path: str) -> None:
        with open(path, "wb") as file:  # noqa: PTH123
            file.write(self.frame)


def words_of(frame: bytes) -> np.ndarray:
    return seal._read_words(Saved(frame), seal._PLAINTEXT.pack(bytes(32), 4, 1.0), 4)


GOOD = seal._plaintext_frame(np.arange(4, dtype=np.uint64), bytes(32))


def test_a_frame_of_the_known_layout_is_read():
    assert words_of(GOOD).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("at", range(len(GOOD) - 32))
def test_any_other_header_byte_fails_closed(at):
    frame = bytearray(GOOD)
    frame[at] ^= 0xFF
    with pytest.raises(ConfigError, match=r"install tenseal==0\.3\.18"):
        words_of(bytes(frame))


@pytest.mark.parametrize("frame", [b"", GOOD[:10], GOOD[:-1], GOOD + b"\0"])
def test_a_frame_of_another_length_fails_closed(frame):
    with pytest.raises(ConfigError, match=r"install tenseal==0\.3\.18"):
        words_of(frame)


def test_another_version_is_named():
    frame = GOOD[:3] + bytes([4, 4]) + GOOD[5:]
    with pytest.raises(ConfigError, match=r"version 4\.4; this release reads SEAL 4\.3"):
        words_of(frame)


def test_a_temporary_file_serves_where_memory_files_are_missing(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    params = SHAPES["one and a special"]
    with seal._memory_file() as path:
        assert os.stat(path).st_mode & 0o777 == 0o600  # noqa: PTH116
        assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700  # noqa: PTH116, PTH120
    assert not os.path.exists(path)  # noqa: PTH110
    secret, public = seal.make_key_pair(params)
    coefficients = some_coefficients(params, 9)
    residues = seal.Encryptor(params, encode_public_key(public, params)).encrypt(coefficients)
    assert (seal.Decryptor(params, secret).decrypt(residues) == coefficients).all()
