"""Rebuild one_of_many.json: signatures of suite 2, and ways to get them wrong.

Each negative vector states its failure class: ring, length, scalar, point or closure. Most
are real attacks, made by a signer who knows a key and departs from the text in one place:
a verifier with that mistake takes them.

Run: python tests/vectors/make_one_of_many.py
"""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import reference_lsag as curve
import reference_one_of_many as reference
from make_lsag import EVENT, bad_points, case, digest_of, entropy, members
from reference_one_of_many import Deviation

from vitalring.protocol import lsag
from vitalring.protocol.rings import signing, statement

SIZE = 10  # two digits, of radix 4 and 3, and two places of padding
PAIRS = members(SIZE)
KEYS = [pair.public for pair in PAIRS]
CONTEXT = lsag.context(*EVENT)
DIGEST = digest_of("message")
OWN = 6
LENIENT = curve.decode_any_point
MASKS, BITS, X0, X1, Y0, Y1 = range(6)


def integer(scalar: bytes) -> int:
    """A scalar as a number."""
    return int.from_bytes(scalar, "little")


X = integer(PAIRS[OWN].secret)


def made(name: str, own: int = OWN, event: Any = EVENT, size: int = SIZE) -> bytes:
    """An honest signature by the library."""
    pairs, ctx = members(size), lsag.context(*event)
    return signing._sign(
        statement.Ring.of([pair.public for pair in pairs]),
        pairs[own].secret,
        ctx,
        digest_of(name),
        base=lsag.tag_base(ctx),
        entropy=entropy(name),
    )


def valid() -> list[dict[str, Any]]:
    """Signatures that verify: one to three digits, with padding and without, several rounds."""
    cases = []
    for size, own, event in (
        (2, 0, EVENT),
        (2, 1, EVENT),
        (5, 4, EVENT),
        (8, 3, EVENT),
        (9, 8, EVENT),
        (10, 0, EVENT),
        (10, 6, EVENT),
        (10, 9, EVENT),
        (10, 6, (*EVENT[:4], 8)),
        (10, 6, ("", "", 0, "", 2**64 - 1)),
        (65, 41, EVENT),
    ):
        pairs, name = members(size), f"signer {own} of {size}, round {event[4]}"
        keys = [pair.public for pair in pairs]
        cases.append(
            case(
                name,
                keys,
                event,
                digest_of(name),
                made(name, own, event, size),
                secret=pairs[own].secret.hex(),
                entropy=entropy(name).hex(),
                radices=" ".join(map(str, statement.radices(size))),
            )
        )
    return cases


def attack(deviation: Deviation, x: int = X, own: int = OWN, keys: Any = None) -> bytes:
    """A signature by a signer who departs from the text, whose verifier does too."""
    return reference.sign(
        keys or KEYS, own, x, CONTEXT, DIGEST, entropy("attack 0"), deviation=deviation
    )


def grind(deviation: Deviation, x: int = X, own: int = OWN, keys: Any = None) -> bytes:
    """Try randomness until a verifier without the order check accepts."""
    keys = keys or KEYS
    for attempt in itertools.count():
        noise = entropy(f"attack {attempt}")
        signature = reference.sign(keys, own, x, CONTEXT, DIGEST, noise, deviation=deviation)
        try:
            reference.verify(keys, CONTEXT, DIGEST, signature, decode=LENIENT)
        except curve.InvalidError:
            continue
        return signature
    raise AssertionError


def torsion_forgeries() -> list[dict[str, Any]]:
    """One key, several tags; commitments and a ring key with torsion: challenges cancel it."""
    torsion = curve.torsion_points()
    two = torsion[4]
    honest_tag = curve.mul(X, curve.tag_base(CONTEXT))
    forged = [
        (
            f"tag plus torsion point {k}",
            KEYS,
            grind(Deviation(tag=curve.encode_point(curve.add(honest_tag, point)), decode=LENIENT)),
        )
        for k, point in enumerate(torsion)
        if k
    ]
    forged += [
        (
            f"{name} plus the point of order two",
            KEYS,
            grind(Deviation(add=dict.fromkeys(places, two), decode=LENIENT)),
        )
        for name, places in (
            ("both digit commitments", (MASKS, BITS)),
            ("X_0 and X_1", (X0, X1)),
            ("Y_0 and Y_1", (Y0, Y1)),
        )
    ]
    bad_key = curve.encode_point(curve.add(curve.mul(X, BASE := curve.BASE), two))
    ring = sorted(
        [bad_key, *(key for key in KEYS if key != curve.encode_point(curve.mul(X, BASE)))]
    )
    forged.append(
        (
            "ring key plus the point of order two",
            ring,
            grind(
                Deviation(tag=curve.encode_point(honest_tag), decode=LENIENT),
                own=ring.index(bad_key),
                keys=ring,
            ),
        )
    )
    return [
        case(name, keys, EVENT, DIGEST, signature, failure="point")
        for name, keys, signature in forged
    ]


