"""A second implementation of SPEC section 6, from the text alone.

Pure Python over integers: curve arithmetic of RFC 8032 section 5.1, Elligator 2 in
Montgomery form, hashes from hashlib. It shares no code with the library, is slow, is not
constant-time and must never see a real secret.

Failures are named by class, in the order of SPEC 6.10:
``ring``, ``length``, ``point``, ``scalar``, ``closure``.
"""

import hashlib

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
SQRT_MINUS_ONE = pow(2, (P - 1) // 4, P)
MONTGOMERY_A = 486662
SUITE = b"vitalring/lsag/1/edwards25519-sha512"
IDENTITY = (0, 1)


class InvalidError(Exception):
    """Something is not valid; the argument is the failure class."""


# Points: affine (x, y).


def add(a, b):
    """Complete addition on -x^2 + y^2 = 1 + d x^2 y^2."""
    (x1, y1), (x2, y2) = a, b
    k = D * x1 * x2 * y1 * y2 % P
    x = (x1 * y2 + x2 * y1) * pow(1 + k, -1, P) % P
    y = (y1 * y2 + x1 * x2) * pow(1 - k, -1, P) % P
    return x, y


def mul(k, point):
    """k times a point, double and add, on projective coordinates."""
    x, y = point
    total, step = (0, 1, 1), (x, y, 1)
    while k:
        if k & 1:
            total = _add_projective(total, step)
        step = _add_projective(step, step)
        k >>= 1
    inverse = pow(total[2], -1, P)
    return total[0] * inverse % P, total[1] * inverse % P


def _add_projective(a, b):
    (x1, y1, z1), (x2, y2, z2) = a, b
    zz = z1 * z2 % P
    z4 = zz * zz % P
    xx, yy = x1 * x2 % P, y1 * y2 % P
    e = D * xx * yy % P
    f, g = z4 - e, z4 + e
    return (
        zz * f * ((x1 + y1) * (x2 + y2) - xx - yy) % P,
        zz * g * (yy + xx) % P,
        f * g % P,
    )


def negate(point):
    return -point[0] % P, point[1]


def recover_x(y, odd):
    """The x of this parity with (x, y) on the curve, or None (RFC 8032 §5.1.3)."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    root = pow(square, (P + 3) // 8, P)
    if root * root % P != square:
        root = root * SQRT_MINUS_ONE % P
    if root * root % P != square:
        return None
    if root == 0 and odd:
        return None
    return P - root if root & 1 != odd else root


BASE = (recover_x(4 * pow(5, -1, P) % P, 0), 4 * pow(5, -1, P) % P)


def encode_point(point):
    x, y = point
    return (y | (x & 1) << 255).to_bytes(32, "little")


def decode_any_point(data):
    """A canonical point of the whole curve, whatever its order."""
    if len(data) != 32:
        raise InvalidError("point")
    value = int.from_bytes(data, "little")
    y, odd = value & (2**255 - 1), value >> 255
    x = recover_x(y, odd) if y < P else None
    if x is None:
        raise InvalidError("point")
    return x, y


def decode_point(data):
    """SPEC 6.1."""
    point = decode_any_point(data)
    if point == IDENTITY or mul(L, point) != IDENTITY:
        raise InvalidError("point")
    return point


def decode_scalar(data):
    """SPEC 6.2."""
    value = int.from_bytes(data, "little")
    if len(data) != 32 or not 0 < value < L:
        raise InvalidError("scalar")
    return value


def encode_scalar(value):
    return value.to_bytes(32, "little")


def torsion_points():
    """The eight points of order 1, 2, 4 and 8, as multiples of one of order 8."""
    y = 2
    while True:
        x = recover_x(y, 0)
        if x is not None:
            point = mul(L, (x, y))
            if mul(4, point) != IDENTITY:
                return [mul(k, point) for k in range(8)]
        y += 1


# Hashing (SPEC 6.3).


def frame(*parts):
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def hash_parts(domain, *parts):
    return hashlib.sha512(frame(domain, *parts)).digest()


def hash_to_scalar(domain, *parts):
    return int.from_bytes(hash_parts(domain, *parts), "little") % L


def elligator(half):
    """32 bytes to a point of prime order: Elligator 2, sign from the top bit, times 8."""
    value = int.from_bytes(half, "little")
    r, odd = (value & (2**255 - 1)) % P, value >> 255
    u = -MONTGOMERY_A * pow(1 + 2 * r * r, -1, P) % P
    if pow(u * u * u + MONTGOMERY_A * u * u + u, (P - 1) // 2, P) == P - 1:
        u = (-u - MONTGOMERY_A) % P
    y = (u - 1) * pow(u + 1, -1, P) % P
    return mul(8, (recover_x(y, odd), y))


def hash_to_point(domain, *parts):
    digest = hash_parts(domain, *parts)
    return add(elligator(digest[:32]), elligator(digest[32:]))


# Signatures.


def count(value):
    return value.to_bytes(8, "little")


def context(federation, study, epoch, cohort, round_number):
    """SPEC 6.6."""
    return frame(
        SUITE,
        federation.encode(),
        study.encode(),
        count(epoch),
        cohort.encode(),
        count(round_number),
    )


def tag_base(ctx):
    return hash_to_point(SUITE + b"/tag-base", ctx)


def ring_digest(keys):
    return hashlib.sha256(frame(SUITE + b"/ring", *keys)).digest()


def decode_ring(keys):
    """SPEC 6.5."""
    points = [decode_point(key) for key in keys]
    if len(keys) < 2 or sorted(set(keys)) != list(keys):
        raise InvalidError("ring")
    return points


def bind(keys, ctx, tag, digest):
    return hash_parts(SUITE + b"/bind", ctx, ring_digest(keys), tag, digest)


def challenge(bound, position, *commitments):
    return hash_to_scalar(SUITE + b"/challenge", bound, count(position), *commitments)


def nonce(x, entropy, bound, position):
    return hash_to_scalar(SUITE + b"/nonce", encode_scalar(x), entropy, bound, count(position))


def sign(
    keys,
    own,
    x,
    ctx,
    digest,
    entropy,
    *,
    tag=None,
    decode=decode_point,
    base=None,
    binding=None,
    hashed=lambda left, right: (left, right),
):
    """SPEC 6.9, to the letter. What is named lets an attacker deviate."""
    points = [decode(key) for key in keys]
    n, base = len(keys), base or tag_base(ctx)
    tag = encode_point(mul(x, base)) if tag is None else tag
    tag_point = decode_any_point(tag)
    bound = (binding or bind)(keys, ctx, tag, digest)
    k = [nonce(x, entropy, bound, i) for i in range(n)]
    c, r = [0] * n, list(k)
    left, right = mul(k[own], BASE), mul(k[own], base)
    for step in range(1, n + 1):
        i = (own + step) % n
        shown = hashed(encode_point(left), encode_point(right))
        c[i] = challenge(bound, (i - 1) % n, *shown)
        if i != own:
            left = add(mul(r[i], BASE), mul(c[i], points[i]))
            right = add(mul(r[i], base), mul(c[i], tag_point))
    r[own] = (k[own] - c[own] * x) % L
    return tag + encode_scalar(c[0]) + b"".join(encode_scalar(value) for value in r)


def verify(keys, ctx, digest, signature, *, decode=decode_point):
    """SPEC 6.10. With ``decode=decode_any_point`` it has the bug that torsion attacks need."""
    points = decode_ring(keys) if decode is decode_point else [decode(key) for key in keys]
    n, base = len(keys), tag_base(ctx)
    if len(signature) != 64 + 32 * n:
        raise InvalidError("length")
    tag = signature[:32]
    tag_point = decode(tag)
    first, *r = (decode_scalar(signature[at : at + 32]) for at in range(32, len(signature), 32))
    bound = bind(keys, ctx, tag, digest)
    c = first
    for i in range(n):
        left = add(mul(r[i], BASE), mul(c, points[i]))
        right = add(mul(r[i], base), mul(c, tag_point))
        c = challenge(bound, i, encode_point(left), encode_point(right))
    if c != first:
        raise InvalidError("closure")
    return tag


def prove_possession(x, ctx, entropy):
    """SPEC 6.11."""
    public = encode_point(mul(x, BASE))
    bound = hash_parts(SUITE + b"/possession", public, ctx)
    k = nonce(x, entropy, bound, 0)
    c = challenge(bound, 0, public, encode_point(mul(k, BASE)))
    return encode_scalar(c) + encode_scalar((k - c * x) % L)


def verify_possession(public, ctx, proof):
    """SPEC 6.11."""
    if len(proof) != 64:
        raise InvalidError("length")
    point = decode_point(public)
    c, r = decode_scalar(proof[:32]), decode_scalar(proof[32:])
    bound = hash_parts(SUITE + b"/possession", public, ctx)
    commitment = encode_point(add(mul(r, BASE), mul(c, point)))
    if c != challenge(bound, 0, public, commitment):
        raise InvalidError("closure")
