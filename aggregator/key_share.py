"""The file of a hospital's share of a joint key: the pieces that it holds.

Rules (SPEC 5.21): pieces leave memory only into this file of mode 0600, into boxes sealed
to another holder, and into an encrypted backup; they show in no representation, message
or log. The file names its kind, the ring, the hospitals and the context that the key was
made in, and ends in a checksum, so that a share of another study, or of an earlier
attempt, is refused.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vitalring.errors import CiphertextError, ConfigError
from vitalring.files import write_secret
from vitalring.protocol.ciphertext import decode_public_key
from vitalring.protocol.threshold.params import ThresholdParams
from vitalring.protocol.threshold.pieces import SecretPiece, decode_piece, encode_piece

_KIND = "vitalring/key-share/1"
_DIGEST_BYTES = 32


@dataclass(frozen=True, eq=False)
class Share:
    """What one hospital keeps of a joint key."""

    hospital: int
    context: bytes
    public_key: bytes = field(repr=False)
    pieces: tuple[SecretPiece, ...] = field(repr=False)


def save(
    path: Path,
    params: ThresholdParams,
    pieces: Sequence[SecretPiece],
    public_key: bytes,
    *,
    hospital: int,
    context: bytes,
) -> None:
    """Write a share to a new file of mode 0600; it is on disk when this returns.

    Raises ConfigError if the file exists or these are not the hospital's pieces, StorageError
    if it cannot be written.
    """
    write_secret(path, encode(Share(hospital, context, public_key, tuple(pieces)), params))


def load(path: Path, params: ThresholdParams) -> tuple[SecretPiece, ...]:
    """Return the pieces of a share, all that its hospital holds, by index.

    Raises ConfigError if the file is missing, readable by others, damaged, or of another
    kind or other parameters.
    """
    return load_share(path, params).pieces


def load_share(path: Path, params: ThresholdParams) -> Share:
    """Return a share with the public key and the context it belongs to. Raises as `load`."""
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path} can be read by others; run: chmod 600 {path}")
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    return decode(data, params, str(path))


def encode(share: Share, params: ThresholdParams) -> bytes:
    """Return the bytes of a share's file, which are secret.

    Raises ConfigError unless the pieces are those that the hospital holds.
    """
    held = params.access.held_by(share.hospital)
    if tuple(piece.index for piece in share.pieces) != held:
        raise ConfigError(
            f"hospital {share.hospital} holds key pieces {list(held)}, not "
            f"{[piece.index for piece in share.pieces]}"
        )
    body = _header(params, share.hospital) + share.context
    body += b"".join(map(encode_piece, share.pieces)) + share.public_key
    return body + hashlib.sha256(body).digest()


def decode(data: bytes, params: ThresholdParams, name: str) -> Share:
    """Read a share from the bytes of its file; `name` is for messages. Raises ConfigError."""
    body, checksum = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    # 1. Whole; 2. for these parameters and one of these hospitals; 3. the pieces, the key.
    if hashlib.sha256(body).digest() != checksum:
        raise ConfigError(f"{name} is damaged: its checksum differs; restore it from a backup")
    access, degree = params.access, params.bfv.degree
    found = [h for h in range(access.hospitals) if body.startswith(_header(params, h))]
    if not found:
        raise ConfigError(f"{name} holds a key of other parameters or of another kind")
    (hospital,) = found
    rest = body[len(_header(params, hospital)) :]
    context, rest = rest[:_DIGEST_BYTES], rest[_DIGEST_BYTES:]
    held, each = access.held_by(hospital), degree // 4
    try:
        pieces = tuple(
            decode_piece(rest[at * each : (at + 1) * each], index, degree)
            for at, index in enumerate(held)
        )
        public = rest[len(held) * each :]
        decode_public_key(public, params.bfv)
    except CiphertextError as error:
        raise ConfigError(f"{name} does not hold a key share: {error}") from error
    return Share(hospital, context, public, pieces)


def _header(params: ThresholdParams, hospital: int) -> bytes:
    """Return what a share depends on: not the packing, only the ring and who holds what."""
    access, bfv = params.access, params.bfv
    numbers = (hospital, access.hospitals, access.threshold, bfv.degree, *bfv.primes)
    return " ".join([_KIND, *map(str, numbers)]).encode() + b"\n"
