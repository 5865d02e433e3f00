"""Padded libsodium sealed boxes for the way to the gateway (SPEC 3.14).

A sealed box has a fresh key pair of its own, so the same update sealed twice
shares no byte with its first copy, and nobody but the gateway can compare
them. Padding makes all boxes of a round equal in length, whichever ring they are from.
"""

import nacl.exceptions
import nacl.public
from nacl.public import PrivateKey

from vitalring.errors import Reason, RecordError, RefusedError

OVERHEAD = 48  # an X25519 public key and a Poly1305 tag
PAD_STEP = 1024


def sealed_bytes(plain_bytes: int) -> int:
    """Return the length of the sealed box of a message of `plain_bytes` bytes."""
    return _padded(plain_bytes) + OVERHEAD


def seal(message: bytes, gateway_key: bytes, spare_bytes: int = 0) -> bytes:
    """Pad `message` to a multiple of 1,024 bytes (ISO/IEC 7816-4) and seal it.

    `spare_bytes` is by how much another device's message may be longer, below 1,024: the box is
    as long as that message's.
    """
    padded = message + b"\x80" + bytes(_padded(len(message) + spare_bytes) - len(message) - 1)
    return nacl.public.SealedBox(nacl.public.PublicKey(gateway_key)).encrypt(padded)


def unseal(box: bytes, secret: PrivateKey) -> bytes:
    """Open a box and strip its padding. Raises RefusedError(BAD_SEAL)."""
    try:
        padded = nacl.public.SealedBox(secret).decrypt(box)
    except (nacl.exceptions.CryptoError, ValueError, TypeError) as error:
        raise RefusedError(Reason.BAD_SEAL, "the sealed box does not open with our key") from error
    message, mark, rest = padded.rpartition(b"\x80")
    # One step more than the message needs, because another ring's may need it.
    longest = _padded(len(message) + PAD_STEP - 1)
    if not mark or rest.strip(b"\x00") or len(padded) not in (_padded(len(message)), longest):
        raise RefusedError(Reason.BAD_SEAL, "the padding inside the sealed box is not ours")
    return message


def new_secret() -> PrivateKey:
    """Draw a gateway's sealing key."""
    return PrivateKey.generate()


def load_secret(raw: bytes) -> PrivateKey:
    """Read a gateway's sealing key from its 32 bytes."""
    if len(raw) != PrivateKey.SIZE:
        raise RecordError(f"a sealing key has 32 bytes, not {len(raw)}")
    return PrivateKey(raw)


def _padded(plain_bytes: int) -> int:
    return (plain_bytes // PAD_STEP + 1) * PAD_STEP
