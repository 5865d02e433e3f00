"""Signed notes and checkpoints: frozen vectors, foreign notes, mutations."""

import base64
import hashlib
import importlib
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.errors import LogError
from vitalring.protocol.checkpoint import (
    MAX_NOTE_BYTES,
    Checkpoint,
    VerifierKey,
    parse_and_verify,
    sign,
)

VECTORS = Path(__file__).parents[1] / "vectors"
sys.path.insert(0, str(VECTORS))
make_checkpoint = importlib.import_module("make_checkpoint")
FROZEN = json.loads((VECTORS / "checkpoint.json").read_text())
KEYS = [VerifierKey.decode(text) for text in FROZEN["verifiers"].values()]
ORIGIN, SEED, CHECKPOINT = make_checkpoint.ORIGIN, make_checkpoint.SEED, make_checkpoint.CHECKPOINT

# The note and the key of the examples of Go's golang.org/x/mod/sumdb/note.
FOREIGN_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
FOREIGN_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngot"
    "pRZb6KE6RyyBwJnAM=\n"
).encode()


def test_vectors_are_what_the_script_builds():
    assert make_checkpoint.build() == FROZEN


@pytest.mark.parametrize("vector", FROZEN["valid"], ids=lambda v: v["name"])
def test_valid_notes(vector):
    assert parse_and_verify(bytes.fromhex(vector["note"]), KEYS) == CHECKPOINT


@pytest.mark.parametrize("vector", FROZEN["invalid"], ids=lambda v: v["name"])
def test_invalid_notes(vector):
    with pytest.raises(LogError, match=vector["failure"]):
        parse_and_verify(bytes.fromhex(vector["note"]), KEYS)


def test_a_foreign_note_verifies_and_only_then_fails_as_a_checkpoint():
    key = VerifierKey.decode(FOREIGN_KEY)
    with pytest.raises(LogError, match="exactly 3"):
        parse_and_verify(FOREIGN_NOTE, [key])
    with pytest.raises(LogError, match="does not verify"):
        parse_and_verify(FOREIGN_NOTE.replace(b"answer", b"answer!"), [key])


def test_no_known_keys_at_all_is_a_refusal():
    with pytest.raises(LogError, match="known key"):
        parse_and_verify(sign(CHECKPOINT, SEED, ORIGIN), [])


def test_an_oversized_note_is_refused_before_it_is_read():
    with pytest.raises(LogError, match="at most"):
        parse_and_verify(b"x" * (MAX_NOTE_BYTES + 1), KEYS)


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_no_mutated_note_passes_for_another_checkpoint(data):
    note = bytearray(sign(CHECKPOINT, SEED, ORIGIN))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(note) - 1))
        if data.draw(st.booleans()):
            note[at] = data.draw(st.integers(0, 255))
        elif data.draw(st.booleans()):
            del note[at]
        else:
            note.insert(at, data.draw(st.integers(0, 255)))
    try:
        assert parse_and_verify(bytes(note), KEYS) == CHECKPOINT
    except LogError:
        return
    assert bytes(note) == sign(CHECKPOINT, SEED, ORIGIN)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data):
    with pytest.raises(LogError):
        parse_and_verify(data, KEYS)


@given(st.text(), st.integers(-1, 2**64), st.binary(min_size=32, max_size=32))
def test_what_encodes_decodes(origin, size, root):
    try:
        checkpoint = Checkpoint(origin, size, root)
    except LogError:
        return
    assert Checkpoint.decode(checkpoint.encode()) == checkpoint


@given(st.text(), st.binary(min_size=32, max_size=32))
def test_what_is_a_key_round_trips(name, seed):
    try:
        key = VerifierKey.of_seed(name, seed)
    except LogError:
        return
    assert VerifierKey.decode(key.encode()) == key


def with_own_id(name, blob):
    """A key text whose id is right, so that only the blob can be at fault."""
    key_id = hashlib.sha256(name.encode() + b"\n" + blob).digest()[:4]
    return f"{name}+{key_id.hex()}+{base64.b64encode(blob).decode()}"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "name\\+id"),
        ("name+00000000", "name\\+id"),
        ("name+00000000+%", "verifier key"),
        (FOREIGN_KEY.replace("c74f20a3", "c74f20a4"), "one encoding"),
        (FOREIGN_KEY.replace("c74f20a3", "C74F20A3"), "one encoding"),
        (with_own_id("name", b"\x02" + bytes(32)), "type 0x01"),
        (with_own_id("name", b"\x01" + bytes(32)), "not an Ed25519 public key"),
        (with_own_id("name", b"\x01\x01" + bytes(31)), "not an Ed25519 public key"),
        (with_own_id("name", b"\x01" + bytes(31)), "not an Ed25519 public key"),
        (with_own_id("a name", b"\x01" + KEYS[0].public), "plus or a space"),
        (with_own_id("", b"\x01" + KEYS[0].public), "empty"),
    ],
)
def test_invalid_verifier_keys(text, complaint):
    with pytest.raises(LogError, match=complaint):
        VerifierKey.decode(text)


@pytest.mark.parametrize("seed", [b"", bytes(31), bytes(33)])
def test_a_seed_of_another_length_is_refused(seed):
    with pytest.raises(LogError, match="seed"):
        sign(CHECKPOINT, seed, ORIGIN)
