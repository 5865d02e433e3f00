"""Deterministic CBOR: one encoding, bounded work, and RecordError for everything else."""

import contextlib
import tracemalloc
from dataclasses import dataclass
from typing import Annotated, ClassVar

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitalring.errors import RecordError
from vitalring.protocol.cbor import MAX_DEPTH, MAX_ITEMS, decode, digest, encode, type_of
from vitalring.schema import Range, Size


@dataclass(frozen=True)
class Item:
    n: Annotated[int, Range(-(2**40), 2**63)]
    x: float


@dataclass(frozen=True)
class Sample:
    TYPE: ClassVar[str] = "vitalring/sample/1"
    MAX_BYTES: ClassVar[int] = 1 << 24

    a: int
    long_name: str
    data: bytes
    items: Annotated[tuple[Item, ...], Size(0, 8)]
    table: dict[str, int]
    flag: bool
    maybe: float | None


samples = st.builds(
    Sample,
    a=st.integers(-(2**64), 2**64 - 1),
    long_name=st.text(),
    data=st.binary(),
    items=st.lists(
        st.builds(Item, st.integers(-(2**40), 2**63), st.floats(allow_nan=False, width=64)),
        max_size=4,
    ).map(tuple),
    table=st.dictionaries(st.text(), st.integers(0, 2**64 - 1), max_size=4),
    flag=st.booleans(),
    maybe=st.none() | st.floats(allow_nan=False, allow_infinity=False),
).filter(lambda s: all(abs(item.x) != float("inf") for item in s.items))
SAMPLE = Sample(7, "name", b"bytes", (Item(1, 0.5), Item(2, 1.1)), {"k": 1, "aa": 2}, True, 2.5)
GOOD = encode(SAMPLE)


def refused(data, cls=Sample):
    with pytest.raises(RecordError) as caught:
        decode(cls, data)
    return str(caught.value)


def spelled(**changes):
    """The sample's bytes with the raw CBOR of some fields replaced, keys in the right order."""
    plain = {"type": Sample.TYPE, "a": 7, "long_name": "name", "data": b"bytes"}
    plain |= {"items": [{"n": 1, "x": 0.5}, {"n": 2, "x": 1.1}], "table": {"k": 1, "aa": 2}}
    plain |= {"flag": True, "maybe": 2.5}
    raw = {key: cbor2.dumps(value, canonical=True) for key, value in plain.items()}
    raw |= changes
    keys = sorted(raw, key=lambda key: (len(key), key))
    return bytes([0xA0 + len(raw)]) + b"".join(cbor2.dumps(key) + raw[key] for key in keys)


@given(samples)
def test_round_trip(sample):
    data = encode(sample)
    assert decode(Sample, data) == sample
    assert type_of(data) == Sample.TYPE
    assert encode(decode(Sample, data)) == data


def test_keys_are_sorted_bytewise_as_rfc_8949_says():
    keys = list(cbor2.loads(GOOD))
    assert keys == sorted(keys, key=cbor2.dumps)
    assert spelled() == GOOD


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("a longer whole number", spelled(a=b"\x18\x07")),
        ("two bytes for 7", spelled(a=b"\x19\x00\x07")),
        ("eight bytes for 7", spelled(a=b"\x1b" + (7).to_bytes(8, "big"))),
        ("a longer length of bytes", spelled(data=b"\x58\x05bytes")),
        ("a longer length of text", spelled(long_name=b"\x78\x04name")),
        ("a longer length of a map", spelled(table=b"\xb8\x02\x61k\x01\x62aa\x02")),
        ("a longer length of an array", spelled(items=b"\x98\x00")),
        ("a float in 8 bytes that fits 2", spelled(maybe=b"\xfb" + b"\x40\x04" + bytes(6))),
        ("a float in 4 bytes that fits 2", spelled(maybe=b"\xfa\x40\x20\x00\x00")),
        ("minus zero", spelled(maybe=b"\xf9\x80\x00")),
        ("a whole number for a float", spelled(maybe=b"\x02")),
        ("not a number", spelled(maybe=b"\xf9\x7e\x00")),
        ("infinity", spelled(maybe=b"\xf9\x7c\x00")),
        ("undefined for null", spelled(maybe=b"\xf7")),
        ("a simple value", spelled(flag=b"\xe0")),
        ("map keys in another order", spelled(table=b"\xa2\x62aa\x02\x61k\x01")),
        ("a key twice", spelled(table=b"\xa2\x61k\x01\x61k\x01")),
        ("open-ended bytes", spelled(data=b"\x5f\x45bytes\xff")),
        ("open-ended text", spelled(long_name=b"\x7f\x64name\xff")),
        ("an open-ended array", spelled(items=b"\x9f\xff")),
        ("an open-ended map", spelled(table=b"\xbf\xff")),
        ("a tagged number", spelled(a=b"\xc2\x41\x07")),
        ("a tag for self-described CBOR", b"\xd9\xd9\xf7" + GOOD),
        ("a map with a numbered key", spelled(table=b"\xa1\x01\x01")),
        ("text that is not UTF-8", spelled(long_name=b"\x64\xff\xfe\xfd\xfc")),
        ("half a surrogate pair", spelled(long_name=b"\x63\xed\xa0\x80")),
        ("a byte behind", GOOD + b"\x00"),
        ("itself behind", GOOD + GOOD),
        ("nothing", b""),
        ("an array", b"\x80"),
        ("a number", b"\x07"),
        ("only a break", b"\xff"),
        ("reserved additional information", b"\x1c"),
        ("a head without its number", b"\x1b\x00"),
    ],
)
def test_every_other_spelling_is_refused(what, data):
    assert data != GOOD, what
    refused(data)


