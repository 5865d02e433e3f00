"""Rebuild merkle.json: roots and proofs over the eight leaves of the RFC 6962 test tree.

Run: python tests/vectors/make_merkle.py
"""

import json
from pathlib import Path
from typing import Any

from vitalring.protocol import merkle

LEAVES = (
    b"",
    b"\x00",
    b"\x10",
    b"\x20\x21",
    b"\x30\x31",
    b"\x40\x41\x42\x43",
    b"\x50\x51\x52\x53\x54\x55\x56\x57",
    b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
)


def build() -> dict[str, Any]:
    """All roots, inclusion proofs and consistency proofs of the trees of 0 to 8 leaves."""
    leaves = [merkle.leaf_hash(leaf) for leaf in LEAVES]
    sizes = range(len(leaves) + 1)
    return {
        "leaves": [leaf.hex() for leaf in LEAVES],
        "roots": [merkle.root_of(leaves[:size]).hex() for size in sizes],
        "inclusion": [
            {
                "index": index,
                "size": size,
                "proof": [h.hex() for h in merkle.inclusion_proof(leaves[:size], index)],
            }
            for size in sizes
            for index in range(size)
        ],
        "consistency": [
            {
                "old_size": old,
                "size": size,
                "proof": [h.hex() for h in merkle.consistency_proof(leaves[:size], old)],
            }
            for size in sizes
            for old in range(size + 1)
        ],
    }


if __name__ == "__main__":
    path = Path(__file__).with_name("merkle.json")
    path.write_text(json.dumps(build(), indent=1) + "\n")
