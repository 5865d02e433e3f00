"""Rebuild enrolment.json: answers to calls made with frozen randomness, and ways to get them wrong.

Each negative vector states its failure class: length, scalar, point or closure.

Run: python tests/vectors/make_enrolment.py
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from make_lsag import bad_points, digest_of, entropy, secret

from vitalring.protocol import lsag
from vitalring.protocol.cbor import encode
from vitalring.protocol.enrolment import (
    SUITE,
    Enrolment,
    EnrolmentCall,
    PreviousKey,
    key_context,
    voucher_context,
)
from vitalring.schema import to_plain

NEW, OLD, OTHER = (lsag.KeyPair.of(secret(name)) for name in ("new", "old", "other"))
TICKET = digest_of("ticket")
CALL = EnrolmentCall("fed", "ward", 2, digest_of("challenge"), 1_800_000_000_000)
RANDOM = entropy("enrolment")


def answer(call: EnrolmentCall, new: lsag.KeyPair, ticket: bytes, epoch: int = 1) -> Enrolment:
    """An answer with frozen randomness; without a ticket its voucher is the key OLD."""
    previous = None
    if not ticket:
        context = voucher_context(call, epoch, new.public)
        proof = lsag._prove_possession(OLD.secret, context, RANDOM)
        previous = PreviousKey(epoch, OLD.public, proof)
    proof = lsag._prove_possession(new.secret, key_context(call, ticket, previous), RANDOM)
    names = (call.federation, call.cohort, call.epoch, call.challenge)
    return Enrolment(*names, new.public, proof, ticket, previous)


def plain(value: Any) -> Any:
    """A record's fields, bytes as hexadecimal."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return value.hex() if isinstance(value, bytes) else value


def case(name: str, call: EnrolmentCall, said: Enrolment, **extra: str) -> dict[str, Any]:
    """One answer, with the call that it is held against."""
    record = encode(said).hex()
    answered = plain(to_plain(said))
    return {
        "name": name,
        **extra,
        "call": plain(to_plain(call)),
        "said": answered,
        "record": record,
    }


def valid() -> list[dict[str, Any]]:
    """Answers whose proofs verify."""
    secrets = {"new": NEW.secret.hex(), "old": OLD.secret.hex(), "entropy": RANDOM.hex()}
    later = replace(CALL, epoch=2**48, cohort="a", federation="f")
    return [
        case("with a ticket", CALL, answer(CALL, NEW, TICKET), **secrets),
        case("with a previous key", CALL, answer(CALL, NEW, b""), **secrets),
        case("with a key of epoch 0", CALL, answer(CALL, NEW, b"", 0), **secrets),
        case("the largest epoch", later, answer(later, NEW, b"", 2**48 - 1), **secrets),
    ]


def invalid() -> list[dict[str, Any]]:
    """Everything that must be refused, with its failure class."""
    ticket, key = answer(CALL, NEW, TICKET), answer(CALL, NEW, b"")
    old = key.previous
    assert old is not None
    calls = {
        "another challenge": replace(CALL, challenge=digest_of("another")),
        "another epoch": replace(CALL, epoch=3),
        "another cohort": replace(CALL, cohort="ward-2"),
        "another federation": replace(CALL, federation="fed-2"),
        "names that run into each other": replace(CALL, federation="fedw", cohort="ard"),
    }
    cases = [
        (f"{voucher}: {name}", "closure", call, said)
        for name, call in calls.items()
        for voucher, said in (("ticket", ticket), ("key", key))
    ]
    of_other = lsag._prove_possession(OTHER.secret, voucher_context(CALL, 1, NEW.public), RANDOM)
    for_other = lsag._prove_possession(OLD.secret, voucher_context(CALL, 1, OTHER.public), RANDOM)
    bare = lsag._prove_possession(NEW.secret, b"", RANDOM)
    itself = PreviousKey(
        1,
        NEW.public,
        lsag._prove_possession(NEW.secret, voucher_context(CALL, 1, NEW.public), RANDOM),
    )
    own_voucher = replace(
        key,
        previous=itself,
        possession=lsag._prove_possession(NEW.secret, key_context(CALL, b"", itself), RANDOM),
    )
    wrong = {
        "another's ticket": replace(ticket, ticket=digest_of("another")),
        "another's key": replace(ticket, key=OTHER.public),
        "a ticket in the place of a key": replace(key, ticket=TICKET, previous=None),
        "a key in the place of a ticket": replace(ticket, ticket=b"", previous=old),
        "a proof without a context": replace(ticket, possession=bare),
        "somebody else's previous key": replace(key, previous=replace(old, key=OTHER.public)),
        "somebody else's proof": replace(key, previous=replace(old, proof=of_other)),
        "a proof for another new key": replace(key, previous=replace(old, proof=for_other)),
        "another epoch of the previous key": replace(key, previous=replace(old, epoch=0)),
        "proofs exchanged": replace(
            key, possession=old.proof, previous=replace(old, proof=key.possession)
        ),
        "a key that vouches for itself": own_voucher,
        "a proof of possession from before a federation was founded": replace(
            ticket,
            possession=lsag._prove_possession(NEW.secret, b"vitalring/enrol/1/fed/ward", RANDOM),
        ),
    }
    cases += [(name, "closure", CALL, said) for name, said in wrong.items()]
    zeros = bytes(32)
    cases += [
        ("the challenge of a proof is zero", "scalar", CALL,
         replace(ticket, possession=zeros + ticket.possession[32:])),
        ("the answer of a previous key's proof is zero", "scalar", CALL,
         replace(key, previous=replace(old, proof=old.proof[:32] + zeros))),
    ]  # fmt: skip
    for name, point in bad_points().items():
        cases.append((f"key: {name}", "point", CALL, replace(ticket, key=point)))
    return [case(name, call, said, failure=failure) for name, failure, call, said in cases]


def build() -> dict[str, Any]:
    """The whole file."""
    return {"suite": SUITE.decode(), "valid": valid(), "invalid": invalid()}


if __name__ == "__main__":
    path = Path(__file__).with_name("enrolment.json")
    path.write_text(json.dumps(build(), indent=1) + "\n")
