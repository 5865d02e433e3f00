"""The gateway's log in SQLite is the tree that the protocol's pure functions make."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.database import transaction
from vitalring.errors import StorageError
from vitalring.gateway import log, store
from vitalring.protocol import limits, merkle, tiles
from vitalring.protocol.cbor import decode, digest
from vitalring.protocol.checkpoint import VerifierKey, parse_and_verify
from vitalring.protocol.records import LoggedObject

KEY = log.LogKey("log.example/unit", b"\x07" * 32)
VERIFIER = VerifierKey.of_seed(KEY.origin, KEY.seed)


@pytest.fixture
def db(tmp_path):
    connection = store.open_store(tmp_path)
    yield connection
    connection.close()


def entries_of(size, first=0):
    return [f"entry {index}".encode() for index in range(first, first + size)]


def grow(db, batches):
    """Append batches of these sizes, each with its checkpoint; return all notes."""
    notes = []
    for count in batches:
        with transaction(db):
            log.append(db, entries_of(count, log.size(db)))
            notes.append(log.sign_checkpoint(db, KEY))
    return notes


@settings(max_examples=25, deadline=None)
@given(batches=st.lists(st.integers(0, 70), min_size=1, max_size=8))
def test_files_and_root_are_those_of_the_pure_tree(tmp_path_factory, batches):
    db = store.open_store(tmp_path_factory.mktemp("log"))
    note = grow(db, batches)[-1]
    entries = entries_of(sum(batches))
    checkpoint = parse_and_verify(note, [VERIFIER])
    assert checkpoint.size == log.size(db) == len(entries)
    assert checkpoint.root == merkle.root_of(map(merkle.leaf_hash, entries))
    expected = tiles.encode_log(entries)
    assert {t.path: log.tile_bytes(db, t) for t in tiles.tiles(len(entries))} == expected
    db.close()


@settings(max_examples=25, deadline=None)
@given(batches=st.lists(st.integers(1, 40), min_size=1, max_size=6), data=st.data())
def test_proofs_verify(tmp_path_factory, batches, data):
    db = store.open_store(tmp_path_factory.mktemp("log"))
    notes = [parse_and_verify(note, [VERIFIER]) for note in grow(db, batches)]
    last = notes[-1]
    position = data.draw(st.integers(0, last.size - 1))
    entry = log.entries(db, position, position + 1)[0]
    proof = log.inclusion(db, position, last.size)
    merkle.verify_inclusion(merkle.leaf_hash(entry), position, last.size, proof, last.root)
    proofs = log.recent_consistency(db, last.size)
    assert [proof.size for proof in proofs] == [note.size for note in notes[-2::-1]]
    for proof, older in zip(proofs, notes[-2::-1], strict=True):
        merkle.verify_consistency(older.size, last.size, proof.hashes, older.root, last.root)
    db.close()


def test_only_recent_checkpoints_are_proved(db):
    grow(db, [1] * (limits.RECENT_CHECKPOINTS + 5))
    proofs = log.recent_consistency(db, log.size(db))
    assert len(proofs) == limits.RECENT_CHECKPOINTS
    assert proofs[0].size == log.size(db) - 1


def test_an_empty_log(db):
    assert log.size(db) == 0
    assert log.latest_checkpoint(db) is None
    assert grow(db, [0])
    checkpoint = parse_and_verify(log.latest_checkpoint(db), [VERIFIER])
    assert (checkpoint.size, checkpoint.root) == (0, merkle.EMPTY_ROOT)


def test_what_is_appended_in_a_transaction_that_fails_leaves_no_trace(db):
    grow(db, [5])
    note = log.latest_checkpoint(db)
    tables = "entries", "nodes", "checkpoints", "objects"

    def counts():
        return [db.execute(f"SELECT COUNT(*) FROM {t}").fetchone()[0] for t in tables]

    before = counts()
    with pytest.raises(RuntimeError), transaction(db):
        log.append_object(db, "roster", b"content")
        log.append(db, entries_of(9))
        log.sign_checkpoint(db, KEY)
        raise RuntimeError
    assert counts() == before
    assert log.latest_checkpoint(db) == note
    grow(db, [3])
    assert parse_and_verify(log.latest_checkpoint(db), [VERIFIER]).size == 8


def test_a_checkpoint_of_the_same_size_is_the_same_bytes(db):
    """Two different notes of one size would be two histories."""
    assert len(set(grow(db, [4, 0, 0]))) == 1
    assert db.execute("SELECT COUNT(*) FROM checkpoints").fetchone()[0] == 1


def test_an_object_is_kept_beside_the_entry_that_names_it(db):
    with transaction(db):
        position = log.append_object(db, "roster", b"content")
    entry = decode(LoggedObject, log.entries(db, position, position + 1)[0])
    assert entry == LoggedObject("roster", digest(b"content"))
    assert store.get_object(db, entry.digest) == b"content"


def test_a_lost_node_is_a_storage_error(db):
    grow(db, [8])
    db.execute("DELETE FROM nodes WHERE level = 0 AND position = 1")
    with pytest.raises(StorageError, match="restore"):
        log.inclusion(db, 0, 8)


def test_the_keys_seed_is_not_shown():
    assert "7" not in repr(KEY)
    assert KEY.seed.hex() not in repr(KEY)
