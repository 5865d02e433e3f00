"""A second implementation of suite 2 (clauses 6.13 to 6.18 of SPEC.md), from the text alone.

Pure Python over integers, on the curve arithmetic of `reference_lsag`. It shares no code with
the library and works otherwise: the signer expands every member's polynomial where the
library folds, the verifier checks three equations where the library combines them. It is
slow, not constant-time and must never see a real secret.

Failures are named by class, in the order of 6.18:
``ring``, ``length``, ``scalar``, ``point``, ``closure``. `Deviation` says how an attacker
departs from the text.
"""

import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import reference_lsag as curve
from reference_lsag import BASE, IDENTITY, InvalidError, L

SUITE = b"vitalring/one-of-many/2/edwards25519-sha512"


@dataclass(frozen=True)
class Deviation:
    """Where a signer departs from the text; nothing is an honest signer."""

    tag: bytes | None = None
    base: Any = None
    members: Sequence[Any] | None = None
    digits: Sequence[Sequence[int]] | None = None
    bound: Callable[[list[bytes], bytes, bytes, bytes], bytes] | None = None
    hashed: Callable[[list[bytes]], list[bytes]] = lambda points: points
    add: dict[int, Any] = field(default_factory=dict)
    replace: dict[int, bytes] = field(default_factory=dict)
    decode: Callable[[bytes], Any] = curve.decode_point


HONEST = Deviation()


def radices(size):
    """The fewest digits that radices up to 8 allow; as equal as can be, larger ones first."""
    m = 1
    while 8**m < size:
        m += 1
    n = 2
    while n**m < size:
        n += 1
    # The most digits of n - 1 that still hold `size` places.
    smaller = max(k for k in range(m) if n ** (m - k) * (n - 1) ** k >= size)
    return [n] * (m - smaller) + [n - 1] * smaller


def ring_digest(keys):
    return hashlib.sha256(curve.frame(SUITE + b"/ring", *keys)).digest()


@functools.cache
def hashed_point(name, *parts):
    return curve.hash_to_point(SUITE + name, *parts)


def decode_ring(keys, decode=curve.decode_point):
    """The members of a ring, padding and all."""
    points = [decode(key) for key in keys]
    if len(keys) < 2 or sorted(set(keys)) != list(keys):
        raise InvalidError("ring")
    digest = ring_digest(keys)
    places = range(len(keys), math.prod(radices(len(keys))))
    return points + [hashed_point(b"/padding", digest, curve.count(i)) for i in places]


def generators(shape):
    """The two sets, with one generator for each value of each digit."""
    return [
        [
            [hashed_point(name, curve.count(j), curve.count(i)) for i in range(n)]
            for j, n in enumerate(shape)
        ]
        for name in (b"/bit-base", b"/square-base")
    ]


def bind(keys, ctx, tag, digest):
    return curve.hash_parts(SUITE + b"/bind", ctx, ring_digest(keys), tag, digest)


def challenge(bound, points):
    c = curve.hash_to_scalar(SUITE + b"/challenge", bound, *points)
    if c == 0:
        raise InvalidError("closure")
    return c


def digits_of(position, shape):
    found = []
    for n in shape:
        found.append(position % n)
        position //= n
    return found


def combine(pairs):
    total = IDENTITY
    for k, point in pairs:
        if k % L:
            total = curve.add(total, curve.mul(k % L, point))
    return total


