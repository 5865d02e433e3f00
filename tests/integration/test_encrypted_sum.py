"""The decrypted sum is the plain sum, exactly, for as many devices as a plan may allow.

Every encryption here is real and every update passes through its bytes, as it does
between a device, a gateway and the holder of the key.
"""

import numpy as np
import pytest

from vitalring.aggregator import key as keys
from vitalring.errors import CiphertextError, EncodingRangeError
from vitalring.protocol.bfv import BfvParams, choose_params
from vitalring.protocol.ciphertext import add, decode_ciphertexts, encode_ciphertexts
from vitalring.protocol.packing import pack_fields, unpack_fields
from vitalring.protocol.quantise import Codec, decode_sum, encode_update, grid_step
from vitalring.protocol.rotation import unrotate
from vitalring.protocol.seal import Encryptor

DIMENSION = 2_000
SEED = bytes(range(32))


class Sum:
    """The part of a gateway: bytes in, checked, added, bytes out."""

    def __init__(self, params: BfvParams) -> None:
        self.params = params
        self.total: np.ndarray | None = None

    def admit(self, data: bytes) -> None:
        residues = decode_ciphertexts(data, self.params)
        self.total = residues if self.total is None else add(self.total, residues, self.params)

    def close(self) -> bytes:
        assert self.total is not None
        return encode_ciphertexts(self.total, self.params)


def open_sum(data: bytes, count: int, key: keys.SecretKey) -> np.ndarray:
    residues = decode_ciphertexts(data, key.params)
    return unpack_fields(key.decrypt(residues), key.params, count)


def encrypted(fields: np.ndarray, encryptor: Encryptor, params: BfvParams) -> bytes:
    return encode_ciphertexts(encryptor.encrypt(pack_fields(fields, params)), params)


@pytest.mark.parametrize(
    "codec",
    [
        Codec(n_max=1_000, clip=0.5, weight_cap=300),
        Codec(n_max=1_000, clip=0.5, weight_cap=300, keep=0.3, bits=6, noise_width=40),
    ],
    ids=["plain", "masked-with-noise"],
)
def test_a_thousand_devices(codec):
    params = choose_params(codec, DIMENSION)
    key = keys.generate(params)
    encryptor = Encryptor(params, key.public_key())
    rng = np.random.default_rng(7)
    gateway, plain = Sum(params), np.zeros(params.fields, dtype=np.uint64)
    weighted, weights = np.zeros(DIMENSION), 0
    for _ in range(1_000):
        update = rng.normal(size=DIMENSION) * rng.uniform(0, 0.02)
        noise = rng.integers(-codec.noise_width, codec.noise_width + 1, params.fields - 1)
        encoded = encode_update(
            update, int(rng.integers(1, 500)), codec, SEED, rng=rng, noise=noise
        )
        gateway.admit(encrypted(encoded.fields, encryptor, params))
        plain += encoded.fields
        weighted += encoded.weight * min(1.0, codec.clip / np.linalg.norm(update)) * update
        weights += encoded.weight
    fields = open_sum(gateway.close(), 1_000, key)
    assert (fields == plain).all()
    decoded = decode_sum(fields, 1_000, codec, DIMENSION, SEED)
    assert decoded.weight == weights
    if codec.keep == 1.0:
        # What is left is rounding: below half a step a coordinate and device.
        deviation = grid_step(codec, DIMENSION) / 2 * 1_000**0.5 * codec.levels / weights
        error = np.linalg.norm(decoded.mean - weighted / weights)
        assert error < 1.2 * deviation * DIMENSION**0.5


