"""Retained messages in pieces: what is split joins, and hostile manifests end with an error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitalring.errors import RecordError
from vitalring.protocol import limits
from vitalring.protocol.blobs import IN_PIECES, WHOLE, Manifest, join, split
from vitalring.protocol.cbor import digest, encode


def never(name):
    raise AssertionError(f"{name.hex()} is fetched without need")


def shelf(*pieces):
    return {digest(piece): piece for piece in pieces}.__getitem__


def message_of(total_bytes, whole, pieces):
    return IN_PIECES + encode(Manifest(total_bytes, whole, tuple(digest(p) for p in pieces)))


@given(st.binary(min_size=1, max_size=4000), st.integers(100, 5000))
def test_what_is_split_joins(data, limit):
    message, pieces = split(data, limit)
    assert join(message, shelf(*pieces)) == data
    assert all(len(piece) < limit for piece in pieces)
    if len(data) < limit:
        assert pieces == ()
        assert message == WHOLE + data


def test_pieces_that_are_alike_are_fetched_by_one_name():
    message, pieces = split(bytes(1000), 101)
    assert len(set(pieces)) == 1
    assert join(message, shelf(*pieces)) == bytes(1000)


@given(st.binary(max_size=200))
def test_random_messages_are_whole_or_refused(message):
    try:
        assert WHOLE + join(message, never) == message
    except RecordError:
        assert message[:1] != WHOLE


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nothing", b""),
        ("another first byte", b"\x02abc"),
        ("no manifest", IN_PIECES),
        ("no pieces", IN_PIECES + encode(Manifest(1, digest(b""), ()))),
        ("too many pieces", message_of(1025, bytes(32), [b"x"] * 1025)),
        (
            "more than any object has",
            message_of(2 * limits.MAX_OBJECT_BYTES + 1, bytes(32), [b"x"]),
        ),
        ("a byte behind the manifest", message_of(1, digest(b"x"), [b"x"]) + b"\x00"),
    ],
)
def test_bad_manifests_are_refused_before_anything_is_fetched(what, message):
    with pytest.raises(RecordError):
        join(message, never)


def test_pieces_are_believed_only_with_their_digest():
    message, pieces = split(b"a" * 150 + b"b" * 150, 151)
    with pytest.raises(RecordError, match="not what its manifest names"):
        join(message, lambda name: b"other bytes")
    with pytest.raises(RecordError, match="not what its manifest names"):
        join(message, lambda name: shelf(*pieces)(name) + b"\x00")


def test_the_whole_has_the_size_and_digest_that_the_manifest_says():
    parts = [b"a" * 10, b"b" * 10]
    for total, whole in [
        (19, digest(b"".join(parts))),
        (21, digest(b"".join(parts))),
        (20, digest(b"".join(parts[::-1]))),
    ]:
        with pytest.raises(RecordError):
            join(message_of(total, whole, parts), shelf(*parts))


def test_a_manifest_that_names_a_large_piece_often_is_stopped_early():
    piece, fetched = bytes(1 << 20), []

    def fetch(name):
        fetched.append(name)
        return piece

    with pytest.raises(RecordError, match="not what its manifest names"):
        join(message_of(3 << 20, bytes(32), [piece] * 1024), fetch)
    assert len(fetched) == 4
