"""Checking signatures of suite 2, alone and in batches (clauses 6.18 and 6.19 of SPEC.md).

A batch has one ring and one context. What concerns a signature alone, its encoding and its
tag, is checked first and costs the same few multiplications alone or in a batch. The rest
of every signature is one equation between points; a random combination of them all is
checked by one pass over the ring. In a batch that fails, `sifting` looks for the bad
signatures in a bounded number of passes.
"""

import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import chain
from operator import mul
from typing import Final

from vitalring.errors import ConfigError, SignatureError
from vitalring.protocol import group, lsag
from vitalring.protocol.rings import statement
from vitalring.protocol.rings.sifting import sift
from vitalring.protocol.rings.statement import Ring, Signature

WEIGHT_BITS: Final = 128
"""A bad signature passes in a batch with a chance of 2^-WEIGHT_BITS for each pass."""

_UNPROVEN: Final = "ring signature does not verify: another ring, context or message, or not signed"


@dataclass(frozen=True)
class Verdict:
    """What a batch found: a tag, or an error, or neither when the passes were used up."""

    tag: bytes | None = None
    error: SignatureError | None = None


@dataclass(frozen=True)
class _Claim:
    """A signature whose tag is proven, with its part of the batch's equation.

    `points` is what its own points add up to and `base` what it takes of G. What it takes
    of the generators and the members follows from `digits`, the f_(j,i) with f_(j,0).
    """

    tag: bytes
    points: bytes
    base: int
    digits: tuple[tuple[int, ...], ...]
    challenge: int
    bit_weight: int
    key_weight: int


def verify_batch(
    ring: Ring,
    context: bytes,
    items: Sequence[tuple[bytes, bytes]],
    *,
    max_passes: int,
) -> list[Verdict]:
    """Verdict on each (message digest, signature), in their order (clause 6.19).

    At most `max_passes` passes over the ring are made, and never more than signatures prove
    their tags: one when all of these are valid, two when one is not. Those still among bad
    ones when the passes are used up have neither tag nor error. Equal tags are not looked for.
    Raises ConfigError when no pass is allowed.
    """
    if max_passes < 1:
        raise ConfigError(f"{max_passes} passes over the ring check nothing; allow 1 or more")
    base = lsag.tag_base(context)
    verdicts = [Verdict()] * len(items)
    claims: dict[int, _Claim] = {}
    for position, (message_digest, signature) in enumerate(items):
        try:
            claims[position] = _claim(ring, context, message_digest, signature, base)
        except SignatureError as error:
            verdicts[position] = Verdict(error=error)
    positions = list(claims)

    def total(places: Sequence[int], power: int) -> bytes:
        # Weights are drawn once. Parts and places are fixed before, so that the chances of
        # each sum to vanish add up.
        taken = ((place, claims[positions[place - 1]]) for place in places)
        return _residue(ring, [_times(claim, place**power) for place, claim in taken])

    sifted = sift(len(positions), total, max_passes)
    for place in sifted.valid:
        verdicts[positions[place - 1]] = Verdict(tag=claims[positions[place - 1]].tag)
    for place in sifted.bad:
        verdicts[positions[place - 1]] = Verdict(error=SignatureError(_UNPROVEN))
    return verdicts


def _claim(ring: Ring, context: bytes, digest: bytes, data: bytes, base: bytes) -> _Claim:
    """Check all of a signature that the ring is not needed for (clause 6.18, steps 1 to 4)."""
    # 1. and 2. Length and scalars.
    signature = statement.decode(ring, data)
    # 3. The challenge follows from everything before it and is not zero.
    bound = statement.bind(ring, context, signature.tag, digest)
    c = _integer(statement.challenge(bound, signature.commitments))
    powers = [pow(c, power, group.ORDER) for power in range(len(ring.radices) + 1)]
    # 4. The tag is the key's multiple of the base, whichever key it is.
    _check_tag(signature, base, powers)
    # Two fresh weights, one for the digits' equation and one for the key's.
    bit_weight, key_weight = (1 + secrets.randbits(WEIGHT_BITS) for _ in range(2))
    committed = signature.commitments
    scalars = [bit_weight, bit_weight * c, *(-key_weight * power for power in powers[:-1])]
    points = (committed.masks, committed.bits, *committed.by_power)
    rest = (tuple(map(_integer, digit)) for digit in signature.digits)
    return _Claim(
        signature.tag,
        _sum(_mul(scalar, point) for scalar, point in zip(scalars, points, strict=True)),
        -bit_weight * _integer(signature.opening) - key_weight * _integer(signature.response),
        tuple(((c - sum(digit)) % group.ORDER, *digit) for digit in rest),
        c,
        bit_weight,
        key_weight,
    )