def sign(keys, own, x, ctx, digest, entropy, deviation=HONEST):
    """6.17, to the letter."""
    members = deviation.members or decode_ring(keys, deviation.decode)
    shape = radices(len(keys))
    base = deviation.base or curve.tag_base(ctx)
    tag = deviation.tag or curve.encode_point(curve.mul(x, base))
    bound = (deviation.bound or bind)(keys, ctx, tag, digest)
    position = itertools.count()

    def nonce():
        return curve.hash_to_scalar(
            SUITE + b"/nonce", curve.encode_scalar(x), entropy, bound, curve.count(next(position))
        )

    s = deviation.digits or [
        [int(i == value) for i in range(n)]
        for n, value in zip(shape, digits_of(own, shape), strict=True)
    ]
    a = []
    for n in shape:
        rest = [nonce() for _ in range(n - 1)]
        a.append([-sum(rest) % L, *rest])
    r_a, r_b = nonce(), nonce()
    rho = [nonce() for _ in shape]
    bit_bases, square_bases = generators(shape)
    cells = [(j, i) for j, n in enumerate(shape) for i in range(n)]
    points = [
        combine(
            [(r_a, BASE)]
            + [(a[j][i], bit_bases[j][i]) for j, i in cells]
            + [(-(a[j][i] ** 2), square_bases[j][i]) for j, i in cells]
        ),
        combine(
            [(r_b, BASE)]
            + [(s[j][i], bit_bases[j][i]) for j, i in cells]
            + [(a[j][i] * (1 - 2 * s[j][i]), square_bases[j][i]) for j, i in cells]
        ),
    ]
    expanded = []
    for place in range(len(members)):
        polynomial = [1]
        for j, i in enumerate(digits_of(place, shape)):
            low = [k * a[j][i] for k in polynomial] + [0]
            high = [0] + [k * s[j][i] for k in polynomial]
            polynomial = [(p + q) % L for p, q in zip(low, high, strict=True)]
        expanded.append(polynomial)
    for power, r in enumerate(rho):
        pairs = [(p[power], member) for p, member in zip(expanded, members, strict=True)]
        points.append(combine([*pairs, (r, BASE)]))
    points += [curve.mul(r, base) for r in rho]
    for at, point in deviation.add.items():
        points[at] = curve.add(points[at], point)
    encoded = [curve.encode_point(point) for point in points]
    for at, data in deviation.replace.items():
        encoded[at] = data
    c = challenge(bound, deviation.hashed(encoded))
    f = [(s[j][i] * c + a[j][i]) % L for j, i in cells if i]
    response = (x * c ** len(shape) - sum(r * c**k for k, r in enumerate(rho))) % L
    scalars = [*f, (r_a + c * r_b) % L, response]
    return tag + b"".join(encoded) + b"".join(map(curve.encode_scalar, scalars))


def verify(keys, ctx, digest, signature, *, decode=curve.decode_point, digits_checked=True):
    """6.18. With ``decode=decode_any_point`` it has the bug that torsion attacks need."""
    members = decode_ring(keys, decode)
    shape = radices(len(keys))
    m = len(shape)
    count = 3 + 2 * m
    if len(signature) != 32 * (count + sum(shape) - m + 2):
        raise InvalidError("length")
    parts = [signature[at : at + 32] for at in range(0, len(signature), 32)]
    scalars = [curve.decode_scalar(part) for part in parts[count:]]
    tag, encoded = parts[0], parts[1:count]
    c = challenge(bind(keys, ctx, tag, digest), encoded)
    powers = [pow(c, k, L) for k in range(m + 1)]
    opening, response = scalars[-2:]
    # The tag's equation.
    base, tag_point = curve.tag_base(ctx), decode(tag)
    ys = [decode(point) for point in encoded[2 + m :]]
    right = combine([(response, base), *zip(powers[:-1], ys, strict=True)])
    if combine([(powers[m], tag_point)]) != right:
        raise InvalidError("closure")
    # The digits' equation.
    a, b, *xs = (decode(point) for point in encoded[: 2 + m])
    rest = iter(scalars[:-2])
    f = [list(itertools.islice(rest, n - 1)) for n in shape]
    f = [[(c - sum(digit)) % L, *digit] for digit in f]
    bit_bases, square_bases = generators(shape)
    cells = [(j, i) for j, n in enumerate(shape) for i in range(n)]
    committed = [(f[j][i], bit_bases[j][i]) for j, i in cells]
    committed += [(f[j][i] * (c - f[j][i]), square_bases[j][i]) for j, i in cells]
    holds = curve.add(a, combine([(c, b)])) == combine([*committed, (opening, BASE)])
    if digits_checked and not holds:
        raise InvalidError("closure")
    # The key's equation.
    weighted = []
    for place, member in enumerate(members):
        chosen = [f[j][i] for j, i in enumerate(digits_of(place, shape))]
        weighted.append((math.prod(chosen) % L, member))
    if combine(weighted) != combine([(response, BASE), *zip(powers[:-1], xs, strict=True)]):
        raise InvalidError("closure")
    return tag