def test_the_top_map_in_another_order_is_refused():
    plain = cbor2.loads(GOOD)
    for turn in range(1, len(plain)):
        keys = [*list(plain)[turn:], *list(plain)[:turn]]
        refused(cbor2.dumps({key: plain[key] for key in keys}))


def test_equal_records_have_equal_bytes():
    zero, minus_zero = (
        Sample(0, "", b"", (Item(0, zero),), {}, False, zero) for zero in (0.0, -0.0)
    )
    assert zero == minus_zero
    assert encode(zero) == encode(minus_zero)


def test_another_type_or_none_is_refused():
    assert "not a record of type" in refused(GOOD.replace(b"sample/1", b"sample/2"))
    plain = cbor2.loads(GOOD)
    del plain["type"]
    data = cbor2.dumps(plain, canonical=True)
    refused(data)
    with pytest.raises(RecordError, match="no type field"):
        type_of(data)


@given(st.binary(max_size=200))
def test_random_bytes(data):
    refused(data)
    with contextlib.suppress(RecordError):
        type_of(data)


@given(st.data())
def test_a_changed_record_is_refused_or_is_another_record_in_its_one_encoding(data):
    changed = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "put", "splice"])):
            case "flip":
                changed[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del changed[at : at + data.draw(st.integers(0, 9))]
            case "put":
                changed[at:at] = data.draw(st.binary(max_size=9))
            case "splice":
                changed[at:at] = GOOD[at // 2 : at]
        if not changed:
            return
    try:
        record = decode(Sample, bytes(changed))
    except RecordError:
        return
    assert encode(record) == bytes(changed)


@given(st.integers(0, len(GOOD) - 1))
def test_a_cut_record_is_refused(size):
    refused(GOOD[:size])


HEAD = b"\xa9" + cbor2.dumps("a")


def huge(size):
    return b"\xc2\x5a" + size.to_bytes(4, "big") + b"\xff" * size


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("deep arrays", b"\x81" * 4_000_000 + b"\x00"),
        ("deep maps", b"\xa1\x61a" * 1_000_000 + b"\x00"),
        ("deep keys", b"\xa1" * 4_000_000 + b"\x00"),
        ("deep tags", b"\xc6" * 4_000_000 + b"\x00"),
        ("deep open ends", b"\x9f" * 4_000_000),
        ("wide arrays", b"\xa1\x64type\x9a" + (1 << 23).to_bytes(4, "big") + b"\x80" * (1 << 23)),
        ("wide maps", b"\x9a" + (1 << 23).to_bytes(4, "big") + b"\xa0" * (1 << 23)),
        ("an array of 2^31", b"\x9a\x7f\xff\xff\xff"),
        ("an array of 2^62", b"\x9b\x3f" + b"\xff" * 7),
        ("a map of 2^63", b"\xbb\x7f" + b"\xff" * 7),
        ("bytes of 2^40", b"\x5b\x00\x00\x01" + bytes(5)),
        ("text of 2^64", b"\x7b" + b"\xff" * 8),
        ("a decimal of 40 million digits", HEAD + b"\xc4\x82\x01" + huge(14_000_000)),
        ("a fraction", HEAD + b"\xd8\x1e\x82" + huge(7_000_000) + huge(6_999_999)),
        ("a power", HEAD + b"\xc5\x82\x1b\x7f" + b"\xff" * 7 + b"\x01"),
        ("a number as key", b"\xa2" + huge(14_000_000) + b"\x00"),
        ("a pattern", HEAD + b"\xd8\x23" + cbor2.dumps("(a{1,999}){1,999}" * 99)),
    ],
)
def test_bombs_cost_neither_time_nor_memory(what, data):
    # Without the check some of these run for hours, so a test run that ends is a passed one.
    tracemalloc.start()
    refused(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20, what


def test_size_is_checked_before_anything_is_parsed():
    class Small(Sample):
        MAX_BYTES = len(GOOD) - 1

    assert f"at most {len(GOOD) - 1} are allowed" in refused(GOOD, Small)


def test_depth_is_counted():
    nested = b"\x81" * (MAX_DEPTH - 1) + b"\x00"
    assert "is nested" not in refused(nested)
    assert f"nested more than {MAX_DEPTH} deep" in refused(b"\x81" + nested)


def test_items_are_counted():
    wide = b"\x99\xff\xff"  # with the array itself one more than its items
    assert "items" not in refused(wide + bytes(MAX_ITEMS - 1))
    assert f"more than {MAX_ITEMS} items" in refused(b"\x81" + wide + bytes(MAX_ITEMS - 1))


def test_digest_is_sha_256():
    # FIPS 180-2, appendix B.1.
    wanted = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest(b"abc").hex() == wanted