def _check_tag(signature: Signature, base: bytes, powers: Sequence[int]) -> None:
    """c^m * J = z * U + sum_j c^j * Y_j, every point checked where it is multiplied."""
    first, *rest = signature.commitments.tags_by_power
    right = group.add(group.mul(signature.response, base), group.decode_point(first))
    for power, point in zip(powers[1:-1], rest, strict=True):
        right = group.add(right, _mul(power, point))
    if _mul(powers[-1], signature.tag) != right:
        raise SignatureError(_UNPROVEN)


def _times(claim: _Claim, factor: int) -> _Claim:
    """Return a claim whose residue is `factor` times this one's."""
    if factor == 1:
        return claim
    return replace(
        claim,
        points=_mul(factor, claim.points),
        base=factor * claim.base,
        bit_weight=factor * claim.bit_weight,
        key_weight=factor * claim.key_weight,
    )


def _residue(ring: Ring, claims: Sequence[_Claim]) -> bytes:
    """Add up the claims' equations: the identity when all of them hold.

    For each claim, with its two weights v and w,
    v * (A + c*B - sum f * bit base - sum f * (c - f) * square base - opening * G)
    + w * (sum_i M_i * prod_j f_(j,i_j) - sum_j c^j * X_j - response * G).
    """
    base = sum(claim.base for claim in claims) % group.ORDER
    scalars = chain(_bit_scalars(claims), _square_scalars(claims), _member_scalars(claims))
    points = chain(chain(*ring.bit_bases), chain(*ring.square_bases), ring.members)
    terms = chain(
        (claim.points for claim in claims),
        [group.base_mul(_encoded(base))] if base else [],
        # A scalar of zero, which a signer can bring about, adds nothing.
        (_mul(k, point) for k, point in zip(scalars, points, strict=True) if k % group.ORDER),
    )
    return _sum(terms)


def _bit_scalars(claims: Sequence[_Claim]) -> Iterator[int]:
    weights = [claim.bit_weight for claim in claims]
    for column in zip(*(chain(*claim.digits) for claim in claims), strict=True):
        yield -sum(weight * f for weight, f in zip(weights, column, strict=True))


def _square_scalars(claims: Sequence[_Claim]) -> Iterator[int]:
    weights = [(claim.bit_weight, claim.challenge) for claim in claims]
    for column in zip(*(chain(*claim.digits) for claim in claims), strict=True):
        yield -sum(weight * f * (c - f) for (weight, c), f in zip(weights, column, strict=True))


def _member_scalars(claims: Sequence[_Claim]) -> Iterator[int]:
    """For each member, the sum of key_weight * prod_j f_(j,i_j) over all claims."""
    half = len(claims[0].digits) // 2
    low = zip(*(_products(1, claim.digits[:half]) for claim in claims), strict=True)
    high = zip(*(_products(claim.key_weight, claim.digits[half:]) for claim in claims), strict=True)
    lower = list(low)
    for upper in high:
        for column in lower:
            yield sum(map(mul, upper, column))


def _products(weight: int, digits: Iterable[Sequence[int]]) -> list[int]:
    """Return weight * prod_j f_(j,i_j) for all places of these digits, the first fastest."""
    products = [weight % group.ORDER]
    for digit in digits:
        products = [product * f % group.ORDER for f in digit for product in products]
    return products


def _sum(points: Iterable[bytes]) -> bytes:
    return reduce(group.add, points)


def _mul(scalar: int, point: bytes) -> bytes:
    return group.mul(_encoded(scalar), point)


def _encoded(scalar: int) -> bytes:
    return (scalar % group.ORDER).to_bytes(group.SCALAR_BYTES, "little")


def _integer(scalar: bytes) -> int:
    return int.from_bytes(scalar, "little")
