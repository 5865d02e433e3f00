"""An encrypted copy of a key share, for a safe or another building.

Rules: the passphrase is stretched with Argon2id (RFC 9106) and the file sealed with
libsodium's secretbox (XSalsa20-Poly1305), so a wrong passphrase and a changed byte are the
same refusal; the cost stands in the file and is bounded when read. A share that comes back
is compared with what the hospitals published when they made the key: every piece is the
very secret behind a public contribution, and the contributions add up to the key.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import nacl.pwhash.argon2id as argon2
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from vitalring.aggregator import key_share
from vitalring.errors import CiphertextError, ConfigError, RecordError
from vitalring.protocol import limits
from vitalring.protocol.cbor import decode, encode
from vitalring.protocol.threshold.joint_key import Contribution, check_piece, join
from vitalring.protocol.threshold.params import ThresholdParams
from vitalring.schema import Range, Size

MIN_PASSPHRASE = 12
"""Characters; the docs advise six words drawn at random."""


@dataclass(frozen=True)
class Cost:
    """What one guess of a passphrase costs: passes over memory, and bytes of it."""

    passes: Annotated[int, Range(argon2.OPSLIMIT_MIN, 16)] = argon2.OPSLIMIT_MODERATE
    memory: Annotated[int, Range(argon2.MEMLIMIT_MIN, limits.KIB * limits.MIB)] = (
        argon2.MEMLIMIT_MODERATE
    )


@dataclass(frozen=True)
class KeyBackup:
    """The file of a backup; without its passphrase it tells its length."""

    TYPE: ClassVar[str] = "vitalring/key-backup/1"
    MAX_BYTES: ClassVar[int] = 16 * limits.MIB

    cost: Cost
    salt: Annotated[bytes, Size(argon2.SALTBYTES)]
    box: bytes = field(repr=False)


def seal(
    share: key_share.Share, params: ThresholdParams, passphrase: str, cost: Cost | None = None
) -> bytes:
    """Return the bytes of an encrypted backup. Raises ConfigError for a short passphrase."""
    if len(passphrase) < MIN_PASSPHRASE:
        raise ConfigError(
            f"a passphrase of {len(passphrase)} characters: take {MIN_PASSPHRASE} at least, "
            "better six words that dice chose"
        )
    cost = cost or Cost()
    salt = secrets.token_bytes(argon2.SALTBYTES)
    box = SecretBox(_stretch(passphrase, salt, cost)).encrypt(key_share.encode(share, params))
    return encode(KeyBackup(cost, salt, bytes(box)))


def open_backup(data: bytes, params: ThresholdParams, passphrase: str) -> key_share.Share:
    """Return the share in a backup.

    Raises ConfigError for a file of another kind, a wrong passphrase or a changed byte, and
    for a share of other parameters.
    """
    try:
        backup = decode(KeyBackup, data)
    except RecordError as error:
        raise ConfigError(f"this is not a backup of a key share: {error}") from error
    try:
        plain = SecretBox(_stretch(passphrase, backup.salt, backup.cost)).decrypt(backup.box)
    except (CryptoError, ValueError) as error:
        raise ConfigError(
            "the backup does not open: the passphrase is another one, or the file was changed"
        ) from error
    return key_share.decode(plain, params, "the backup")


def check_share(
    share: key_share.Share,
    contributions: Sequence[Contribution],
    public_key: bytes,
    params: ThresholdParams,
) -> None:
    """Check a share against what the hospitals published. Raises ConfigError.

    `contributions` are those of all hospitals, in order; `public_key` is the study's.
    """
    # 1. It is a share of this key.
    if share.public_key != public_key:
        raise ConfigError("this is a share of another key than the study's sum-key.bin")
    try:
        # 2. The contributions are those that the key is the sum of.
        if join(contributions, share.context, params) != public_key:
            raise ConfigError(
                "the reveal messages are not those of this key: get them from another hospital"
            )
        # 3. Every piece is the secret behind its contribution.
        for piece in share.pieces:
            dealer = contributions[params.access.dealer(piece.index)]
            check_piece(piece, dealer, share.context, params)
    except CiphertextError as error:
        raise ConfigError(f"the share does not fit its key: {error}") from error


def _stretch(passphrase: str, salt: bytes, cost: Cost) -> bytes:
    return argon2.kdf(
        SecretBox.KEY_SIZE, passphrase.encode(), salt, opslimit=cost.passes, memlimit=cost.memory
    )
