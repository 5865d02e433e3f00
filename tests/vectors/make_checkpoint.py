"""Rebuild checkpoint.json: signed notes, good and bad, each bad one with its failure.

Run: python tests/vectors/make_checkpoint.py
"""

import base64
import json
from pathlib import Path
from typing import Any

from nacl.signing import SigningKey

from vitalring.protocol.checkpoint import Checkpoint, VerifierKey, sign

ORIGIN = "log.example/st-mary"
SEED = bytes(range(32))
WITNESS = "witness.example/w1"
WITNESS_SEED = bytes(range(32, 64))
CHECKPOINT = Checkpoint(ORIGIN, 20852163, bytes(range(100, 132)))


def signed(text: bytes, name: str = ORIGIN, seed: bytes = SEED) -> bytes:
    """Any text as a correctly signed note, which `sign` would refuse to make."""
    return text + b"\n" + line(text, name, seed)


def line(text: bytes, name: str, seed: bytes) -> bytes:
    """One correct signature line over any text."""
    blob = VerifierKey.of_seed(name, seed).id + SigningKey(seed).sign(text).signature
    return f"\u2014 {name} ".encode() + base64.b64encode(blob) + b"\n"


def build() -> dict[str, Any]:
    """All vectors, as they stand in the file."""
    text = CHECKPOINT.encode()
    note = sign(CHECKPOINT, SEED, ORIGIN)
    root = base64.b64encode(CHECKPOINT.root)
    own = line(text, ORIGIN, SEED)
    cosigned = note + line(text, WITNESS, WITNESS_SEED)
    stranger = line(text, "stranger.example", bytes(32))
    flipped = bytearray(note)
    flipped[-10] ^= 1
    origin = ORIGIN.encode()

    def three(first: bytes, second: bytes, third: bytes) -> bytes:
        return b"%b\n%b\n%b\n" % (first, second, third)

    size = b"20852163"
    valid = {
        "plain": note,
        "cosigned by a known witness": cosigned,
        "line of an unknown key": note + stranger,
        "unknown key first": text + b"\n" + stranger + own,
        "unknown signature type under the log's name": note
        + f"\u2014 {ORIGIN} ".encode()
        + base64.b64encode(b"\x00\x01\x02\x03" + bytes(72))
        + b"\n",
    }
    invalid = {
        "text changed": (note.replace(b"20852163", b"20852164", 1), "does not verify"),
        "signature changed": (bytes(flipped), "does not verify|one encoding"),
        "no signature line": (text + b"\n", "empty line"),
        "no empty line": (text + own, "empty line"),
        "no final newline": (note[:-1], "empty line"),
        "signed by a stranger alone": (text + b"\n" + stranger, "no signature of a known key"),
        "signed by the witness alone": (
            text + b"\n" + line(text, WITNESS, WITNESS_SEED),
            "not signed by the key of that name",
        ),
        "signed twice": (note + own, "twice"),
        "bad cosignature of a known witness": (
            note + line(b"other", WITNESS, WITNESS_SEED),
            "does not verify",
        ),
        "origin of another log": (
            signed(three(b"log.example/other", size, root)),
            "not signed by the key of that name",
        ),
        "size with a leading zero": (signed(three(origin, b"0" + size, root)), "one encoding"),
        "size with a sign": (signed(three(origin, b"+5", root)), "decimal"),
        "size beyond 63 bits": (signed(three(origin, b"9223372036854775808", root)), "outside"),
        "size of many digits": (signed(three(origin, b"1" * 5000, root)), "decimal"),
        "size not a number": (signed(three(origin, b"many", root)), "decimal"),
        "root too short": (signed(three(origin, size, base64.b64encode(bytes(31)))), "31 bytes"),
        "root with stray padding bits": (
            signed(three(origin, size, root[:-2] + b"N=")),
            "one encoding",
        ),
        "root not base64": (signed(three(origin, size, b"!" * 44)), "checkpoint: "),
        "extension line": (signed(text + b"extension\n"), "exactly 3"),
        "two lines": (signed(b"%b\n%b\n" % (origin, size)), "exactly 3"),
        "empty origin": (signed(three(b"", size, root)), "empty"),
        "origin not UTF-8": (signed(three(b"\xff", size, root)), "utf-8"),
        "carriage returns": (signed(text.replace(b"\n", b"\r\n")), "control character"),
        "hyphen for the dash": (note.replace("\u2014".encode(), b"-"), "one encoding"),
        "two spaces": (note.replace("\u2014 ".encode(), "\u2014  ".encode()), "cannot be read"),
        "signature not base64": (text + f"\n\u2014 {ORIGIN} %%%%\n".encode(), "cannot be read"),
        "signature too short": (
            text
            + f"\n\u2014 {ORIGIN} ".encode()
            + base64.b64encode(VerifierKey.of_seed(ORIGIN, SEED).id + bytes(63))
            + b"\n",
            "63 bytes",
        ),
        "key name with a plus": (text + b"\n" + own.replace(b"log.", b"log+"), "plus or a space"),
        "too many signatures": (note + stranger * 64, "at most 64"),
    }
    return {
        "verifiers": {
            name: VerifierKey.of_seed(name, seed).encode()
            for name, seed in ((ORIGIN, SEED), (WITNESS, WITNESS_SEED))
        },
        "checkpoint": {
            "origin": CHECKPOINT.origin,
            "size": CHECKPOINT.size,
            "root": CHECKPOINT.root.hex(),
        },
        "seed": SEED.hex(),
        "valid": [{"name": name, "note": data.hex()} for name, data in valid.items()],
        "invalid": [
            {"name": name, "failure": failure, "note": data.hex()}
            for name, (data, failure) in invalid.items()
        ],
    }


if __name__ == "__main__":
    path = Path(__file__).with_name("checkpoint.json")
    path.write_text(json.dumps(build(), indent=1) + "\n")
