"""Every record type: it reads back as it was written, and nothing else is read as it."""

import inspect

import pytest
import record_strategies
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.errors import RecordError
from vitalring.protocol import blobs, limits, records, signing
from vitalring.protocol.cbor import decode, encode, type_of

ANY = st.sampled_from(record_strategies.ALL).flatmap(record_strategies.of)


def test_every_record_type_is_tried_here():
    found = {
        cls
        for module in (records, signing, blobs)
        for cls in vars(module).values()
        if inspect.isclass(cls) and hasattr(cls, "TYPE") and not inspect.isabstract(cls)
    }
    assert {cls for cls in found if "__dataclass_params__" in vars(cls)} == set(
        record_strategies.ALL
    )


def test_type_names_are_distinct_and_versioned():
    names = [cls.TYPE for cls in record_strategies.ALL]
    assert len(set(names)) == len(names)
    assert all(name.startswith("vitalring/") and name.endswith("/1") for name in names)


@pytest.mark.parametrize("cls", record_strategies.ALL, ids=lambda cls: cls.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_round_trip(cls, data):
    record = data.draw(record_strategies.of(cls))
    encoded = encode(record)
    assert decode(cls, encoded) == record
    assert type_of(encoded) == cls.TYPE


@settings(max_examples=60)
@given(ANY)
def test_a_record_is_read_as_no_other_type(record):
    encoded = encode(record)
    for cls in record_strategies.ALL:
        if cls is not type(record):
            with pytest.raises(RecordError, match=r"not a record of type|at most"):
                decode(cls, encoded)


@settings(max_examples=100)
@given(ANY, st.data())
def test_a_changed_record_is_refused_or_is_another_record(record, data):
    encoded = bytearray(encode(record))
    at = data.draw(st.integers(0, len(encoded) - 1))
    if data.draw(st.booleans()):
        encoded[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        encoded[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        other = decode(type(record), bytes(encoded))
    except RecordError:
        return
    assert encode(other) == encoded
    assert (other == record) == (encoded == encode(record))


def test_log_entries_fit_an_entry_bundle():
    for cls in (records.AcceptedUpdate, records.LoggedObject):
        assert cls.MAX_BYTES < 1 << 16


def test_the_largest_roster_receipts_and_round_fit_their_limits():
    keys = tuple(i.to_bytes(32, "big") for i in range(limits.MAX_DEVICES))
    roster = records.Roster("f" * 32, "c" * 32, 2**48, limits.MAX_RING, keys)
    receipts = records.Receipts(bytes(32), keys)
    for record in (roster, receipts):
        signed = signing.sign(record, [bytes([i]) * 32 for i in range(64)])
        assert (
            signing.verify(
                type(record), signed, {signing.public_key(bytes([i]) * 32) for i in range(64)}, 64
            )
            == record
        )
