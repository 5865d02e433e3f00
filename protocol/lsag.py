"""Linkable ring signatures: one anonymous signature for each key and round.

LSAG (Liu, Wei, Wong 2004) whose tag is tied to the round and not to the ring:
``tag = x * Hp(context)``. Two signatures of one key in one round carry one tag; tags of
different rounds cannot be linked (decisional Diffie-Hellman). Clauses SPEC 6.4 to 6.11.

Rules kept here:

* The ring is strictly sorted, without duplicates, and every key is decoded strictly.
* Every challenge binds suite, context, ring, tag, message and both commitments.
* A signature can be re-made by its signer in other bytes: count a signer by its tag alone.
* Nonces are hashed from the secret and fresh entropy, so that a weak generator, as boards
  have at first boot, does not reveal the key.

Whoever learns a secret key can recompute all its past tags. Erase it when the epoch ends.
"""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from vitalring.errors import SignatureError
from vitalring.protocol import group, limits

SUITE: Final = b"vitalring/lsag/1/edwards25519-sha512"
DIGEST_BYTES: Final = 32
POSSESSION_BYTES: Final = 2 * group.SCALAR_BYTES

_ENTROPY_BYTES: Final = 64


@dataclass(frozen=True)
class KeyPair:
    """A device's ring key for one epoch: secret scalar x and public point x * G."""

    secret: bytes = field(repr=False)
    public: bytes

    @classmethod
    def of(cls, secret: bytes) -> "KeyPair":
        """Key pair of a stored secret. Raises SignatureError when it is no scalar."""
        return cls(secret, group.base_mul(group.decode_scalar(secret)))


def keygen() -> KeyPair:
    """Fresh key pair from the operating system's generator (SPEC 6.4)."""
    return KeyPair.of(group.random_scalar())


@dataclass(frozen=True)
class Ring:
    """Public keys among which a signer hides, and the digest that names them (SPEC 6.5)."""

    keys: tuple[bytes, ...]
    digest: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 2 <= len(self.keys) <= limits.MAX_RING:
            raise SignatureError(f"ring of {len(self.keys)} keys; 2 to {limits.MAX_RING} allowed")
        for key in self.keys:
            group.decode_point(key)
        for position, (key, following) in enumerate(zip(self.keys, self.keys[1:], strict=False)):
            if key >= following:
                how = "twice" if key == following else "out of order"
                raise SignatureError(f"ring key {position + 1} ({following.hex()}) stands {how}")
        digest = hashlib.sha256(group.frame(SUITE + b"/ring", *self.keys)).digest()
        object.__setattr__(self, "digest", digest)

    @classmethod
    def of(cls, keys: Sequence[bytes]) -> "Ring":
        """Ring over keys already in order. Raises SignatureError for anything else."""
        return cls(tuple(keys))


def context(federation: str, study: str, epoch: int, cohort: str, round: int) -> bytes:  # noqa: A002
    """Bytes that name one event in which a key may sign once (SPEC 6.6).

    Nothing that a server could vary within the round belongs here, least of all the ring.
    """
    return group.frame(
        SUITE,
        federation.encode(),
        study.encode(),
        _count("epoch", epoch),
        cohort.encode(),
        _count("round", round),
    )


def tag_base(context: bytes) -> bytes:
    """Point Hp(context) whose multiples are the tags of one event (SPEC 6.8)."""
    return group.hash_to_point(SUITE + b"/tag-base", context)


def tag_of(secret: bytes, context: bytes, *, tag_base: bytes | None = None) -> bytes:
    """Tag of a key in an event: 32 bytes. ``tag_base`` may be given precomputed."""
    return group.mul(group.decode_scalar(secret), _given_or_hashed(tag_base, context))


def signature_bytes(ring_size: int) -> int:
    """Length of a signature: tag, first challenge, one response for each key."""
    return group.POINT_BYTES + group.SCALAR_BYTES * (1 + ring_size)


def sign(ring: Ring, secret: bytes, context: bytes, message_digest: bytes) -> bytes:
    """Signature by one key of the ring, ``tag | c_0 | r_0 | ... | r_(n-1)`` (SPEC 6.9).

    ``message_digest``: 32 bytes. A device signs one message in a context, ever; a second
    one shows the same tag. Raises SignatureError when the key is not in the ring.
    """
    base, entropy = tag_base(context), secrets.token_bytes(_ENTROPY_BYTES)
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
    public = KeyPair.of(secret).public
    if public not in ring.keys:
        raise SignatureError(f"key {public.hex()} is not in the ring; the roster has changed")
    n, own = len(ring.keys), ring.keys.index(public)
    tag = group.mul(secret, base)
    bound = _bind(ring, context, tag, message_digest)
    nonces = [_nonce(secret, entropy, bound, position) for position in range(n)]
    challenges, responses = [b""] * n, list(nonces)
    following = (own + 1) % n
    challenges[following] = _challenge(
        bound, own, group.base_mul(nonces[own]), group.mul(nonces[own], base)
    )
    for position in [*range(own + 1, n), *range(own)]:
        c, r = challenges[position], responses[position]
        left = group.add(group.base_mul(r), group.mul(c, ring.keys[position]))
        # r * base + c * tag with one multiplication, because tag = x * base.
        right = group.mul(group.scalar_add(r, group.scalar_mul(c, secret)), base)
        challenges[(position + 1) % n] = _challenge(bound, position, left, right)
    responses[own] = group.scalar_sub(nonces[own], group.scalar_mul(challenges[own], secret))
    return b"".join((tag, challenges[0], *responses))


