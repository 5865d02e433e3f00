"""The only door to SEAL: numpy arrays in, numpy arrays out.

Rules (SPEC 5.7): parties' bytes never come here, only residues and coefficients that
passed the checks of `ciphertext.py` and `packing.py`. TenSEAL's bindings read and write
SEAL objects through files alone, so arrays travel in SEAL's own frames through an
anonymous memory file. Every header field of a frame is compared with what SEAL 4.3 must
have written; anything else is refused with the cure. Randomness is SEAL's own: BLAKE2
seeded by the system for each encryption.
"""

import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import zstandard
from numpy.typing import NDArray
from tenseal import sealapi

from vitalring.errors import CiphertextError, ConfigError
from vitalring.protocol.bfv import BfvParams
from vitalring.protocol.ciphertext import POLYNOMIALS, Residues, decode_public_key, shorten

_HEADER = struct.Struct("<2sBBBBHQ")  # magic, header size, version, compression, 0, frame size
_MAGIC = b"\x5e\xa1"
_VERSION = (4, 3)
_PLAIN, _ZSTD = 0, 2
_CIPHERTEXT = struct.Struct("<32sB3QdQ")  # parms_id, NTT, size, degree, primes, scale, factor
_PLAINTEXT = struct.Struct("<32sQd")  # parms_id, coefficients, scale
_COUNT = struct.Struct("<Q")
_SEED = struct.Struct("<8Q")
_NO_ID = bytes(32)


_ntt = sealapi._sealapi_cpp.util
"""SEAL's number-theoretic transforms; TenSEAL binds them without a public name."""


class _Context(Protocol):
    """What is used here of SEAL's context."""

    def key_parms_id(self) -> list[int]: ...
    def first_parms_id(self) -> list[int]: ...


class _SealObject(Protocol):
    """What SEAL's ciphertexts, plaintexts and keys have in common."""

    def save(self, path: str, /) -> None: ...
    def load(self, context: _Context, path: str, /) -> None: ...


class _Plaintext(_SealObject, Protocol):
    def coeff_count(self) -> int: ...


_Object = TypeVar("_Object", bound=_SealObject)


class Encryptor:
    """Encrypts coefficients under one public key."""

    def __init__(
        self, params: BfvParams, public_key: bytes, context: _Context | None = None
    ) -> None:
        """Decode and load the key. Raises CiphertextError if it is not a key of `params`."""
        self._params = params
        self._context = context or make_context(params)
        frame = _ciphertext_frame(
            decode_public_key(public_key, params), _key_id(self._context), ntt=True
        )
        key = _load(sealapi.PublicKey(), self._context, frame)
        self._encryptor = sealapi.Encryptor(self._context, key)

    def encrypt(self, coefficients: NDArray[np.uint64]) -> Residues:
        """Encrypt coefficients (ciphertexts, degree) below the plain modulus.

        Returns residues (ciphertexts, 2, primes, degree), shortened where the parameters
        ask for it. Raises CiphertextError for coefficients of another shape or range.
        """
        params = self._params
        if coefficients.ndim != 2 or coefficients.shape[1] != params.degree:
            raise CiphertextError(f"coefficients of shape {coefficients.shape} do not encrypt")
        if coefficients.size and int(coefficients.max()) >= params.plain_modulus:
            raise CiphertextError("a coefficient is not below the plain modulus")
        shape = (POLYNOMIALS, len(params.data_primes), params.degree)
        residues = np.empty((len(coefficients), *shape), dtype=np.uint64)
        ciphertext = sealapi.Ciphertext()
        data_id = _data_id(self._context)
        for i, row in enumerate(coefficients):
            plain = _load(sealapi.Plaintext(), self._context, _plaintext_frame(row, _NO_ID))
            self._encryptor.encrypt(plain, ciphertext)
            residues[i] = _read_ciphertext(ciphertext, shape, data_id, ntt=False)
        return shorten(residues, params)


