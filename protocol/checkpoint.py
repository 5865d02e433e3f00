"""Checkpoints: the log's signed size and root, as C2SP tlog-checkpoint and signed-note.

Rules kept here (SPEC 8.5 to 8.8):

* The text is three lines and no more: origin, size, root. One encoding only.
* A key signs under its own name; the log's key is named as its origin, so that a key
  trusted for one log can never vouch for another.
* Lines of unknown keys are ignored, which leaves room for witness cosignatures; a bad
  signature of a known key refuses the whole note.
"""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from nacl.bindings import crypto_core_ed25519_is_valid_point
from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey

from vitalring.errors import LogError
from vitalring.protocol.merkle import HASH_BYTES, MAX_SIZE

MAX_NOTE_BYTES = 131_072  # room for 16 post-quantum cosignatures
MAX_SIGNATURES = 64
SEED_BYTES = 32

_ED25519 = b"\x01"  # signature type of C2SP signed-note
_KEY_ID_BYTES = 4
_SIGNATURE_BYTES = 64
_DASH = "\u2014 "


@dataclass(frozen=True)
class Checkpoint:
    """What a log says of itself: its name, how many leaves it has and their Merkle root."""

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        _check_text("origin", self.origin)
        if not 0 <= self.size <= MAX_SIZE:
            raise LogError(f"checkpoint: {self.size} leaves are outside 0..2^63-1")
        if len(self.root) != HASH_BYTES:
            raise LogError(f"checkpoint: root of {len(self.root)} bytes, not {HASH_BYTES}")

    def encode(self) -> bytes:
        """Text of the note that is signed (C2SP tlog-checkpoint, SPEC 8.5)."""
        return f"{self.origin}\n{self.size}\n{_base64(self.root)}\n".encode()

    @classmethod
    def decode(cls, text: bytes) -> "Checkpoint":
        """Inverse of `encode`. Raises LogError for any other bytes, extension lines included."""
        lines = text.split(b"\n")
        if len(lines) != 4 or lines[3]:
            raise LogError(f"checkpoint: {len(lines) - 1} lines where exactly 3 are allowed")
        if not lines[1].isdigit() or len(lines[1]) > 19:
            raise LogError(f"checkpoint: size {lines[1]!r} is not a decimal number")
        try:
            checkpoint = cls(
                lines[0].decode("utf-8"), int(lines[1]), base64.b64decode(lines[2], validate=True)
            )
        except (UnicodeDecodeError, binascii.Error) as error:
            raise LogError(f"checkpoint: {error}") from error
        if checkpoint.encode() != text:
            raise LogError(f"checkpoint: {text!r} is not the one encoding of {checkpoint}")
        return checkpoint


@dataclass(frozen=True)
class VerifierKey:
    """A key that may sign notes: its name and its Ed25519 public key (32 bytes)."""

    name: str
    public: bytes

    def __post_init__(self) -> None:
        _check_key_name(self.name)
        if len(self.public) != 32 or not crypto_core_ed25519_is_valid_point(self.public):
            raise LogError(f"key {self.name}: {self.public.hex()} is not an Ed25519 public key")

    @classmethod
    def of_seed(cls, name: str, seed: bytes) -> "VerifierKey":
        """Public half of the signing key with this 32-byte seed."""
        return cls(name, bytes(_signing_key(seed).verify_key))

    @property
    def id(self) -> bytes:
        """Four bytes that lead every signature of this key (C2SP signed-note)."""
        return _key_id(self.name, self.public)

    def encode(self) -> str:
        """``name+id+base64``, the form that other log tools read."""
        return f"{self.name}+{self.id.hex()}+{_base64(_ED25519 + self.public)}"

    @classmethod
    def decode(cls, text: str) -> "VerifierKey":
        """Inverse of `encode`. Raises LogError for any other text or another key type."""
        parts = text.split("+", 2)  # base64 may itself hold a plus
        if len(parts) != 3:
            raise LogError(f"verifier key {text!r} is not name+id+base64")
        try:
            blob = base64.b64decode(parts[2], validate=True)
        except (binascii.Error, ValueError) as error:
            raise LogError(f"verifier key {text!r}: {error}") from error
        if blob[:1] != _ED25519:
            raise LogError(f"verifier key {text!r} is not of the Ed25519 type 0x01")
        key = cls(parts[0], blob[1:])
        if key.encode() != text:
            raise LogError(f"verifier key {text!r} is not the one encoding of {key.encode()!r}")
        return key


