"""A log's folder as its verifier reads it: files, checkpoint, entries in order (SPEC 8.14).

Rules kept here: a file counts only once something signed asks for it, so what nobody asked
for is found at the end; every fault begins with the path of the file it lies in.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vitalring.edge_agent.announcement import log_keys
from vitalring.errors import LogError, VitalRingError
from vitalring.protocol import commitments, limits, tiles, trust
from vitalring.protocol.cbor import decode, type_of
from vitalring.protocol.checkpoint import (
    MAX_NOTE_BYTES,
    Checkpoint,
    VerifierKey,
    parse_and_verify,
)
from vitalring.protocol.records import AcceptedUpdate, Federation, LoggedObject
from vitalring.protocol.signing import Signed

STUDY_KINDS = ("federation", "study-plan", "roster", "sum-key")
_MAX_TILE_BYTES = tiles.TILE_WIDTH * (tiles.MAX_ENTRY_BYTES + 2)
_MAX_FEDERATION_BYTES = Federation.MAX_BYTES + limits.KIB


@contextmanager
def blame(path: str) -> Iterator[None]:
    """Turn any fault found inside into one that begins with `path`."""
    try:
        yield
    except VitalRingError as error:
        raise LogError(f"{path}: {error}") from error


def file_digest(path: Path, shown: str) -> bytes:
    """SHA-256 of a file of any size. Raises LogError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise LogError(f"{shown}: cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class Entry:
    """An entry of the log, with the file that holds it."""

    position: int
    path: str
    value: LoggedObject | AcceptedUpdate

    @property
    def kind(self) -> str:
        """What the entry is, one of the log's object kinds or `accepted-update`."""
        return self.value.kind if isinstance(self.value, LoggedObject) else "accepted-update"

    @property
    def object_path(self) -> str:
        """Path of the record that the entry names."""
        return f"objects/{self.value.digest.hex()}"

    def fault(self, complaint: str) -> LogError:
        """Return the error that says what is wrong with this entry."""
        return LogError(f"{self.path}: entry {self.position} {complaint}")


@dataclass(frozen=True)
class RoundEntries:
    """A round's entries; the last round of a log may lack its report or its model.

    `rosters` are those that came in with its plan, which names the last of them.
    """

    rosters: tuple[Entry, ...]
    plan: Entry
    updates: tuple[tuple[Entry, AcceptedUpdate], ...]
    agreed: Entry | None
    """The set that two gateways signed, where each holds a share."""
    report: Entry | None
    words: tuple[Entry, ...]
    """Commitments to the round's set, and refusals, as hospitals gave them."""
    peer: Entry | None
    """The other gateway's report."""
    model: Entry | None


class LogFolder:
    """A folder whose files are read by path, and which knows what was asked for."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise LogError(f"{root}: there is no such folder")
        self._root = root
        self._asked: set[str] = set()
        self._paths: list[str] = []
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            # A link could show each verifier another file.
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise LogError(f"{name}: neither a plain file nor a folder")
            if path.is_file():
                self._paths.append(name)

    def read(self, path: str, most: int, why: str) -> bytes:
        """Return a file of at most `most` bytes; `why` says who asks, should it be missing."""
        self._asked.add(path)
        file = self._root / path
        try:
            if not file.is_file():
                raise LogError(f"{path}: missing; {why}")
            size = file.stat().st_size
            if size > most:
                raise LogError(f"{path}: has {size} bytes, at most {most} are allowed")
            return file.read_bytes()
        except OSError as error:
            raise LogError(f"{path}: cannot be read: {error.strerror}") from error

    def record(self, entry: Entry) -> bytes:
        """Return the signed record that an entry names."""
        why = f"entry {entry.position} of the log names it"
        return self.read(entry.object_path, Signed.MAX_BYTES, why)

    def blob(self, name: bytes, why: str) -> bytes:
        """Return an object by its SHA-256."""
        return self.read(f"objects/{name.hex()}", limits.MAX_OBJECT_BYTES, why)

    def check_objects(self) -> None:
        """Every object's name is the SHA-256 of its content."""
        for path in self._below("objects"):
            found = file_digest(self._root / path, path).hex()
            if path != f"objects/{found}":
                raise LogError(f"{path}: its content has the digest {found}")

    def federation(self, given: bytes | None) -> Federation:
        """Find the federation that the authority signed, before the log itself can be read."""
        text = self.read("authority", 65, "every log folder holds the authority's key")
        if not re.fullmatch(rb"[0-9a-f]{64}\n", text):
            raise LogError("authority: not 64 hexadecimal digits and a newline")
        key = bytes.fromhex(text.decode())
        if given is not None and key != given:
            raise LogError(f"authority: holds key {key.hex()}, not the given {given.hex()}")
        fault: VitalRingError | None = None
        for data in self._federations():
            try:
                return trust.open_federation(data, key)
            except VitalRingError as error:
                fault = error
        if fault is None:
            raise LogError("objects: hold no federation record; it is missing")
        raise LogError(f"authority: its key signed no federation in objects: {fault}") from fault

    def checkpoint(self, federation: Federation) -> Checkpoint:
        """Return the checkpoint that a log of this federation signed."""
        note = self.read("checkpoint", MAX_NOTE_BYTES, "every log folder holds one")
        with blame("checkpoint"):
            checkpoint = parse_and_verify(note, (*log_keys(federation), *_other_logs(federation)))
        # Lines of unknown keys would be bytes that nothing vouches for.
        if note.rpartition(b"\n\n")[2].count(b"\n") != 1:
            raise LogError("checkpoint: carries more than the log's own signature")
        return checkpoint

    def entries(self, checkpoint: Checkpoint) -> list[Entry]:
        """Return the log's entries, its tiles held against the checkpoint."""
        files = {
            path: self.read(path, _MAX_TILE_BYTES, "it was there just now")
            for path in self._below("tile")
        }
        return [
            _entry(position, checkpoint.size, data)
            for position, data in enumerate(
                tiles.verify_tiles(files, checkpoint.size, checkpoint.root)
            )
        ]

    def require_all_asked(self) -> None:
        """No file is here that nothing asked for."""
        for path in self._paths:
            if path not in self._asked:
                raise LogError(f"{path}: does not belong to this log")

    def _below(self, folder: str) -> list[str]:
        return [path for path in self._paths if path.startswith(f"{folder}/")]

    def _federations(self) -> Iterator[bytes]:
        for path in self._below("objects"):
            try:
                with (self._root / path).open("rb") as file:
                    data = file.read(_MAX_FEDERATION_BYTES)
                if type_of(decode(Signed, data).payload) == Federation.TYPE:
                    yield data
            except VitalRingError:
                continue  # weights, a key, an artefact
            except OSError as error:
                raise LogError(f"{path}: cannot be read: {error.strerror}") from error


def _other_logs(federation: Federation) -> list[VerifierKey]:
    """Return the keys of logs that are not the host's."""
    return [
        VerifierKey(trust.log_origin(federation, number), hospital.log_key)
        for number, hospital in enumerate(federation.hospitals)
        if number
    ]


def history(entries: list[Entry]) -> tuple[list[Entry], list[RoundEntries]]:
    """Split a log into its study's records and its rounds (SPEC 8.15).

    Raises LogError for the first entry out of an order that the protocol allows.
    """
    for position, kind in enumerate(STUDY_KINDS):
        if position >= len(entries):
            raise LogError(f"checkpoint: the log ends before its {kind}")
        if entries[position].kind != kind:
            raise entries[position].fault(f"is a {entries[position].kind}, must be the {kind}")
    queue = entries[len(STUDY_KINDS) :][::-1]
    rounds: list[RoundEntries] = []
    while queue:
        if rounds and rounds[-1].model is None:
            raise queue[-1].fault(f"follows on round {len(rounds)}, which has no model")
        rounds.append(_round(queue))
    return entries[: len(STUDY_KINDS)], rounds


def _round(queue: list[Entry]) -> RoundEntries:
    """Take one round's entries from the end of `queue`."""
    rosters = []
    while (roster := _next(queue, "roster")) is not None:
        rosters.append(roster)
    if not queue:
        raise rosters[-1].fault("is a roster that no round-plan follows")
    plan = queue.pop()
    if plan.kind != "round-plan":
        raise plan.fault(f"is a {plan.kind}, must be a round-plan")
    updates = []
    while queue and isinstance(queue[-1].value, AcceptedUpdate):
        updates.append((queue[-1], queue[-1].value))
        queue.pop()
    agreed = _next(queue, "agreed-set")
    report = _next(queue, "round-report")
    if report is None and (agreed or updates):
        last = agreed or updates[-1][0]
        what = "a set" if agreed else "an update"
        raise last.fault(f"is {what} that no round-report follows")
    words = []
    while report and queue and queue[-1].kind in commitments.KINDS:
        words.append(queue.pop())
    peer = _next(queue, "peer-report") if report else None
    model = _next(queue, "global-model") if report else None
    if peer and model is None:
        raise peer.fault("is a peer-report that no model follows")
    return RoundEntries(
        tuple(rosters), plan, tuple(updates), agreed, report, tuple(words), peer, model
    )


def _next(queue: list[Entry], kind: str) -> Entry | None:
    """Take the next entry if it is of this kind."""
    return queue.pop() if queue and queue[-1].kind == kind else None


def _entry(position: int, size: int, data: bytes) -> Entry:
    first = position // tiles.TILE_WIDTH
    width = min(tiles.TILE_WIDTH, size - first * tiles.TILE_WIDTH)
    path = tiles.Tile(None, first, width).path
    try:
        kind = type_of(data)
        value: LoggedObject | AcceptedUpdate
        if kind == AcceptedUpdate.TYPE:
            value = decode(AcceptedUpdate, data)
        else:
            value = decode(LoggedObject, data)
    except VitalRingError as error:
        raise LogError(f"{path}: entry {position} cannot be read: {error}") from error
    return Entry(position, path, value)
