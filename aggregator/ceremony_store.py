"""Where a ceremony keeps what is its own, and where it meets the other hospitals' messages.

Rules (SPEC 5.14): what is kept is whole or absent, on disk before anything follows from it,
and readable by its owner alone; a message lies in the exchange folder under a name for
people, and is found by its content wherever it lies there.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vitalring.errors import ConfigError, StorageError
from vitalring.files import write_atomic, write_secret
from vitalring.protocol import limits


class Store(Protocol):
    """Where a hospital keeps its own things, and where it meets the others' messages."""

    def files(self) -> Iterable[tuple[str, bytes]]:
        """Return the names and contents of all messages that are here."""

    def send(self, name: str, data: bytes) -> None:
        """Put this hospital's message where the others get it, unless it is there."""

    def kept(self, name: str) -> bytes | None:
        """Return what was kept under a name."""

    def keep(self, name: str, data: bytes) -> None:
        """Keep something secret, whole or not at all; it is on disk when this returns."""

    def drop(self, name: str) -> None:
        """Forget what was kept."""

    def publish(self, name: str, data: bytes) -> None:
        """Write a result that everybody may read."""


@dataclass(frozen=True)
class FolderStore:
    """A ceremony's folder: `exchange/` for messages, `private/` for one attempt's secrets."""

    folder: Path
    attempt: int

    @property
    def exchange(self) -> Path:
        """Folder of the messages of all hospitals, of all attempts."""
        return self.folder / "exchange"

    @property
    def private(self) -> Path:
        """Folder of what this hospital keeps to itself, of this attempt."""
        return self.folder / "private" / f"attempt-{self.attempt}"

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Yield the names and contents of all files, those of folders inside too."""
        for path in sorted(self.exchange.rglob("*")):
            if path.name.startswith(".") or not path.is_file():
                continue
            try:
                if path.stat().st_size > limits.MAX_OBJECT_BYTES:
                    yield path.name, b""
                else:
                    yield path.name, path.read_bytes()
            except OSError as error:
                raise ConfigError(f"{path} cannot be read: {error.strerror}") from error

    def path_of(self, name: str) -> Path:
        """Return the file of our own message of this name."""
        return self.exchange / f"attempt-{self.attempt}.{name}"

    def send(self, name: str, data: bytes) -> None:
        """Write our message, unless the same bytes are there."""
        path = self.path_of(name)
        if not path.is_file() or path.read_bytes() != data:
            write_atomic(path, data)

    def kept(self, name: str) -> bytes | None:
        """Return what was kept. Raises ConfigError where others can read it."""
        path = self.private / name
        if not path.exists():
            return None
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path} can be read by others; run: chmod 600 {path}")
        return path.read_bytes()

    def keep(self, name: str, data: bytes) -> None:
        """Write a secret file under another name first, so that a crash leaves none that is cut.

        Raises ConfigError if it is there already: what was said once is not replaced.
        """
        path = self.private / name
        if path.exists():
            raise ConfigError(f"{path} exists already and is not overwritten")
        partial = path.with_name(f".{name}.partial")
        partial.unlink(missing_ok=True)
        write_secret(partial, data)
        try:
            partial.rename(path)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error}") from error

    def drop(self, name: str) -> None:
        """Delete what was kept."""
        (self.private / name).unlink(missing_ok=True)

    def publish(self, name: str, data: bytes) -> None:
        """Write a result beside the folders."""
        write_atomic(self.folder / name, data)


@dataclass
class MemoryStore:
    """A store in memory, for simulations; all hospitals share one `exchange`."""

    exchange: dict[str, bytes] = field(default_factory=dict, repr=False)
    own: dict[str, bytes] = field(default_factory=dict, repr=False)
    results: dict[str, bytes] = field(default_factory=dict, repr=False)

    def files(self) -> Iterable[tuple[str, bytes]]:
        """Return all messages."""
        return list(self.exchange.items())

    def send(self, name: str, data: bytes) -> None:
        """Give a message to all."""
        self.exchange[name] = data

    def kept(self, name: str) -> bytes | None:
        """Return what was kept."""
        return self.own.get(name)

    def keep(self, name: str, data: bytes) -> None:
        """Keep something."""
        self.own[name] = data

    def drop(self, name: str) -> None:
        """Forget it."""
        self.own.pop(name, None)

    def publish(self, name: str, data: bytes) -> None:
        """Keep a result."""
        self.results[name] = data
