"""Proof to one chosen verifier that a tag is one's own (SPEC 6.22 to 6.26).

The claimant proves, for its ring key Y and the tag J in a round whose tag base is U,

    either  Y = x * G  and  J = x * U  for an x that it knows,
    or      V = v * G  for a v that it knows,

where V is the verifier's fresh key: equality of discrete logarithms (Chaum, Pedersen 1992),
one of two (Cramer, Damgård, Schoenmakers 1994), designated to a verifier (Jakobsson, Sako,
Impagliazzo 1996). The verifier, who knows that nobody else has v, is convinced of the first
line. Nobody else is: by the second line the verifier can make the same for any key and tag.

Rules kept here:

* The challenge binds round, roster, log, entry, both keys, the tag and the verifier's nonce.
* Every value is decoded strictly, and a proof has one length.
* Nonces are hashed from the secret and fresh entropy, as those of ring signatures are.
"""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from vitalring.errors import SignatureError
from vitalring.protocol import group, lsag

SUITE: Final = b"vitalring/claim/1/edwards25519-sha512"
PROOF_BYTES: Final = 4 * group.SCALAR_BYTES

_ENTROPY_BYTES: Final = 64


@dataclass(frozen=True)
class Statement:
    """What is claimed, and to whom: `key` made the update in `entry`, whose tag is `tag`.

    `context` names the round (SPEC 6.6), `roster` is the digest of the signed roster, `log` the
    text of the checkpoint whose tree holds `entry`, and `verifier` and `nonce` are those of the
    request.
    """

    context: bytes
    roster: bytes
    log: bytes
    entry: bytes
    tag: bytes
    key: bytes
    verifier: bytes
    nonce: bytes

    def __post_init__(self) -> None:
        """Decode the points. Raises SignatureError."""
        for point in (self.tag, self.key, self.verifier):
            group.decode_point(point)

    def bound(self) -> bytes:
        """Everything but the commitments that the challenge covers, hashed (SPEC 6.24)."""
        return group.hash_parts(
            SUITE + b"/bind",
            self.context,
            self.roster,
            self.log,
            self.entry,
            self.tag,
            self.key,
            self.verifier,
            self.nonce,
        )


def prove(statement: Statement, secret: bytes) -> bytes:
    """Proof by the device, whose ring key's secret is `secret`: 128 bytes (SPEC 6.24).

    Raises SignatureError where key or tag are not those of the secret.
    """
    return _prove(statement, secret, secrets.token_bytes(_ENTROPY_BYTES))


def _prove(statement: Statement, secret: bytes, entropy: bytes) -> bytes:
    """`prove` with its randomness from outside, for test vectors."""
    if lsag.KeyPair.of(secret).public != statement.key:
        raise SignatureError(f"the secret is not that of ring key {statement.key.hex()}")
    base = lsag.tag_base(statement.context)
    if group.mul(secret, base) != statement.tag:
        raise SignatureError(f"tag {statement.tag.hex()} is not of key {statement.key.hex()}")
    bound = statement.bound()
    nonce, of_verifier, response = _nonces(secret, entropy, bound)
    own = group.base_mul(nonce), group.mul(nonce, base)
    # The verifier's line is made up, its challenge chosen first.
    theirs = group.add(group.base_mul(response), group.mul(of_verifier, statement.verifier))
    of_key = group.scalar_sub(_challenge(bound, *own, theirs), of_verifier)
    answer = group.scalar_sub(nonce, group.scalar_mul(of_key, secret))
    return b"".join((of_key, of_verifier, answer, response))


def simulate(statement: Statement, verifier_secret: bytes) -> bytes:
    """Proof by the verifier, true or not, like one by the device (SPEC 6.25).

    That this exists is why a proof convinces nobody but its verifier. Raises SignatureError
    where the secret is not the verifier's.
    """
    return _simulate(statement, verifier_secret, secrets.token_bytes(_ENTROPY_BYTES))


def _simulate(statement: Statement, verifier_secret: bytes, entropy: bytes) -> bytes:
    """`simulate` with its randomness from outside, for test vectors."""
    if lsag.KeyPair.of(verifier_secret).public != statement.verifier:
        raise SignatureError(f"the secret is not that of verifier {statement.verifier.hex()}")
    base, bound = lsag.tag_base(statement.context), statement.bound()
    nonce, of_key, answer = _nonces(verifier_secret, entropy, bound)
    left = group.add(group.base_mul(answer), group.mul(of_key, statement.key))
    right = group.add(group.mul(answer, base), group.mul(of_key, statement.tag))
    challenge = _challenge(bound, left, right, group.base_mul(nonce))
    of_verifier = group.scalar_sub(challenge, of_key)
    response = group.scalar_sub(nonce, group.scalar_mul(of_verifier, verifier_secret))
    return b"".join((of_key, of_verifier, answer, response))


def verify(statement: Statement, proof: bytes) -> None:
    """Check a proof (SPEC 6.25). Raises SignatureError.

    It says something only to whoever knows that nobody else has the verifier's secret.
    """
    # 1. One length only.
    if not isinstance(proof, bytes) or len(proof) != PROOF_BYTES:
        size = len(proof) if isinstance(proof, bytes) else type(proof).__name__
        raise SignatureError(f"a claim's proof has {PROOF_BYTES} bytes, not {size}")
    # 2. Scalars are below the order and not zero; points were decoded with the statement.
    of_key, of_verifier, answer, response = (
        group.decode_scalar(proof[at : at + group.SCALAR_BYTES])
        for at in range(0, PROOF_BYTES, group.SCALAR_BYTES)
    )
    # 3. Both challenges add up to the one that follows from all three commitments.
    base = lsag.tag_base(statement.context)
    left = group.add(group.base_mul(answer), group.mul(of_key, statement.key))
    right = group.add(group.mul(answer, base), group.mul(of_key, statement.tag))
    theirs = group.add(group.base_mul(response), group.mul(of_verifier, statement.verifier))
    challenge = _challenge(statement.bound(), left, right, theirs)
    if group.scalar_add(of_key, of_verifier) != challenge:
        raise SignatureError(
            f"the claim of key {statement.key.hex()} does not verify: the tag is another key's, "
            "or round, log, entry, verifier or nonce are not those it was made for"
        )


def _challenge(bound: bytes, left: bytes, right: bytes, theirs: bytes) -> bytes:
    return group.hash_to_scalar(SUITE + b"/challenge", bound, left, right, theirs)


def _nonces(secret: bytes, entropy: bytes, bound: bytes) -> Iterator[bytes]:
    """Three scalars, that of the prover's own line first."""
    return (
        group.hash_to_scalar(
            SUITE + b"/nonce", secret, entropy, bound, position.to_bytes(8, "little")
        )
        for position in range(3)
    )