def bad_commitments() -> list[dict[str, Any]]:
    """Points that are none, put in before the challenge was drawn."""
    points = bad_points()
    names = ("identity", "small order 4", "y = p + 3, sign 0", "not on the curve", "all ones")
    places = {"A": MASKS, "B": BITS, "X_0": X0, "X_1": X1, "Y_0": Y0, "Y_1": Y1}
    return [
        case(
            f"{place}: {name}",
            KEYS,
            EVENT,
            DIGEST,
            attack(Deviation(replace={at: points[name]})),
            failure="point",
        )
        for place, at in places.items()
        for name in names
    ]


def hash_times_base() -> Any:
    """The published mistake: a tag base whose logarithm everybody knows."""
    return curve.mul(curve.hash_to_scalar(lsag.SUITE + b"/tag-base", CONTEXT), curve.BASE)


def attacks() -> list[tuple[str, bytes]]:
    """Signatures that one missing check or one missing part of the challenge would let through."""
    reached = reference.decode_ring(KEYS)
    shape = reference.radices(SIZE)
    known = 12345
    weak_padding = [*reached[:SIZE], *[curve.mul(known + i, curve.BASE) for i in range(2)]]
    one, other = integer(PAIRS[0].secret), integer(PAIRS[1].secret)
    stranger = integer(members(1, "stranger")[0].secret)
    some = integer(PAIRS[OWN].secret)
    foreign_tag = curve.encode_point(curve.mul(stranger, curve.tag_base(CONTEXT)))

    def without(*parts: str) -> Any:
        def bound(keys: list[bytes], ctx: bytes, tag: bytes, digest: bytes) -> bytes:
            given = {"context": ctx, "ring": reference.ring_digest(keys), "tag": tag}
            given["message"] = digest
            kept = [value for name, value in given.items() if name not in parts]
            return curve.hash_parts(reference.SUITE + b"/bind", *kept)

        return bound

    def unframed(keys: list[bytes], ctx: bytes, tag: bytes, digest: bytes) -> bytes:
        joined = ctx + reference.ring_digest(keys) + tag + digest
        return curve.hash_parts(reference.SUITE + b"/bind", joined)

    def first_suite(keys: list[bytes], ctx: bytes, tag: bytes, digest: bytes) -> bytes:
        return curve.bind(keys, ctx, tag, digest)

    def reversed_ring(keys: list[bytes], ctx: bytes, tag: bytes, digest: bytes) -> bytes:
        return reference.bind(keys[::-1], ctx, tag, digest)

    found = [
        (f"{part} missing from the challenge", Deviation(bound=without(part)), some, OWN)
        for part in ("context", "ring", "tag", "message")
    ]
    found += [
        (
            f"{name} missing from the challenge",
            Deviation(hashed=lambda points, at=at: [*points[:at], *points[at + 1 :]]),
            some,
            OWN,
        )
        for name, at in (("A", MASKS), ("B", BITS), ("X_0", X0), ("X_1", X1), ("Y_0", Y0))
    ]
    found += [
        (
            "commitments joined without lengths",
            Deviation(hashed=lambda p: [b"".join(p)]),
            some,
            OWN,
        ),
        ("what is bound joined without lengths", Deviation(bound=unframed), some, OWN),
        (
            "the ring in another order",
            Deviation(bound=reversed_ring, members=[*reached[SIZE - 1 :: -1], *reached[SIZE:]]),
            some,
            SIZE - 1 - OWN,
        ),
        ("bound as suite 1 does", Deviation(bound=first_suite), some, OWN),
        ("tag base a hash times the base point", Deviation(base=hash_times_base()), some, OWN),
        ("padding whose logarithm is known", Deviation(members=weak_padding), known, SIZE),
        # Digits of 2 and -1: a coalition's 2 * key_0 - key_1 would pass for one more member.
        (
            "digits that are no bits",
            Deviation(digits=[[2, -1, *[0] * (shape[0] - 2)], [1, *[0] * (shape[1] - 1)]]),
            (2 * one - other) % curve.L,
            OWN,
        ),
        ("signed by a stranger", Deviation(), stranger, OWN),
        ("a stranger's tag", Deviation(tag=foreign_tag), some, OWN),
        ("signed at another's place", Deviation(), some, OWN + 1),
    ]
    return [(name, attack(deviation, x, own)) for name, deviation, x, own in found]


