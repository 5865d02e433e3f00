"""Suite 2 of ring signatures: rings, transcript and encoding (clauses 6.13 to 6.16 of SPEC.md).

A signature proves, for the keys M of a ring and U = Hp(context),

    there are l and x with  M_l = x * G  and  J = x * U,

by the one-out-of-many proof of Groth and Kohlweiss (2015), in the n-ary form of Bootle et
al. (2015), with a linking tag as in Triptych (Noether, Goodell 2020). The position l is
written in digits of mixed radix, and both commitments to its digits hold two vectors each,
as in Lelantus Spark (Jivanyan, Feickert 2021). Keys, contexts and tags are those of LSAG.

Rules kept here:

* The ring is strictly sorted, without duplicates, and every key is decoded strictly.
* Places that no key fills hold points whose logarithm nobody knows; all members differ.
* The challenge binds suite, context, ring, tag, message and every commitment.
* All signatures for one ring have one size, and every value has one encoding.
"""

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from vitalring.errors import SignatureError
from vitalring.protocol import group, limits

SUITE: Final = b"vitalring/one-of-many/2/edwards25519-sha512"
DIGEST_BYTES: Final = 32
LARGEST_RADIX: Final = 8
"""Fewer digits are verified faster, and larger ones take more bytes: docs/results/ring.md."""


def radices(ring_size: int) -> tuple[int, ...]:
    """Radix of each digit of a position, the least significant first (clause 6.14).

    As few digits as radices up to LARGEST_RADIX allow, as equal as can be, and with a
    product that holds `ring_size` places and exceeds it by a quarter at most.
    """
    count = next(m for m in range(1, ring_size + 1) if LARGEST_RADIX**m >= ring_size)
    largest = next(n for n in range(2, LARGEST_RADIX + 1) if n**count >= ring_size)
    chosen = [largest] * count
    for position in reversed(range(count)):
        chosen[position] -= 1
        if math.prod(chosen) < ring_size:
            chosen[position] += 1
            break
    return tuple(chosen)


