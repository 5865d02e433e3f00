"""Run a simulation of real parties, and take copies of its gateway's state folder meanwhile.

What is copied is files, as somebody copies them who stole the disk or its backup: ciphertexts,
signatures, tags, free pages and the write-ahead log with them.
"""

import io
import sqlite3
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console

from vitalring.database import open_read_only
from vitalring.errors import ConfigError, RecordError, StorageError
from vitalring.gateway import store
from vitalring.protocol import lsag
from vitalring.protocol.cbor import decode, type_of
from vitalring.protocol.records import AcceptedUpdate, RoundPlan, SealedUpdate
from vitalring.protocol.signing import Signed
from vitalring.protocol.update import digest_of, round_context, tag_of
from vitalring.tools.settings import SimulationSettings
from vitalring.tools.simulate.api import simulate

_POLL_S: Final = 0.02
_SETTLES_S: Final = 3.0
_FILES: Final = (store.FILE, store.FILE + "-wal")

STATES: Final = ("open", "closed", "done")
"""While updates come in; while hospitals fetch them; when the round has its model."""


@dataclass(frozen=True)
class Slot:
    """One update as a state folder holds it. `update` is None where it holds no ciphertexts."""

    digest: bytes
    tag: bytes
    ring: int
    signature: bytes = field(repr=False)
    update: bytes | None = field(repr=False)


@dataclass(frozen=True)
class Copy:
    """A state folder's files at one moment of a round, and the updates of the round in it."""

    files: Mapping[str, bytes] = field(repr=False)
    slots: tuple[Slot, ...]
    weights: bytes = field(repr=False)


@dataclass(frozen=True)
class Held:
    """What a gateway held of a round: copies by state, and what watching it live would add."""

    number: int
    plan: bytes
    weights: bytes = field(repr=False)
    """What the round starts from, which is public."""
    copies: Mapping[str, Copy]
    arrivals: Mapping[bytes, float]
    """Seconds from the round's opening until each tag was seen, to the precision of a poll."""
    senders: Mapping[bytes, str]
    """The device of each tag: the truth, computed from the devices' own keys."""
    clip_factor: float = 1.0
    """What the round's plan multiplies the study's clips with (SPEC 7.17)."""


def run_and_copy(settings: SimulationSettings) -> list[Held]:
    """Run a simulation and return what its gateway held of each round.

    Raises VitalRingError as a simulation does, ConfigError where nothing could be copied.
    """
    with tempfile.TemporaryDirectory(prefix="vitalring-attack-") as folder:
        out = Path(folder) / "run"
        watcher = _Watcher(out / "state", settings.study.rounds)
        thread = threading.Thread(target=watcher.run, daemon=True)
        thread.start()
        try:
            simulate(settings, console=Console(file=io.StringIO()), out=out)
        finally:
            watcher.stop.set()
            thread.join()
        held = [made for seen in watcher.rounds.values() if (made := _held(seen, watcher.keys))]
    if not held:
        raise ConfigError("the simulation ended before anything of its gateway could be copied")
    return held


@dataclass
class _Seen:
    number: int
    opened: float
    signed_plan: bytes
    name: bytes
    closed: float = 0.0
    raw: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)
    """By state the last two copies in it: it may have gone on while the last was taken."""
    arrivals: dict[bytes, float] = field(default_factory=dict)


