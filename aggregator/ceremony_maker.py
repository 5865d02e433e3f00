"""One hospital's own messages in the ceremony of a joint key, step by step (SPEC 5.14).

Rules: what is drawn is drawn once and kept before a message follows from it, so a step that
is repeated says the same; pieces leave this module into sealed boxes and the kept share.
"""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from nacl.public import PrivateKey

from vitalring.aggregator import key_share
from vitalring.aggregator.ceremony_checks import Agreed, Checks, FaultError, seals
from vitalring.aggregator.ceremony_store import Store
from vitalring.aggregator.key_messages import Inbox, pack
from vitalring.aggregator.rehearsal import promised, rehearse
from vitalring.errors import CiphertextError, ConfigError
from vitalring.protocol import limits
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.key_records import (
    KeyCommit,
    KeyConsent,
    KeyDeal,
    KeyJoin,
    KeyRecord,
    KeyRehearsal,
    KeyReveal,
    PieceBox,
)
from vitalring.protocol.records import Bundle, Digest, Key
from vitalring.protocol.signing import public_key, sign
from vitalring.protocol.threshold.joint_key import (
    SALT_BYTES,
    commit,
    contribute,
    encode_contribution,
)
from vitalring.protocol.threshold.pieces import decode_piece, encode_piece
from vitalring.schema import Size

SHARE = "key.share"
_DRAFT, _PARTS = "draft", "parts"


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


class Maker:
    """Makes one hospital's messages; the caller has checked what they build on."""

    def __init__(
        self, agreed: Agreed, hospital: int, seed: bytes, store: Store, checks: Checks
    ) -> None:
        """Make messages as `hospital`, whose identity seed this is. Raises ConfigError if not."""
        if public_key(seed) != agreed.identity_keys[hospital]:
            raise ConfigError(
                f"this identity key is not the one of hospital {agreed.names[hospital]} in the "
                "federation's record"
            )
        self._agreed, self._hospital, self._seed = agreed, hospital, seed
        self._store, self._checks = store, checks

    def make(self, cls: type[KeyRecord], inbox: Inbox) -> bytes:
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

    def share(self) -> key_share.Share:
        """Return this hospital's share once it is kept. Raises ConfigError before."""
        data = self._store.kept(SHARE)
        if data is None:
            raise ConfigError("there is no key share yet: see the status")
        return key_share.decode(data, self._agreed.params, SHARE)

    def box_secret(self) -> bytes:
        """Return the key of our boxes, for a complaint; no bytes if nothing was drawn."""
        return b"" if self._store.kept(_DRAFT) is None else self._draft().box_secret

    def forget(self) -> None:
        """Drop what a finished ceremony leaves: nobody can open the boxes that travelled then."""
        for name in (_DRAFT, _PARTS):
            self._store.drop(name)
