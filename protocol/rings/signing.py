"""Making a signature of suite 2 (clause 6.17 of SPEC.md).

Whatever touches the key or its masks runs in libsodium, in constant time. The signer's
position chooses which entry of a list is read, never how many operations follow, so that
the time taken does not tell it to those who wait for the message. It is no secret from
who runs programs on the signer's own device.
"""

import secrets
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import count

from vitalring.errors import SignatureError
from vitalring.protocol import group, lsag
from vitalring.protocol.rings import statement
from vitalring.protocol.rings.statement import SUITE, Commitments, Ring, Signature

_ENTROPY_BYTES = 64
_ZERO = bytes(group.SCALAR_BYTES)

Polynomial = list[bytes]
"""Points as coefficients, the constant one first."""


def sign(ring: Ring, secret: bytes, context: bytes, message_digest: bytes) -> bytes:
    """Signature by one key of the ring over a digest of 32 bytes (clause 6.17).

    A device signs one message in a context, ever; a second one shows the same tag.
    Raises SignatureError when the key is not in the ring.
    """
    base, entropy = lsag.tag_base(context), secrets.token_bytes(_ENTROPY_BYTES)
    return _sign(ring, secret, context, message_digest, base=base, entropy=entropy)


def _sign(
    ring: Ring,
    secret: bytes,
    context: bytes,
    message_digest: bytes,
    *,
    base: bytes,
    entropy: bytes,
) -> bytes:
    """`sign` with its randomness from outside, for test vectors."""
    public = lsag.KeyPair.of(secret).public
    # Halving, because a search from the first key on would take as long as the place is far.
    place = bisect_left(ring.keys, public)
    if ring.keys[place : place + 1] != (public,):
        raise SignatureError(f"key {public.hex()} is not in the ring; the roster has changed")
    own = _digits(place, ring.radices)
    # 1. The tag, and nonces hashed from the secret and fresh entropy.
    tag = group.mul(secret, base)
    bound = statement.bind(ring, context, tag, message_digest)
    nonce = _nonces(secret, entropy, bound)
    masks = [_masks(radix, nonce) for radix in ring.radices]
    mask_blind, bit_blind = nonce(), nonce()
    blinds = [nonce() for _ in ring.radices]
    # 2. Commitments to the masks, the digits and the coefficients of every power.
    by_power = [
        group.add(point, group.base_mul(blind))
        for point, blind in zip(_fold(ring, masks, own), blinds, strict=True)
    ]
    commitments = Commitments(
        _commit_masks(ring, masks, mask_blind),
        _commit_bits(ring, masks, own, bit_blind),
        tuple(by_power),
        tuple(group.mul(blind, base) for blind in blinds),
    )
    # 3. Answers to the challenge.
    c = statement.challenge(bound, commitments)
    digits = [list(mask) for mask in masks]
    for digit, value in zip(digits, own, strict=True):
        digit[value] = group.scalar_add(digit[value], c)
    power, hidden = _one(), _ZERO
    for blind in blinds:
        hidden = group.scalar_add(hidden, group.scalar_mul(blind, power))
        power = group.scalar_mul(power, c)
    return statement.encode(
        Signature(
            tag,
            commitments,
            tuple(tuple(digit[1:]) for digit in digits),
            group.scalar_add(mask_blind, group.scalar_mul(c, bit_blind)),
            group.scalar_sub(group.scalar_mul(secret, power), hidden),
        )
    )


def _nonces(secret: bytes, entropy: bytes, bound: bytes) -> Callable[[], bytes]:
    """Return a source of nonces that a poor generator does not reveal (as SPEC 6.9)."""
    positions = count()
    return lambda: group.hash_to_scalar(
        SUITE + b"/nonce", secret, entropy, bound, statement.number(next(positions))
    )


def _masks(radix: int, nonce: Callable[[], bytes]) -> list[bytes]:
    """Return scalars a_0, …, a_(radix-1) that are random but for their sum, zero."""
    rest = [nonce() for _ in range(radix - 1)]
    return [group.scalar_sub(_ZERO, reduce(group.scalar_add, rest)), *rest]


def _commit_masks(ring: Ring, masks: list[list[bytes]], blind: bytes) -> bytes:
    """Return A: the masks a over one set of generators, -a^2 over the other."""
    total = group.base_mul(blind)
    for values, bits, squares in zip(masks, ring.bit_bases, ring.square_bases, strict=True):
        for a, bit, square in zip(values, bits, squares, strict=True):
            total = group.add(total, group.mul(a, bit))
            total = group.sub(total, group.mul(group.scalar_mul(a, a), square))
    return total


def _commit_bits(ring: Ring, masks: list[list[bytes]], own: list[int], blind: bytes) -> bytes:
    """Return B: the digits' bits s over one set, a * (1 - 2s) over the other."""
    total = group.base_mul(blind)
    for values, value, bits, squares in zip(
        masks, own, ring.bit_bases, ring.square_bases, strict=True
    ):
        total = group.add(total, bits[value])
        signed = list(values)
        signed[value] = group.scalar_sub(_ZERO, signed[value])
        for a, square in zip(signed, squares, strict=True):
            total = group.add(total, group.mul(a, square))
    return total


def _fold(ring: Ring, masks: list[list[bytes]], own: list[int]) -> Polynomial:
    """Coefficients of sum_i M_i * prod_j (s_(j,i_j) * t + a_(j,i_j)) but the highest.

    The highest is the signer's own key. One digit after another, the blocks of members
    that differ in this digit alone become one polynomial with points as coefficients.
    """
    layer: list[Polynomial] = [[member] for member in ring.members]
    for radix, mask, value in zip(ring.radices, masks, own, strict=True):
        blocks = (layer[begin : begin + radix] for begin in range(0, len(layer), radix))
        layer = [_fold_block(block, mask, value) for block in blocks]
    return layer[0][:-1]


def _fold_block(block: Sequence[Polynomial], mask: list[bytes], value: int) -> Polynomial:
    """sum_i (s_i * t + a_i) * P_i with s_i = 1 for i = value alone, and the a_i adding to 0."""
    first, *rest = block
    masked = [
        # The sum of all a_i is zero, so that the first multiplication can be spared.
        reduce(
            group.add,
            (
                group.mul(a, group.sub(other[power], point))
                for a, other in zip(mask[1:], rest, strict=True)
            ),
        )
        for power, point in enumerate(first)
    ]
    shifted = block[value]
    return [
        masked[0],
        *(group.add(low, high) for low, high in zip(masked[1:], shifted[:-1], strict=True)),
        shifted[-1],
    ]


def _digits(position: int, shape: Sequence[int]) -> list[int]:
    """Digits of a position, the least significant first."""
    found = []
    for radix in shape:
        position, digit = divmod(position, radix)
        found.append(digit)
    return found


def _one() -> bytes:
    return statement.number(1) + bytes(group.SCALAR_BYTES - 8)
