"""A device's ring keys: one for each epoch, drawn here, erased when the epoch is over (SPEC 6.4).

A folder holds `ring-<epoch>.key`, a secret scalar, and `ring-<epoch>.erased` where there was one.
Rules kept here: a key is on the disk, whole, before anything that shows it leaves; an epoch's
key is drawn once, ever; a key is marked as erased before it is, so that a power cut never
leaves a device that forgot that it had one (SPEC 7.8). Keys are read when they are needed and
kept nowhere else.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from vitalring.edge_agent.erasure import erase_ring_key, sync_folder
from vitalring.errors import ConfigError, StorageError
from vitalring.files import read_secret, write_secret
from vitalring.protocol import group, lsag

MOST_KEYS = 64
"""Keys that a device holds at once: more epochs ahead of its roster than this nobody needs."""
_NAME = re.compile(r"ring-(0|[1-9][0-9]{0,14})\.(key|erased)", re.ASCII)


@dataclass(frozen=True)
class Keyring:
    """The ring keys in a folder, which need not exist while there are none."""

    folder: Path

    def path(self, epoch: int) -> Path:
        """Return the file of an epoch's key, whether or not it is there."""
        return self.folder / f"ring-{epoch}.key"

    def epochs(self) -> tuple[int, ...]:
        """Return the epochs whose keys are here, in order. Raises StorageError."""
        found = self._found()
        return tuple(sorted(found["key"] - found["erased"]))

    def is_erased(self, epoch: int) -> bool:
        """Tell whether there was a key of this epoch, which is erased."""
        return self._marker(epoch).exists()

    def pair(self, epoch: int) -> lsag.KeyPair | None:
        """Return an epoch's key, None where there is none.

        Raises ConfigError for a file that others can read, SignatureError for one that is no key.
        """
        if self.is_erased(epoch) or not self.path(epoch).exists():
            return None
        return lsag.KeyPair.of(read_secret(self.path(epoch), group.SCALAR_BYTES))

    def require(self, epoch: int) -> lsag.KeyPair:
        """Return an epoch's key. Raises ConfigError where it is erased or never was."""
        pair = self.pair(epoch)
        if pair is not None:
            return pair
        if self.is_erased(epoch):
            raise ConfigError(
                f"the ring key of epoch {epoch} is erased: what it signed can no longer be claimed"
            )
        raise ConfigError(
            f"{self.path(epoch)} is not there: this device was not enrolled in epoch {epoch}"
        )

    def draw(self, epoch: int) -> lsag.KeyPair:
        """Return an epoch's key, drawn now if there is none; it is on the disk when this returns.

        Raises ConfigError where the epoch's key is erased or too many are here, StorageError.
        """
        if (pair := self.pair(epoch)) is not None:
            return pair
        if self.is_erased(epoch):
            raise ConfigError(f"the ring key of epoch {epoch} is erased: no other is drawn for it")
        if len(self.epochs()) >= MOST_KEYS:
            raise ConfigError(
                f"{self.folder} holds {MOST_KEYS} ring keys of epochs that never began: ask who "
                "opens enrolments, and remove those of epochs that will not be"
            )
        pair = lsag.keygen()
        # What a power cut leaves half-written under this name was never shown to anybody.
        partial = self.folder / f"ring-{epoch}.new"
        fresh = not self.folder.exists()
        try:
            partial.unlink(missing_ok=True)
            write_secret(partial, pair.secret)
            partial.rename(self.path(epoch))
            sync_folder(self.folder)
            if fresh:
                # The key is as durable as the name of its folder.
                sync_folder(self.folder.absolute().parent)
        except OSError as error:
            raise StorageError(f"{self.path(epoch)} cannot be written: {error}") from error
        return pair

    def erase(self, epoch: int) -> None:
        """Erase an epoch's key for good. Raises ConfigError where there is none, StorageError.

        Called again after a crash, it ends what it began.
        """
        if not self.path(epoch).exists():
            raise ConfigError(f"{self.path(epoch)} is not there: there is nothing to erase")
        if not self.is_erased(epoch):
            self.require(epoch)  # what is no ring key stays
        try:
            self._marker(epoch).touch(mode=0o600)
            sync_folder(self.folder)
        except OSError as error:
            raise StorageError(f"{self._marker(epoch)} cannot be written: {error}") from error
        erase_ring_key(self.path(epoch))

    def before(self, epoch: int) -> tuple[int, ...]:
        """Return the earlier epochs of which there is a key's file, in order. Raises StorageError.

        Also of one whose erasure a crash cut off, which nothing uses any more.
        """
        return tuple(sorted(each for each in self._found()["key"] if each < epoch))

    def erase_before(self, epoch: int) -> tuple[int, ...]:
        """Erase all keys of earlier epochs; return those that were here. Raises StorageError."""
        old = self.before(epoch)
        for each in old:
            self.erase(each)
        return old

    def may_have_had(self, epoch: int) -> bool:
        """Tell whether a key of an epoch, which is not here, may have been (SPEC 7.8).

        It was if it is erased. It may have been if there was one of an earlier epoch: a folder
        that was restored from a backup lacks what was drawn since.
        """
        found = self._found()
        return any(each < epoch for each in found["key"] | found["erased"]) or self.is_erased(epoch)

    def _marker(self, epoch: int) -> Path:
        return self.folder / f"ring-{epoch}.erased"

    def _found(self) -> dict[str, set[int]]:
        """Return the epochs of which there is a key, and of which there is a marker."""
        found: dict[str, set[int]] = {"key": set(), "erased": set()}
        try:
            names = [path.name for path in self.folder.iterdir()] if self.folder.exists() else []
        except OSError as error:
            raise StorageError(f"{self.folder} cannot be read: {error.strerror}") from error
        for name in names:
            if (match := _NAME.fullmatch(name)) is not None:
                found[match[2]].add(int(match[1]))
        return found
