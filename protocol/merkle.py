"""The log's Merkle tree: RFC 6962 hashes, inclusion and consistency proofs (RFC 9162 §2.1).

Rules kept here (SPEC 8.1 to 8.4):

* SHA-256; a leaf is hashed after the byte 0x00, an inner node after 0x01.
* A proof has exactly one valid length for its indices; another length is refused.
* A proof is a list of 32-byte hashes, from the leaves towards the root.

Proofs are read from perfect subtrees alone: ``node(level, index)`` is the root of the
leaves ``[index << level, (index + 1) << level)``. A store that keeps those hashes proves
anything about a log of n leaves with O(log n) reads.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vitalring.errors import LogError

HASH_BYTES = 32
MAX_SIZE = 2**63 - 1  # leaves; what the checkpoint format's other readers can hold
EMPTY_ROOT = hashlib.sha256(b"").digest()

NodeReader = Callable[[int, int], bytes]
Proof = Sequence[bytes]


def leaf_hash(entry: bytes) -> bytes:
    """Hash of one log entry (RFC 9162 §2.1.1, SPEC 8.1)."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node over its two children (RFC 9162 §2.1.1, SPEC 8.1)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True)
class Node:
    """A perfect subtree's root: leaves ``[index << level, (index + 1) << level)``."""

    level: int
    index: int
    hash: bytes


@dataclass(frozen=True)
class CompactRange:
    """The first ``size`` leaves as the roots of their perfect subtrees, largest first.

    It holds at most 63 hashes and is all that is needed to append and to know the root, so
    a device can keep it, add the entries it is shown and compare with a checkpoint.
    """

    size: int = 0
    hashes: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_SIZE:
            raise LogError(f"a tree of {self.size} leaves is outside 0..2^63-1")
        if len(self.hashes) != self.size.bit_count():
            raise LogError(
                f"{len(self.hashes)} subtree roots given for {self.size} leaves, "
                f"which have {self.size.bit_count()}"
            )
        for position, value in enumerate(self.hashes):
            _check_hash(f"subtree root {position}", value)

    @classmethod
    def of(cls, leaf_hashes: Iterable[bytes]) -> "CompactRange":
        """Range over the given leaf hashes, in order."""
        return cls().extend(leaf_hashes)

    def append(self, leaf: bytes) -> "CompactRange":
        """Range with one more leaf hash at the end."""
        return self.grow((leaf,))[0]

    def extend(self, leaf_hashes: Iterable[bytes]) -> "CompactRange":
        """Range with more leaf hashes at the end."""
        return self.grow(leaf_hashes)[0]

    def grow(self, leaf_hashes: Iterable[bytes]) -> tuple["CompactRange", list[Node]]:
        """Append leaf hashes; also return every perfect subtree they complete, leaves included.

        The nodes are what a store has to add to serve ``node(level, index)`` for the new
        size. Raises LogError when a leaf hash is not 32 bytes.
        """
        size, stack, completed = self.size, list(self.hashes), []
        for leaf in leaf_hashes:
            _check_hash(f"leaf {size}", leaf)
            level, index, value = 0, size, leaf
            completed.append(Node(level, index, value))
            while index & 1:
                level, index, value = level + 1, index >> 1, node_hash(stack.pop(), value)
                completed.append(Node(level, index, value))
            stack.append(value)
            size += 1
        return CompactRange(size, tuple(stack)), completed

    def root(self) -> bytes:
        """Root of the tree over these leaves; SHA-256 of nothing for an empty tree."""
        if not self.hashes:
            return EMPTY_ROOT
        *lefts, value = self.hashes
        for left in reversed(lefts):
            value = node_hash(left, value)
        return value


def root_of(leaf_hashes: Iterable[bytes]) -> bytes:
    """Root of the tree over the given leaf hashes (RFC 9162 §2.1.1)."""
    return CompactRange.of(leaf_hashes).root()


def node_reader(leaf_hashes: Iterable[bytes]) -> NodeReader:
    """Perfect subtrees of a tree held in memory, as ``node(level, index)``."""
    _, nodes = CompactRange().grow(leaf_hashes)
    table = {(node.level, node.index): node.hash for node in nodes}

    def read(level: int, index: int) -> bytes:
        return table[level, index]

    return read


def inclusion_proof(leaf_hashes: Sequence[bytes], index: int) -> list[bytes]:
    """Proof that leaf ``index`` is in the tree over all given leaves; O(n), for small logs."""
    return prove_inclusion(node_reader(leaf_hashes), index, len(leaf_hashes))


def consistency_proof(leaf_hashes: Sequence[bytes], old_size: int) -> list[bytes]:
    """Proof that the first ``old_size`` leaves are a prefix of all; O(n), for small logs."""
    return prove_consistency(node_reader(leaf_hashes), old_size, len(leaf_hashes))


def prove_inclusion(node: NodeReader, index: int, size: int) -> list[bytes]:
    """Proof that leaf ``index`` is in the tree of ``size`` leaves (RFC 9162 §2.1.3.1).

    Reads O(log size) nodes. Raises LogError when the index is not in the tree.
    """
    _check_index(index, size)
    siblings = [_range_root(node, *sibling) for sibling, _ in _descend_to_leaf(index, size)]
    return siblings[::-1]


