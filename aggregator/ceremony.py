"""The ceremony in which hospitals make the joint key of a study, by exchanging files.

Rules (SPEC 5.14): nobody makes a message before it holds and has checked those of all
others for the step before; everything secret, and every message, is on disk before it is
sent, and is sent again byte for byte; what convicts a hospital is shown to all and ends
the attempt. A ceremony holds no state of its own: each run reads its store, does what can
be done, and says for whom it waits.
"""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Protocol

from nacl.public import PrivateKey

from vitalring.aggregator import key_share
from vitalring.aggregator.ceremony_checks import Agreed, Checks, FaultError, seals
from vitalring.aggregator.key_messages import Inbox, pack, unpack
from vitalring.aggregator.rehearsal import promised, rehearse
from vitalring.errors import CiphertextError, ConfigError
from vitalring.protocol import limits
from vitalring.protocol.cbor import decode, digest, encode
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
    PieceBox,
    fingerprint,
)
from vitalring.protocol.records import Bundle, Digest, Key
from vitalring.protocol.signing import public_key, sign
from vitalring.protocol.threshold.joint_key import (
    SALT_BYTES,
    commit,
    contribute,
    encode_contribution,
)
from vitalring.protocol.threshold.params import ThresholdParams
from vitalring.protocol.threshold.pieces import SecretPiece, decode_piece, encode_piece
from vitalring.schema import Size

NAMES: Mapping[type[KeyRecord], str] = {
    KeyCommit: "1-commit",
    KeyReveal: "2-reveal",
    KeyDeal: "3-deal",
    KeyJoin: "4-join",
    KeyRehearsal: "5-rehearse",
    KeyConsent: "6-consent",
    KeyComplaint: "complaint",
}
"""What messages are called in file names; a reader goes by the content."""

SHARE, PUBLIC_KEY, SUM_KEY = "key.share", "sum-key.bin", "sum-key.cbor"
_DRAFT, _PARTS, _HEARD, _DONE = "draft", "parts", "heard", "done"


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
class Ended:
    """Why an attempt is over: whom it names, what happened, and who says so."""

    accused: tuple[str, ...]
    fault: str
    detail: str
    accuser: str


@dataclass(frozen=True)
class Status:
    """Where a hospital stands. `step` counts the messages that it has made, of six.

    `waiting` names the hospitals without whose `awaited` message nothing goes on; `ready`
    says that this hospital can go on now; `compare` that its people must first compare
    fingerprints; `unread` says of each file that cannot be used why.
    """

    step: int
    awaited: str = ""
    waiting: tuple[str, ...] = ()
    ready: bool = False
    compare: bool = False
    done: bool = False
    fingerprint: str = ""
    unread: tuple[str, ...] = ()
    foreign: int = 0
    ended: Ended | None = None


@dataclass(frozen=True)
class Draft:
    """What a hospital drew at its start; secret."""

    TYPE: ClassVar[str] = "vitalring/key-draft/1"
    MAX_BYTES: ClassVar[int] = 16 * limits.MIB

    context: Digest
    salt: Annotated[bytes, Size(SALT_BYTES)] = field(repr=False)
    box_secret: Key = field(repr=False)
    contribution: bytes = field(repr=False)
    pieces: Annotated[tuple[bytes, ...], Size(1, 64)] = field(repr=False)


