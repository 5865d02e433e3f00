"""The Merkle tree against RFC 6962's published values and a second verifier."""

import hashlib
import importlib
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.errors import LogError
from vitalring.protocol import merkle

VECTORS = Path(__file__).parents[1] / "vectors"
sys.path.insert(0, str(VECTORS))
make_merkle = importlib.import_module("make_merkle")
FROZEN = json.loads((VECTORS / "merkle.json").read_text())

# Published with the reference implementations of RFC 6962.
PUBLISHED_ROOTS = (
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
H_01 = PUBLISHED_ROOTS[2]
H_1 = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
H_23 = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
H_4567 = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
H_4 = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
H_67 = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
H_45 = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
H_0123 = PUBLISHED_ROOTS[4]


def leaves_of(size):
    return [merkle.leaf_hash(index.to_bytes(4, "big")) for index in range(size)]


def rfc_inclusion(leaf, leaf_index, tree_size, inclusion_path, root_hash):
    """RFC 9162 §2.1.3.2, step by step."""
    if leaf_index >= tree_size:
        return False
    fn, sn = leaf_index, tree_size - 1
    r = leaf
    for p in inclusion_path:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            r = hashlib.sha256(b"\x01" + p + r).digest()
            if not fn & 1:
                while not (fn & 1 or fn == 0):
                    fn >>= 1
                    sn >>= 1
        else:
            r = hashlib.sha256(b"\x01" + r + p).digest()
        fn >>= 1
        sn >>= 1
    return sn == 0 and r == root_hash


def rfc_consistency(first, second, path, first_hash, second_hash):
    """RFC 9162 §2.1.4.2, step by step, for 0 < first < second."""
    path = list(path)
    if not path:
        return False
    if first & (first - 1) == 0:
        path.insert(0, first_hash)
    fn, sn = first - 1, second - 1
    while fn & 1:
        fn >>= 1
        sn >>= 1
    fr = sr = path[0]
    for c in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            fr = hashlib.sha256(b"\x01" + c + fr).digest()
            sr = hashlib.sha256(b"\x01" + c + sr).digest()
            if not fn & 1:
                while not (fn & 1 or fn == 0):
                    fn >>= 1
                    sn >>= 1
        else:
            sr = hashlib.sha256(b"\x01" + sr + c).digest()
        fn >>= 1
        sn >>= 1
    return fr == first_hash and sr == second_hash and sn == 0


def rfc_root(leaves):
    """RFC 9162 §2.1.1, by its recursion."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + rfc_root(leaves[:k]) + rfc_root(leaves[k:])).digest()


def accepts(check, *arguments):
    try:
        check(*arguments)
    except LogError:
        return False
    return True


def test_published_roots():
    leaves = [merkle.leaf_hash(leaf) for leaf in make_merkle.LEAVES]
    assert [merkle.root_of(leaves[:n]).hex() for n in range(9)] == list(PUBLISHED_ROOTS)


@pytest.mark.parametrize(
    ("index", "size", "proof"),
    [
        (0, 1, []),
        (0, 8, [H_1, H_23, H_4567]),
        (5, 8, [H_4, H_67, H_0123]),
        (2, 3, [H_01]),
        (1, 5, [PUBLISHED_ROOTS[1], H_23, H_4]),
    ],
)
def test_published_inclusion_proofs(index, size, proof):
    leaves = [merkle.leaf_hash(leaf) for leaf in make_merkle.LEAVES[:size]]
    assert [h.hex() for h in merkle.inclusion_proof(leaves, index)] == proof


@pytest.mark.parametrize(
    ("old", "size", "proof"),
    [
        (1, 1, []),
        (1, 8, [H_1, H_23, H_4567]),
        (6, 8, [H_45, H_67, H_0123]),
        (2, 5, [H_23, H_4]),
    ],
)
def test_published_consistency_proofs(old, size, proof):
    leaves = [merkle.leaf_hash(leaf) for leaf in make_merkle.LEAVES[:size]]
    assert [h.hex() for h in merkle.consistency_proof(leaves, old)] == proof


def test_vectors_are_what_the_script_builds():
    assert make_merkle.build() == FROZEN


def test_every_proof_of_small_trees_satisfies_both_verifiers():
    leaves = leaves_of(34)
    node = merkle.node_reader(leaves)
    roots = [rfc_root(leaves[:size]) for size in range(35)]
    assert roots == [merkle.root_of(leaves[:size]) for size in range(35)]
    for size in range(1, 35):
        for index in range(size):
            proof = merkle.prove_inclusion(node, index, size)
            merkle.verify_inclusion(leaves[index], index, size, proof, roots[size])
            assert rfc_inclusion(leaves[index], index, size, proof, roots[size])
        for old in range(1, size):
            proof = merkle.prove_consistency(node, old, size)
            merkle.verify_consistency(old, size, proof, roots[old], roots[size])
            assert rfc_consistency(old, size, proof, roots[old], roots[size])


mutations = st.sampled_from(("flip", "drop", "add", "swap", "index", "size"))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_both_verifiers_agree_on_mutated_inclusion_proofs(data):
    size = data.draw(st.integers(1, 70))
    index = data.draw(st.integers(0, size - 1))
    leaves = leaves_of(size)
    root = merkle.root_of(leaves)
    proof = merkle.inclusion_proof(leaves, index)
    what = data.draw(mutations)
    shown_index, shown_size = index, size
    mutated = list(proof)
    if what == "flip" and proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        bit = data.draw(st.integers(0, 255))
        value = int.from_bytes(proof[at], "big") ^ (1 << bit)
        mutated[at] = value.to_bytes(32, "big")
    elif what == "drop" and proof:
        del mutated[data.draw(st.integers(0, len(proof) - 1))]
    elif what == "add":
        mutated.insert(
            data.draw(st.integers(0, len(proof))), data.draw(st.binary(min_size=32, max_size=32))
        )
    elif what == "swap" and len(proof) > 1:
        mutated.reverse()
    elif what == "index":
        shown_index = data.draw(st.integers(0, 80))
    else:
        shown_size = data.draw(st.integers(0, 80))
    arguments = (leaves[index], shown_index, shown_size, mutated, root)
    ours = accepts(merkle.verify_inclusion, *arguments)
    assert ours == rfc_inclusion(*arguments)
    if mutated != proof or shown_index != index:
        assert not ours


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_both_verifiers_agree_on_mutated_consistency_proofs(data):
    size = data.draw(st.integers(2, 70))
    old = data.draw(st.integers(1, size - 1))
    leaves = leaves_of(size)
    old_root, root = merkle.root_of(leaves[:old]), merkle.root_of(leaves)
    proof = merkle.consistency_proof(leaves, old)
    what = data.draw(mutations)
    shown_old, shown_size = old, size
    mutated = list(proof)
    if what == "flip":
        at = data.draw(st.integers(0, len(proof) - 1))
        mutated[at] = bytes([mutated[at][0] ^ 1]) + mutated[at][1:]
    elif what == "drop":
        del mutated[data.draw(st.integers(0, len(proof) - 1))]
    elif what == "add":
        mutated.insert(
            data.draw(st.integers(0, len(proof))), data.draw(st.binary(min_size=32, max_size=32))
        )
    elif what == "swap":
        mutated.reverse()
    elif what == "index":
        shown_old = data.draw(st.integers(1, size - 1))
    else:
        shown_size = data.draw(st.integers(old + 1, 80))
    arguments = (shown_old, shown_size, mutated, old_root, root)
    ours = accepts(merkle.verify_consistency, *arguments)
    assert ours == rfc_consistency(*arguments)
    if mutated != proof or shown_old != old:
        assert not ours


def test_a_rewritten_past_is_refused_and_named():
    leaves = leaves_of(10)
    forked = [*leaves[:3], merkle.leaf_hash(b"other"), *leaves[4:]]
    with pytest.raises(LogError, match="changed its past"):
        merkle.verify_consistency(
            6,
            10,
            merkle.consistency_proof(forked, 6),
            merkle.root_of(leaves[:6]),
            merkle.root_of(forked),
        )


@pytest.mark.parametrize(
    ("old", "size", "proof", "old_root", "root", "complaint"),
    [
        (5, 4, [], 5, 4, "cannot grow"),
        (-1, 4, [], 0, 4, "cannot grow"),
        (4, 4, [], 4, 5, "different histories"),
        (4, 4, [bytes(32)], 4, 4, "exactly 0"),
        (0, 4, [bytes(32)], 0, 4, "exactly 0"),
        (0, 4, [], 1, 4, "empty tree"),
        (0, 0, [], 0, 1, "different histories"),
        (3, 4, [bytes(31)] * 3, 3, 4, "32-byte"),
        (3, 4, [], 3, 4, "exactly 3"),
    ],
)
def test_consistency_refusals(old, size, proof, old_root, root, complaint):
    roots = [merkle.root_of(leaves_of(n)) for n in range(6)]
    with pytest.raises(LogError, match=complaint):
        merkle.verify_consistency(old, size, proof, roots[old_root], roots[root])


def test_trivial_consistency_is_accepted():
    roots = [merkle.root_of(leaves_of(n)) for n in range(6)]
    merkle.verify_consistency(0, 0, [], roots[0], roots[0])
    merkle.verify_consistency(0, 5, [], roots[0], roots[5])
    merkle.verify_consistency(5, 5, [], roots[5], roots[5])


@pytest.mark.parametrize(("index", "size"), [(0, 0), (5, 5), (-1, 5), (0, 2**63)])
def test_an_index_outside_the_tree_is_refused(index, size):
    with pytest.raises(LogError, match="not in a tree"):
        merkle.verify_inclusion(bytes(32), index, size, [], bytes(32))
    with pytest.raises(LogError, match="not in a tree"):
        merkle.prove_inclusion(lambda *_: bytes(32), index, size)


@given(st.integers(0, 200), st.integers(0, 200))
@settings(deadline=None)
def test_a_range_extended_equals_the_range_over_all(first, more):
    leaves = leaves_of(first + more)
    grown = merkle.CompactRange.of(leaves[:first]).extend(leaves[first:])
    assert grown == merkle.CompactRange.of(leaves)
    assert grown.root() == rfc_root(leaves)
    one_by_one = merkle.CompactRange.of(leaves[:first])
    for leaf in leaves[first:]:
        one_by_one = one_by_one.append(leaf)
    assert one_by_one == grown


@pytest.mark.parametrize(
    ("size", "hashes"),
    [(1, ()), (0, (bytes(32),)), (3, (bytes(32),)), (1, (bytes(31),)), (-1, (bytes(32),))],
)
def test_a_range_that_cannot_be_is_refused(size, hashes):
    with pytest.raises(LogError):
        merkle.CompactRange(size, hashes)


def test_a_leaf_that_is_no_hash_is_refused():
    with pytest.raises(LogError, match="leaf 0"):
        merkle.CompactRange().append(b"an entry, not its hash")


def test_proofs_of_large_logs_read_few_nodes():
    size = 2**40 + 2**17 + 12345
    reads = []

    def node(level, index):
        assert (index + 1) << level <= size, "only perfect subtrees are stored"
        reads.append((level, index))
        return hashlib.sha256(f"{level} {index}".encode()).digest()

    merkle.prove_inclusion(node, 2**39 + 7, size)
    merkle.prove_consistency(node, 2**40 - 3, size)
    assert len(reads) < 3 * 41


def test_a_store_fed_by_grow_serves_every_proof():
    leaves = leaves_of(25)
    store, known = {}, merkle.CompactRange()
    for begin in range(0, 25, 4):
        known, nodes = known.grow(leaves[begin : begin + 4])
        for node in nodes:
            assert (node.level, node.index) not in store, "nodes never change"
            store[node.level, node.index] = node.hash
    for index in range(25):
        proof = merkle.prove_inclusion(lambda *at: store[at], index, 25)
        merkle.verify_inclusion(leaves[index], index, 25, proof, known.root())
