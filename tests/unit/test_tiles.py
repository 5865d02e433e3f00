"""The log as files: layout of C2SP tlog-tiles, and every way to spoil it."""

import hashlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.errors import LogError
from vitalring.protocol import merkle, tiles


def entries_of(size):
    return [f"entry {index}".encode() for index in range(size)]


def root_of(entries):
    return merkle.root_of(merkle.leaf_hash(entry) for entry in entries)


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (tiles.Tile(0, 0, 256), "tile/0/000"),
        (tiles.Tile(0, 999, 256), "tile/0/999"),
        (tiles.Tile(1, 1234067, 256), "tile/1/x001/x234/067"),
        (tiles.Tile(1, 1000, 1), "tile/1/x001/000.p/1"),
        (tiles.Tile(None, 1234, 17), "tile/entries/x001/234.p/17"),
        (tiles.Tile(63, 1_000_000, 256), "tile/63/x001/x000/000"),
    ],
)
def test_paths(tile, path):
    assert tile.path == path


@pytest.mark.parametrize(
    "fields", [(64, 0, 1), (-1, 0, 1), (0, -1, 1), (0, 0, 0), (0, 0, 257), (None, 0, 0)]
)
def test_tiles_that_cannot_be(fields):
    with pytest.raises(LogError):
        tiles.Tile(*fields)


def test_the_standards_own_example():
    # "A tree of size 70,000 will be represented by 273 full level 0 tiles, one partial level 0
    # tile of width 112, one full level 1 tile, one partial level 1 tile of width 17, and one
    # partial level 2 tile of width 1."
    by_level = {}
    for tile in tiles.tiles(70_000):
        by_level.setdefault(tile.level, []).append(tile.width)
    assert by_level == {
        None: [256] * 273 + [112],
        0: [256] * 273 + [112],
        1: [256, 17],
        2: [1],
    }
    assert [tile.path for tile in tiles.tiles(256)] == [
        "tile/entries/000",
        "tile/0/000",
        "tile/1/000.p/1",
    ]
    assert list(tiles.tiles(0)) == []


@given(st.integers(0, 200_000), st.integers(0, 1_000))
def test_growing_writes_exactly_what_is_new(size, more):
    before, after = set(tiles.tiles(size)), set(tiles.tiles(size + more))
    assert set(tiles.tiles(size + more, since=size)) == after - before


@pytest.mark.parametrize(("size", "since"), [(5, 6), (5, -1), (-1, -1), (2**63, 0)])
def test_a_log_never_shrinks(size, since):
    with pytest.raises(LogError):
        list(tiles.tiles(size, since))


def test_hash_tiles_hold_what_the_standard_says():
    entries = entries_of(600)
    files = tiles.encode_log(entries)
    leaf = [hashlib.sha256(b"\x00" + entry).digest() for entry in entries]
    assert files["tile/0/001"] == b"".join(leaf[256:512])
    assert files["tile/0/002.p/88"] == b"".join(leaf[512:])
    row = leaf[256:512]
    while len(row) > 1:
        row = [
            hashlib.sha256(b"\x01" + row[i] + row[i + 1]).digest() for i in range(0, len(row), 2)
        ]
    assert files["tile/1/000.p/2"][32:] == row[0]
    assert files["tile/entries/002.p/88"].startswith(b"\x00\x09entry 512\x00\x09entry 513")


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 511, 512, 700])
def test_a_log_written_is_a_log_read(size):
    entries = entries_of(size)
    assert tiles.verify_tiles(tiles.encode_log(entries), size, root_of(entries)) == entries


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=256))
def test_bundles_round_trip(entries):
    assert tiles.decode_bundle(tiles.encode_bundle(entries), len(entries)) == entries


@given(st.binary(max_size=200), st.integers(1, 20))
def test_a_bundle_has_one_encoding(data, width):
    try:
        entries = tiles.decode_bundle(data, width)
    except LogError:
        return
    assert tiles.encode_bundle(entries) == data


def test_the_largest_entry_fits_and_no_larger_one():
    largest = bytes(65_535)
    assert tiles.decode_bundle(tiles.encode_bundle([largest]), 1) == [largest]
    with pytest.raises(LogError, match="log its digest"):
        tiles.encode_bundle([bytes(65_536)])


@pytest.mark.parametrize("count", [0, 257])
def test_a_bundle_of_impossible_width(count):
    with pytest.raises(LogError):
        tiles.encode_bundle([b"x"] * count)


def test_a_bundle_is_no_hash_tile():
    with pytest.raises(LogError, match="bundle"):
        tiles.encode_hashes(lambda *_: bytes(32), tiles.Tile(None, 0, 1))


SPOILED = entries_of(300)
SPOILED_FILES = tiles.encode_log(SPOILED)


@pytest.mark.parametrize("path", sorted(SPOILED_FILES))
def test_a_missing_file_is_named(path):
    files = {name: data for name, data in SPOILED_FILES.items() if name != path}
    with pytest.raises(LogError, match=f"^{re.escape(path)}: missing"):
        tiles.verify_tiles(files, 300, root_of(SPOILED))


def test_a_superfluous_file_is_named():
    files = SPOILED_FILES | {"tile/0/002": bytes(8192)}
    with pytest.raises(LogError, match=r"^tile/0/002: does not belong"):
        tiles.verify_tiles(files, 300, root_of(SPOILED))


@given(st.sampled_from(sorted(SPOILED_FILES)), st.data())
@settings(max_examples=200, deadline=None)
def test_a_flipped_bit_is_found_in_its_file(path, data):
    content = bytearray(SPOILED_FILES[path])
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(LogError, match=f"^{re.escape(path)}: "):
        tiles.verify_tiles(SPOILED_FILES | {path: bytes(content)}, 300, root_of(SPOILED))


@given(st.sampled_from(sorted(SPOILED_FILES)), st.binary(max_size=100))
def test_a_replaced_file_is_found(path, content):
    with pytest.raises(LogError, match=f"^{re.escape(path)}: "):
        tiles.verify_tiles(SPOILED_FILES | {path: content}, 300, root_of(SPOILED))


def test_a_consistently_rewritten_log_does_not_give_the_root():
    rewritten = [*SPOILED[:7], b"changed", *SPOILED[8:]]
    with pytest.raises(LogError, match="checkpoint's root"):
        tiles.verify_tiles(tiles.encode_log(rewritten), 300, root_of(SPOILED))


def test_a_truncated_log_is_found():
    with pytest.raises(LogError, match="missing"):
        tiles.verify_tiles(tiles.encode_log(SPOILED[:299]), 300, root_of(SPOILED))
