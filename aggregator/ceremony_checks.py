"""What a hospital checks of the others' messages while a joint key is made (SPEC 5.14).

Rules: every check names the hospital that fails it and the messages that show it; nothing
of a message is used before it passed. A check that others could not repeat, of a box that
only one hospital opens, can be repeated once that hospital shows the key of its boxes.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from vitalring.aggregator.key_messages import Inbox, Message, read_files
from vitalring.aggregator.rehearsal import Rehearsal, check_rehearsal, prepare
from vitalring.errors import CiphertextError, ConfigError, VitalRingError
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.key_records import (
    KeyCommit,
    KeyComplaint,
    KeyConsent,
    KeyDeal,
    KeyJoin,
    KeyRecord,
    KeyRehearsal,
    KeyReveal,
    rehearsal_sets,
)
from vitalring.protocol.records import SumKey
from vitalring.protocol.signing import Signature, Signed, verify
from vitalring.protocol.threshold.joint_key import (
    Contribution,
    check_commitment,
    check_contribution,
    check_piece,
    decode_contribution,
    join,
)
from vitalring.protocol.threshold.params import ThresholdParams
from vitalring.protocol.threshold.pieces import SecretPiece, decode_piece


@dataclass(frozen=True)
class Agreed:
    """What the hospitals agreed on: parameters, context, and who they are, in order."""

    params: ThresholdParams
    context: bytes
    federation: str
    study: str
    names: tuple[str, ...]
    identity_keys: tuple[bytes, ...]

    def sum_key(self, public_key: bytes) -> SumKey:
        """Return the record that every hospital signs at the end."""
        return SumKey(self.federation, self.study, "threshold-he", digest(public_key))


class FaultError(ConfigError):
    """A hospital broke the rules of the ceremony; `evidence` are the files that show it."""

    def __init__(
        self, accused: Iterable[int], fault: str, detail: str, evidence: Iterable[Message] = ()
    ) -> None:
        super().__init__(detail)
        self.accused = tuple(accused)
        self.fault = fault
        self.detail = detail
        self.evidence = tuple(message.data for message in evidence)


class Checks:
    """The checks of one attempt; what passed is remembered for as long as a command runs."""

    def __init__(self, agreed: Agreed) -> None:
        self._agreed = agreed
        self._all = range(len(agreed.names))
        self._contributions: dict[bytes, Contribution] = {}
        self._rehearsals: dict[bytes, Rehearsal] = {}
        self._known: dict[bytes, Message] = {}

    def read(self, files: Iterable[tuple[str, bytes]]) -> Inbox:
        """Read the files of the exchange folder, given as names and contents."""
        return read_files(files, self._agreed.identity_keys, self._agreed.context, self._known)

    def honesty(self, inbox: Inbox) -> None:
        """Check that nobody says two things, and what others complain of. Raises FaultError."""
        # 1. One message a step.
        for pair in inbox.doubles:
            name = self._agreed.names[pair[0].record.hospital]
            raise FaultError(
                [pair[0].record.hospital],
                "two_messages",
                f"hospital {name} signed two different messages of one step: it deceives, "
                "somebody else has its identity key, or it lost its state and began again",
                pair,
            )
        # 2. Complaints: what they show is looked at here, and counts if it is so.
        for (cls, accuser), message in inbox.messages.items():
            if cls is KeyComplaint:
                self._judge(inbox, accuser, message)

    def contribution(self, inbox: Inbox, hospital: int) -> Contribution:
        """Check what a hospital revealed: as committed to, with proofs that hold.

        Raises FaultError.
        """
        params, context = self._agreed.params, self._agreed.context
        promise, opening = inbox.of(KeyCommit, hospital), inbox.of(KeyReveal, hospital)
        (data,) = inbox.objects(KeyReveal, hospital)
        known = digest(promise.commitment + opening.salt + data)
        if known in self._contributions:
            return self._contributions[known]
        name, fault = self._agreed.names[hospital], "broken_commitment"
        try:
            check_commitment(promise.commitment, hospital, data, opening.salt, context)
            fault = "bad_contribution"
            contribution = decode_contribution(data, hospital, params)
            check_contribution(contribution, context, params)
        except CiphertextError as error:
            raise FaultError(
                [hospital],
                fault,
                f"hospital {name}: {error}",
                self._messages(inbox, hospital, KeyCommit, KeyReveal),
            ) from error
        self._contributions[known] = contribution
        return contribution

    def revealed(self, inbox: Inbox, hospital: int) -> Contribution:
        """Return what a hospital revealed in a ceremony that is over. Raises ConfigError."""
        (data,) = inbox.objects(KeyReveal, hospital)
        try:
            return decode_contribution(data, hospital, self._agreed.params)
        except CiphertextError as error:
            raise ConfigError(f"hospital {self._agreed.names[hospital]}: {error}") from error

    def public_key(self, inbox: Inbox) -> bytes:
        """Return the joint key of all contributions. Raises FaultError."""
        params, context = self._agreed.params, self._agreed.context
        return join([self.contribution(inbox, h) for h in self._all], context, params)

    def dealt(
        self, inbox: Inbox, dealer: int, holder: int, box_secret: PrivateKey
    ) -> list[SecretPiece]:
        """Open a dealer's boxes for one holder and check the pieces. Raises FaultError."""
        params, access = self._agreed.params, self._agreed.params.access
        boxes = inbox.of(KeyDeal, dealer).boxes
        contribution, pieces = self.contribution(inbox, dealer), []
        shown = [
            *self._messages(inbox, dealer, KeyCommit, KeyReveal, KeyDeal),
            *self._messages(inbox, holder, KeyCommit),
        ]
        where = f"hospital {self._agreed.names[dealer]}"
        wanted = [(p, h) for p in access.dealt_by(dealer) for h in access.holders(p) if h != dealer]
        if [(box.piece, box.holder) for box in boxes] != wanted:
            raise FaultError([dealer], "bad_box", f"{where} dealt other pieces than its own", shown)
        for box in boxes:
            if box.holder != holder:
                continue
            fault = "bad_box"
            try:
                plain = SealedBox(box_secret).decrypt(box.box)
                fault = "bad_piece"
                piece = decode_piece(plain, box.piece, params.bfv.degree)
                check_piece(piece, contribution, self._agreed.context, params)
            except (CiphertextError, CryptoError, ValueError, TypeError) as error:
                raise FaultError(
                    [dealer],
                    fault,
                    f"{where} dealt piece {box.piece} to {self._agreed.names[holder]} wrongly: "
                    f"{error}",
                    shown,
                ) from error
            pieces.append(piece)
        return pieces

    def rehearsal(self, public_key: bytes) -> Rehearsal:
        """Return what is decrypted in the rehearsal of a key."""
        if public_key not in self._rehearsals:
            made = prepare(self._agreed.context, public_key, self._agreed.params)
            self._rehearsals[public_key] = made
        return self._rehearsals[public_key]

    def joined(self, inbox: Inbox, public_key: bytes) -> None:
        """Check that all computed the same key of the same contributions. Raises FaultError."""
        ours = tuple(digest(inbox.objects(KeyReveal, h)[0]) for h in self._all)
        sets = rehearsal_sets(self._agreed.params.access)
        total = self.rehearsal(public_key).digest
        for hospital in self._all:
            record = inbox.of(KeyJoin, hospital)
            name = self._agreed.names[hospital]
            shown = self._messages(inbox, hospital, KeyJoin)
            differ = [h for h in self._all if record.contributions[h : h + 1] != ours[h : h + 1]]
            if differ or len(record.contributions) != len(ours):
                liars = ", ".join(self._agreed.names[h] for h in differ)
                raise FaultError(
                    [*differ, hospital],
                    "other_key",
                    f"hospital {name} holds another contribution of {liars} than is here: {liars} "
                    f"sent two, or {name} says what is not so; compare the two files",
                    [*shown, *(m for h in differ for m in self._messages(inbox, h, KeyReveal))],
                )
            if (record.key, record.total) != (digest(public_key), total):
                raise FaultError(
                    [hospital],
                    "other_key",
                    f"hospital {name} computed another key or rehearsal of the same contributions: "
                    "install the same release of vitalring everywhere",
                    shown,
                )

            if len(record.promises) != sum(hospital in members for members in sets):
                raise FaultError(
                    [hospital],
                    "broken_promise",
                    f"hospital {name} promises {len(record.promises)} parts of the rehearsal, not "
                    "one for each set of members that it belongs to",
                    shown,
                )

    def rehearsed(self, inbox: Inbox, public_key: bytes) -> None:
        """Check promises, then the decryption by every set of members. Raises FaultError."""
        objects = {}
        for hospital in self._all:
            if inbox.of(KeyRehearsal, hospital).parts != inbox.of(KeyJoin, hospital).promises:
                raise FaultError(
                    [hospital],
                    "broken_promise",
                    f"hospital {self._agreed.names[hospital]} shows other parts of the rehearsal "
                    "than it promised",
                    self._messages(inbox, hospital, KeyJoin, KeyRehearsal),
                )
            flat = inbox.objects(KeyRehearsal, hospital)
            objects[hospital] = list(zip(flat[::2], flat[1::2], strict=True))
        failed = check_rehearsal(objects, self.rehearsal(public_key))
        if failed:
            sets = "; ".join(" and ".join(self._agreed.names[h] for h in s) for s in failed)
            accused = sorted({h for members in failed for h in members})
            raise FaultError(
                accused,
                "bad_rehearsal",
                f"the key does not decrypt with {sets}: in each of these sets one hospital at "
                "least gave a wrong part, or drew a wrong piece",
                [m for h in accused for m in self._messages(inbox, h, KeyJoin, KeyRehearsal)],
            )

    def consents(self, inbox: Inbox, public_key: bytes) -> bytes:
        """Return the study's `SumKey` with the signatures of all. Raises FaultError."""
        expected = encode(self._agreed.sum_key(public_key))
        signatures: list[Signature] = []
        for hospital in self._all:
            key = self._agreed.identity_keys[hospital]
            envelope = inbox.of(KeyConsent, hospital).sum_key
            try:
                verify(SumKey, envelope, {key}, 1)
                signed = decode(Signed, envelope)
            except VitalRingError as error:
                raise self._consent_fault(inbox, hospital) from error
            if signed.payload != expected:
                raise self._consent_fault(inbox, hospital)
            signatures += signed.signatures
        return encode(Signed(expected, tuple(sorted(signatures, key=lambda s: s.key))))

    def _consent_fault(self, inbox: Inbox, hospital: int) -> FaultError:
        return FaultError(
            [hospital],
            "other_key",
            f"hospital {self._agreed.names[hospital]} signed something else than this key",
            self._messages(inbox, hospital, KeyConsent),
        )

    def _judge(self, inbox: Inbox, accuser: int, message: Message) -> None:
        """Look at what a complaint shows. Always raises FaultError: the attempt is over."""
        complaint = message.record
        assert isinstance(complaint, KeyComplaint)  # noqa: S101 - filed under its type
        for hospital in complaint.accused:
            if hospital in self._all and self._have(inbox, hospital, KeyCommit, KeyReveal):
                self.contribution(inbox, hospital)
        name = self._agreed.names[accuser]
        if len(complaint.box_secret) == PrivateKey.SIZE and len(complaint.accused) == 1:
            (dealer,) = complaint.accused
            secret = PrivateKey(complaint.box_secret)
            if (
                dealer in self._all
                and self._have(inbox, dealer, KeyCommit, KeyReveal, KeyDeal)
                and self._have(inbox, accuser, KeyCommit)
                and inbox.of(KeyCommit, accuser).box_key == bytes(secret.public_key)
            ):
                self.dealt(inbox, dealer, accuser, secret)
                raise FaultError(
                    [accuser],
                    "complaint",
                    f"hospital {name} complains of boxes that are in order: it is the one at fault",
                    [message],
                )
        names = ", ".join(self._agreed.names[h] for h in complaint.accused if h in self._all)
        raise FaultError(
            complaint.accused,
            "complaint",
            f"hospital {name} ended this attempt and names {names or 'nobody'}: "
            f"{complaint.detail}; what is here does not show it by itself",
            [message],
        )

    @staticmethod
    def _have(inbox: Inbox, hospital: int, *kinds: type[KeyRecord]) -> bool:
        return all((kind, hospital) in inbox.messages for kind in kinds)

    @staticmethod
    def _messages(inbox: Inbox, hospital: int, *kinds: type[KeyRecord]) -> list[Message]:
        found = (inbox.messages.get((kind, hospital)) for kind in kinds)
        return [message for message in found if message is not None]


def seals(box_key: bytes, plain: bytes) -> bytes:
    """Seal a piece to a holder's box key. Raises CiphertextError for a key that is none."""
    try:
        return SealedBox(PublicKey(box_key)).encrypt(plain)
    except (CryptoError, ValueError, TypeError, RuntimeError) as error:
        raise CiphertextError(f"a box key that nothing can be sealed to: {error}") from error