def sign(checkpoint: Checkpoint, seed: bytes, name: str) -> bytes:
    """Signed note with one signature by the key ``name``, for a log the checkpoint's origin.

    The caller answers for signing no two checkpoints that contradict one another (SPEC 8.6).
    Raises LogError when the seed is not 32 bytes or the name is no key name.
    """
    _check_key_name(name)
    key = _signing_key(seed)
    text = checkpoint.encode()
    signature = _key_id(name, bytes(key.verify_key)) + key.sign(text).signature
    return text + f"\n{_DASH}{name} {_base64(signature)}\n".encode()


def parse_and_verify(note: bytes, verifiers: Sequence[VerifierKey]) -> Checkpoint:
    """Checkpoint in a signed note, once the known keys among ``verifiers`` have vouched for it.

    Raises LogError naming the first check that fails (SPEC 8.7).
    """
    # 1. Bounded, UTF-8, no control characters but newlines.
    if len(note) > MAX_NOTE_BYTES:
        raise LogError(f"note of {len(note)} bytes; at most {MAX_NOTE_BYTES} are allowed")
    if any(byte < 0x20 and byte != 0x0A for byte in note):
        raise LogError("note holds a control character")
    # 2. Text, empty line, signature lines.
    text, separator, block = note.rpartition(b"\n\n")
    if not separator or not block.endswith(b"\n"):
        raise LogError("note does not end in an empty line and signature lines")
    text += b"\n"
    lines = block[:-1].split(b"\n")
    if len(lines) > MAX_SIGNATURES:
        raise LogError(f"note with {len(lines)} signatures; at most {MAX_SIGNATURES} are allowed")
    signatures = [_decode_signature(line) for line in lines]
    # 3. Every known key's signature verifies; unknown keys are ignored.
    known = {(key.name, key.id): key for key in verifiers}
    vouched: set[VerifierKey] = set()
    for name, key_id, signature in signatures:
        key = known.get((name, key_id))
        if key is None:
            continue
        if key in vouched:
            raise LogError(f"note is signed twice by {name}")
        _verify(key, text, signature)
        vouched.add(key)
    # 4. Only now is the text worth reading. The key named as the origin is among them.
    if not vouched:
        raise LogError("note carries no signature of a known key; check the pinned log keys")
    checkpoint = Checkpoint.decode(text)
    if checkpoint.origin not in {key.name for key in vouched}:
        raise LogError(f"checkpoint of {checkpoint.origin!r} is not signed by the key of that name")
    return checkpoint


def _verify(key: VerifierKey, text: bytes, signature: bytes) -> None:
    if len(signature) != _SIGNATURE_BYTES:
        raise LogError(f"signature by {key.name}: {len(signature)} bytes, not {_SIGNATURE_BYTES}")
    try:
        VerifyKey(key.public).verify(text, signature)
    except CryptoError as error:
        raise LogError(f"signature by {key.name} does not verify; the note was altered") from error


def _decode_signature(line: bytes) -> tuple[str, bytes, bytes]:
    """Key name, key id and signature of one line, which must be its one encoding."""
    try:
        parts = line.decode("utf-8").split(" ")
        name, blob = parts[1], base64.b64decode(parts[2], validate=True)
    except (UnicodeDecodeError, binascii.Error, ValueError, IndexError) as error:
        raise LogError(f"signature line {line!r} cannot be read: {error}") from error
    _check_key_name(name)
    if len(blob) <= _KEY_ID_BYTES or f"{_DASH}{name} {_base64(blob)}".encode() != line:
        raise LogError(f"signature line {line!r} is not in its one encoding")
    return name, blob[:_KEY_ID_BYTES], blob[_KEY_ID_BYTES:]


def _key_id(name: str, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:_KEY_ID_BYTES]


def _signing_key(seed: bytes) -> SigningKey:
    if len(seed) != SEED_BYTES:
        raise LogError(f"signing seed of {len(seed)} bytes, not {SEED_BYTES}")
    return SigningKey(seed)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _check_text(what: str, text: str) -> None:
    if not text or any(ord(char) < 0x20 or 0xD800 <= ord(char) < 0xE000 for char in text):
        raise LogError(f"{what} {text!r} is empty or holds a control character")


def _check_key_name(name: str) -> None:
    _check_text("key name", name)
    if "+" in name or any(char.isspace() for char in name):
        raise LogError(f"key name {name!r} holds a plus or a space")
