"""A second implementation of SPEC 6.22 to 6.25, from the text alone, over plain integers.

It shares no code with the library, only the curve of `reference_lsag`; it is slow, not
constant-time, and must never see a real secret. Failures are named by class: ``length``,
``scalar``, ``point``, ``closure``.
"""

from reference_lsag import (
    BASE,
    InvalidError,
    L,
    add,
    count,
    decode_point,
    decode_scalar,
    encode_point,
    encode_scalar,
    hash_parts,
    hash_to_scalar,
    mul,
    tag_base,
)

SUITE = b"vitalring/claim/1/edwards25519-sha512"
FIELDS = ("context", "roster", "log", "entry", "tag", "key", "verifier", "nonce")


def bind(said):
    """SPEC 6.24; `said` has the bytes of each field by name."""
    return hash_parts(SUITE + b"/bind", *(said[name] for name in FIELDS))


def challenge(bound, *commitments):
    return hash_to_scalar(SUITE + b"/challenge", bound, *map(encode_point, commitments))


def drawn(secret, entropy, bound):
    domain = SUITE + b"/nonce"
    return [
        hash_to_scalar(domain, encode_scalar(secret), entropy, bound, count(p)) for p in range(3)
    ]


def prove(said, x, entropy, *, binding=bind):
    """SPEC 6.24. `x` need not be the secret of key and tag: then nobody should take the proof."""
    bound, base = binding(said), tag_base(said["context"])
    k, c_v, r_v = drawn(x, entropy, bound)
    b = add(mul(r_v, BASE), mul(c_v, decode_point(said["verifier"])))
    c = challenge(bound, mul(k, BASE), mul(k, base), b)
    c_x = (c - c_v) % L
    return b"".join(map(encode_scalar, (c_x, c_v, (k - c_x * x) % L, r_v)))


def simulate(said, v, entropy):
    """SPEC 6.25, by the verifier."""
    bound, base = bind(said), tag_base(said["context"])
    k, c_x, r_x = drawn(v, entropy, bound)
    a_key = add(mul(r_x, BASE), mul(c_x, decode_point(said["key"])))
    a_tag = add(mul(r_x, base), mul(c_x, decode_point(said["tag"])))
    c_v = (challenge(bound, a_key, a_tag, mul(k, BASE)) - c_x) % L
    return b"".join(map(encode_scalar, (c_x, c_v, r_x, (k - c_v * v) % L)))


def verify(said, proof):
    """SPEC 6.25."""
    if len(proof) != 128:
        raise InvalidError("length")
    tag, key, verifier = (decode_point(said[name]) for name in ("tag", "key", "verifier"))
    c_x, c_v, r_x, r_v = (decode_scalar(proof[at : at + 32]) for at in range(0, 128, 32))
    base = tag_base(said["context"])
    c = challenge(
        bind(said),
        add(mul(r_x, BASE), mul(c_x, key)),
        add(mul(r_x, base), mul(c_x, tag)),
        add(mul(r_v, BASE), mul(c_v, verifier)),
    )
    if (c_x + c_v) % L != c:
        raise InvalidError("closure")