class Ceremony:
    """One hospital's part in one attempt at a joint key."""

    def __init__(
        self,
        agreed: Agreed,
        hospital: int,
        seed: bytes,
        store: Store,
        checks: Checks | None = None,
    ) -> None:
        """Take part as `hospital`, whose identity seed this is; `checks` may be shared here.

        Raises ConfigError if the seed is another hospital's.
        """
        if public_key(seed) != agreed.identity_keys[hospital]:
            raise ConfigError(
                f"this identity key is not the one of hospital {agreed.names[hospital]} in the "
                "federation's record"
            )
        self._agreed, self._hospital, self._seed, self._store = agreed, hospital, seed, store
        self._checks = checks or Checks(agreed)

    def status(self) -> Status:
        """Say where this hospital stands, and write nothing."""
        return self._go(act=False)

    def advance(self) -> Status:
        """Do all that can be done with the messages that are here."""
        return self._go(act=True)

    def confirm(self, heard: str) -> None:
        """Note that people heard this fingerprint from every other hospital.

        Raises ConfigError if it is not ours: then nothing may be signed.
        """
        shown = self.status().fingerprint
        if not shown:
            raise ConfigError("there is no key to compare yet: see the status")
        if "".join(heard.split()).lower() != "".join(shown.split()):
            raise ConfigError(
                f"they read {heard}, here it is {shown}: read it once more. If it stays different, "
                "somebody shows the hospitals different files: sign nothing, compare the "
                "fingerprints of the authority's key, and begin anew"
            )
        if self._store.kept(_HEARD) is None:
            self._store.keep(_HEARD, shown.encode())

    def share(self) -> key_share.Share:
        """Return this hospital's share once it is kept. Raises ConfigError before."""
        data = self._store.kept(SHARE)
        if data is None:
            raise ConfigError("there is no key share yet: see the status")
        return key_share.decode(data, self._agreed.params, SHARE)

    def _go(self, *, act: bool) -> Status:
        if self._store.kept(_DONE) is not None:
            return self._finished(act=act)
        inbox = self._read()
        try:
            status = self._next(inbox, act=act)
        except FaultError as fault:
            status = Status(self._step(), ended=self._accuse(fault, inbox, act=act))
        return replace(status, unread=inbox.unread, foreign=inbox.foreign)

    def _next(self, inbox: Inbox, *, act: bool) -> Status:
        """Make the next message if all is there that it needs; go on until something is missing."""
        step = self._step()
        ours = self._kept(KeyComplaint)
        if act:
            for cls in (*STEPS, KeyComplaint):
                self._send(cls)
        if ours is not None:
            return Status(step, ended=self._ended(ours))
        self._checks.honesty(inbox)
        shown = self._fingerprint()
        # 1. All messages of the step before.
        if step:
            before = STEPS[step - 1]
            missing = inbox.missing(before, len(self._agreed.names))
            if missing:
                waiting = tuple(self._agreed.names[h] for h in missing)
                return Status(step, NAMES[before], waiting, fingerprint=shown)
        # 2. At the end, the signatures of all.
        if step == len(STEPS):
            envelope = self._checks.consents(inbox, self.share().public_key)
            return self._finish(envelope) if act else Status(step, ready=True, fingerprint=shown)
        # 3. What was said is checked, before anything is said that builds on it.
        cls = STEPS[step]
        if act:
            self._check(cls, inbox)
        # 4. People compare what only people can.
        if cls is KeyConsent and self._store.kept(_HEARD) != shown.encode():
            return Status(step, compare=True, fingerprint=shown)
        if not act:
            return Status(step, ready=True, fingerprint=shown)
        self._store.keep(NAMES[cls], self._make(cls, inbox))
        return self._next(self._read(), act=True)

    def _check(self, cls: type[KeyRecord], inbox: Inbox) -> None:
        """Check what others said in the step before a message of ours."""
        if cls is KeyDeal:
            self._checks.public_key(inbox)
        elif cls is KeyRehearsal:
            self._checks.joined(inbox, self.share().public_key)
        elif cls is KeyConsent:
            self._checks.rehearsed(inbox, self.share().public_key)

    def _make(self, cls: type[KeyRecord], inbox: Inbox) -> bytes:
        """Return our message of one step, after keeping what is secret behind it."""
        objects: tuple[bytes, ...] = ()
        head = (self._agreed.context, self._hospital)
        record: KeyRecord
        if cls is KeyCommit:
            draft = self._draw()
            commitment = commit(self._hospital, draft.contribution, draft.salt, draft.context)
            box_key = bytes(PrivateKey(draft.box_secret).public_key)
            record = KeyCommit(*head, commitment, box_key)
        elif cls is KeyReveal:
            draft = self._draft()
            record = KeyReveal(*head, draft.salt, digest(draft.contribution))
            objects = (draft.contribution,)
        elif cls is KeyDeal:
            record = KeyDeal(*head, tuple(self._boxes(inbox)))
        elif cls is KeyJoin:
            record = self._join(inbox)
        elif cls is KeyRehearsal:
            objects = self._parts()
            record = KeyRehearsal(
                *head, promised(tuple(zip(objects[::2], objects[1::2], strict=True)))
            )
        else:
            sum_key = self._agreed.sum_key(self.share().public_key)
            record = KeyConsent(*head, sign(sum_key, [self._seed]))
        return pack(record, self._seed, objects)

    def _draw(self) -> Draft:
        """Draw this hospital's pieces, once."""
        if self._store.kept(_DRAFT) is None:
            agreed = self._agreed
            pieces, contribution = contribute(self._hospital, agreed.context, agreed.params)
            draft = Draft(
                context=agreed.context,
                salt=secrets.token_bytes(SALT_BYTES),
                box_secret=bytes(PrivateKey.generate()),
                contribution=encode_contribution(contribution, agreed.params),
                pieces=tuple(map(encode_piece, pieces)),
            )
            self._store.keep(_DRAFT, encode(draft))
        return self._draft()

    def _draft(self) -> Draft:
        data = self._store.kept(_DRAFT)
        if data is None:
            raise ConfigError(
                "this hospital's private state is gone: begin anew, with the next attempt"
            )
        return decode(Draft, data)

    def _boxes(self, inbox: Inbox) -> Iterable[PieceBox]:
        """Seal each piece that we deal to each of its other holders."""
        access = self._agreed.params.access
        dealt = access.dealt_by(self._hospital)
        for index, plain in zip(dealt, self._draft().pieces, strict=True):
            for holder in access.holders(index):
                if holder != self._hospital:
                    box_key = inbox.of(KeyCommit, holder).box_key
                    try:
                        yield PieceBox(index, holder, seals(box_key, plain))
                    except CiphertextError as error:
                        raise FaultError(
                            [holder],
                            "bad_box",
                            f"hospital {self._agreed.names[holder]}: {error}",
                            [inbox.messages[KeyCommit, holder]],
                        ) from error

    def _join(self, inbox: Inbox) -> KeyJoin:
        """Open and check what was dealt to us; keep the share, and our parts of the rehearsal."""
        agreed, draft = self._agreed, self._draft()
        public = self._checks.public_key(inbox)
        if self._store.kept(SHARE) is None:
            access, degree = agreed.params.access, agreed.params.bfv.degree
            dealt = access.dealt_by(self._hospital)
            pieces = [
                decode_piece(data, index, degree)
                for index, data in zip(dealt, draft.pieces, strict=True)
            ]
            secret = PrivateKey(draft.box_secret)
            for dealer in range(access.hospitals):
                if dealer != self._hospital:
                    pieces += self._checks.dealt(inbox, dealer, self._hospital, secret)
            held = tuple(sorted(pieces, key=lambda piece: piece.index))
            share = key_share.Share(self._hospital, agreed.context, public, held)
            self._store.keep(SHARE, key_share.encode(share, agreed.params))
        share, rehearsal = self.share(), self._checks.rehearsal(public)
        if self._store.kept(_PARTS) is None:
            made = rehearse(self._hospital, share.pieces, rehearsal)
            flat = tuple(part for pair in made for part in pair)
            self._store.keep(_PARTS, encode(Bundle(b"", flat)))
        objects = self._parts()
        return KeyJoin(
            context=agreed.context,
            hospital=self._hospital,
            contributions=tuple(
                digest(inbox.objects(KeyReveal, h)[0]) for h in range(len(agreed.names))
            ),
            key=digest(public),
            total=rehearsal.digest,
            promises=promised(tuple(zip(objects[::2], objects[1::2], strict=True))),
        )

    def _parts(self) -> tuple[bytes, ...]:
        data = self._store.kept(_PARTS)
        if data is None:
            raise ConfigError("the rehearsal of this hospital is gone: begin anew")
        return decode(Bundle, data).objects

    def _finish(self, envelope: bytes) -> Status:
        share = self.share()
        self._store.publish(PUBLIC_KEY, share.public_key)
        self._store.publish(SUM_KEY, envelope)
        self._store.keep(_DONE, share.context)
        return self._finished(act=True)

    def _finished(self, *, act: bool) -> Status:
        # From here on nobody can open the boxes that travelled.
        for name in (_DRAFT, _PARTS) if act else ():
            self._store.drop(name)
        if act:
            self._send(KeyConsent)
        return Status(len(STEPS), done=True, fingerprint=self._fingerprint())

    def _accuse(self, fault: FaultError, inbox: Inbox, *, act: bool) -> Ended:
        """Keep and send what convicts a hospital, unless another one has shown it already."""
        others = [h for cls, h in inbox.messages if cls is KeyComplaint]
        names = self._agreed.names
        if others:
            accused = tuple(names[h] for h in fault.accused if h < len(names))
            return Ended(accused, fault.fault, fault.detail, names[others[0]])
        draft = self._store.kept(_DRAFT)
        boxes = fault.fault in ("bad_box", "bad_piece") and draft is not None
        record = KeyComplaint(
            context=self._agreed.context,
            hospital=self._hospital,
            accused=fault.accused,
            fault=fault.fault,
            detail=fault.detail[:1000],
            box_secret=self._draft().box_secret if boxes else b"",
        )
        data = pack(record, self._seed, fault.evidence)
        if act:
            self._store.keep(NAMES[KeyComplaint], data)
            self._send(KeyComplaint)
        return self._ended(data)

    def _ended(self, data: bytes) -> Ended:
        record = unpack(data, self._agreed.identity_keys).record
        if not isinstance(record, KeyComplaint):
            raise ConfigError("what is kept as a complaint is none: the private state is damaged")
        names = self._agreed.names
        accused = tuple(names[h] for h in record.accused)
        return Ended(accused, record.fault, record.detail, names[record.hospital])

    def _read(self) -> Inbox:
        """Read all messages; our own count even if somebody removed their files."""
        files = list(self._store.files())
        for cls in (*STEPS, KeyComplaint):
            kept = self._kept(cls)
            if kept is not None:
                files.append((self._file_name(cls), kept))
        return self._checks.read(files)

    def _kept(self, cls: type[KeyRecord]) -> bytes | None:
        return self._store.kept(NAMES[cls])

    def _send(self, cls: type[KeyRecord]) -> None:
        kept = self._kept(cls)
        if kept is not None:
            self._store.send(self._file_name(cls), kept)

    def _file_name(self, cls: type[KeyRecord]) -> str:
        return f"{NAMES[cls]}.{self._agreed.names[self._hospital]}.cbor"

    def _step(self) -> int:
        return sum(self._kept(cls) is not None for cls in STEPS)

    def _fingerprint(self) -> str:
        """Return the fingerprint of the joint key, nothing while there is none."""
        if self._store.kept(SHARE) is None:
            return ""
        share = self.share()
        return fingerprint(share.context, share.public_key)


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


