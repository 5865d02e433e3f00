"""The files that hospitals exchange while they make a joint key: to bytes and back.

Rules (SPEC 5.14): a file says by its content, not by its name, what it is and whose; a
record counts only with its hospital's identity signature and in this ceremony's context;
objects are those that the record names by digest. What was damaged on the way is told
apart from what its sender signed: only the second accuses anybody.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from vitalring.errors import RecordError, SignatureError, VitalRingError
from vitalring.protocol.cbor import decode, digest, encode, type_of
from vitalring.protocol.key_records import (
    STEPS,
    KeyCommit,
    KeyComplaint,
    KeyConsent,
    KeyDeal,
    KeyJoin,
    KeyRecord,
    KeyRehearsal,
    KeyReveal,
)
from vitalring.protocol.records import Bundle
from vitalring.protocol.signing import Signed, sign, verify

R = TypeVar("R", KeyCommit, KeyReveal, KeyDeal, KeyJoin, KeyRehearsal, KeyConsent, KeyComplaint)

_TYPES: Mapping[str, type[KeyRecord]] = {cls.TYPE: cls for cls in (*STEPS, KeyComplaint)}


@dataclass(frozen=True, eq=False)
class Message:
    """One hospital's message, verified; `data` is the whole file."""

    record: KeyRecord
    objects: tuple[bytes, ...] = field(repr=False)
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Inbox:
    """What lies in the exchange folder.

    `doubles` are pairs of different messages of one hospital for one step. `unread` says of
    each file that cannot be used why; `foreign` counts those of other attempts or studies.
    """

    messages: Mapping[tuple[type[KeyRecord], int], Message]
    doubles: tuple[tuple[Message, Message], ...]
    unread: tuple[str, ...]
    foreign: int

    def of(self, cls: type[R], hospital: int) -> R:
        """Return a hospital's record; the caller knows that it is there."""
        record = self.messages[cls, hospital].record
        if not isinstance(record, cls):
            raise TypeError(f"{record} filed as {cls}")
        return record

    def objects(self, cls: type[KeyRecord], hospital: int) -> tuple[bytes, ...]:
        """Return the objects that came with a hospital's record."""
        return self.messages[cls, hospital].objects

    def missing(self, cls: type[KeyRecord], hospitals: int) -> tuple[int, ...]:
        """Return the hospitals whose message of this kind is not here."""
        return tuple(h for h in range(hospitals) if (cls, h) not in self.messages)


def pack(record: KeyRecord, seed: bytes, objects: Sequence[bytes] = ()) -> bytes:
    """Return the file of a record, signed with the hospital's identity seed."""
    return encode(Bundle(sign(record, [seed]), tuple(objects)))


def unpack(data: bytes, identity_keys: Sequence[bytes]) -> Message:
    """Read a file. Raises RecordError or SignatureError, saying what is wrong."""
    bundle = decode(Bundle, data)
    kind = type_of(decode(Signed, bundle.record).payload)
    if kind not in _TYPES:
        raise RecordError(f"it holds a record of type {kind}, which is no message of a key")
    record = verify(_TYPES[kind], bundle.record, set(identity_keys), 1)
    # 1. One signature, that of the hospital which the record names.
    signers = [signature.key for signature in decode(Signed, bundle.record).signatures]
    if record.hospital >= len(identity_keys) or signers != [identity_keys[record.hospital]]:
        raise SignatureError(f"it is not signed by hospital {record.hospital}, which it names")
    # 2. The objects are those that were signed.
    if not isinstance(record, KeyComplaint) and _named(record) != [
        digest(content) for content in bundle.objects
    ]:
        raise RecordError("what is in it is not what was signed")
    return Message(record, bundle.objects, data)


def read_files(
    files: Iterable[tuple[str, bytes]],
    identity_keys: Sequence[bytes],
    context: bytes,
    known: dict[bytes, Message],
) -> Inbox:
    """Read all files of an exchange folder, given as names and contents.

    The evidence inside complaints counts as if it had been there as files. `known` holds what
    was verified before, by the digest of the file, and takes up what is new.
    """
    messages: dict[tuple[type[KeyRecord], int], Message] = {}
    doubles: list[tuple[Message, Message]] = []
    unread: list[str] = []
    foreign = 0
    queue = list(files)
    while queue:
        name, data = queue.pop(0)
        sha256 = digest(data)
        try:
            message = known.get(sha256) or unpack(data, identity_keys)
        except VitalRingError as error:
            unread.append(f"{name}: {error}")
            continue
        known[sha256] = message
        if message.record.context != context:
            foreign += 1
            continue
        key = (type(message.record), message.record.hospital)
        if isinstance(message.record, KeyComplaint):
            queue += [(f"{name}, evidence", each) for each in message.objects]
        earlier = messages.setdefault(key, message)
        # Two complaints of one hospital are not a lie.
        if earlier.data != message.data and not isinstance(message.record, KeyComplaint):
            doubles.append((earlier, message))
    return Inbox(messages, tuple(doubles), tuple(unread), foreign)


def _named(record: KeyRecord) -> list[bytes]:
    """Return the digests of the objects that a record names."""
    if isinstance(record, KeyReveal):
        return [record.contribution]
    if isinstance(record, KeyRehearsal):
        return [name for part in record.parts for name in (part.check, part.part)]
    return []
