"""The modes of the sum behind one interface (SPEC 5.7).

`sum_scheme` is the one place that tells modes apart. A gateway uses `decode`
and `add`; a device `update_encryptor`; the key holder `open_sum`. SEAL is
loaded by the device's half alone, and only for encrypted modes.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vitalring.errors import CiphertextError, ConfigError
from vitalring.protocol.bfv import BfvParams, choose_params
from vitalring.protocol.ciphertext import add, decode_ciphertexts, encode_ciphertexts
from vitalring.protocol.packing import pack_fields, unpack_fields
from vitalring.protocol.quantise import Codec, field_count
from vitalring.protocol.threshold.params import ThresholdParams, choose_threshold_params
from vitalring.protocol.threshold.pieces import Access
from vitalring.protocol.two_server import VectorSum, share_params

Array = npt.NDArray[np.uint64]
Decrypt = Callable[[Array], Array]
"""From a sum's residues to its plaintext coefficients: the key holder's part."""

SECURE_SUMS = ("threshold-he", "single-he", "two-server", "plain")
"""Modes of this version. `plain` protects nothing and is for comparison in simulations."""

KEYLESS = ("two-server", "plain")
"""Modes without a public key."""

LATER_SUMS: tuple[str, ...] = ()

_SALT_BYTES = 16


@dataclass(frozen=True)
class Joint:
    """Who decrypts under a joint key, and how often each hospital may with one key (SPEC 5.11)."""

    access: Access
    releases: int


class SumScheme(Protocol):
    """How updates of one mode are checked and added."""

    update_bytes: int

    def decode(self, data: bytes) -> Array:
        """Read an update's bytes. Raises CiphertextError for anything but its one encoding."""

    def add(self, total: Array, update: Array) -> Array:
        """Return the sum of both."""

    def encode_sum(self, total: Array) -> bytes:
        """Return a sum as bytes."""

    def decode_sum(self, data: bytes) -> Array:
        """Read a sum's bytes. Raises CiphertextError."""

    def open_sum(self, total: Array, count: int, decrypt: Decrypt) -> Array:
        """Return the fields of a sum of `count` updates. Raises EncodingRangeError."""


class UpdateEncryptor(Protocol):
    """The device's half."""

    def encrypt(self, fields: Array) -> bytes:
        """Return the bytes of an update with these fields (SPEC 4.8)."""


class HeSum:
    """Additive BFV; what is added here nobody without the key can read."""

    def __init__(self, params: BfvParams) -> None:
        self.params = params
        self.update_bytes = params.update_bytes

    def decode(self, data: bytes) -> Array:
        """Read an update's ciphertexts (SPEC 5.5)."""
        return decode_ciphertexts(data, self.params)

    def add(self, total: Array, update: Array) -> Array:
        """Add two sets of ciphertexts (SPEC 5.6)."""
        return add(total, update, self.params)

    def encode_sum(self, total: Array) -> bytes:
        """Return the sum in the encoding of an update."""
        return encode_ciphertexts(total, self.params)

    def decode_sum(self, data: bytes) -> Array:
        """Read a sum in the encoding of an update."""
        return decode_ciphertexts(data, self.params)

    def open_sum(self, total: Array, count: int, decrypt: Decrypt) -> Array:
        """Decrypt and unpack a sum."""
        return unpack_fields(decrypt(total), self.params, count)


