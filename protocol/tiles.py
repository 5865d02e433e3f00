"""The log as plain files: C2SP tlog-tiles, which any web server can serve.

Rules kept here (SPEC 8.9 to 8.12):

* Hash tiles have height 8: up to 256 hashes of one level; entry bundles hold up to 256
  entries, each after its length as a big-endian uint16.
* For a tree of a given size there is exactly one set of files with exactly one content.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vitalring.errors import LogError
from vitalring.protocol.merkle import (
    HASH_BYTES,
    MAX_SIZE,
    NodeReader,
    leaf_hash,
    node_reader,
    root_of,
)

TILE_HEIGHT = 8  # tree levels in one tile
TILE_WIDTH = 1 << TILE_HEIGHT  # hashes or entries in a full tile
MAX_ENTRY_BYTES = 65_535  # what the length prefix can say


@dataclass(frozen=True)
class Tile:
    """One file of the log.

    ``level`` counts tiles, not tree levels (hash i of the tile stands at tree level
    8 * level); None means an entry bundle. ``width`` is the number of hashes or entries.
    """

    level: int | None
    index: int
    width: int

    def __post_init__(self) -> None:
        valid_level = self.level is None or 0 <= self.level <= 63
        if not (valid_level and self.index >= 0 and 1 <= self.width <= TILE_WIDTH):
            raise LogError(f"no such tile: {self}")

    @property
    def path(self) -> str:
        """Path below the log's folder, such as ``tile/0/x001/234.p/17`` (SPEC 8.9)."""
        groups = [f"{self.index % 1000:03d}"]
        rest = self.index // 1000
        while rest:
            groups.append(f"x{rest % 1000:03d}")
            rest //= 1000
        kind = "entries" if self.level is None else str(self.level)
        partial = "" if self.width == TILE_WIDTH else f".p/{self.width}"
        return f"tile/{kind}/{'/'.join(reversed(groups))}{partial}"

    @property
    def span(self) -> range:
        """Positions of its hashes within their level, or of its entries in the log."""
        first = self.index * TILE_WIDTH
        return range(first, first + self.width)


def tiles(size: int, since: int = 0) -> Iterator[Tile]:
    """Every file of a log of ``size`` entries that a log of ``since`` entries lacks.

    Bundles come first, then hash tiles from the leaves upwards. A gateway that grows its
    log writes only these; older partial tiles may go once the full one is there.
    """
    if not 0 <= since <= size <= MAX_SIZE:
        raise LogError(f"a log of {since} entries cannot grow to {size}")
    yield from _level(None, size, since)
    level = 0
    while size:
        yield from _level(level, size, since)
        level, size, since = level + 1, size >> TILE_HEIGHT, since >> TILE_HEIGHT


def _level(level: int | None, count: int, since: int) -> Iterator[Tile]:
    if count == since:
        return
    for first in range(since - since % TILE_WIDTH, count, TILE_WIDTH):
        yield Tile(level, first // TILE_WIDTH, min(TILE_WIDTH, count - first))


def encode_hashes(node: NodeReader, tile: Tile) -> bytes:
    """Content of a hash tile, read from the tree's perfect subtrees (SPEC 8.10)."""
    if tile.level is None:
        raise LogError(f"{tile.path} is an entry bundle, not a tile of hashes")
    return b"".join(node(tile.level * TILE_HEIGHT, index) for index in tile.span)


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """Content of an entry bundle (SPEC 8.11). Raises LogError for entries above 65,535 bytes."""
    if not 1 <= len(entries) <= TILE_WIDTH:
        raise LogError(f"a bundle of {len(entries)} entries; it holds 1 to {TILE_WIDTH}")
    for position, entry in enumerate(entries):
        if len(entry) > MAX_ENTRY_BYTES:
            raise LogError(
                f"entry {position} has {len(entry)} bytes, more than {MAX_ENTRY_BYTES}; "
                "log its digest instead"
            )
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def decode_bundle(data: bytes, width: int) -> list[bytes]:
    """Exactly ``width`` entries of a bundle. Raises LogError for any byte short or over."""
    entries, at = _take(data, width)
    if at != len(data):
        raise LogError(f"bundle holds {len(data) - at} bytes after its {width} entries")
    return entries


def decode_bundle_start(data: bytes, width: int) -> list[bytes]:
    """First ``width`` entries of a bundle that may have grown since its checkpoint was read."""
    return _take(data, width)[0]


def _take(data: bytes, width: int) -> tuple[list[bytes], int]:
    entries, at = [], 0
    for position in range(width):
        length = int.from_bytes(data[at : at + 2], "big")
        entry = data[at + 2 : at + 2 + length]
        if len(data) < at + 2 or len(entry) != length:
            raise LogError(f"bundle ends within entry {position} of {width}")
        entries.append(entry)
        at += 2 + length
    return entries, at


def encode_log(entries: Sequence[bytes]) -> dict[str, bytes]:
    """Every file of the log over these entries, by path, without its checkpoint."""
    node = node_reader(leaf_hash(entry) for entry in entries)
    return {
        tile.path: encode_bundle([entries[index] for index in tile.span])
        if tile.level is None
        else encode_hashes(node, tile)
        for tile in tiles(len(entries))
    }


def verify_tiles(files: Mapping[str, bytes], size: int, root: bytes) -> list[bytes]:
    """Entries of a log whose files are exactly those of a tree with this size and root.

    ``files`` are all files under ``tile/`` by path. Size and root come from a verified
    checkpoint. Raises LogError naming the first file that is missing, superfluous or wrong.
    """
    wanted = list(tiles(size))
    # 1. Every file is there, and none besides.
    for tile in wanted:
        if tile.path not in files:
            raise LogError(f"{tile.path}: missing from a log of {size} entries")
    superfluous = sorted(set(files) - {tile.path for tile in wanted})
    if superfluous:
        raise LogError(f"{superfluous[0]}: does not belong to a log of {size} entries")
    # 2. The bundles can be read.
    entries: list[bytes] = []
    for tile in wanted:
        if tile.level is None:
            try:
                entries += decode_bundle(files[tile.path], tile.width)
            except LogError as error:
                raise LogError(f"{tile.path}: {error}") from error
    # 3. The entries give the root; when not, the leaf tiles tell which bundle is to blame.
    leaves = [leaf_hash(entry) for entry in entries]
    if root_of(leaves) != root:
        raise LogError(_blame(files, [tile for tile in wanted if tile.level == 0], leaves))
    # 4. Every hash tile is what these entries make it.
    node = node_reader(leaves)
    for tile in wanted:
        if tile.level is not None and files[tile.path] != encode_hashes(node, tile):
            raise LogError(f"{tile.path}: its hashes are not those of the log's entries")
    return entries


def _blame(files: Mapping[str, bytes], leaf_tiles: list[Tile], leaves: list[bytes]) -> str:
    """Which bundle disagrees first with the leaf tiles, if one does."""
    for tile in leaf_tiles:
        for offset, index in enumerate(tile.span):
            stored = files[tile.path][offset * HASH_BYTES : (offset + 1) * HASH_BYTES]
            if stored != leaves[index]:
                bundle = Tile(None, tile.index, tile.width).path
                return f"{bundle}: entry {index} does not hash to its leaf in {tile.path}"
    return "tile/entries: the log's entries do not give the checkpoint's root"
