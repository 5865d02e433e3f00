"""Files that must be whole or absent, and files that only their owner may read."""

import errno
import os
import tempfile
from pathlib import Path

from vitalring.errors import ConfigError, StorageError


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace `path` by `data` so that a reader or a power cut sees the old or the new file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: two processes may write the same object at the same time.
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            partial = Path(file.name)
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                partial.chmod(mode)
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise _cannot_write(path, error) from error


def write_secret(path: Path, data: bytes) -> None:
    """Create `path` with mode 0600; never overwrite: a lost key voids what it protects."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            # Half a key would be in the way of the next attempt.
            path.unlink(missing_ok=True)
            raise
    except FileExistsError as error:
        raise ConfigError(f"{path} exists already and is not overwritten; move it away") from error
    except OSError as error:
        raise _cannot_write(path, error) from error


def read_secret(path: Path, size: int) -> bytes:
    """Read exactly `size` bytes from a file that nobody but its owner can read."""
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path} can be read by others; run: chmod 600 {path}")
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) != size:
        raise ConfigError(f"{path} has {len(data)} bytes, a key of this kind has {size}")
    return data


def read_file(path: Path) -> bytes:
    """Read a file that must be there. Raises ConfigError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _cannot_write(path: Path, error: OSError) -> StorageError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    cure = "; free space on its disk" if full else ""
    return StorageError(f"{path} cannot be written: {error}{cure}")