def joint_key_here(
    params: ThresholdParams, context: bytes
) -> tuple[bytes, tuple[tuple[SecretPiece, ...], ...]]:
    """Make a joint key with all hospitals on this machine, for simulations and demonstrations.

    Returns the public key as devices load it, and for each hospital the pieces that it holds.
    The ceremony is the real one, with identities that are forgotten; that the hospitals are
    in one process is the only protection that is missing, and it is all of it.
    """
    seeds = [secrets.token_bytes(32) for _ in range(params.access.hospitals)]
    agreed = Agreed(
        params=params,
        context=context,
        federation="here",
        study="here",
        names=tuple(f"hospital-{number}" for number in range(1, len(seeds) + 1)),
        identity_keys=tuple(map(public_key, seeds)),
    )
    exchange: dict[str, bytes] = {}
    # All trust this process, so what one has verified the others need not verify again.
    checks = Checks(agreed)
    stores = [MemoryStore(exchange) for _ in seeds]
    parties = [
        Ceremony(agreed, hospital, seed, store, checks)
        for hospital, (seed, store) in enumerate(zip(seeds, stores, strict=True))
    ]
    states = [Status(0)]
    while not all(state.done for state in states):
        states = [party.advance() for party in parties]
        for party, state in zip(parties, states, strict=True):
            if state.ended is not None:
                raise ConfigError(f"no joint key: {state.ended.detail}")
            if state.compare:
                party.confirm(states[0].fingerprint)
    shares = [party.share() for party in parties]
    return shares[0].public_key, tuple(share.pieces for share in shares)
