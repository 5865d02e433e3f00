"""The sum over two servers: one has masked vectors, the other the seeds of the masks (SPEC 5.24).

A device expands a mask from a fresh seed of 32 bytes, adds it to its fields modulo a power of
two, and gives the vector to one gateway and the seed to the other. Each alone has uniform noise.
Sums of vectors and of masks over the same updates differ by the sum of the fields.

The modulus is a power of two above what n_max updates can reach: every string of bits is then
a residue, so a mask is the generator's output as it comes, without bias and without rejection,
and a share has one encoding. It costs less than a bit a field against the least modulus.
"""

import hashlib
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from vitalring.errors import CiphertextError, EncodingRangeError
from vitalring.protocol.bits import pack_bits, packed_size, unpack_bits
from vitalring.protocol.quantise import Codec, check_codec, field_count

Array = npt.NDArray[np.uint64]

VECTOR, SEED = 0, 1
"""Which share a gateway holds: the number of its hospital (SPEC 1.5)."""
ROLES: Final = (VECTOR, SEED)

SEED_BYTES: Final = 32
SALT_BYTES: Final = 32
LINK_BYTES: Final = 64
CHECKS: Final = 8
"""Places, at least, that hold zero in each update: shares that do not fit leave noise there."""

_LANES = 8
_MIN_WIDTH = 8
_MASK_DOMAIN = b"vitalring/share-mask/1\x00"
_LINK_DOMAINS = (b"vitalring/share-link/vector/1\x00", b"vitalring/share-link/seed/1\x00")


@dataclass(frozen=True)
class ShareParams:
    """Sizes of one study's shares; `places` of `width` bits, the first `fields` of them used."""

    fields: int
    field_max: int
    additions: int
    width: int
    places: int

    @property
    def vector_bytes(self) -> int:
        """Return the bytes of a masked vector or of a sum."""
        return packed_size(self.places, self.width)

    @property
    def mask(self) -> np.uint64:
        """Return modulus - 1: residues are reduced by it."""
        return np.uint64((1 << self.width) - 1)


@dataclass(frozen=True)
class Shares:
    """One update for two gateways. Whoever has both can read it."""

    vector: bytes = field(repr=False)
    seed: bytes = field(repr=False)

    @property
    def link(self) -> bytes:
        """Return what the device signs: digests of both shares (SPEC 5.26)."""
        return _link(VECTOR, self.vector) + _link(SEED, self.seed)

    def of(self, role: int) -> bytes:
        """Return the share of a gateway."""
        return self.seed if role == SEED else self.vector


