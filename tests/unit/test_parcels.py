"""Messages in pieces: complete or not at all, whatever comes in whatever order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitalring.aggregator.parcels import Parcels
from vitalring.errors import RecordError
from vitalring.protocol import blobs
from vitalring.protocol.cbor import digest, encode

LIMIT = 50
MOST = 10_000


class Desk:
    """Parcels, and the pieces that they wait for."""

    def __init__(self):
        self.watched = []
        self.parcels = Parcels(self.watched.append, self.watched.remove)

    def bring(self, pieces):
        """Bring what is waited for, as a broker does, until nothing more is there."""
        found = []
        while wanted := [name for name in self.watched if name in pieces]:
            found += self.parcels.piece(wanted[0], pieces[wanted[0]])
        return found


def sent(content):
    message, pieces = blobs.split(content, LIMIT)
    return message, {digest(piece): blobs.WHOLE + piece for piece in pieces}


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.binary(max_size=400), max_size=4))
def test_every_message_comes_whole_whatever_else_is_on_its_way(contents):
    desk, pieces, whole = Desk(), {}, []
    for topic, content in contents.items():
        message, more = sent(content)
        pieces |= more
        came = desk.parcels.take(topic, message, MOST)
        whole += [] if came is None else [(topic, came)]
    assert dict(whole + desk.bring(pieces)) == contents
    assert desk.watched == []


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_bytes_that_mean_nothing_are_refused_or_left_aside(message, piece):
    desk = Desk()
    try:
        came = desk.parcels.take("topic", message, MOST)
        assert came == message[1:]
    except RecordError:
        pass
    assert desk.parcels.piece(digest(piece), piece) == []


def test_a_newer_message_replaces_one_that_is_incomplete():
    desk = Desk()
    old, old_pieces = sent(b"old" * 100)
    new, new_pieces = sent(b"new" * 100)
    assert desk.parcels.take("topic", old, MOST) is None
    assert desk.parcels.take("topic", new, MOST) is None
    assert desk.bring(old_pieces | new_pieces) == [("topic", b"new" * 100)]
    assert desk.parcels.take("topic", old, MOST) is None
    assert desk.parcels.take("topic", b"", MOST) == b""
    assert desk.watched == []
    assert desk.bring(old_pieces) == []


def test_one_piece_may_serve_several_messages():
    desk = Desk()
    message, pieces = sent(b"x" * 300)
    assert desk.parcels.take("one", message, MOST) is None
    assert desk.parcels.take("other", message, MOST) is None
    assert sorted(desk.bring(pieces)) == [("one", b"x" * 300), ("other", b"x" * 300)]


def test_a_message_that_is_too_large_is_not_waited_for():
    desk = Desk()
    message, _ = sent(b"x" * 300)
    with pytest.raises(RecordError, match="300 bytes, where at most 299"):
        desk.parcels.take("topic", message, 299)
    with pytest.raises(RecordError, match="3 bytes, where at most 2"):
        desk.parcels.take("topic", blobs.WHOLE + b"xxx", 2)
    assert desk.watched == []


def test_a_piece_that_is_none_is_refused_and_still_waited_for():
    desk = Desk()
    message, pieces = sent(b"x" * 300)
    desk.parcels.take("topic", message, MOST)
    with pytest.raises(RecordError, match="is not what its manifest names"):
        desk.parcels.piece(desk.watched[0], blobs.WHOLE + b"something else")
    # The object was cleared; it may come again.
    assert desk.parcels.piece(desk.watched[0], b"") == []
    assert desk.bring(pieces) == [("topic", b"x" * 300)]


def test_pieces_that_are_more_than_their_manifest_says_are_refused():
    desk = Desk()
    piece = b"y" * 40
    manifest = blobs.Manifest(41, b"d" * 32, (digest(piece), digest(piece)))
    desk.parcels.take("topic", blobs.IN_PIECES + encode(manifest), MOST)
    assert desk.parcels.piece(digest(piece), blobs.WHOLE + piece) == []
    with pytest.raises(RecordError):
        desk.parcels.piece(digest(piece), blobs.WHOLE + piece)
