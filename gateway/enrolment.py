"""What the enrolment office keeps: tickets, names, which key is whose, and the open call (SPEC 13).

Names stay on this server: no message, record or log entry has one. Of a ticket its hash alone
is kept. The commands that open a call or import tickets run beside the gateway, which looks
here for what changed.
"""

import re
import secrets
import sqlite3
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from vitalring.database import transaction
from vitalring.errors import ConfigError
from vitalring.gateway import rosters
from vitalring.gateway.log import LogKey
from vitalring.protocol import signing, trust
from vitalring.protocol.cbor import decode
from vitalring.protocol.enrolment import EnrolmentCall
from vitalring.protocol.records import Federation, Roster
from vitalring.protocol.signing import Signed

_DEVICE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", re.ASCII)
_HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)
_CHALLENGE_BYTES = 32


@dataclass(frozen=True)
class EnrolledKey:
    """A ring key of an epoch, and the name of the device that has its secret."""

    name: str
    epoch: int
    key: bytes


def parse_tickets(text: str) -> dict[bytes, str]:
    """Read lines `NAME SHA256` of tickets: names by hash. Raises ConfigError."""
    tickets: dict[bytes, str] = {}
    for words in _lines(text, 2):
        name, hash_ = words[0], _hex(words[1])
        if tickets.setdefault(hash_, name) != name:
            raise ConfigError(f"one ticket stands for {tickets[hash_]} and for {name}")
    return tickets


def parse_keys(text: str) -> tuple[EnrolledKey, ...]:
    """Read lines `NAME EPOCH KEY`; the inverse of `format_keys`. Raises ConfigError."""
    keys = []
    for name, epoch, key in _lines(text, 3):
        if not re.fullmatch("[0-9]{1,15}", epoch, re.ASCII):
            raise ConfigError(f"epoch {epoch[:40]!r} of {name} is not a number")
        keys.append(EnrolledKey(name, int(epoch), _hex(key)))
    return tuple(keys)


def format_keys(keys: Iterable[EnrolledKey]) -> str:
    """Return one line for each key."""
    return "".join(f"{each.name} {each.epoch} {each.key.hex()}\n" for each in keys)


def import_tickets(db: sqlite3.Connection, tickets: Mapping[bytes, str]) -> int:
    """Keep tickets' hashes with their devices' names; return how many were new.

    Raises ConfigError for one that is another device's.
    """
    new = 0
    with transaction(db):
        for hash_, name in tickets.items():
            known = db.execute("SELECT device FROM tickets WHERE hash = ?", (hash_,)).fetchone()
            if known is not None and known[0] != name:
                raise ConfigError(f"the ticket of {name} is known as that of {known[0]}")
            if known is None:
                db.execute("INSERT INTO tickets VALUES (?, ?)", (hash_, name))
                new += 1
    return new


def import_keys(db: sqlite3.Connection, keys: Collection[EnrolledKey]) -> None:
    """Note whose keys are known from elsewhere: drawn with the federation, named by a file.

    Raises ConfigError where that contradicts what is known already.
    """
    with transaction(db):
        for each in keys:
            row = db.execute(
                "SELECT device, epoch FROM enrolled WHERE key = ?", (each.key,)
            ).fetchone()
            if row == (each.name, each.epoch):
                continue
            if row is not None:
                raise ConfigError(
                    f"the key of {each.name} in epoch {each.epoch} is known as that of {row[0]} "
                    f"in epoch {row[1]}"
                )
            if not enrol(db, each):
                raise ConfigError(f"{each.name} has another key in epoch {each.epoch} already")


def name_roster_keys(db: sqlite3.Connection) -> None:
    """Give a name of its own to each key of a logged roster that has none; its holder may go on."""
    for roster in _rosters(db):
        unnamed = [
            EnrolledKey(f"key-{key.hex()[:16]}", roster.epoch, key)
            for key in roster.keys
            if not db.execute("SELECT 1 FROM enrolled WHERE key = ?", (key,)).fetchone()
        ]
        import_keys(db, unnamed)


def enrol(db: sqlite3.Connection, key: EnrolledKey) -> bool:
    """Note a device's key of an epoch, False where it has one; the caller holds the transaction."""
    row = (key.epoch, key.name, key.key)
    inserted = db.execute("INSERT OR IGNORE INTO enrolled VALUES (?, ?, ?)", row).rowcount
    return inserted == 1


def enrolled(db: sqlite3.Connection) -> tuple[EnrolledKey, ...]:
    """Return all keys that the office knows, by epoch and name."""
    rows = db.execute("SELECT device, epoch, key FROM enrolled ORDER BY epoch, device")
    return tuple(EnrolledKey(*row) for row in rows)


@dataclass(frozen=True)
class Standing:
    """What the logged rosters say of keys: which ended their epoch in one, and which were revoked.

    `kept` has the epoch of each key of the newest roster of each epoch.
    """

    kept: Mapping[bytes, int]
    revoked: frozenset[bytes]


def standing(db: sqlite3.Connection) -> Standing:
    """Return what the rosters in the log say of keys."""
    newest: dict[int, frozenset[bytes]] = {}
    ever: set[bytes] = set()
    for roster in _rosters(db):
        newest[roster.epoch] = frozenset(roster.keys)
        ever.update(roster.keys)
    kept = {key: epoch for epoch, keys in newest.items() for key in keys}
    return Standing(kept, frozenset(ever - kept.keys()))


