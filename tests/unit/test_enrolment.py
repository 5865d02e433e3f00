"""Enrolments: frozen vectors, a second implementation, one encoding, one length, one call."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_strategies import of

from vitalring.errors import RecordError, SignatureError
from vitalring.protocol import enrolment, lsag, sealing, signing
from vitalring.protocol.cbor import decode, encode
from vitalring.protocol.enrolment import Enrolment, EnrolmentCall
from vitalring.protocol.records import Federation, Hospital

VECTORS = Path(__file__).parents[1] / "vectors"
sys.path.insert(0, str(VECTORS))
reference = importlib.import_module("reference_enrolment")
make_enrolment = importlib.import_module("make_enrolment")
FROZEN = json.loads((VECTORS / "enrolment.json").read_text())
COMPLAINTS = {
    "scalar": r"^scalar is",
    "point": r"not a canonical point",
    "closure": r"does not verify|is a fresh one",
}
CALL = make_enrolment.CALL
NEW, OLD, OTHER = (lsag.keygen() for _ in range(3))
TICKET = bytes(range(32))
SEALING = sealing.new_secret()
HOST_LOG, SECOND_LOG = bytes(range(32)), bytes(range(1, 33))
HOSPITALS = tuple(
    Hospital(name, signing.public_key(seed), signing.public_key(seed), bytes(32), bytes(32))
    for name, seed in (("north", HOST_LOG), ("south", SECOND_LOG))
)
FEDERATION = Federation("fed", bytes(32), HOSPITALS, "log.example/ward")


def read(fields):
    """A vector's fields with bytes as bytes."""
    binary = ("challenge", "key", "possession", "ticket", "proof")
    plain = {
        name: bytes.fromhex(value) if name in binary else value for name, value in fields.items()
    }
    if plain.get("previous") is not None:
        plain["previous"] = read(plain["previous"])
    return plain


def test_vectors_are_those_of_their_script():
    assert make_enrolment.build() == FROZEN


@pytest.mark.parametrize("vector", FROZEN["valid"], ids=lambda v: v["name"])
def test_both_implementations_make_and_take_the_same_proofs(vector):
    call, said = read(vector["call"]), read(vector["said"])
    record = decode(Enrolment, bytes.fromhex(vector["record"]))
    asked = EnrolmentCall(**call)
    enrolment.check_call(record, asked)
    enrolment.check_proofs(record, asked)
    reference.verify(call, said)
    new, old = (int.from_bytes(bytes.fromhex(vector[name]), "little") for name in ("new", "old"))
    proofs = reference.prove(call, said, new, old, bytes.fromhex(vector["entropy"]))
    assert proofs == (record.possession, record.previous.proof if record.previous else b"")


@pytest.mark.parametrize("vector", FROZEN["invalid"], ids=lambda v: v["name"])
def test_invalid_proofs(vector):
    call, said = read(vector["call"]), read(vector["said"])
    record = decode(Enrolment, bytes.fromhex(vector["record"]))
    with pytest.raises(SignatureError, match=COMPLAINTS[vector["failure"]]):
        enrolment.check_proofs(record, EnrolmentCall(**call))
    with pytest.raises(reference.InvalidError, match=vector["failure"]):
        reference.verify(call, said)


@given(of(EnrolmentCall))
def test_calls_have_one_encoding(call):
    assert decode(EnrolmentCall, encode(call)) == call


@given(of(Enrolment))
def test_every_enrolment_has_one_encoding_and_one_sealed_length(said):
    assert decode(Enrolment, encode(said)) == said
    box = enrolment.seal(said, bytes(SEALING.public_key))
    assert len(box) == enrolment.BOX_BYTES
    assert sealing.unseal(box, SEALING) == encode(said)


def test_the_largest_records_fit_their_limits():
    name = "n" * 32
    call = EnrolmentCall(name, name, 2**48, bytes(32), 2**53)
    assert len(encode(call)) <= EnrolmentCall.MAX_BYTES
    previous = enrolment.PreviousKey(2**48, bytes(32), bytes(64))
    said = Enrolment(name, name, 2**48, bytes(32), bytes(32), bytes(64), bytes(32), previous)
    assert len(encode(said)) <= Enrolment.MAX_BYTES < sealing.PAD_STEP


@settings(max_examples=300, deadline=None)
@given(st.data(), st.booleans())
def test_a_changed_answer_is_refused(data, ticket):
    good = (
        enrolment.with_ticket(CALL, NEW, TICKET)
        if ticket
        else enrolment.with_previous(CALL, NEW, 1, OLD)
    )
    record = bytearray(encode(good))
    bit = data.draw(st.integers(0, 8 * len(record) - 1))
    record[bit // 8] ^= 1 << bit % 8
    with pytest.raises((RecordError, SignatureError)):
        said = decode(Enrolment, bytes(record))
        enrolment.check_call(said, CALL)
        enrolment.check_proofs(said, CALL)


@given(st.binary(max_size=900))
def test_noise_is_no_enrolment(noise):
    with pytest.raises(RecordError):
        decode(Enrolment, noise)


def test_an_answer_serves_one_call_with_one_voucher():
    good = enrolment.with_previous(CALL, NEW, 1, OLD)
    enrolment.check_call(good, CALL)
    for field, value in (
        ("federation", "other"),
        ("cohort", "other"),
        ("epoch", 3),
        ("challenge", bytes(32)),
    ):
        with pytest.raises(RecordError, match="answers another call"):
            enrolment.check_call(good, replace(CALL, **{field: value}))
    for bad, words in (
        (replace(good, previous=None), "a ticket or a previous key"),
        (replace(good, ticket=TICKET), "and not both"),
        (replace(good, ticket=b"short", previous=None), "a ticket has 32 bytes, not 5"),
        (replace(good, previous=replace(good.previous, epoch=2)), "no earlier one"),
    ):
        with pytest.raises(RecordError, match=words):
            enrolment.check_call(bad, CALL)


def test_the_host_alone_calls():
    record = signing.sign(CALL, [HOST_LOG])
    assert enrolment.open_call(record, FEDERATION) == CALL
    for seeds in ([SECOND_LOG], [HOST_LOG, SECOND_LOG], [bytes(32)]):
        with pytest.raises(SignatureError, match="unknown key"):
            enrolment.open_call(signing.sign(CALL, seeds), FEDERATION)
    with pytest.raises(RecordError, match="is of federation fed-2, not fed"):
        enrolment.open_call(signing.sign(replace(CALL, federation="fed-2"), [HOST_LOG]), FEDERATION)
