"""Rebuild lsag.json: ring signatures made with frozen randomness, and ways to get them wrong.

Each negative vector states its failure class: ring, length, point, scalar or closure. The
torsion ones are real forgeries: a verifier that accepts any point of the curve takes them.

Run: python tests/vectors/make_lsag.py
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import reference_lsag as reference

from vitalring.protocol import group, lsag

EVENT = ("north", "heartbeats", 3, "ward-a", 7)


def secret(name: str) -> bytes:
    """A frozen secret key."""
    return group.hash_to_scalar(b"test secret", name.encode())


def entropy(name: str) -> bytes:
    """Frozen randomness: 64 bytes."""
    return hashlib.sha512(name.encode()).digest()


def members(count: int, crowd: str = "device") -> list[lsag.KeyPair]:
    """Frozen key pairs in ring order."""
    pairs = [lsag.KeyPair.of(secret(f"{crowd} {index}")) for index in range(count)]
    return sorted(pairs, key=lambda pair: pair.public)


def digest_of(message: str) -> bytes:
    """A 32-byte message digest."""
    return hashlib.sha256(message.encode()).digest()


def case(
    name: str, keys: list[bytes], event: Any, digest: bytes, signature: bytes, **extra: str
) -> dict[str, Any]:
    """One signature with all that its verification takes."""
    return {
        "name": name,
        **extra,
        "ring": [key.hex() for key in keys],
        "event": list(event),
        "digest": digest.hex(),
        "signature": signature.hex(),
    }


def valid() -> list[dict[str, Any]]:
    """Signatures that verify: every position, several rounds and sizes."""
    cases = []
    for size, own, event in (
        (2, 0, EVENT),
        (2, 1, EVENT),
        (5, 0, EVENT),
        (5, 2, EVENT),
        (5, 4, EVENT),
        (5, 2, (*EVENT[:4], 8)),
        (5, 2, ("", "", 0, "", 2**64 - 1)),
        (16, 9, EVENT),
    ):
        pairs, name = members(size), f"signer {own} of {size}, round {event[4]}"
        keys, ctx, digest = [p.public for p in pairs], lsag.context(*event), digest_of(name)
        signature = lsag._sign(
            lsag.Ring.of(keys),
            pairs[own].secret,
            ctx,
            digest,
            base=lsag.tag_base(ctx),
            entropy=entropy(name),
        )
        cases.append(
            case(
                name,
                keys,
                event,
                digest,
                signature,
                secret=pairs[own].secret.hex(),
                entropy=entropy(name).hex(),
                context=ctx.hex(),
                tag_base=lsag.tag_base(ctx).hex(),
            )
        )
    return cases


def torsion_forgeries() -> list[dict[str, Any]]:
    """One key, several tags; and a key whose tags carry torsion: with challenges that cancel it."""
    pairs = members(2)
    keys, ctx, digest = [p.public for p in pairs], lsag.context(*EVENT), digest_of("torsion")
    x = int.from_bytes(pairs[0].secret, "little")
    honest_tag = reference.mul(x, reference.tag_base(ctx))
    cases = []
    for k, torsion in enumerate(reference.torsion_points()):
        if k == 0:
            continue
        tag = reference.encode_point(reference.add(honest_tag, torsion))
        cases.append(
            case(
                f"tag plus torsion point {k}",
                keys,
                EVENT,
                digest,
                forge(keys, x, ctx, digest, tag),
                failure="point",
            )
        )
    order_two = reference.torsion_points()[4]
    bad_key = reference.encode_point(reference.add(reference.mul(x, reference.BASE), order_two))
    ring = sorted([bad_key, pairs[1].public])
    cases.append(
        case(
            "ring key plus the point of order two",
            ring,
            EVENT,
            digest,
            forge(ring, x, ctx, digest, reference.encode_point(honest_tag), ring.index(bad_key)),
            failure="point",
        )
    )
    return cases


def forge(keys: list[bytes], x: int, ctx: bytes, digest: bytes, tag: bytes, own: int = 0) -> bytes:
    """Try randomness until a verifier without the order check accepts."""
    attempt = 0
    while True:
        signature = reference.sign(
            keys,
            own,
            x,
            ctx,
            digest,
            entropy(f"forgery {attempt}"),
            tag=tag,
            decode=reference.decode_any_point,
        )
        try:
            reference.verify(keys, ctx, digest, signature, decode=reference.decode_any_point)
        except reference.InvalidError:
            attempt += 1
        else:
            return signature


def careless() -> list[tuple[str, bytes]]:
    """Signatures that verify where the verifier makes a published mistake too."""
    pairs = members(4)
    keys, ctx, digest = [p.public for p in pairs], lsag.context(*EVENT), digest_of("message")
    x = int.from_bytes(pairs[1].secret, "little")

    def without(part: str) -> Any:
        def binding(keys: list[bytes], ctx: bytes, tag: bytes, digest: bytes) -> bytes:
            given = {"context": ctx, "ring": reference.ring_digest(keys), "tag": tag}
            given["message"] = digest
            kept = [value for name, value in given.items() if name != part]
            return reference.hash_parts(reference.SUITE + b"/bind", *kept)

        return binding

    known = reference.hash_to_scalar(lsag.SUITE + b"/tag-base", ctx)
    deviations: list[tuple[str, dict[str, Any]]] = [
        *(
            (f"{part} missing from the challenge", {"binding": without(part)})
            for part in ("context", "ring", "tag", "message")
        ),
        ("the first commitment missing from the challenge", {"hashed": lambda _, right: (right,)}),
        ("the second commitment missing from the challenge", {"hashed": lambda left, _: (left,)}),
        ("commitments joined without lengths", {"hashed": lambda left, right: (left + right,)}),
        (
            "tag base a hash times the base point",
            {"base": reference.mul(known, reference.BASE)},
        ),
    ]
    return [
        (name, reference.sign(keys, 1, x, ctx, digest, entropy("careless"), **deviation))
        for name, deviation in deviations
    ]


def bad_points() -> dict[str, bytes]:
    """Encodings that are no points of the group."""
    p = reference.P
    torsion = [reference.encode_point(point) for point in reference.torsion_points()]
    bad = {f"small order {k}": data for k, data in enumerate(torsion) if k}
    bad["identity"] = torsion[0]
    bad["identity with its sign bit set"] = (1 | 1 << 255).to_bytes(32, "little")
    bad["order two with its sign bit set"] = (p - 1 | 1 << 255).to_bytes(32, "little")
    for y in range(19):
        for odd in (0, 1):
            if reference.recover_x(y, odd) is not None:
                name = f"y = p + {y}, sign {odd}"
                bad[name] = (p + y | odd << 255).to_bytes(32, "little")
    bad["not on the curve"] = (2).to_bytes(32, "little")
    assert reference.recover_x(2, 0) is None
    bad["all ones"] = b"\xff" * 32
    return bad


def invalid() -> list[dict[str, Any]]:
    """Everything that must be refused, with its failure class."""
    pairs, others = members(4), members(4, "stranger")
    keys, ctx, digest = [p.public for p in pairs], lsag.context(*EVENT), digest_of("message")
    ring = lsag.Ring.of(keys)
    good = lsag._sign(
        ring,
        pairs[1].secret,
        ctx,
        digest,
        base=lsag.tag_base(ctx),
        entropy=entropy("negative"),
    )
    tag, first, responses = good[:32], good[32:64], good[64:]
    order = reference.L

    def plus_order(scalar: bytes) -> bytes:
        return (int.from_bytes(scalar, "little") + order).to_bytes(32, "little")

    def plus_one(scalar: bytes) -> bytes:
        return ((int.from_bytes(scalar, "little") + 1) % order).to_bytes(32, "little")

    swapped = sorted([*keys[:3], others[0].public])
    rotated = good[:64] + responses[32:] + responses[:32]
    other_tag = lsag.tag_of(pairs[2].secret, ctx)
    stranger_sign = reference.sign(
        keys, 1, int.from_bytes(others[0].secret, "little"), ctx, digest, entropy("stranger")
    )
    zero = bytes(32)
    cases: list[tuple[str, str, list[bytes], Any, bytes, bytes]] = [
        ("empty", "length", keys, EVENT, digest, b""),
        ("truncated by a byte", "length", keys, EVENT, digest, good[:-1]),
        ("a trailing byte", "length", keys, EVENT, digest, good + b"\x00"),
        ("a response missing", "length", keys, EVENT, digest, good[:-32]),
        ("a response too many", "length", keys, EVENT, digest, good + responses[:32]),
        (
            "a ring of one more key",
            "length",
            sorted([*keys, others[0].public]),
            EVENT,
            digest,
            good,
        ),
        (
            "first challenge plus L",
            "scalar",
            keys,
            EVENT,
            digest,
            tag + plus_order(first) + responses,
        ),
        (
            "last response plus L",
            "scalar",
            keys,
            EVENT,
            digest,
            good[:-32] + plus_order(good[-32:]),
        ),
        ("zero challenge", "scalar", keys, EVENT, digest, tag + zero + responses),
        ("zero response", "scalar", keys, EVENT, digest, good[:-32] + zero),
        (
            "challenge L",
            "scalar",
            keys,
            EVENT,
            digest,
            tag + order.to_bytes(32, "little") + responses,
        ),
        ("response of all ones", "scalar", keys, EVENT, digest, good[:-32] + b"\xff" * 32),
        ("another message", "closure", keys, EVENT, digest_of("other"), good),
        ("another round", "closure", keys, (*EVENT[:4], 8), digest, good),
        ("another cohort", "closure", keys, (*EVENT[:3], "ward-b", 7), digest, good),
        ("another epoch", "closure", keys, (*EVENT[:2], 4, *EVENT[3:]), digest, good),
        ("another study", "closure", keys, (EVENT[0], "sleep", *EVENT[2:]), digest, good),
        ("another federation", "closure", keys, ("south", *EVENT[1:]), digest, good),
        (
            "bytes moved from federation to study",
            "closure",
            keys,
            ("northheart", "beats", *EVENT[2:]),
            digest,
            good,
        ),
        ("one ring key replaced", "closure", swapped, EVENT, digest, good),
        ("a ring of strangers", "closure", [p.public for p in others], EVENT, digest, good),
        ("ring reversed", "ring", keys[::-1], EVENT, digest, good),
        ("two ring keys swapped", "ring", [keys[1], keys[0], *keys[2:]], EVENT, digest, good),
        ("a ring key twice", "ring", [keys[0], keys[0], *keys[2:]], EVENT, digest, good),
        ("a ring of one", "ring", keys[:1], EVENT, digest, good[:96]),
        ("tag of another member", "closure", keys, EVENT, digest, other_tag + good[32:]),
        (
            "tag negated",
            "closure",
            keys,
            EVENT,
            digest,
            tag[:31] + bytes([tag[31] ^ 0x80]) + good[32:],
        ),
        (
            "first challenge plus one",
            "closure",
            keys,
            EVENT,
            digest,
            tag + plus_one(first) + responses,
        ),
        ("responses rotated", "closure", keys, EVENT, digest, rotated),
        ("signed by a stranger", "closure", keys, EVENT, digest, stranger_sign),
        (
            "all responses equal",
            "closure",
            keys,
            EVENT,
            digest,
            tag + first + responses[:32] * 4,
        ),
    ]
    cases += [(name, "closure", keys, EVENT, digest, signature) for name, signature in careless()]
    for name, point in bad_points().items():
        cases.append((f"tag: {name}", "point", keys, EVENT, digest, point + good[32:]))
        bad_ring = sorted([*keys[:3], point])
        cases.append((f"ring key: {name}", "point", bad_ring, EVENT, digest, good))
    return [
        case(name, ring_keys, event, message, signature, failure=failure)
        for name, failure, ring_keys, event, message, signature in cases
    ] + torsion_forgeries()


def possession() -> dict[str, list[dict[str, str]]]:
    """Proofs of possession, good and bad."""
    pair, other = members(2)
    ctx, noise = b"enrolment of a device, challenge 1", entropy("possession")
    proof = lsag._prove_possession(pair.secret, ctx, noise)
    order = reference.L.to_bytes(32, "little")
    torsion = reference.add(reference.decode_point(pair.public), reference.torsion_points()[4])
    bad = [
        ("another key", "closure", other.public, ctx, proof),
        ("another context", "closure", pair.public, ctx + b"!", proof),
        ("truncated", "length", pair.public, ctx, proof[:-1]),
        ("trailing", "length", pair.public, ctx, proof + b"\x00"),
        ("zero challenge", "scalar", pair.public, ctx, bytes(32) + proof[32:]),
        ("response not reduced", "scalar", pair.public, ctx, proof[:32] + order),
        ("identity as key", "point", reference.encode_point((0, 1)), ctx, proof),
        ("key plus torsion", "point", reference.encode_point(torsion), ctx, proof),
    ]
    return {
        "valid": [
            {
                "secret": pair.secret.hex(),
                "public": pair.public.hex(),
                "context": ctx.hex(),
                "entropy": noise.hex(),
                "proof": proof.hex(),
            }
        ],
        "invalid": [
            {
                "name": name,
                "failure": failure,
                "public": public.hex(),
                "context": shown.hex(),
                "proof": data.hex(),
            }
            for name, failure, public, shown, data in bad
        ],
    }


def hashes() -> list[dict[str, str]]:
    """Hashes to points and scalars."""
    return [
        {
            "domain": domain.hex(),
            "part": part.hex(),
            "point": group.hash_to_point(domain, part).hex(),
            "scalar": group.hash_to_scalar(domain, part).hex(),
        }
        for domain, part in ((b"", b""), (b"a", b"b"), (b"ab", b""), (lsag.SUITE, bytes(200)))
    ]


def build() -> dict[str, Any]:
    """All vectors, as they stand in the file."""
    return {
        "suite": lsag.SUITE.decode(),
        "hashes": hashes(),
        "bad_points": {name: data.hex() for name, data in bad_points().items()},
        "valid": valid(),
        "invalid": invalid(),
        "possession": possession(),
    }


if __name__ == "__main__":
    path = Path(__file__).with_name("lsag.json")
    path.write_text(json.dumps(build(), indent=1) + "\n")