def verify(
    ring: Ring,
    context: bytes,
    message_digest: bytes,
    signature: bytes,
    *,
    tag_base: bytes | None = None,
) -> bytes:
    """Tag of a valid signature over ``message_digest`` (32 bytes) by a key of the ring.

    ``tag_base`` may be given precomputed. The caller refuses a tag it has
    seen in this context. Raises SignatureError naming the check that failed (SPEC 6.10).
    """
    # 1. One length only.
    n = len(ring.keys)
    if len(signature) != signature_bytes(n):
        raise SignatureError(
            f"signature of {len(signature)} bytes; a ring of {n} needs {signature_bytes(n)}"
        )
    # 2. The tag is a canonical point of prime order, so one key has one tag.
    tag = group.decode_point(signature[: group.POINT_BYTES])
    # 3. Scalars are below the order and not zero.
    first, *responses = (
        group.decode_scalar(signature[at : at + group.SCALAR_BYTES])
        for at in range(group.POINT_BYTES, len(signature), group.SCALAR_BYTES)
    )
    # 4. Walk the ring: each challenge follows from the one before.
    base = _given_or_hashed(tag_base, context)
    bound = _bind(ring, context, tag, message_digest)
    c = first
    for position, (key, r) in enumerate(zip(ring.keys, responses, strict=True)):
        left = group.add(group.base_mul(r), group.mul(c, key))
        right = group.add(group.mul(r, base), group.mul(c, tag))
        c = _challenge(bound, position, left, right)
    # 5. The ring closes.
    if c != first:
        raise SignatureError(
            "ring signature does not verify: another ring, context or message, or not signed"
        )
    return tag


def prove_possession(secret: bytes, context: bytes) -> bytes:
    """Proof of knowing the secret key, for one enrolment: 64 bytes (SPEC 6.11).

    A Schnorr signature. ``context`` holds what the enrolment is for and the verifier's
    fresh challenge; without one the proof can be replayed.
    """
    return _prove_possession(secret, context, secrets.token_bytes(_ENTROPY_BYTES))


def _prove_possession(secret: bytes, context: bytes, entropy: bytes) -> bytes:
    """`prove_possession` with its randomness from outside, for test vectors."""
    public = KeyPair.of(secret).public
    bound = group.hash_parts(SUITE + b"/possession", public, context)
    nonce = _nonce(secret, entropy, bound, 0)
    c = _challenge(bound, 0, public, group.base_mul(nonce))
    return c + group.scalar_sub(nonce, group.scalar_mul(c, secret))


def verify_possession(public: bytes, context: bytes, proof: bytes) -> None:
    """Check a proof made by `prove_possession`. Raises SignatureError (SPEC 6.11)."""
    # 1. One encoding of everything.
    if len(proof) != POSSESSION_BYTES:
        raise SignatureError(f"proof of possession has {POSSESSION_BYTES} bytes, not {len(proof)}")
    group.decode_point(public)
    c = group.decode_scalar(proof[: group.SCALAR_BYTES])
    r = group.decode_scalar(proof[group.SCALAR_BYTES :])
    # 2. The challenge follows from the commitment that the response gives.
    bound = group.hash_parts(SUITE + b"/possession", public, context)
    if c != _challenge(bound, 0, public, group.add(group.base_mul(r), group.mul(c, public))):
        raise SignatureError(f"proof of possession of {public.hex()} does not verify")


def _given_or_hashed(given: bytes | None, context: bytes) -> bytes:
    return tag_base(context) if given is None else given


def _bind(ring: Ring, context: bytes, tag: bytes, message_digest: bytes) -> bytes:
    """Everything that all challenges of one signature share, hashed once."""
    if not isinstance(message_digest, bytes) or len(message_digest) != DIGEST_BYTES:
        raise SignatureError(f"a message digest has {DIGEST_BYTES} bytes")
    return group.hash_parts(SUITE + b"/bind", context, ring.digest, tag, message_digest)


def _challenge(bound: bytes, position: int, left: bytes, right: bytes) -> bytes:
    c = group.hash_to_scalar(
        SUITE + b"/challenge", bound, _count("position", position), left, right
    )
    if group.is_zero(c):  # it would let any key through; nobody can find one
        raise SignatureError("challenge is zero")
    return c


def _nonce(secret: bytes, entropy: bytes, bound: bytes, position: int) -> bytes:
    return group.hash_to_scalar(
        SUITE + b"/nonce", secret, entropy, bound, _count("position", position)
    )


def _count(what: str, value: int) -> bytes:
    """Whole number as 8 little-endian bytes."""
    if not 0 <= value < 2**64:
        raise SignatureError(f"{what} {value} is outside 0..2^64-1")
    return value.to_bytes(8, "little")