def test_ten_thousand_additions():
    codec = Codec(n_max=10_000, clip=1.0, weight_cap=1)
    params = choose_params(codec, DIMENSION)
    key = keys.generate(params)
    encryptor = Encryptor(params, key.public_key())
    rng = np.random.default_rng(8)
    gateway, plain = Sum(params), np.zeros(params.fields, dtype=np.uint64)
    for i in range(10_000):
        fields = rng.integers(0, codec.levels + 1, params.fields, dtype=np.uint64)
        # The largest fields of all, in every device: the sum fills its radix to the top.
        fields[:5] = codec.field_max
        gateway.admit(encrypted(fields, encryptor, params))
        plain += fields
        if i + 1 in (1, 100, 10_000):
            assert (open_sum(gateway.close(), i + 1, key) == plain).all()
    assert plain[0] == params.base - 1


def test_several_ciphertexts_with_three_fields_a_coefficient():
    codec = Codec(n_max=1_000, clip=1.0, weight_cap=10)
    params = choose_params(codec, 30_000)
    assert params.digits > 1
    assert params.ciphertexts > 1
    key = keys.generate(params)
    encryptor = Encryptor(params, key.public_key())
    rng = np.random.default_rng(9)
    gateway, plain = Sum(params), np.zeros(params.fields, dtype=np.uint64)
    for _ in range(30):
        encoded = encode_update(rng.normal(size=30_000), 3, codec, SEED, rng=rng)
        gateway.admit(encrypted(encoded.fields, encryptor, params))
        plain += encoded.fields
    fields = open_sum(gateway.close(), 30, key)
    assert (fields == plain).all()
    grid = fields[1:].astype(np.int64) - 30 * codec.offset
    expected = unrotate(grid * grid_step(codec, 30_000), SEED) * codec.levels / int(fields[0])
    np.testing.assert_allclose(
        decode_sum(fields, 30, codec, 30_000, SEED).mean, expected, rtol=1e-12, atol=1e-12
    )


@pytest.fixture(scope="module")
def small():
    params = choose_params(Codec(n_max=100, clip=1.0, weight_cap=1), 500)
    key = keys.generate(params)
    return params, key, Encryptor(params, key.public_key())


def some_fields(params: BfvParams, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, params.field_max + 1, params.fields, dtype=np.uint64)


def test_hostile_bytes_leave_the_sum_as_it_was(small):
    params, key, encryptor = small
    rng = np.random.default_rng(10)
    gateway, plain = Sum(params), np.zeros(params.fields, dtype=np.uint64)
    size = params.update_bytes
    refused = 0
    for i in range(50):
        fields = some_fields(params, i)
        good = encrypted(fields, encryptor, params)
        hostile = [
            b"",
            good[:-1],
            good + b"\0",
            bytes(size),  # c1 = 0
            good[: size // 2] + bytes(size // 2),  # c1 = 0 behind an honest c0
            b"\xff" * size,  # residues above their primes
            rng.bytes(int(rng.integers(0, 2 * size))),
        ]
        for data in hostile:
            with pytest.raises(CiphertextError):
                gateway.admit(data)
            refused += 1
        gateway.admit(good)
        plain += fields
    assert refused == 350
    assert (open_sum(gateway.close(), 50, key) == plain).all()


def test_a_well_formed_ciphertext_that_is_no_encryption_is_noticed_by_the_key_holder(small):
    # No gateway can tell it from an honest one; the sum is lost, but never taken for a model.
    params, key, encryptor = small
    gateway = Sum(params)
    gateway.admit(encrypted(some_fields(params, 1), encryptor, params))
    one, two = (encrypted(some_fields(params, i), encryptor, params) for i in (2, 3))
    half = params.update_bytes // 2
    gateway.admit(one[:half] + two[half:])  # c0 and c1 of different encryptions
    with pytest.raises(CiphertextError, match="noise"):
        open_sum(gateway.close(), 2, key)


def test_a_sum_of_more_updates_than_were_counted_is_noticed(small):
    params, key, encryptor = small
    gateway = Sum(params)
    fields = np.full(params.fields, params.field_max, dtype=np.uint64)
    for _ in range(3):
        gateway.admit(encrypted(fields, encryptor, params))
    with pytest.raises(EncodingRangeError, match="too large for 2 updates"):
        open_sum(gateway.close(), 2, key)
