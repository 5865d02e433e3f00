"""Sizes, counts and times that all parties agree on, with their units (SPEC 10.3).

What a plan may choose lies within these; what a party accepts never exceeds them.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

MAX_RECORD_BYTES: Final = 64 * KIB - 1
"""A record that is a log entry must fit an entry bundle's 16-bit length (C2SP tlog-tiles)."""

MAX_LARGE_RECORD_BYTES: Final = MIB
"""Rosters, receipts and other records that grow with the cohort."""

MAX_UPDATE_BYTES: Final = 32 * MIB
"""A sealed update with all its ciphertexts."""

MAX_OBJECT_BYTES: Final = 64 * MIB
"""A content-addressed object: a model artefact, weights, a public key."""

MAX_DEVICES: Final = 10_000
"""Devices in one cohort."""

MAX_RING: Final = 1_024
"""Keys in one ring of LSAG, whose signatures grow with it; of suite 2 it is MAX_DEVICES."""

MAX_DIMENSION: Final = 4_000_000
"""Parameters of a network."""

MAX_ROUNDS: Final = 100_000
"""Rounds of one study."""

DECRYPTION_FLOOR: Final = 2
"""No plan may ask for sums of fewer updates: a sum of one is an update."""

RECENT_CHECKPOINTS: Final = 32
"""An announcement carries consistency proofs from this many earlier checkpoints."""

MAX_CLOCK_SKEW_MS: Final = 300_000
"""How far a device's clock may differ before it takes a deadline for passed."""
