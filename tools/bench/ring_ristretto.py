"""Measured by an interpreter with rbcl: ristretto255 on the libsodium that rbcl brings.

Stands alone: where this runs there is no vitalring. Times are processor seconds.
"""

import importlib
import json
import secrets
import sys
import time
from collections.abc import Callable
from typing import Any

rbcl: Any = importlib.import_module("rbcl")


def cost(function: Callable[[], object], calls: int) -> float:
    """Return processor seconds of one call."""
    began = time.process_time()
    for _ in range(calls):
        function()
    return (time.process_time() - began) / calls


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Return the cost of each operation `repeats` times, and whether an alias is accepted."""
    scalar = secrets.randbelow(2**252).to_bytes(32, "little")
    wide = secrets.token_bytes(64)
    p = rbcl.crypto_core_ristretto255_from_hash(wide)
    q = rbcl.crypto_core_ristretto255_from_hash(secrets.token_bytes(64))
    operations: dict[str, Callable[[], object]] = {
        "base": lambda: rbcl.crypto_scalarmult_ristretto255_base(scalar),
        "multiply": lambda: rbcl.crypto_scalarmult_ristretto255(scalar, p),
        "add": lambda: rbcl.crypto_core_ristretto255_add(p, q),
        "decode": lambda: rbcl.crypto_core_ristretto255_is_valid_point(p),
        "hash to point": lambda: rbcl.crypto_core_ristretto255_from_hash(wide),
    }
    alias = p[:31] + bytes([p[31] | 0x80])
    return {
        "seconds": {
            name: [cost(call, request["calls"]) for _ in range(request["repeats"])]
            for name, call in operations.items()
        },
        "accepts_alias": bool(rbcl.crypto_core_ristretto255_is_valid_point(alias)),
    }


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
