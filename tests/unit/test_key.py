"""The decryption key and its file (SPEC 5.9)."""

import hashlib
import logging

import numpy as np
import pytest

from vitalring.aggregator import key as keys
from vitalring.errors import CiphertextError, ConfigError
from vitalring.protocol.bfv import choose_params
from vitalring.protocol.quantise import Codec
from vitalring.protocol.seal import Encryptor

CODEC = Codec(n_max=50, clip=1.0, weight_cap=1)
PARAMS = choose_params(CODEC, 1_000)


@pytest.fixture(scope="module")
def key():
    return keys.generate(PARAMS)


@pytest.fixture
def path(key, tmp_path):
    file = tmp_path / "keys" / "sum.key"
    key.save(file)
    return file


def test_a_loaded_key_is_the_key(key, path):
    loaded = keys.load(path, PARAMS)
    assert loaded.public_key() == key.public_key()
    coefficients = np.arange(PARAMS.degree, dtype=np.uint64)[None] % PARAMS.plain_modulus
    residues = Encryptor(PARAMS, key.public_key()).encrypt(coefficients)
    assert (loaded.decrypt(residues) == coefficients).all()
    assert (key.decrypt(residues) == coefficients).all()


def test_every_key_is_its_own():
    assert keys.generate(PARAMS).public_key() != keys.generate(PARAMS).public_key()


def test_the_packing_may_change_without_a_new_key(path):
    other = choose_params(Codec(n_max=50, clip=9.0, weight_cap=7), 1_900)
    assert other != PARAMS
    assert other.primes == PARAMS.primes
    keys.load(path, other)


def test_the_file_is_its_owners_alone_and_never_overwritten(key, path):
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="not overwritten"):
        key.save(path)
    assert path.read_bytes() == before


def test_a_file_that_others_can_read_is_refused(path):
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        keys.load(path, PARAMS)


@pytest.mark.parametrize("at", [0, 20, 60, 5_000, -33, -1])
def test_a_flipped_bit_is_noticed(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="damaged"):
        keys.load(path, PARAMS)


def test_a_truncated_file_is_refused(path):
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="bytes"):
        keys.load(path, PARAMS)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        keys.load(tmp_path / "nothing", PARAMS)


def test_a_key_of_other_parameters_is_refused(path):
    with pytest.raises(ConfigError):
        keys.load(path, choose_params(CODEC, 100_000))


def test_a_file_of_another_kind_is_refused(path):
    body = path.read_bytes()[:-32].replace(b"single", b"shares")
    path.write_bytes(body + hashlib.sha256(body).digest())
    with pytest.raises(ConfigError, match="another kind"):
        keys.load(path, PARAMS)


def test_residues_out_of_range_in_the_file_are_refused(path):
    data = path.read_bytes()
    start = data.index(b"\n") + 1
    body = data[:start] + b"\xff" * 64 + data[start + 64 : -32]
    path.write_bytes(body + hashlib.sha256(body).digest())
    with pytest.raises(ConfigError, match="does not hold a key"):
        keys.load(path, PARAMS)


def test_nothing_shows_the_secret(key, path, caplog):
    with caplog.at_level(logging.DEBUG):
        text = f"{key} {key!r} {keys.load(path, PARAMS)}"
    assert "secret=" not in text
    assert "public=" not in text
    assert "array" not in text
    assert not caplog.records


def test_residues_of_another_shape_are_refused(key):
    with pytest.raises(CiphertextError, match="shape"):
        key.decrypt(np.zeros((2, 2, 1, PARAMS.degree), dtype=np.uint64))