def encrypt_openly(
    params: BfvParams, public_key: bytes, coefficients: NDArray[np.uint64], seed: bytes
) -> Residues:
    """Encrypt one row of coefficients (degree,) with randomness from 64 public bytes.

    Everybody gets the same residues (1, 2, primes, degree), and nothing is hidden: this is
    for the rehearsal of a key, where everybody knows the plaintext (SPEC 5.14). Raises
    CiphertextError.
    """
    context = make_context(params, seed)
    return Encryptor(params, public_key, context).encrypt(coefficients[None])


class Decryptor:
    """Decrypts with one secret key; only the module that holds the key makes one."""

    def __init__(self, params: BfvParams, secret: Residues) -> None:
        """Load a secret key (primes, degree), in NTT form over all primes."""
        self._params = params
        self._context = make_context(params)
        frame = _plaintext_frame(secret.reshape(-1), _key_id(self._context))
        key = _load(sealapi.SecretKey(), self._context, frame)
        self._decryptor = sealapi.Decryptor(self._context, key)

    def decrypt(self, residues: Residues) -> NDArray[np.uint64]:
        """Decrypt residues (ciphertexts, 2, primes, degree) to coefficients (ciphertexts, degree).

        Raises CiphertextError if a ciphertext's noise has reached the limit: no honest sum
        gets there, and the result would be random (SPEC 5.8).
        """
        data_id = _data_id(self._context)
        coefficients = np.empty((len(residues), self._params.degree), dtype=np.uint64)
        plain = sealapi.Plaintext()
        for i, pair in enumerate(residues):
            frame = _ciphertext_frame(pair, data_id, ntt=False)
            ciphertext = _load(sealapi.Ciphertext(), self._context, frame)
            if self._decryptor.invariant_noise_budget(ciphertext) < 1:
                raise CiphertextError(
                    f"the noise of ciphertext {i} leaves nothing to decrypt: the sum holds a "
                    "ciphertext that is not an encryption, or more updates than the plan allows"
                )
            self._decryptor.decrypt(ciphertext, plain)
            coefficients[i] = _read_plaintext(plain, self._params.degree)
        return coefficients


class Multiplier:
    """Multiplies polynomials by one fixed polynomial, modulo the data primes."""

    def __init__(self, params: BfvParams, factor: Residues) -> None:
        """Load the factor (primes, degree), in NTT form over the data primes."""
        self._params = params
        self._context = make_context(params)
        frame = _plaintext_frame(factor.reshape(-1), _data_id(self._context))
        self._factor = _load(sealapi.Plaintext(), self._context, frame)
        self._evaluator = sealapi.Evaluator(self._context)

    def multiply(self, polynomials: Residues) -> Residues:
        """Return each product; arguments and results (count, primes, degree), in coefficient form.

        Raises CiphertextError for other shapes and for a product that is zero.
        """
        shape = (len(self._params.data_primes), self._params.degree)
        if polynomials.shape[1:] != shape:
            raise CiphertextError(f"polynomials of shape {polynomials.shape} do not multiply")
        products = np.empty_like(polynomials)
        data_id = _data_id(self._context)
        # A SEAL ciphertext carries two polynomials; the last one may have to go twice.
        for i in range(0, len(polynomials), POLYNOMIALS):
            pair = polynomials[i : i + POLYNOMIALS]
            frame = _ciphertext_frame(np.resize(pair, (POLYNOMIALS, *shape)), data_id, ntt=False)
            carrier = _load(sealapi.Ciphertext(), self._context, frame)
            try:
                self._evaluator.transform_to_ntt_inplace(carrier)
                self._evaluator.multiply_plain_inplace(carrier, self._factor)
                self._evaluator.transform_from_ntt_inplace(carrier)
            except (ValueError, RuntimeError) as error:
                raise CiphertextError(f"SEAL does not multiply these: {error}") from error
            both = _read_ciphertext(carrier, (POLYNOMIALS, *shape), data_id, ntt=False)
            products[i : i + POLYNOMIALS] = both[: len(pair)]
        return products


def scale_and_round(params: BfvParams, polynomials: Residues) -> NDArray[np.uint64]:
    """Return round(t x / q) mod t of each x (count, primes, degree), as (count, degree).

    This is BFV decryption after the multiplication by the key, and needs none. Raises
    CiphertextError if x is too far from a multiple of q / t (SPEC 5.8).
    """
    # Under the key zero the phase of the ciphertext (x, 0) is x.
    zero = np.zeros((len(params.primes), params.degree), dtype=np.uint64)
    return Decryptor(params, zero).decrypt(
        np.stack([polynomials, np.zeros_like(polynomials)], axis=1)
    )