class _Watcher:
    """Looks at the gateway's database again and again, and copies its files when it changed."""

    def __init__(self, state: Path, rounds: int) -> None:
        self._state = state
        self._final = rounds
        self._ends: float | None = None
        self._folder: Path | None = None
        self._last: tuple[object, ...] = ()
        self.stop = threading.Event()
        self.rounds: dict[int, _Seen] = {}
        self.keys: dict[str, bytes] = {}

    def run(self) -> None:
        """Watch until told to stop."""
        while not (self.stop.wait(_POLL_S) or self._over()):
            # A database that is being made, or a party that ends: the next look will tell.
            try:
                self._look()
            except (sqlite3.Error, StorageError, OSError):
                continue

    def _over(self) -> bool:
        """Tell whether the last round has settled; the simulation deletes its folder soon after."""
        if self._ends is None and self._last[:2] == (self._final, "done"):
            self._ends = time.monotonic() + _SETTLES_S
        return self._ends is not None and time.monotonic() > self._ends

    def _look(self) -> None:
        if self._folder is None:
            found = sorted(self._state.glob(f"federation/hospitals/*/gateway/{store.FILE}"))
            if not found:
                return
            self._folder = found[0].parent
        with closing(open_read_only(self._folder / store.FILE)) as db:
            row = db.execute(
                "SELECT round, status, admitted, plan, signed_plan FROM rounds "
                "ORDER BY round DESC LIMIT 1"
            ).fetchone()
            if row is None:
                return
            number, status, admitted, name, signed_plan = row
            tags = [
                tag for (tag,) in db.execute("SELECT tag FROM admitted WHERE plan = ?", (name,))
            ]
        seen = self.rounds.setdefault(number, _Seen(number, time.monotonic(), signed_plan, name))
        for tag in tags:
            seen.arrivals.setdefault(tag, time.monotonic() - seen.opened)
        if status != "open":
            # The update that completes a round closes it at once: no look finds it there.
            seen.closed = seen.closed or time.monotonic() - seen.opened
        sizes = tuple(_stamp(self._folder / file) for file in _FILES)
        if (number, status, admitted, sizes) == self._last:
            return
        self._last = (number, status, admitted, sizes)
        # Closing a file drops this process's locks on it; nothing here holds or needs one, and
        # in write-ahead mode the gateway's own process does not rely on readers' locks.
        files = {
            file: (self._folder / file).read_bytes()
            for file in _FILES
            if (self._folder / file).exists()
        }
        seen.raw[status] = [*seen.raw.get(status, [])[-1:], files]
        for path in self._state.glob("federation/devices/*/keys/ring-1.key"):
            self.keys.setdefault(path.parents[1].name, path.read_bytes())


def _held(seen: _Seen, keys: Mapping[str, bytes]) -> Held | None:
    """Read the copies of a round; None where a sender's key is not known."""
    plan = decode(RoundPlan, decode(Signed, seen.signed_plan).payload)
    context = round_context(plan)
    base = lsag.tag_base(context)
    senders = {lsag.tag_of(secret, context, tag_base=base): name for name, secret in keys.items()}
    whole: dict[str, Copy] = {}
    for status, taken in seen.raw.items():
        for files in taken:
            copy = _read(files, status, seen.name, plan.weights)
            if copy is not None and copy.slots:
                whole[status] = copy  # the later one is what the state settles to
    if not all(slot.tag in senders for copy in whole.values() for slot in copy.slots):
        return None
    tags = {slot.tag for copy in whole.values() for slot in copy.slots}
    arrivals = {tag: seen.arrivals.get(tag, seen.closed) for tag in sorted(tags)}
    weights = next((copy.weights for copy in whole.values() if copy.weights), b"")
    return Held(seen.number, seen.name, weights, whole, arrivals, senders, plan.clip_factor)


def _read(files: Mapping[str, bytes], status: str, plan: bytes, weights: bytes) -> Copy | None:
    """Open copied files as their thief would; None where they are of another state by now."""
    with tempfile.TemporaryDirectory(prefix="vitalring-attack-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        try:
            with closing(sqlite3.connect(Path(folder) / store.FILE)) as db:
                entries = db.execute(
                    "SELECT entry FROM entries UNION ALL SELECT entry FROM admitted"
                ).fetchall()
                kept = db.execute(
                    "SELECT content FROM contributions WHERE plan = ?", (plan,)
                ).fetchall()
                start = store.get_object(db, weights)
                query = "SELECT status FROM rounds WHERE plan = ?"
                if db.execute(query, (plan,)).fetchone() != (status,):
                    return None
        except sqlite3.Error:
            return None
    updates = {digest_of(update): content for update, content in map(_update, kept)}
    slots = []
    for (entry,) in entries:
        accepted = _accepted(entry)
        if accepted is None or accepted.plan != plan:
            continue
        bare = SealedUpdate(plan, accepted.ring, b"", accepted.signature)
        update = updates.get(accepted.digest)
        slots.append(Slot(accepted.digest, tag_of(bare), accepted.ring, accepted.signature, update))
    return Copy(files, tuple(slots), start or b"")


def _stamp(path: Path) -> tuple[int, int]:
    if not path.exists():
        return 0, 0
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _update(row: tuple[bytes]) -> tuple[SealedUpdate, bytes]:
    return decode(SealedUpdate, row[0]), row[0]


def _accepted(entry: bytes) -> AcceptedUpdate | None:
    try:
        return decode(AcceptedUpdate, entry) if type_of(entry) == AcceptedUpdate.TYPE else None
    except RecordError:
        return None