def share_params(codec: Codec, dimension: int) -> ShareParams:
    """Return the sizes that follow from a codec (SPEC 5.24). Raises ConfigError."""
    check_codec(codec)
    fields = field_count(codec, dimension)
    width = max(_MIN_WIDTH, (codec.n_max * codec.field_max).bit_length())
    places = -(-(fields + CHECKS) // _LANES) * _LANES
    return ShareParams(fields, codec.field_max, codec.n_max, width, places)


def expand(seed: bytes, params: ShareParams) -> Array:
    """Return the mask (places,) of a seed of 32 bytes: SHAKE-256 (FIPS 202), uniform (SPEC 5.25).

    Raises CiphertextError.
    """
    if len(seed) != SEED_BYTES:
        raise CiphertextError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
    stream = hashlib.shake_256(_MASK_DOMAIN + seed).digest(params.vector_bytes)
    return unpack_bits(np.frombuffer(stream, np.uint8), params.width, params.places)


def split(fields: Array, params: ShareParams) -> Shares:
    """Return a device's shares of its fields (fields,), with fresh randomness (SPEC 5.25).

    Raises EncodingRangeError for another number of fields or one above field_max.
    """
    return _split(fields, params, secrets.token_bytes(SEED_BYTES), secrets.token_bytes(SALT_BYTES))


def _split(fields: Array, params: ShareParams, seed: bytes, salt: bytes) -> Shares:
    """`split` with its randomness from outside, for test vectors."""
    if fields.shape != (params.fields,) or fields.dtype != np.uint64:
        raise EncodingRangeError(
            f"{params.fields} fields of 64 bits are shared, not {fields.shape} of {fields.dtype}"
        )
    if int(fields.max()) > params.field_max:
        raise EncodingRangeError(f"field {int(fields.max())} exceeds {params.field_max}")
    vector = expand(seed, params)
    vector[: params.fields] += fields
    # The salt hides from the seed's gateway, which knows the mask, what the link commits to.
    return Shares(salt + _pack(vector & params.mask, params), seed)


def check_link(link: bytes, share: bytes, role: int) -> None:
    """Check that a gateway's share is the one that the signed link names (SPEC 5.26).

    Raises CiphertextError.
    """
    if len(link) != LINK_BYTES:
        raise CiphertextError(f"a link of two shares has {LINK_BYTES} bytes, not {len(link)}")
    half = LINK_BYTES // len(ROLES)
    if link[role * half : (role + 1) * half] != _link(role, share):
        raise CiphertextError("the share is not the one that the update's link names")


class ShareSum(ABC):
    """What both gateways do alike: sums of residues, in the encoding of a vector.

    `update_bytes` are those that `decode` takes: the signed link, then this gateway's share.
    """

    role: int

    def __init__(self, params: ShareParams, share_bytes: int) -> None:
        self.params = params
        self.update_bytes = LINK_BYTES + share_bytes

    def decode(self, data: bytes) -> Array:
        """Read a link and a share to residues (places,) (SPEC 5.26). Raises CiphertextError."""
        if len(data) != self.update_bytes:
            raise CiphertextError(f"{len(data)} bytes, not the {self.update_bytes} of this share")
        link, share = data[:LINK_BYTES], data[LINK_BYTES:]
        check_link(link, share, self.role)
        return self.residues(share)

    @abstractmethod
    def residues(self, share: bytes) -> Array:
        """Return what a share adds to the sum. Raises CiphertextError."""

    def add(self, total: Array, update: Array) -> Array:
        """Add modulo 2^width."""
        return (total + update) & self.params.mask

    def encode_sum(self, total: Array) -> bytes:
        """Return a sum as bytes; every string of the right length is one."""
        return _pack(total, self.params)

    def decode_sum(self, data: bytes) -> Array:
        """Read a sum. Raises CiphertextError."""
        return _unpack(data, self.params)

    def open_sum(self, total: Array, count: int, decrypt: Callable[[Array], Array]) -> Array:
        """Return the fields of a sum of `count` updates; `decrypt` takes the masks' sum off."""
        return opened(decrypt(total), count, self.params)


class VectorSum(ShareSum):
    """Sums of masked vectors, at the first hospital's gateway."""

    role = VECTOR

    def __init__(self, params: ShareParams) -> None:
        super().__init__(params, SALT_BYTES + params.vector_bytes)

    def residues(self, share: bytes) -> Array:
        """Return the masked vector that follows the salt."""
        return _unpack(share[SALT_BYTES:], self.params)


class SeedSum(ShareSum):
    """Sums of masks, at the second hospital's gateway."""

    role = SEED

    def __init__(self, params: ShareParams) -> None:
        super().__init__(params, SEED_BYTES)

    def residues(self, share: bytes) -> Array:
        """Return the mask of a seed."""
        return expand(share, self.params)


@dataclass(frozen=True)
class Unmask:
    """Takes a sum of masks off the sum of masked vectors: what a key does in other modes."""

    masks: Array = field(repr=False)
    params: ShareParams

    def __call__(self, vectors: Array) -> Array:
        """Return the sum of what was masked (places,)."""
        return (vectors - self.masks) & self.params.mask


def share_sum(role: int, params: ShareParams) -> VectorSum | SeedSum:
    """Return how a gateway adds its shares."""
    return SeedSum(params) if role == SEED else VectorSum(params)


def opened(total: Array, count: int, params: ShareParams) -> Array:
    """Return the fields (fields,) of an unmasked sum of `count` updates (SPEC 5.27).

    Raises EncodingRangeError where it cannot be the sum of so many updates.
    """
    if total.shape != (params.places,):
        raise EncodingRangeError(f"a sum of shape {total.shape}, not ({params.places},)")
    # 1. As many updates as the modulus has room for.
    if not 1 <= count <= params.additions:
        raise EncodingRangeError(f"a sum of {count} updates, room is for {params.additions}")
    # 2. Places that every update leaves at zero: noise where vectors and seeds do not fit.
    if total[params.fields :].any():
        raise EncodingRangeError(
            "a reserved place of the sum is not zero: the two gateways' sums do not fit, "
            "or a device's shares did not"
        )
    # 3. No field above what so many devices can reach.
    fields: Array = total[: params.fields]
    if int(fields.max()) > count * params.field_max:
        raise EncodingRangeError(f"a field of {int(fields.max())} is too large for {count} updates")
    return fields


def _link(role: int, share: bytes) -> bytes:
    return hashlib.sha256(_LINK_DOMAINS[role] + share).digest()


def _pack(values: Array, params: ShareParams) -> bytes:
    return pack_bits(values, params.width).tobytes()


def _unpack(data: bytes, params: ShareParams) -> Array:
    return unpack_bits(np.frombuffer(data, np.uint8), params.width, params.places)