def to_ntt(polynomial: Residues, primes: tuple[int, ...]) -> Residues:
    """Return the NTT form of a polynomial (primes, degree), in SEAL's order."""
    return _transform(_ntt.ntt_negacyclic_harvey, polynomial, primes)


def from_ntt(polynomial: Residues, primes: tuple[int, ...]) -> Residues:
    """Return the coefficient form of a polynomial (primes, degree): the inverse of `to_ntt`."""
    return _transform(_ntt.inverse_ntt_negacyclic_harvey, polynomial, primes)


def _transform(
    function: Callable[[list[int], object], list[int]],
    polynomial: Residues,
    primes: tuple[int, ...],
) -> Residues:
    log_degree = polynomial.shape[-1].bit_length() - 1
    result = np.empty_like(polynomial)
    for j, prime in enumerate(primes):
        tables = _ntt.NTTTables(log_degree, sealapi.Modulus(prime))
        result[j] = function(polynomial[j].tolist(), tables)
    return result


def make_key_pair(params: BfvParams) -> tuple[Residues, Residues]:
    """Draw a secret key (primes, degree) and a public key (2, primes, degree), in NTT form."""
    context = make_context(params)
    generator = sealapi.KeyGenerator(context)
    public = sealapi.PublicKey()
    generator.create_public_key(public)
    shape = (len(params.primes), params.degree)
    key_id = _key_id(context)
    secret = _read_secret(generator.secret_key(), shape, key_id)
    return secret, _read_ciphertext(public, (POLYNOMIALS, *shape), key_id, ntt=True)


def make_context(params: BfvParams, public_seed: bytes = b"") -> _Context:
    """Build SEAL's context. Raises ConfigError if SEAL finds the parameters below 128 bits.

    Randomness is SEAL's own; only `encrypt_openly` gives it a seed.
    """
    settings = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.BFV)
    try:
        settings.set_poly_modulus_degree(params.degree)
        settings.set_coeff_modulus([sealapi.Modulus(prime) for prime in params.primes])
        settings.set_plain_modulus(params.plain_modulus)
        if public_seed:
            words = list(_SEED.unpack(public_seed))
            settings.set_random_generator(sealapi.Blake2xbPRNGFactory(words))
        context = sealapi.SEALContext(settings, True, sealapi.SEC_LEVEL_TYPE.TC128)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"SEAL refuses {params}: {error}") from error
    if not context.parameters_set():
        raise ConfigError(f"SEAL refuses {params}: {context.parameters_error_message()}")
    result: _Context = context
    return result


def _key_id(context: _Context) -> bytes:
    return struct.pack("<4Q", *context.key_parms_id())


def _data_id(context: _Context) -> bytes:
    return struct.pack("<4Q", *context.first_parms_id())


def _read_ciphertext(
    source: _SealObject, shape: tuple[int, int, int], parms_id: bytes, *, ntt: bool
) -> Residues:
    """Return the residues (2, primes, degree) of a SEAL ciphertext or public key."""
    size, primes, degree = shape
    head = _CIPHERTEXT.pack(parms_id, ntt, size, degree, primes, 1.0, 1)
    return _read_words(source, head, size * primes * degree).reshape(shape)


def _read_secret(source: _SealObject, shape: tuple[int, int], parms_id: bytes) -> Residues:
    count = shape[0] * shape[1]
    return _read_words(source, _PLAINTEXT.pack(parms_id, count, 1.0), count).reshape(shape)


def _read_plaintext(source: _Plaintext, degree: int) -> NDArray[np.uint64]:
    """Return a plaintext's coefficients (degree,); SEAL leaves out leading zeros."""
    count = source.coeff_count()
    if not 0 <= count <= degree:
        raise ConfigError(_unexpected(f"a plaintext of {count} coefficients"))
    coefficients = np.zeros(degree, dtype=np.uint64)
    coefficients[:count] = _read_words(source, _PLAINTEXT.pack(_NO_ID, count, 1.0), count)
    return coefficients


