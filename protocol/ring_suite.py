"""The two suites of ring signatures behind one interface (SPEC 6.13, 6.21).

A study plan names its suite; whoever signs or checks holds a `Ring` and need not know which.
Keys, contexts, tag bases and tags are the same in both (`protocol.lsag`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vitalring.errors import ConfigError, SignatureError
from vitalring.protocol import limits, lsag
from vitalring.protocol.rings import signing, statement, verifying
from vitalring.protocol.rings.verifying import Verdict

__all__ = [
    "LSAG",
    "LSAG_UP_TO",
    "ONE_OF_MANY",
    "Ring",
    "Verdict",
    "cut",
    "for_size",
    "most_keys",
    "prepare",
    "smallest",
]

LSAG: Final = 1
ONE_OF_MANY: Final = 2

Item = tuple[bytes, bytes]
"""The digest of a message, 32 bytes, and a signature on it."""
LSAG_UP_TO: Final = 11
"""Keys of the largest ring whose signatures are smaller with LSAG (SPEC 6.21)."""


@dataclass(frozen=True)
class Ring(ABC):
    """Keys among which a signer hides, sorted, with all that an epoch computes once.

    `digest` names the ring in its suite, and all its signatures have `signature_bytes`.
    """

    keys: tuple[bytes, ...]
    digest: bytes
    signature_bytes: int

    @abstractmethod
    def sign(self, secret: bytes, context: bytes, digest: bytes) -> bytes:
        """Sign a digest of 32 bytes, once in a context, ever. Raises SignatureError."""

    @abstractmethod
    def verify_batch(self, context: bytes, items: Sequence[Item], max_passes: int) -> list[Verdict]:
        """Return a verdict on each item, in their order.

        A pass walks the ring once. Where `max_passes` are used up, verdicts may be missing:
        they have neither tag nor error. As many passes as items leave none open. Equal tags
        are not looked for. Raises ConfigError where no pass is allowed.
        """

    def verify(self, context: bytes, digest: bytes, signature: bytes) -> bytes:
        """Return the tag of a valid signature. Raises SignatureError."""
        verdict = self.verify_batch(context, [(digest, signature)], 1)[0]
        if verdict.tag is None:
            raise verdict.error or SignatureError("one pass did not decide on one signature")
        return verdict.tag


@dataclass(frozen=True)
class _Lsag(Ring):
    ring: lsag.Ring

    @classmethod
    def of(cls, keys: Sequence[bytes]) -> "_Lsag":
        ring = lsag.Ring.of(keys)
        return cls(ring.keys, ring.digest, lsag.signature_bytes(len(ring.keys)), ring)

    def sign(self, secret: bytes, context: bytes, digest: bytes) -> bytes:
        return lsag.sign(self.ring, secret, context, digest)

    def verify_batch(self, context: bytes, items: Sequence[Item], max_passes: int) -> list[Verdict]:
        if max_passes < 1:
            raise ConfigError(f"{max_passes} passes over the ring check nothing; allow 1 or more")
        base = lsag.tag_base(context)
        checked = [self._verdict(context, *item, base) for item in items[:max_passes]]
        return checked + [Verdict()] * (len(items) - len(checked))

    def _verdict(self, context: bytes, digest: bytes, signature: bytes, base: bytes) -> Verdict:
        try:
            return Verdict(lsag.verify(self.ring, context, digest, signature, tag_base=base))
        except SignatureError as error:
            return Verdict(error=error)


@dataclass(frozen=True)
class _OneOfMany(Ring):
    ring: statement.Ring

    @classmethod
    def of(cls, keys: Sequence[bytes]) -> "_OneOfMany":
        ring = statement.Ring.of(keys)
        return cls(ring.keys, ring.digest, statement.signature_bytes(len(ring.keys)), ring)

    def sign(self, secret: bytes, context: bytes, digest: bytes) -> bytes:
        return signing.sign(self.ring, secret, context, digest)

    def verify_batch(self, context: bytes, items: Sequence[Item], max_passes: int) -> list[Verdict]:
        return verifying.verify_batch(self.ring, context, items, max_passes=max_passes)


def for_size(keys: int) -> int:
    """Return the suite for rings of up to so many keys (SPEC 6.21)."""
    return LSAG if keys <= LSAG_UP_TO else ONE_OF_MANY


def most_keys(suite: int) -> int:
    """Return how many keys a ring of this suite may have."""
    return limits.MAX_RING if suite == LSAG else limits.MAX_DEVICES


def prepare(suite: int, keys: Sequence[bytes]) -> Ring:
    """Return a ring over sorted keys, each decoded. Raises SignatureError for anything else."""
    if suite == LSAG:
        return _Lsag.of(keys)
    if suite == ONE_OF_MANY:
        return _OneOfMany.of(keys)
    raise SignatureError(f"ring signatures of suite {suite} are not known here")


def cut(suite: int, keys: Sequence[bytes], ring_size: int) -> tuple[Ring, ...]:
    """Cut a roster's sorted keys into as few rings of neighbours as hold them (SPEC 6.7).

    No ring has more than `ring_size` keys, and sizes differ by one at most, larger ones
    first, so that nobody is left in a small crowd. Raises SignatureError.
    """
    if ring_size < 2:
        raise SignatureError(f"a ring of {ring_size} hides nobody; at least 2 are needed")
    count = _rings(len(keys), ring_size)
    small, larger = divmod(len(keys), count)
    rings, begin = [], 0
    for position in range(count):
        end = begin + small + (position < larger)
        rings.append(prepare(suite, keys[begin:end]))
        begin = end
    return tuple(rings)


def smallest(keys: int, ring_size: int) -> int:
    """Return the size of the smallest ring into which `cut` cuts so many keys."""
    return keys // _rings(keys, ring_size)


def _rings(keys: int, ring_size: int) -> int:
    return max(1, -(-keys // ring_size))