@dataclass(frozen=True)
class Ring:
    """Keys among which a signer hides, with all that an epoch computes once (clause 6.14).

    `members` are the keys and, behind them, padding to the product of `radices`.
    `bit_bases` and `square_bases` have one generator for each value of each digit.
    """

    keys: tuple[bytes, ...]
    digest: bytes = field(init=False, repr=False, compare=False)
    radices: tuple[int, ...] = field(init=False, compare=False)
    members: tuple[bytes, ...] = field(init=False, repr=False, compare=False)
    bit_bases: tuple[tuple[bytes, ...], ...] = field(init=False, repr=False, compare=False)
    square_bases: tuple[tuple[bytes, ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        keys = self.keys
        if not 2 <= len(keys) <= limits.MAX_DEVICES:
            raise SignatureError(f"ring of {len(keys)} keys; 2 to {limits.MAX_DEVICES} allowed")
        for key in keys:
            group.decode_point(key)
        for position, (key, following) in enumerate(itertools.pairwise(keys)):
            if key >= following:
                how = "twice" if key == following else "out of order"
                raise SignatureError(f"ring key {position + 1} ({following.hex()}) stands {how}")
        digest = hashlib.sha256(group.frame(SUITE + b"/ring", *keys)).digest()
        shape = radices(len(keys))
        padding = (
            group.hash_to_point(SUITE + b"/padding", digest, number(position))
            for position in range(len(keys), math.prod(shape))
        )
        object.__setattr__(self, "digest", digest)
        object.__setattr__(self, "radices", shape)
        object.__setattr__(self, "members", (*keys, *padding))
        object.__setattr__(self, "bit_bases", _generators(b"/bit-base", shape))
        object.__setattr__(self, "square_bases", _generators(b"/square-base", shape))

    @classmethod
    def of(cls, keys: Sequence[bytes]) -> "Ring":
        """Ring over keys already in order. Raises SignatureError for anything else."""
        return cls(tuple(keys))


def signature_bytes(ring_size: int) -> int:
    """Length of every signature for a ring of so many keys."""
    shape = radices(ring_size)
    points, scalars = 3 + 2 * len(shape), sum(shape) - len(shape) + 2
    return points * group.POINT_BYTES + scalars * group.SCALAR_BYTES


@dataclass(frozen=True)
class Commitments:
    """What the signer fixes before the challenge: the points of a signature but its tag.

    `masks` and `bits` commit to the digits (A and B), `by_power` are X_0, X_1, … and
    `tags_by_power` Y_0, Y_1, …, one of each for each digit.
    """

    masks: bytes
    bits: bytes
    by_power: tuple[bytes, ...]
    tags_by_power: tuple[bytes, ...]

    def points(self) -> Iterator[bytes]:
        """All points in their order in a signature."""
        yield self.masks
        yield self.bits
        yield from self.by_power
        yield from self.tags_by_power


@dataclass(frozen=True)
class Signature:
    """A signature's parts (clause 6.16); `digits` holds f_(j,i) for i from 1 on."""

    tag: bytes
    commitments: Commitments
    digits: tuple[tuple[bytes, ...], ...]
    opening: bytes
    response: bytes


def encode(signature: Signature) -> bytes:
    """Join a signature's parts in their one encoding."""
    scalars = (scalar for digit in signature.digits for scalar in digit)
    return b"".join(
        (
            signature.tag,
            *signature.commitments.points(),
            *scalars,
            signature.opening,
            signature.response,
        )
    )


def decode(ring: Ring, data: bytes) -> Signature:
    """Parts of a signature, its scalars checked and its points not yet (clause 6.18).

    Multiplication checks a point as `group.decode_point` does, so that a verifier need not
    pay twice. Raises SignatureError.
    """
    # 1. One length only.
    wanted = signature_bytes(len(ring.keys))
    if not isinstance(data, bytes) or len(data) != wanted:
        size = len(data) if isinstance(data, bytes) else type(data).__name__
        raise SignatureError(
            f"signature of {size} bytes; a ring of {len(ring.keys)} needs {wanted}"
        )
    values = (data[at : at + group.SCALAR_BYTES] for at in range(0, wanted, group.SCALAR_BYTES))
    count = len(ring.radices)
    tag, masks, bits = _take(values, 3)
    commitments = Commitments(masks, bits, _take(values, count), _take(values, count))
    # 2. Scalars are below the order and not zero.
    scalars = (group.decode_scalar(value) for value in values)
    digits = tuple(_take(scalars, radix - 1) for radix in ring.radices)
    opening, response = _take(scalars, 2)
    return Signature(tag, commitments, digits, opening, response)


def bind(ring: Ring, context: bytes, tag: bytes, message_digest: bytes) -> bytes:
    """Everything but the commitments that a challenge covers, hashed (clause 6.15)."""
    if not isinstance(message_digest, bytes) or len(message_digest) != DIGEST_BYTES:
        raise SignatureError(f"a message digest has {DIGEST_BYTES} bytes")
    return group.hash_parts(SUITE + b"/bind", context, ring.digest, tag, message_digest)


def challenge(bound: bytes, commitments: Commitments) -> bytes:
    """Hash out the challenge, a scalar other than zero. Raises SignatureError."""
    drawn = group.hash_to_scalar(SUITE + b"/challenge", bound, *commitments.points())
    if group.is_zero(drawn):  # it would let any key through; nobody can find one
        raise SignatureError("challenge is zero")
    return drawn


def number(value: int) -> bytes:
    """Small whole number as 8 little-endian bytes."""
    return value.to_bytes(8, "little")


def _take(values: Iterator[bytes], count: int) -> tuple[bytes, ...]:
    return tuple(itertools.islice(values, count))


def _generators(name: bytes, shape: tuple[int, ...]) -> tuple[tuple[bytes, ...], ...]:
    """Independent generators, one for each value of each digit."""
    return tuple(
        tuple(
            group.hash_to_point(SUITE + name, number(position), number(value))
            for value in range(radix)
        )
        for position, radix in enumerate(shape)
    )
