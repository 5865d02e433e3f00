"""The sums that are measured: sizes, and what the parties of one must know alike."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitalring.errors import ConfigError
from vitalring.protocol.quantise import Codec
from vitalring.protocol.secure_sum import Joint
from vitalring.protocol.threshold.pieces import Access

RELEASES = 200
"""Releases that a joint key has to last for."""

SEED = bytes(32)
"""Seed of the rotation."""

LARGE = 200_000
"""Parameters above which an update is megabytes, and adding is measured on fewer."""

LARGE_UPDATES = 4
_LARGE_ADDITIONS = 20
# So many parameters are encrypted for a sum, though in LARGE_UPDATES at least.
_MADE = 2_000_000


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


def update_file(number: int, part: int = 0) -> str:
    """Return the name of the file of an update, or of the half for the second of two servers."""
    return f"{number}.half" if part else f"{number}.update"


def sum_file(part: int = 0) -> str:
    """Return the name of the file of a sum, or of the second server's."""
    return "masks" if part else "sum"


@dataclass(frozen=True)
class Sizes:
    """What is measured: every dimension with every number of devices."""

    dimensions: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    devices: tuple[int, ...] = (10, 100, 1_000)
    repeats: int = 5  # of decryptions

    def __post_init__(self) -> None:
        if not self.dimensions or not self.devices or self.repeats < 1:
            raise ConfigError("a dimension, a number of devices and a repeat are needed at least")
        if min(self.dimensions) < 1 or min(self.devices) < 3:
            raise ConfigError("a sum needs one parameter and three devices at least")

    @property
    def compared(self) -> tuple[int, int]:
        """Return the dimension and devices at which sides are drawn: the middle and the most."""
        return sorted(self.dimensions)[len(self.dimensions) // 2], max(self.devices)


def updates_made(dimension: int, devices: int) -> int:
    """Return how many different updates are made."""
    return min(devices, max(LARGE_UPDATES, _MADE // dimension))


def additions_timed(dimension: int, devices: int) -> int:
    """Return on how many updates adding is measured."""
    return min(devices, _LARGE_ADDITIONS) if dimension > LARGE else devices
