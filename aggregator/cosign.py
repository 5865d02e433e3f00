"""Plans and models that several hospitals sign (SPEC 11.14).

One hospital drafts, in turn; the others compare the draft with what they would have said
themselves, and add their signatures. Two signatures by one hospital on different plans of a
round do no harm: the gateway logs one of them, a device takes part in one, and a hospital
decrypts once a round.
"""

from dataclasses import replace

from vitalring.errors import RecordError
from vitalring.protocol import limits
from vitalring.protocol.cbor import decode, encode
from vitalring.protocol.records import GlobalModel, RoundPlan
from vitalring.protocol.signing import Signed, merge, sign_payload


class Draft:
    """A record that this hospital drafted, with the signatures gathered so far."""

    def __init__(self, record: RoundPlan | GlobalModel, seed: bytes, quorum: int) -> None:
        self.own = sign_payload(encode(record), [seed])
        self._quorum = quorum
        self._complete: bytes | None = None
        self._parts = {self._signer(self.own): self.own}

    def add(self, signed: bytes) -> None:
        """Take another hospital's signature, which its caller verified; of other drafts none."""
        if decode(Signed, signed).payload == decode(Signed, self.own).payload:
            self._parts[self._signer(signed)] = signed

    def complete(self) -> bytes | None:
        """Return the record with a quorum's signatures, or None while they are fewer.

        Always the same one: another choice of signers would be another record.
        """
        if self._complete is None and len(self._parts) >= self._quorum:
            self._complete = merge(list(self._parts.values()))
        return self._complete

    @staticmethod
    def _signer(signed: bytes) -> bytes:
        return decode(Signed, signed).signatures[0].key


def check_plan(theirs: RoundPlan, mine: RoundPlan) -> None:
    """Raise RecordError unless a drafted plan is this hospital's own but for the time it begins.

    `mine` begins now.
    """
    late = abs(theirs.opens_ms - mine.opens_ms)
    if late > limits.MAX_CLOCK_SKEW_MS:
        raise RecordError(
            f"round {theirs.round} is drafted to begin {late / 1000:.0f} s from now: "
            "the hospitals' clocks differ, or the draft is old"
        )
    moved = theirs.opens_ms - mine.opens_ms
    agreed = replace(mine, opens_ms=mine.opens_ms + moved, deadline_ms=mine.deadline_ms + moved)
    _same(theirs, agreed, f"round {theirs.round}")


def check_model(theirs: GlobalModel, mine: GlobalModel, *, early: bool) -> None:
    """Raise RecordError unless a drafted model is this hospital's own, but for its evaluation.

    Held-out records differ between hospitals, so the evaluation is its drafter's word alone. So
    is an `early` end, which follows from it: before the last round, under a schedule that may
    end so.
    """
    agreed = replace(mine, evaluation=theirs.evaluation)
    if early:
        agreed = replace(agreed, final=theirs.final)
    _same(theirs, agreed, f"the model of round {theirs.round}")


def _same(theirs: RoundPlan | GlobalModel, mine: RoundPlan | GlobalModel, what: str) -> None:
    for name, wanted in vars(mine).items():
        drafted = getattr(theirs, name)
        if drafted != wanted:
            shown = drafted.hex() if isinstance(drafted, bytes) else drafted
            raise RecordError(
                f"{what} is drafted with {name} {shown}, this hospital comes to something else"
            )