class PlainSum:
    """Fields in clear, in the fewest whole bytes: the price of protection is measured on this.

    Random bytes follow them: equal updates of two devices must differ, as
    ciphertexts do, or the second would pass for a copy of the first (SPEC 10.2).
    """

    def __init__(self, codec: Codec, dimension: int) -> None:
        self._fields = field_count(codec, dimension)
        self._field_max = codec.field_max
        self._type = np.dtype("<u1" if codec.field_max < 1 << 8 else "<u4")
        self.update_bytes = self._fields * self._type.itemsize + _SALT_BYTES

    def decode(self, data: bytes) -> Array:
        """Read one update's fields."""
        if len(data) != self.update_bytes:
            raise CiphertextError(f"{len(data)} bytes, not the {self.update_bytes} of this update")
        fields = self._read(data[:-_SALT_BYTES], self._type)
        if int(fields.max()) > self._field_max:
            raise CiphertextError(f"a field of {int(fields.max())} exceeds {self._field_max}")
        return fields

    def add(self, total: Array, update: Array) -> Array:
        """Add field by field."""
        return total + update

    def encode_sum(self, total: Array) -> bytes:
        """Return a sum's fields, eight bytes each."""
        return total.astype("<u8").tobytes()

    def decode_sum(self, data: bytes) -> Array:
        """Read a sum's fields."""
        return self._read(data, np.dtype("<u8"))

    def open_sum(self, total: Array, count: int, decrypt: Decrypt) -> Array:  # noqa: ARG002
        """Return the fields: there is nothing to decrypt."""
        return total

    def encrypt(self, fields: Array) -> bytes:
        """Return an update's fields as bytes."""
        return fields.astype(self._type).tobytes() + secrets.token_bytes(_SALT_BYTES)

    def _read(self, data: bytes, kind: np.dtype[Any]) -> Array:
        if len(data) != self._fields * kind.itemsize:
            raise CiphertextError(
                f"{len(data)} bytes, not the {self._fields * kind.itemsize} of these fields"
            )
        return np.frombuffer(data, kind).astype(np.uint64)


class _HeEncryptor:
    def __init__(self, params: BfvParams, public_key: bytes) -> None:
        # The import stands here because gateways and plain simulations must not load SEAL.
        from vitalring.protocol.seal import Encryptor  # noqa: PLC0415

        self._params = params
        self._encryptor = Encryptor(params, public_key)

    def encrypt(self, fields: Array) -> bytes:
        coefficients = pack_fields(fields, self._params)
        return encode_ciphertexts(self._encryptor.encrypt(coefficients), self._params)


def check_mode(mode: str) -> None:
    """Refuse a mode that this version does not have, by name. Raises ConfigError."""
    if mode in LATER_SUMS:
        raise ConfigError(f"secure sum {mode} is not available in this version: use threshold-he")
    if mode not in SECURE_SUMS:
        raise ConfigError(f"secure sum {mode!r} is not known: use one of {', '.join(SECURE_SUMS)}")


def he_params(codec: Codec, dimension: int, joint: Joint | None) -> BfvParams:
    """Return the ring of an encrypted sum: of one key holder, or of a joint key.

    Raises ConfigError.
    """
    if joint is None:
        return choose_params(codec, dimension)
    return threshold_params(codec, dimension, joint).bfv


def threshold_params(codec: Codec, dimension: int, joint: Joint) -> ThresholdParams:
    """Return all parameters of a joint key (SPEC 5.11). Raises ConfigError."""
    return choose_threshold_params(codec, dimension, joint.access, releases=joint.releases)


def sum_scheme(mode: str, codec: Codec, dimension: int, joint: Joint | None = None) -> SumScheme:
    """Return how a plan's updates are added; `joint` goes with threshold-he. Raises ConfigError.

    Of two servers, how the first adds: sums of masked vectors.
    """
    _check_joint(mode, joint)
    if mode == "plain":
        return PlainSum(codec, dimension)
    if mode == "two-server":
        return VectorSum(share_params(codec, dimension))
    return HeSum(he_params(codec, dimension, joint))


def update_encryptor(
    mode: str, codec: Codec, dimension: int, public_key: bytes, joint: Joint | None = None
) -> UpdateEncryptor:
    """Return how a device encrypts for a plan. Raises ConfigError or CiphertextError."""
    _check_joint(mode, joint)
    if mode == "plain":
        return PlainSum(codec, dimension)
    if mode == "two-server":
        raise ConfigError("with two-server a device does not encrypt: it splits its fields")
    return _HeEncryptor(he_params(codec, dimension, joint), public_key)


def _check_joint(mode: str, joint: Joint | None) -> None:
    check_mode(mode)
    if (joint is not None) != (mode == "threshold-he"):
        raise ConfigError(f"secure sum {mode} {'has no' if joint else 'needs a'} joint key")