def malformed(good: bytes) -> list[tuple[str, str, bytes]]:
    """Other encodings of a good signature."""
    order = curve.L

    def scalar(value: int) -> bytes:
        return (value % 2**256).to_bytes(32, "little")

    first = 32 * 7
    found = [
        ("empty", "length", b""),
        ("truncated by a byte", "length", good[:-1]),
        ("a trailing byte", "length", good + b"\x00"),
        ("a scalar missing", "length", good[:-32]),
        ("a scalar too many", "length", good + good[-32:]),
        ("a signature of suite 1", "length", suite_one()),
    ]
    for name, at in (
        ("first digit", first),
        ("opening", len(good) - 64),
        ("response", len(good) - 32),
    ):
        value = integer(good[at : at + 32])
        for how, data in (
            ("plus L", scalar(value + order)),
            ("zero", bytes(32)),
            ("L", scalar(order)),
            ("all ones", b"\xff" * 32),
        ):
            found.append((f"{name}: {how}", "scalar", good[:at] + data + good[at + 32 :]))
        plus_one = scalar((value + 1) % order)
        found.append((f"{name} plus one", "closure", good[:at] + plus_one + good[at + 32 :]))
        negated = scalar(order - value)
        found.append((f"{name} negated", "closure", good[:at] + negated + good[at + 32 :]))
    parts = [good[at : at + 32] for at in range(0, len(good), 32)]
    for name, a, b in (("A and B", 1, 2), ("X_0 and X_1", 3, 4), ("two digits", 7, 8)):
        swapped = list(parts)
        swapped[a], swapped[b] = swapped[b], swapped[a]
        found.append((f"{name} swapped", "closure", b"".join(swapped)))
    flipped = good[:31] + bytes([good[31] ^ 0x80]) + good[32:]
    found.append(("tag negated", "closure", flipped))
    return found


def suite_one() -> bytes:
    """An LSAG signature by the same key over the same message."""
    base = lsag.tag_base(CONTEXT)
    return lsag._sign(
        lsag.Ring.of(KEYS), PAIRS[OWN].secret, CONTEXT, DIGEST, base=base, entropy=entropy("lsag")
    )


def invalid() -> list[dict[str, Any]]:
    """Everything that must be refused, with its failure class."""
    good, others = made("message"), [pair.public for pair in members(SIZE, "stranger")]
    swapped = sorted([*KEYS[:-1], others[0]])
    other_tag = lsag.tag_of(PAIRS[2].secret, CONTEXT)
    cases: list[tuple[str, str, list[bytes], Any, bytes, bytes]] = [
        ("a ring of other radices", "length", sorted(KEYS + others[:3]), EVENT, DIGEST, good),
        ("another message", "closure", KEYS, EVENT, digest_of("other"), good),
        ("another round", "closure", KEYS, (*EVENT[:4], 8), DIGEST, good),
        ("another cohort", "closure", KEYS, (*EVENT[:3], "ward-b", 7), DIGEST, good),
        ("another epoch", "closure", KEYS, (*EVENT[:2], 4, *EVENT[3:]), DIGEST, good),
        ("another study", "closure", KEYS, (EVENT[0], "sleep", *EVENT[2:]), DIGEST, good),
        ("another federation", "closure", KEYS, ("south", *EVENT[1:]), DIGEST, good),
        ("one ring key replaced", "closure", swapped, EVENT, DIGEST, good),
        (
            "one ring key more, of the same size",
            "closure",
            sorted([*KEYS, others[0]]),
            EVENT,
            DIGEST,
            good,
        ),
        ("a ring of strangers", "closure", others, EVENT, DIGEST, good),
        ("ring reversed", "ring", KEYS[::-1], EVENT, DIGEST, good),
        ("two ring keys swapped", "ring", [KEYS[1], KEYS[0], *KEYS[2:]], EVENT, DIGEST, good),
        ("a ring key twice", "ring", [KEYS[0], KEYS[0], *KEYS[2:]], EVENT, DIGEST, good),
        ("a ring of one", "ring", KEYS[:1], EVENT, DIGEST, good),
        ("tag of another member", "closure", KEYS, EVENT, DIGEST, other_tag + good[32:]),
    ]
    cases += [
        (name, failure, KEYS, EVENT, DIGEST, signature)
        for name, failure, signature in malformed(good)
    ]
    cases += [(name, "closure", KEYS, EVENT, DIGEST, signature) for name, signature in attacks()]
    for name, point in bad_points().items():
        cases.append((f"tag: {name}", "point", KEYS, EVENT, DIGEST, point + good[32:]))
        bad_ring = sorted([*KEYS[:-1], point])
        cases.append((f"ring key: {name}", "point", bad_ring, EVENT, DIGEST, good))
    return [
        *(
            case(name, keys, event, message, signature, failure=failure)
            for name, failure, keys, event, message, signature in cases
        ),
        *bad_commitments(),
        *torsion_forgeries(),
    ]


def build() -> dict[str, Any]:
    """All vectors, as they stand in the file."""
    sizes = (2, 8, 9, 16, 64, 65, 100, 256, 512, 513, 1024, 4096, 4097, 10_000)
    shapes = {size: statement.radices(size) for size in sizes}
    return {
        "suite": statement.SUITE.decode(),
        "sizes": {
            str(size): {
                "radices": list(shape),
                "padding": math.prod(shape) - size,
                "signature_bytes": statement.signature_bytes(size),
            }
            for size, shape in shapes.items()
        },
        "valid": valid(),
        "invalid": invalid(),
    }


if __name__ == "__main__":
    path = Path(__file__).with_name("one_of_many.json")
    path.write_text(json.dumps(build(), indent=1) + "\n")
