"""How a ring key that a device drew itself comes to be known (SPEC 13).

The enrolment office, at the host's gateway, calls for keys of one epoch; a device answers with
a fresh key, proof that it has the secret, and a voucher: a ticket that was put on it before, or
its key of an earlier epoch. The proofs are those of SPEC 6.11 in contexts that hold the call's
challenge, so that an answer serves once, for one key and one call. No clock, no state.
"""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Final

from vitalring.errors import RecordError, SignatureError
from vitalring.protocol import group, lsag, sealing, signing
from vitalring.protocol.cbor import digest, encode
from vitalring.protocol.records import Digest, Federation, Index, Key, Name, Time
from vitalring.schema import Size

SUITE: Final = b"vitalring/enrolment/1/edwards25519-sha512"
TICKET_BYTES: Final = 32
BOX_BYTES: Final = sealing.PAD_STEP + sealing.OVERHEAD
"""Length of every sealed enrolment: all of them fit one step of padding (SPEC 13.4)."""

Proof = Annotated[bytes, Size(lsag.POSSESSION_BYTES)]


@dataclass(frozen=True)
class EnrolmentCall:
    """The office's question to all devices of a cohort. Signed with the host's log key."""

    TYPE: ClassVar[str] = "vitalring/enrolment-call/1"
    MAX_BYTES: ClassVar[int] = 512

    federation: Name
    cohort: Name
    epoch: Index
    challenge: Digest
    closes_ms: Time


@dataclass(frozen=True)
class PreviousKey:
    """A device's key of an earlier epoch as its voucher, with proof that it has the secret."""

    epoch: Index
    key: Key
    proof: Proof


@dataclass(frozen=True)
class Enrolment:
    """A device's answer to a call. Exactly one of `ticket` and `previous` is there."""

    TYPE: ClassVar[str] = "vitalring/enrolment/1"
    MAX_BYTES: ClassVar[int] = 768

    federation: Name
    cohort: Name
    epoch: Index
    challenge: Digest
    key: Key
    possession: Proof
    ticket: Annotated[bytes, Size(0, TICKET_BYTES)] = field(repr=False)
    previous: PreviousKey | None


def open_call(data: bytes, federation: Federation) -> EnrolmentCall:
    """Open a call: the host's log key alone signs it, for this federation (SPEC 13.2).

    Raises SignatureError or RecordError.
    """
    call = signing.verify(EnrolmentCall, data, {federation.hospitals[0].log_key}, 1)
    if call.federation != federation.name:
        raise RecordError(f"the call is of federation {call.federation}, not {federation.name}")
    return call


def with_ticket(call: EnrolmentCall, new: lsag.KeyPair, ticket: bytes) -> Enrolment:
    """Return the answer of a device that has a ticket of 32 bytes (SPEC 13.3)."""
    return _answer(call, new, ticket, None)


def with_previous(
    call: EnrolmentCall, new: lsag.KeyPair, epoch: int, previous: lsag.KeyPair
) -> Enrolment:
    """Return the answer of a device with a key of an earlier epoch (SPEC 13.3)."""
    proof = lsag.prove_possession(previous.secret, voucher_context(call, epoch, new.public))
    return _answer(call, new, b"", PreviousKey(epoch, previous.public, proof))


def seal(enrolment: Enrolment, host_key: bytes) -> bytes:
    """Return an enrolment in a box that the host's gateway alone opens: `BOX_BYTES` long."""
    return sealing.seal(encode(enrolment), host_key)


def check_call(enrolment: Enrolment, call: EnrolmentCall) -> None:
    """Refuse an answer to another call, or without exactly one voucher. Raises RecordError."""
    asked = (call.federation, call.cohort, call.epoch, call.challenge)
    if (enrolment.federation, enrolment.cohort, enrolment.epoch, enrolment.challenge) != asked:
        raise RecordError(f"the enrolment answers another call than that for epoch {call.epoch}")
    if len(enrolment.ticket) not in (0, TICKET_BYTES):
        raise RecordError(f"a ticket has {TICKET_BYTES} bytes, not {len(enrolment.ticket)}")
    if bool(enrolment.ticket) == (enrolment.previous is not None):
        raise RecordError("an enrolment has a ticket or a previous key, and not both")
    if enrolment.previous is not None and enrolment.previous.epoch >= call.epoch:
        raise RecordError(f"a key of epoch {enrolment.previous.epoch} is no earlier one")


def check_proofs(enrolment: Enrolment, call: EnrolmentCall) -> None:
    """Check that whoever answered has the new secret, and the previous one if it is the voucher.

    Raises SignatureError (SPEC 13.3).
    """
    context = key_context(call, enrolment.ticket, enrolment.previous)
    lsag.verify_possession(enrolment.key, context, enrolment.possession)
    if (old := enrolment.previous) is not None:
        if old.key == enrolment.key:
            raise SignatureError("an epoch's key is a fresh one, not the voucher")
        lsag.verify_possession(old.key, voucher_context(call, old.epoch, enrolment.key), old.proof)


def ticket_hash(ticket: bytes) -> bytes:
    """Return what the office keeps of a ticket: its SHA-256. Tickets are random."""
    return digest(ticket)


def _answer(
    call: EnrolmentCall, new: lsag.KeyPair, ticket: bytes, previous: PreviousKey | None
) -> Enrolment:
    possession = lsag.prove_possession(new.secret, key_context(call, ticket, previous))
    names = (call.federation, call.cohort, call.epoch, call.challenge)
    return Enrolment(*names, new.public, possession, ticket, previous)


def key_context(call: EnrolmentCall, ticket: bytes, previous: PreviousKey | None) -> bytes:
    """Context of the new key's proof: the call, and the voucher that comes with the key."""
    if previous is None:
        voucher = group.frame(b"ticket", ticket)
    else:
        voucher = group.frame(b"key", _number(previous.epoch), previous.key)
    return group.frame(SUITE + b"/new", _call(call), voucher)


def voucher_context(call: EnrolmentCall, epoch: int, new: bytes) -> bytes:
    """Context of the previous key's proof: the call, its own epoch, and the key that follows."""
    return group.frame(SUITE + b"/previous", _call(call), _number(epoch), new)


def _call(call: EnrolmentCall) -> bytes:
    names = (call.federation.encode(), call.cohort.encode())
    return group.frame(*names, _number(call.epoch), call.challenge)


def _number(value: int) -> bytes:
    return value.to_bytes(8, "little")
