"""Erase an epoch's ring key: from then on nobody can link or claim its updates (SPEC 6.4, 6.27)."""

import os
from pathlib import Path

from vitalring.errors import StorageError
from vitalring.files import read_secret
from vitalring.protocol import group


def erase_ring_key(path: Path) -> None:
    """Overwrite and remove a ring key's file.

    A file that holds no ring key stays. Called again after a crash, it ends what it began. Flash
    memory may keep the old blocks below any file system: only a disk that is encrypted as a
    whole, or destroyed, forgets for certain.
    Raises ConfigError, SignatureError or StorageError.
    """
    secret = read_secret(path, group.SCALAR_BYTES)
    if not group.is_zero(secret):
        group.decode_scalar(secret)
    try:
        # Where the key lies, even if removing fails half-way.
        with path.open("r+b") as file:
            file.write(bytes(group.SCALAR_BYTES))
            file.flush()
            os.fsync(file.fileno())
        path.unlink()
        sync_folder(path.absolute().parent)
    except OSError as error:
        raise StorageError(f"{path} cannot be erased: {error.strerror}") from error


def sync_folder(folder: Path) -> None:
    """Wait for the disk: until then a power cut may bring the name back."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
