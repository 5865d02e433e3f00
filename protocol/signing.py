"""Ed25519 signatures over records (RFC 8032, SPEC 2.4).

`Signed` carries the record's exact bytes and one signature a signer, sorted
by key. What is signed starts with a domain of its own, so no signature made
here means anything in another protocol.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, ClassVar

import nacl.exceptions
import nacl.signing

from vitalring.errors import RecordError, SignatureError
from vitalring.protocol.cbor import R, Record, decode, encode
from vitalring.schema import Size

DOMAIN = b"vitalring/signed/1\x00"


@dataclass(frozen=True)
class Signature:
    """One signer's Ed25519 signature."""

    key: Annotated[bytes, Size(32)]
    value: Annotated[bytes, Size(64)]


@dataclass(frozen=True)
class Signed:
    """A record's bytes with the signatures over them."""

    TYPE: ClassVar[str] = "vitalring/signed/1"
    MAX_BYTES: ClassVar[int] = 1 << 20

    payload: bytes
    signatures: Annotated[tuple[Signature, ...], Size(1, 64)]


def public_key(seed: bytes) -> bytes:
    """Return the Ed25519 public key of a 32-byte seed."""
    return bytes(nacl.signing.SigningKey(seed).verify_key)


def sign(record: Record, seeds: Collection[bytes]) -> bytes:
    """Sign `record` with each 32-byte seed; return the encoded `Signed`."""
    return sign_payload(encode(record), seeds)


def sign_payload(payload: bytes, seeds: Collection[bytes]) -> bytes:
    """Sign a record that is encoded already."""
    signatures = []
    for seed in seeds:
        key = nacl.signing.SigningKey(seed)
        signatures.append(Signature(bytes(key.verify_key), key.sign(DOMAIN + payload).signature))
    return encode(Signed(payload, tuple(sorted(signatures, key=lambda s: s.key))))


def merge(parts: Collection[bytes]) -> bytes:
    """Put signatures of one payload together, whose signers signed it one by one.

    Raises RecordError where the payloads differ or a signer comes twice.
    """
    opened = [decode(Signed, part) for part in parts]
    signatures = sorted((each for one in opened for each in one.signatures), key=lambda s: s.key)
    if len({one.payload for one in opened}) != 1:
        raise RecordError("signatures of different records cannot be put together")
    if len({each.key for each in signatures}) != len(signatures):
        raise RecordError("a signer's signature comes twice")
    return encode(Signed(opened[0].payload, tuple(signatures)))


def verify(cls: type[R], data: bytes, keys: Collection[bytes], threshold: int) -> R:
    """Open a `Signed` of type `cls` that at least `threshold` of `keys` signed.

    Raises SignatureError or RecordError. Signers outside `keys` are refused,
    not skipped: there is one set of bytes for one signed record (SPEC 2.4.3).
    """
    signed = decode(Signed, data)
    signers = [signature.key for signature in signed.signatures]
    if signers != sorted(set(signers)):
        raise SignatureError(f"signatures on {cls.TYPE} are not sorted by key without repeats")
    for signature in signed.signatures:
        if signature.key not in keys:
            raise SignatureError(f"{cls.TYPE} is signed by unknown key {signature.key.hex()}")
        try:
            nacl.signing.VerifyKey(signature.key).verify(DOMAIN + signed.payload, signature.value)
        except nacl.exceptions.BadSignatureError as error:
            raise SignatureError(
                f"the signature of key {signature.key.hex()} on {cls.TYPE} does not verify"
            ) from error
    if len(signers) < threshold:
        raise SignatureError(f"{cls.TYPE} has {len(signers)} signatures, needs {threshold}")
    return decode(cls, signed.payload)