def _read_words(source: _SealObject, head: bytes, count: int) -> NDArray[np.uint64]:
    """Save an object and return its words, given all that must stand before them.

    Raises ConfigError if SEAL writes another layout than the one this code knows.
    """
    words_size = _COUNT.size + 8 * count
    size = len(head) + _HEADER.size + words_size
    with _memory_file() as path:
        try:
            source.save(path)
        except RuntimeError as error:
            raise ConfigError(f"SEAL cannot write through {path}: {error}") from error
        body = _unframe(Path(path).read_bytes(), size)
    inner = _HEADER.pack(_MAGIC, _HEADER.size, *_VERSION, _PLAIN, 0, _HEADER.size + words_size)
    if len(body) != size or body[: size - 8 * count] != head + inner + _COUNT.pack(count):
        raise ConfigError(_unexpected("an object of another layout"))
    return np.frombuffer(body, dtype="<u8", offset=size - 8 * count).astype(np.uint64)


def _ciphertext_frame(residues: Residues, parms_id: bytes, *, ntt: bool) -> bytes:
    size, primes, degree = residues.shape
    return _frame(
        _CIPHERTEXT.pack(parms_id, ntt, size, degree, primes, 1.0, 1) + _words_frame(residues)
    )


def _plaintext_frame(coefficients: NDArray[np.uint64], parms_id: bytes) -> bytes:
    return _frame(_PLAINTEXT.pack(parms_id, coefficients.size, 1.0) + _words_frame(coefficients))


def _words_frame(words: NDArray[np.uint64]) -> bytes:
    return _frame(_COUNT.pack(words.size) + np.ascontiguousarray(words, dtype="<u8").tobytes())


def _frame(body: bytes) -> bytes:
    return _HEADER.pack(_MAGIC, _HEADER.size, *_VERSION, _PLAIN, 0, _HEADER.size + len(body)) + body


def _unframe(frame: bytes, size: int) -> bytes:
    """Return the body of a frame, of `size` bytes at most if it is compressed."""
    if len(frame) < _HEADER.size:
        raise ConfigError(_unexpected(f"a frame of {len(frame)} bytes"))
    magic, header, major, minor, compression, zero, total = _HEADER.unpack_from(frame)
    if (magic, header, zero, total) != (_MAGIC, _HEADER.size, 0, len(frame)):
        raise ConfigError(_unexpected("a header of another layout"))
    if (major, minor) != _VERSION:
        raise ConfigError(_unexpected(f"version {major}.{minor}"))
    body = frame[_HEADER.size :]
    if compression == _PLAIN:
        return body
    if compression != _ZSTD:
        raise ConfigError(_unexpected(f"compression {compression}"))
    try:
        return zstandard.ZstdDecompressor().decompress(body, max_output_size=size)
    except zstandard.ZstdError as error:
        raise ConfigError(_unexpected(f"a compressed body that does not open ({error})")) from error


def _load(target: _Object, context: _Context, frame: bytes) -> _Object:
    """Load a frame into a SEAL object. Raises CiphertextError if SEAL refuses its content."""
    with _memory_file() as path:
        Path(path).write_bytes(frame)
        try:
            target.load(context, path)
        except (ValueError, RuntimeError) as error:
            raise CiphertextError(f"SEAL refuses this {type(target).__name__}: {error}") from error
    return target


@contextmanager
def _memory_file() -> Iterator[str]:
    """Give the path of an empty file that nobody else can open and that leaves no trace.

    On Linux it lives in anonymous memory. Elsewhere it is a file of mode 0600 in a
    directory of mode 0700, removed on leaving.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("vitalring-seal", os.MFD_CLOEXEC)
        try:
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.TemporaryDirectory(prefix="vitalring-") as folder:
            path = Path(folder) / "seal"
            path.touch(mode=0o600)
            yield str(path)


def _unexpected(what: str) -> str:
    wanted = ".".join(map(str, _VERSION))
    return f"SEAL wrote {what}; this release reads SEAL {wanted}: install tenseal==0.3.18"
