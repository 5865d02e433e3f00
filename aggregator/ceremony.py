"""The ceremony in which hospitals make the joint key of a study, by exchanging files.

Rules (SPEC 5.14): nobody makes a message before it holds and has checked those of all
others for the step before; everything secret, and every message, is on disk before it is
sent, and is sent again byte for byte; what convicts a hospital is shown to all and ends
the attempt. A ceremony holds no state of its own: each run reads its store, does what can
be done, and says for whom it waits.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace

from vitalring.aggregator import key_share
from vitalring.aggregator.ceremony_checks import Agreed, Checks, FaultError
from vitalring.aggregator.ceremony_maker import SHARE, Maker
from vitalring.aggregator.ceremony_store import MemoryStore, Store
from vitalring.aggregator.key_messages import Inbox, pack, unpack
from vitalring.errors import ConfigError
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
    fingerprint,
)
from vitalring.protocol.signing import public_key
from vitalring.protocol.threshold.params import ThresholdParams
from vitalring.protocol.threshold.pieces import SecretPiece

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

PUBLIC_KEY, SUM_KEY = "sum-key.bin", "sum-key.cbor"
_HEARD, _DONE = "heard", "done"


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
        self._agreed, self._hospital, self._seed, self._store = agreed, hospital, seed, store
        self._checks = checks or Checks(agreed)
        self._maker = Maker(agreed, hospital, seed, store, self._checks)

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
        return self._maker.share()

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
        self._store.keep(NAMES[cls], self._maker.make(cls, inbox))
        return self._next(self._read(), act=True)

    def _check(self, cls: type[KeyRecord], inbox: Inbox) -> None:
        """Check what others said in the step before a message of ours."""
        if cls is KeyDeal:
            self._checks.public_key(inbox)
        elif cls is KeyRehearsal:
            self._checks.joined(inbox, self.share().public_key)
        elif cls is KeyConsent:
            self._checks.rehearsed(inbox, self.share().public_key)

    def _finish(self, envelope: bytes) -> Status:
        share = self.share()
        self._store.publish(PUBLIC_KEY, share.public_key)
        self._store.publish(SUM_KEY, envelope)
        self._store.keep(_DONE, share.context)
        return self._finished(act=True)

    def _finished(self, *, act: bool) -> Status:
        if act:
            self._maker.forget()
            self._send(KeyConsent)
        return Status(len(STEPS), done=True, fingerprint=self._fingerprint())

    def _accuse(self, fault: FaultError, inbox: Inbox, *, act: bool) -> Ended:
        """Keep and send what convicts a hospital, unless another one has shown it already."""
        others = [h for cls, h in inbox.messages if cls is KeyComplaint]
        names = self._agreed.names
        if others:
            accused = tuple(names[h] for h in fault.accused if h < len(names))
            return Ended(accused, fault.fault, fault.detail, names[others[0]])
        boxes = fault.fault in ("bad_box", "bad_piece")
        record = KeyComplaint(
            context=self._agreed.context,
            hospital=self._hospital,
            accused=fault.accused,
            fault=fault.fault,
            detail=fault.detail[:1000],
            box_secret=self._maker.box_secret() if boxes else b"",
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