def prove_consistency(node: NodeReader, old_size: int, size: int) -> list[bytes]:
    """Proof that a tree of ``old_size`` leaves is a prefix of one of ``size`` (§2.1.4.1).

    Empty when either tree says nothing about the other's nodes: ``old_size`` 0 or ``size``.
    Reads O(log size) nodes. Raises LogError when ``old_size`` is not within 0..size.
    """
    _check_sizes(old_size, size)
    if old_size in (0, size):
        return []
    steps, start = _descend_to_prefix(old_size, size)
    proof = [_range_root(node, *sibling) for sibling, _ in steps]
    if start:  # otherwise the old tree is one perfect subtree and its root is known
        proof.append(_range_root(node, start, old_size))
    return proof[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Proof, root: bytes) -> None:
    """Check that ``leaf`` (a leaf hash) stands at ``index`` under ``root`` (RFC 9162 §2.1.3.2).

    Raises LogError: index outside the tree, proof of the wrong length, or another root.
    """
    # 1. The index lies in the tree.
    _check_index(index, size)
    # 2. Hashes are hashes, and the proof has the one length that index and size allow.
    steps = _descend_to_leaf(index, size)
    _check_hash("leaf hash", leaf)
    _check_hash("root", root)
    _check_proof(proof, len(steps))
    # 3. Climb to the root.
    value = leaf
    for (_, on_the_left), sibling in zip(reversed(steps), proof, strict=True):
        value = node_hash(sibling, value) if on_the_left else node_hash(value, sibling)
    # 4. It is the root that was promised.
    if value != root:
        raise LogError(
            f"inclusion: leaf {index} of {size} leads to root {value.hex()}, not {root.hex()}; "
            "the log does not hold this entry there"
        )


def verify_consistency(
    old_size: int, size: int, proof: Proof, old_root: bytes, root: bytes
) -> None:
    """Check that the tree (old_size, old_root) is a prefix of (size, root) (RFC 9162 §2.1.4.2).

    An empty old tree is a prefix of any tree, with an empty proof. Raises LogError: sizes
    out of order, proof of the wrong length, or a root that the proof does not lead to.
    """
    # 1. The log never shrinks.
    _check_sizes(old_size, size)
    _check_hash("old root", old_root)
    _check_hash("root", root)
    # 2. Trivial cases: nothing before, or nothing since.
    if old_size == 0 and old_root != EMPTY_ROOT:
        raise LogError(f"consistency: an empty tree cannot have root {old_root.hex()}")
    if old_size == size and old_root != root:
        raise LogError(
            f"consistency: two roots for {size} leaves, {old_root.hex()} and {root.hex()}; "
            "the log shows different histories"
        )
    if old_size in (0, size):
        _check_proof(proof, 0)
        if size == 0 and root != EMPTY_ROOT:
            raise LogError(f"consistency: an empty tree cannot have root {root.hex()}")
        return
    # 3. The proof has the one length that both sizes allow.
    steps, start = _descend_to_prefix(old_size, size)
    _check_proof(proof, len(steps) + (1 if start else 0))
    # 4. Climb to both roots at once; what lies right of the old tree enters the new root only.
    siblings = iter(proof)
    old_value = value = next(siblings) if start else old_root
    for (_, on_the_left), sibling in zip(reversed(steps), siblings, strict=True):
        if on_the_left:
            old_value, value = node_hash(sibling, old_value), node_hash(sibling, value)
        else:
            value = node_hash(value, sibling)
    # 5. Both are the roots that were promised.
    if old_value != old_root:
        raise LogError(
            f"consistency: the proof leads to {old_value.hex()} for the first {old_size} leaves, "
            f"not {old_root.hex()}; the log has changed its past"
        )
    if value != root:
        raise LogError(
            f"consistency: the proof leads to {value.hex()} for {size} leaves, not {root.hex()}"
        )


_Step = tuple[tuple[int, int], bool]  # the sibling's leaves [begin, end), and whether it is left


def _split(width: int) -> int:
    """Largest power of two below ``width``, which is at least 2 (RFC 9162 §2.1.1)."""
    return 1 << ((width - 1).bit_length() - 1)


def _descend_to_leaf(index: int, size: int) -> list[_Step]:
    """Siblings met on the way from the root to a leaf."""
    steps: list[_Step] = []
    begin, end = 0, size
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            steps.append(((middle, end), False))
            end = middle
        else:
            steps.append(((begin, middle), True))
            begin = middle
    return steps


def _descend_to_prefix(old_size: int, size: int) -> tuple[list[_Step], int]:
    """Siblings from the root to the subtree ``[start, old_size)``, which both trees share."""
    steps: list[_Step] = []
    begin, end = 0, size
    while end != old_size:
        middle = begin + _split(end - begin)
        if old_size <= middle:
            steps.append(((middle, end), False))
            end = middle
        else:
            steps.append(((begin, middle), True))
            begin = middle
    return steps, begin


def _range_root(node: NodeReader, begin: int, end: int) -> bytes:
    """Root over leaves ``[begin, end)`` of a subtree that the tree's splits produce."""
    hashes = []
    while begin < end:  # such a subtree begins at a multiple of its width rounded up
        level = (end - begin).bit_length() - 1
        hashes.append(node(level, begin >> level))
        begin += 1 << level
    value = hashes.pop()
    while hashes:
        value = node_hash(hashes.pop(), value)
    return value


def _check_hash(what: str, value: bytes) -> None:
    if not isinstance(value, bytes) or len(value) != HASH_BYTES:
        raise LogError(f"{what} is not a {HASH_BYTES}-byte hash: {value!r}")


def _check_index(index: int, size: int) -> None:
    if not 0 <= index < size <= MAX_SIZE:
        raise LogError(f"inclusion: leaf {index} is not in a tree of {size} leaves")


def _check_sizes(old_size: int, size: int) -> None:
    if not 0 <= old_size <= size <= MAX_SIZE:
        raise LogError(f"consistency: a tree of {old_size} leaves cannot grow to one of {size}")


def _check_proof(proof: Proof, length: int) -> None:
    if len(proof) != length:
        raise LogError(f"proof of {len(proof)} hashes where exactly {length} are needed")
    for position, value in enumerate(proof):
        _check_hash(f"proof hash {position}", value)
