"""One encrypted sum that is measured: what its parties must know alike."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitalring.protocol.quantise import Codec
from vitalring.protocol.secure_sum import Joint
from vitalring.protocol.threshold.pieces import Access

RELEASES = 200
"""Releases that a joint key has to last for."""

SEED = bytes(32)
"""Seed of the rotation."""


@dataclass(frozen=True)
class Cell:
    """Who adds how much, and in which mode."""

    mode: str
    hospitals: int  # of a joint key, otherwise 1
    threshold: int
    dimension: int
    devices: int  # so many updates have room in the sum
    bits: int
    updates: int  # different updates that are made, and whose sum is decrypted
    additions: int  # how often one of them is added, over and over

    @property
    def codec(self) -> Codec:
        """Return the codec of a plan for so many devices, without noise for privacy."""
        return Codec(n_max=self.devices, clip=1.0, weight_cap=1, bits=self.bits)

    @property
    def joint(self) -> Joint | None:
        """Return who shares the key, None for modes without a joint one."""
        if self.mode != "threshold-he":
            return None
        return Joint(Access(self.hospitals, self.threshold), RELEASES)


def update(number: int, dimension: int) -> npt.NDArray[np.float32]:
    """Return an update (dimension,) of norm 1; the peers' children draw theirs alike."""
    vector = np.random.default_rng(number).standard_normal(dimension)
    return (vector / np.linalg.norm(vector)).astype(np.float32)
