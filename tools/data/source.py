"""The files that a user brings: one file, a folder, or a zip, also one packed inside a zip.

A member is found by the end of its path, because publishers and unpackers disagree on the
folders above it. What was read is remembered with its SHA-256, for the provenance.
"""

import gzip
import hashlib
import io
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

import numpy as np
import numpy.typing as npt

from vitalring.errors import DataError
from vitalring.tools.data.origins import Origin

MAX_FILES = 100_000  # of a folder or zip
MAX_MEMBER_BYTES = 1 << 31  # of one file, unpacked

# A member that is damaged, encrypted (RuntimeError) or packed in a way that zipfile lacks.
_FAULTS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError)


@dataclass(frozen=True)
class Used:
    """A file that was read: its name as the user gave it, bytes, SHA-256 in hex."""

    name: str
    size: int
    sha256: str


def fingerprint(path: Path, name: str) -> Used:
    """Return a file's size and SHA-256."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return Used(name, size, digest.hexdigest())


class Source:
    """A context manager over the files. All errors of reading are DataError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = ExitStack()
        self._archives: dict[str, zipfile.ZipFile] = {}  # member's path -> its archive
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._used: dict[str, Used] = {}
        try:
            self.names = self._list()
        except _FAULTS as error:
            self._stack.close()
            raise DataError(f"{path}: cannot be read ({error}); bring the file again") from error
        except DataError:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def used(self) -> tuple[Used, ...]:
        """Every file that was read so far, in order of name; of a zip, the zip itself."""
        return tuple(self._used[name] for name in sorted(self._used))

    def find(self, ending: str) -> str | None:
        """Return the member whose path ends in the components of `ending`, None without one.

        Raises:
            DataError: several members do.
        """
        found = [name for name in self.names if name == ending or name.endswith(f"/{ending}")]
        if len(found) > 1:
            raise DataError(
                f"{self._path}: holds both {found[0]} and {found[1]}; bring one copy of {ending}"
            )
        return found[0] if found else None

    def need(self, ending: str, origin: Origin) -> str:
        """Return the member as `find` does. Raises DataError, saying where it is published."""
        found = self.find(ending)
        if found is None:
            raise DataError(
                f"{self._path}: holds no {ending}; bring the files as published: {origin.where}"
            )
        return found

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Open a member, unpacked when its name ends in .gz; faults inside become DataError."""
        with self._guard(name), ExitStack() as stack:
            file = stack.enter_context(self._raw(name))
            if name.endswith(".gz"):
                yield cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=file)))
            else:
                yield file

    @contextmanager
    def text(self, name: str) -> Iterator[io.TextIOWrapper]:
        """Open a member as UTF-8 text with untranslated line ends; a bad byte is a DataError."""
        with self.open(name) as file:
            wrapper = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            try:
                yield wrapper
            except UnicodeDecodeError as error:
                raise DataError(f"{self.label(name)}: is not UTF-8 text ({error})") from error
            finally:
                wrapper.detach()

    def arrays(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """Read every array of an .npz member; none may hold pickled objects."""
        with self.open(name) as file:
            try:
                with np.load(file, allow_pickle=False) as archive:
                    return {key: archive[key] for key in archive.files}
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{self.label(name)}: is not an intact .npz file ({error}); bring it again"
                ) from error

    def fetch(self, name: str, room: Path) -> None:
        """Copy a member to `room` under its own last name."""
        with self.open(name) as file, (room / name.rsplit("/", 1)[-1]).open("wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)

    def label(self, name: str) -> str:
        """How a message names a member."""
        return str(self._path) if self._path.name == name else f"{self._path}: {name}"

    def _list(self) -> tuple[str, ...]:
        if self._path.is_dir():
            names = []
            for path in sorted(self._path.rglob("*")):
                if path.is_file():
                    names.append(path.relative_to(self._path).as_posix())
                    self._bound(len(names))
            return tuple(names)
        if not self._path.is_file():
            raise DataError(f"{self._path}: does not exist; name a file, a folder or a zip")
        # An .npz is a zip too, but of one data set's arrays.
        if self._path.suffix != ".npz" and zipfile.is_zipfile(self._path):
            self._used[self._path.name] = fingerprint(self._path, self._path.name)
            self._add(self._stack.enter_context(zipfile.ZipFile(self._path)), "")
            return tuple(sorted(self._members))
        return (self._path.name,)

    def _add(self, archive: zipfile.ZipFile, prefix: str) -> None:
        for entry in archive.infolist():
            name = prefix + entry.filename
            if entry.is_dir() or entry.filename.startswith("__MACOSX/"):
                continue
            if name.endswith(".zip") and not prefix:
                # Seeking in a packed member would unpack it again and again.
                inner = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  closed there
                self._small(name, entry.file_size)
                with archive.open(entry) as packed:
                    shutil.copyfileobj(packed, inner, 1 << 20)
                self._add(self._stack.enter_context(zipfile.ZipFile(inner)), f"{name}/")
                continue
            self._archives[name], self._members[name] = archive, entry
            self._bound(len(self._members))

    def _raw(self, name: str) -> IO[bytes]:
        if name in self._members:
            self._small(name, self._members[name].file_size)
            return self._archives[name].open(self._members[name])
        path = self._path / name if self._path.is_dir() else self._path
        if name not in self._used:
            self._used[name] = fingerprint(path, name)
        return path.open("rb")

    @contextmanager
    def _guard(self, name: str) -> Iterator[None]:
        try:
            yield
        except _FAULTS as error:
            raise DataError(
                f"{self.label(name)}: is not intact ({error}); bring the file again"
            ) from error

    def _bound(self, count: int) -> None:
        if count > MAX_FILES:
            raise DataError(f"{self._path}: holds more than {MAX_FILES} files; name the data alone")

    def _small(self, name: str, size: int) -> None:
        if size > MAX_MEMBER_BYTES:
            raise DataError(
                f"{self.label(name)}: has {size} bytes unpacked, more than {MAX_MEMBER_BYTES}"
            )
