"""The one module that holds a decryption key.

Rules (SPEC 5.9): the secret is drawn by SEAL, leaves this module only into its own file,
and shows in no representation, message or log. `SecretKey.decrypt` does what it is told:
whether a sum may be released is decided by its caller. The file names its kind, so that
a share of a joint key can become a kind of its own.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitalring.errors import CiphertextError, ConfigError
from vitalring.files import read_secret, write_secret
from vitalring.protocol.bfv import BfvParams
from vitalring.protocol.bits import pack_bits, packed_size, unpack_bits
from vitalring.protocol.ciphertext import Residues, decode_public_key, encode_public_key
from vitalring.protocol.seal import Decryptor, make_key_pair

_KIND = "vitalring/secret-key/single/1"
_CHECKSUM_BYTES = 32


@dataclass(frozen=True, eq=False)
class SecretKey:
    """The key of a sum that one party decrypts."""

    params: BfvParams
    _public: bytes = field(repr=False)
    _secret: Residues = field(repr=False)  # (primes, degree), NTT form
    _decryptor: Decryptor = field(repr=False)

    def public_key(self) -> bytes:
        """Return the public key as devices load it; always the same bytes."""
        return self._public

    def decrypt(self, residues: Residues) -> NDArray[np.uint64]:
        """Decrypt a sum's residues (ciphertexts, 2, primes, degree).

        Returns coefficients (ciphertexts, degree). Raises CiphertextError if the shape is
        wrong or the noise too large (SPEC 5.8).
        """
        params = self.params
        shape = (params.ciphertexts, 2, len(params.data_primes), params.degree)
        if residues.shape != shape:
            raise CiphertextError(f"residues of shape {residues.shape}, not {shape}")
        return self._decryptor.decrypt(residues)

    def save(self, path: Path) -> None:
        """Write the key to a new file of mode 0600; it is on disk when this returns.

        Raises ConfigError if the file exists, StorageError if it cannot be written.
        """
        body = _header(self.params) + _pack_secret(self._secret, self.params) + self._public
        write_secret(path, body + hashlib.sha256(body).digest())


def generate(params: BfvParams) -> SecretKey:
    """Draw a new key."""
    secret, public = make_key_pair(params)
    return _make(params, secret, encode_public_key(public, params))


def load(path: Path, params: BfvParams) -> SecretKey:
    """Load a key that `SecretKey.save` wrote.

    Raises ConfigError if the file is missing, readable by others, damaged, or of another
    kind or other parameters.
    """
    header = _header(params)
    secret_size = _packed_polynomials(params, 1)
    size = len(header) + secret_size + _packed_polynomials(params, 2) + _CHECKSUM_BYTES
    data = read_secret(path, size)
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    # 1. Whole; 2. for these parameters; 3. residues and public key in range.
    if hashlib.sha256(body).digest() != checksum:
        raise ConfigError(f"{path} is damaged: its checksum differs; restore it from a backup")
    if not body.startswith(header):
        raise ConfigError(f"{path} holds a key of other parameters or of another kind")
    packed = body[len(header) : len(header) + secret_size]
    public = body[len(header) + secret_size :]
    try:
        decode_public_key(public, params)
        return _make(params, _unpack_secret(packed, params), public)
    except CiphertextError as error:
        raise ConfigError(f"{path} does not hold a key: {error}") from error


def _make(params: BfvParams, secret: Residues, public: bytes) -> SecretKey:
    return SecretKey(params, public, secret, Decryptor(params, secret))


def _header(params: BfvParams) -> bytes:
    """Return what a key depends on: not the packing, only the ring and its primes."""
    return " ".join([_KIND, str(params.degree), *map(str, params.primes)]).encode() + b"\n"


def _packed_polynomials(params: BfvParams, count: int) -> int:
    return count * sum(packed_size(params.degree, p.bit_length()) for p in params.primes)


def _pack_secret(secret: Residues, params: BfvParams) -> bytes:
    rows = zip(secret, params.primes, strict=True)
    return b"".join(pack_bits(row, prime.bit_length()).tobytes() for row, prime in rows)


def _unpack_secret(data: bytes, params: BfvParams) -> Residues:
    secret = np.empty((len(params.primes), params.degree), dtype=np.uint64)
    start = 0
    for row, prime in enumerate(params.primes):
        width = prime.bit_length()
        size = packed_size(params.degree, width)
        part = np.frombuffer(data, dtype=np.uint8, count=size, offset=start)
        secret[row] = unpack_bits(part, width, params.degree)
        start += size
    return secret
