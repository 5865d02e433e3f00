"""A row's lot: a number that a hash of the row draws, and nothing else.

What a row is for follows from its lot. So the same row has the same side at every device and in
every order of rows, and one row more or less moves no other, as a guarantee for a record asks
(SPEC 7.2). Equal rows have equal lots. Each use has a label of its own, so that the lots of one
use say nothing of those of another.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

Lots = npt.NDArray[np.uint64]

_GROUP_LABEL = b"vitalring split of groups 1\0"
_ROW_LABEL = b"vitalring split of rows 2\0"
_CELL_LABEL = b"vitalring split of rows 2, cell\0"
_CHUNK = 4096  # rows


def draw(label: bytes, rows: Iterable[bytes]) -> Lots:
    """Return the lots (n) in [0, 2^64): of each row the first 8 bytes of SHA-256(label, row).

    They are read with the least byte first.
    """
    began = hashlib.sha256(label)
    drawn = []
    for row in rows:
        digest = began.copy()
        digest.update(row)
        drawn.append(digest.digest()[:8])
    return np.frombuffer(b"".join(drawn), "<u8").astype(np.uint64)


def group_lots(names: Sequence[str]) -> Lots:
    """Return the lot of each group's name; all its rows have it."""
    return draw(_GROUP_LABEL, (name.encode() for name in names))


def array_lots(x: npt.NDArray[np.float32], y: npt.NDArray[np.int64]) -> Lots:
    """Return the lots of rows of numbers x (n, ...) with labels y (n).

    A row is its label as 8 bytes and its numbers as 4 each, least byte first.
    """
    # A zero has two encodings, and who reads a file cannot tell them apart.
    numbers = (x + np.float32(0)).astype("<f4")
    labels = y.astype("<u8")
    return draw(
        _ROW_LABEL,
        (label.tobytes() + row.tobytes() for label, row in zip(labels, numbers, strict=True)),
    )


def table_lots(
    cells: Mapping[str, tuple[Sequence[str], npt.NDArray[np.int32]]], y: npt.NDArray[np.int64]
) -> Lots:
    """Return the lots of rows of text with labels y (n).

    Row i of a column holds texts[codes[i]]. A row is its label as 8 bytes and, in the order of the
    columns' names, the lot of each cell: SHA-256 of label, length of the column's name (4 bytes),
    name and text. Texts stand as they are, for whether a column holds numbers depends on others.
    """
    columns = []
    for name in sorted(cells):
        texts, codes = cells[name]
        encoded = name.encode()
        label = _CELL_LABEL + len(encoded).to_bytes(4, "little") + encoded
        columns.append((draw(label, (text.encode() for text in texts)), codes))
    found = [np.zeros(0, np.uint64)]
    for start in range(0, len(y), _CHUNK):
        rows = slice(start, start + _CHUNK)
        parts = [y[rows].astype(np.uint64), *(lots[codes[rows]] for lots, codes in columns)]
        found.append(draw(_ROW_LABEL, (row.tobytes() for row in np.stack(parts, 1).astype("<u8"))))
    return np.concatenate(found)
