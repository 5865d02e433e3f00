"""Rebuild claim.json: claims made with frozen randomness, and ways to get them wrong.

Each negative vector states its failure class: length, scalar, point or closure. Those whose
name begins with "a prover" are attacks by somebody who departs from the text in one place: a
verifier with that mistake takes them.

Run: python tests/vectors/make_claim.py
"""

import json
from pathlib import Path
from typing import Any

import reference_claim as reference
import reference_lsag as curve
from make_lsag import EVENT, bad_points, digest_of, entropy, members, secret

from vitalring.protocol import claims, lsag

OWN, OTHER = members(2)
VERIFIER, STRANGER = (lsag.KeyPair.of(secret(name)) for name in ("verifier", "other verifier"))
CONTEXT, NEXT = lsag.context(*EVENT), lsag.context(*EVENT[:4], EVENT[4] + 1)
FIELDS = {
    "context": CONTEXT,
    "roster": digest_of("roster"),
    "log": b"log.example/ward\n23\nIGlzIHRoZSByb290IG9mIHRoaXMgbG9nIC4uLiAuLi4=\n",
    "entry": b"an entry of any length",
    "tag": lsag.tag_of(OWN.secret, CONTEXT),
    "key": OWN.public,
    "verifier": VERIFIER.public,
    "nonce": digest_of("nonce"),
}


def integer(scalar: bytes) -> int:
    """A scalar as a number."""
    return int.from_bytes(scalar, "little")


def case(name: str, said: dict[str, bytes], proof: bytes, **extra: str) -> dict[str, Any]:
    """A proof with what its statement has other than FIELDS."""
    other = {field: value.hex() for field, value in said.items() if value != FIELDS[field]}
    return {"name": name, **extra, "other": other, "proof": proof.hex()}


def valid() -> list[dict[str, Any]]:
    """Proofs that verify: by devices, and by verifiers for what is not true."""
    other_round = FIELDS | {"context": NEXT, "tag": lsag.tag_of(OWN.secret, NEXT)}
    device = {
        "a device": (FIELDS, OWN),
        "the same device in another round": (other_round, OWN),
        "the other device": (
            FIELDS | {"key": OTHER.public, "tag": lsag.tag_of(OTHER.secret, CONTEXT)},
            OTHER,
        ),
        "an empty entry": (FIELDS | {"entry": b""}, OWN),
    }
    verifier = {
        "a verifier simulates what is true": FIELDS,
        "a verifier simulates what is false": FIELDS | {"key": OTHER.public},
    }
    return [
        case(
            name,
            said,
            claims._prove(claims.Statement(**said), pair.secret, entropy(name)),
            secret=pair.secret.hex(),
            entropy=entropy(name).hex(),
        )
        for name, (said, pair) in device.items()
    ] + [
        case(
            name,
            said,
            claims._simulate(claims.Statement(**said), VERIFIER.secret, entropy(name)),
            verifier_secret=VERIFIER.secret.hex(),
            entropy=entropy(name).hex(),
        )
        for name, said in verifier.items()
    ]


def attacks() -> list[tuple[str, dict[str, bytes], bytes]]:
    """Proofs by those who do not know what they would have to."""
    x, y, random = integer(OWN.secret), integer(OTHER.secret), entropy("attack")
    not_own = FIELDS | {"key": OTHER.public}
    # Both lines made up, and the challenge is not their sum.
    made_up = b"".join(curve.encode_scalar(value) for value in reference.drawn(y, random, b""))
    unbound = {
        name: reference.prove(
            FIELDS,
            x,
            random,
            binding=lambda said, name=name: curve.hash_parts(
                reference.SUITE + b"/bind", *(said[f] for f in reference.FIELDS if f != name)
            ),
        )
        for name in reference.FIELDS
    }
    return [
        ("a prover with the secret of the key alone", not_own, reference.prove(not_own, y, random)),
        ("a prover with the secret of the tag alone", not_own, reference.prove(not_own, x, random)),
        ("a prover who makes up both lines", FIELDS, made_up + made_up[:32]),
        *(
            (f"a prover whose challenge does not cover {name}", FIELDS, proof)
            for name, proof in unbound.items()
        ),
    ]


def invalid() -> list[dict[str, Any]]:
    """Everything that must be refused, with its failure class."""
    good = claims._prove(claims.Statement(**FIELDS), OWN.secret, entropy("negative"))
    changed = {
        "another round": {"context": NEXT},
        "another roster": {"roster": digest_of("another")},
        "another log": {"log": FIELDS["log"].replace(b"23", b"24")},
        "another entry": {"entry": b"another"},
        "another's tag": {"tag": lsag.tag_of(OTHER.secret, CONTEXT)},
        "the tag of another round": {"tag": lsag.tag_of(OWN.secret, NEXT)},
        "another's key": {"key": OTHER.public},
        "another verifier": {"verifier": STRANGER.public},
        "another nonce": {"nonce": digest_of("another")},
    }
    cases = [(name, "closure", FIELDS | change, good) for name, change in changed.items()]
    cases += [
        ("a byte too few", "length", FIELDS, good[:-1]),
        ("a byte too many", "length", FIELDS, good + b"\0"),
        ("no proof", "length", FIELDS, b""),
        ("challenges exchanged", "closure", FIELDS, good[32:64] + good[:32] + good[64:]),
        ("answers exchanged", "closure", FIELDS, good[:64] + good[96:] + good[64:96]),
    ]
    for place in range(4):
        at = 32 * place
        value = integer(good[at : at + 32])
        for name, failure, scalar in (
            ("zero", "scalar", 0),
            ("the group order more", "scalar", value + curve.L),
            ("the group order", "scalar", curve.L),
            ("one more", "closure", (value + 1) % curve.L),
            ("negated", "closure", curve.L - value),
        ):
            proof = good[:at] + scalar.to_bytes(32, "little") + good[at + 32 :]
            cases.append((f"scalar {place}: {name}", failure, FIELDS, proof))
    for field in ("tag", "key", "verifier"):
        for name, point in bad_points().items():
            cases.append((f"{field}: {name}", "point", FIELDS | {field: point}, good))
    cases += [(name, "closure", said, proof) for name, said, proof in attacks()]
    return [case(name, said, proof, failure=failure) for name, failure, said, proof in cases]


def build() -> dict[str, Any]:
    """All vectors, as they stand in the file."""
    return {
        "suite": claims.SUITE.decode(),
        "fields": {field: value.hex() for field, value in FIELDS.items()},
        "valid": valid(),
        "invalid": invalid(),
    }


if __name__ == "__main__":
    path = Path(__file__).with_name("claim.json")
    path.write_text(json.dumps(build(), indent=1) + "\n")