def bar(db: sqlite3.Connection, device: str, *, lift: bool = False) -> None:
    """Take no enrolment from a device any more; or again with `lift`, whatever was revoked of it.

    A key of it that is revoked after that bars it anew. Raises ConfigError.
    """
    known = "SELECT 1 FROM tickets WHERE device = ?1 UNION SELECT 1 FROM enrolled WHERE device = ?1"
    if db.execute(known, (device,)).fetchone() is None:
        raise ConfigError(f"the office knows no device {device[:64]!r}: see `enrolment list`")
    revoked = standing(db).revoked
    with transaction(db):
        if not lift:
            db.execute("INSERT OR IGNORE INTO barred VALUES (?)", (device,))
            return
        db.execute("DELETE FROM barred WHERE device = ?", (device,))
        keys = db.execute("SELECT key FROM enrolled WHERE device = ?", (device,)).fetchall()
        db.executemany(
            "INSERT OR IGNORE INTO pardoned VALUES (?)", [row for row in keys if row[0] in revoked]
        )


def tickets(db: sqlite3.Connection) -> frozenset[str]:
    """Return the names of all devices with a ticket."""
    return frozenset(name for (name,) in db.execute("SELECT device FROM tickets"))


def barred(db: sqlite3.Connection, revoked: Collection[bytes]) -> frozenset[str]:
    """Return the devices whose enrolments are refused: by hand, or with a revoked key."""
    by_hand = {device for (device,) in db.execute("SELECT device FROM barred")}
    devices = {each.name for each in enrolled(db) if each.key in revoked}
    return frozenset(by_hand | {name for name in devices if is_barred(db, name, revoked)})


def is_barred(db: sqlite3.Connection, device: str, revoked: Collection[bytes]) -> bool:
    """Tell whether a device is one of `barred`, without reading of all others."""
    if db.execute("SELECT 1 FROM barred WHERE device = ?", (device,)).fetchone() is not None:
        return True
    keys = db.execute(
        "SELECT key FROM enrolled WHERE device = ? AND key NOT IN (SELECT key FROM pardoned)",
        (device,),
    )
    return any(key in revoked for (key,) in keys)


def open_call(
    db: sqlite3.Connection, key: LogKey, study: trust.Study, epoch: int, closes_ms: int
) -> bytes:
    """Open a call for keys of an epoch, in place of any other; return the signed record.

    The holder of any key in a logged roster may answer it, whether or not the key has a name.
    Raises ConfigError for an epoch that is neither the roster's nor the next one.
    """
    now = study.roster.epoch
    if epoch not in (now, now + 1):
        raise ConfigError(
            f"the roster is of epoch {now}: call for keys of epoch {now}, for devices that join, "
            f"or of epoch {now + 1}, not of epoch {epoch}"
        )
    name_roster_keys(db)
    return _open(db, key, study.federation, study.roster.cohort, epoch, closes_ms)


def open_first_call(
    db: sqlite3.Connection,
    key: LogKey,
    federation: Federation,
    cohort: str,
    epoch: int,
    closes_ms: int,
) -> bytes:
    """Open a call for the keys of a cohort's first roster; return the signed record.

    Raises ConfigError where there is a roster.
    """
    if rosters.newest(db) is not None:
        raise ConfigError("the log has a roster: open a call for its epoch, or for the next one")
    return _open(db, key, federation, cohort, epoch, closes_ms)


def _open(
    db: sqlite3.Connection,
    key: LogKey,
    federation: Federation,
    cohort: str,
    epoch: int,
    closes_ms: int,
) -> bytes:
    if key.public != federation.hospitals[0].log_key:
        raise ConfigError(f"{federation.hospitals[0].name} is the host and enrols devices")
    challenge = secrets.token_bytes(_CHALLENGE_BYTES)
    call = EnrolmentCall(federation.name, cohort, epoch, challenge, closes_ms)
    record = signing.sign(call, [key.seed])
    with transaction(db):
        db.execute("INSERT OR REPLACE INTO calls VALUES (1, ?)", (record,))
        db.execute("DELETE FROM refused_enrolments")
    return record


def close_call(db: sqlite3.Connection) -> None:
    """Close the call; where none is open nothing changes."""
    with transaction(db):
        db.execute("DELETE FROM calls")


def current_call(db: sqlite3.Connection) -> bytes | None:
    """Return the signed call that was opened last and not closed; it may have run out."""
    row = db.execute("SELECT record FROM calls").fetchone()
    return row[0] if row else None


def count_refused(db: sqlite3.Connection, counts: Mapping[str, int]) -> None:
    """Add to the counts of refused enrolments, by reason."""
    with transaction(db):
        for reason, count in counts.items():
            db.execute(
                "INSERT INTO refused_enrolments VALUES (?1, ?2) "
                "ON CONFLICT (reason) DO UPDATE SET count = count + ?2",
                (reason, count),
            )


def refused(db: sqlite3.Connection) -> dict[str, int]:
    """Return how many enrolments were refused since the call was opened, by reason."""
    return dict(db.execute("SELECT reason, count FROM refused_enrolments ORDER BY reason"))


def _rosters(db: sqlite3.Connection) -> list[Roster]:
    """Return the rosters of the log; each was verified before it was logged."""
    return [decode(Roster, decode(Signed, each).payload) for each in rosters.all_logged(db)]


def _lines(text: str, words: int) -> Iterable[list[str]]:
    for number, line in enumerate(text.splitlines(), 1):
        found = line.split("#", 1)[0].split()
        if not found:
            continue
        if len(found) != words or _DEVICE.fullmatch(found[0]) is None:
            raise ConfigError(f"line {number} is not a device's name and {words - 1} more words")
        yield found


def _hex(text: str) -> bytes:
    if _HEX.fullmatch(text) is None:
        raise ConfigError(f"{text[:80]!r} is not 64 lower-case hexadecimal digits")
    return bytes.fromhex(text)
