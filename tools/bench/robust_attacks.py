"""What hostile devices send: fields that a device can really encrypt, honest-looking or not.

An encrypted field is a number modulo the radix of its place (SPEC 5.1), so a hostile device adds
whatever it likes, also less than nothing; it need not run the codec.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from vitalring.models.dataset import Records
from vitalring.protocol.quantise import Codec, encode_update, grid_step, kept_count
from vitalring.protocol.rotation import kept_coordinates, rotate

Vector = npt.NDArray[np.float64]
Fields = npt.NDArray[np.int64]

FACTOR: Final = 100.0

_UNDER_THE_LIMIT: Final = 0.9
"""Share of the norm limit that those who mean to stay below it aim at: others add theirs."""


@dataclass(frozen=True)
class Situation:
    """What a device knows. `honest` is the update (d,) of true training."""

    honest: Vector = field(repr=False)
    trained: Vector = field(repr=False)
    """The update of training on the labels that the attack uses."""
    direction: Vector = field(repr=False)
    """Mean of the honest updates of all hostile devices, who work together."""
    rows: int
    codec: Codec
    seed: bytes
    group: int
    """Updates in the group that the device will be in."""
    hostile_share: float
    generator: np.random.Generator


@dataclass(frozen=True)
class Attack:
    """An attack by its name, what it does in words, and the fields that it makes."""

    name: str
    does: str
    fields: Callable[[Situation], Fields]
    flips_labels: bool = False


def turn_labels(records: Records, classes: int) -> Records:
    """Return records whose class c is called classes - 1 - c."""
    return Records(records.device, records.x, classes - 1 - records.y, records.group)


def radix(codec: Codec) -> int:
    """Return the least modulus that the sum of a full round fits into (SPEC 5.1)."""
    return codec.n_max * codec.field_max + 1


def encoded(update: Vector, at: Situation) -> Fields:
    """Return what the honest encoder makes of an update: clipped, rotated, rounded."""
    made = encode_update(update, at.rows, at.codec, at.seed, rng=at.generator).fields
    return made.astype(np.int64)


def forged(update: Vector, at: Situation) -> Fields:
    """Return fields that stand for `update` at full weight, without any clip."""
    kept = kept_coordinates(update.size, kept_count(at.codec, update.size), at.seed)
    grid = rotate(update, at.seed)[kept] / grid_step(at.codec, update.size)
    return _at_full_weight(np.rint(grid).astype(np.int64), at.codec)


def _largest(at: Situation) -> Fields:
    kept = kept_coordinates(at.honest.size, kept_count(at.codec, at.honest.size), at.seed)
    against = np.where(rotate(at.direction, at.seed)[kept] > 0, -1, 1)
    return _at_full_weight(against * at.codec.offset, at.codec)


def _under_the_limit(at: Situation) -> Fields:
    """Move the mean of the group against `direction`, as far as its norm limit lets it."""
    expected = max(1.0, at.hostile_share * at.group)
    norm = _UNDER_THE_LIMIT * at.codec.clip * at.group / expected
    length = float(np.linalg.norm(at.direction))
    return forged(at.direction * (-norm / length if length else 0.0), at)


def _garbage(at: Situation) -> Fields:
    size = 1 + kept_count(at.codec, at.honest.size)
    return at.generator.integers(0, radix(at.codec), size)


def _at_full_weight(grid: Fields, codec: Codec) -> Fields:
    return np.concatenate([[codec.levels], grid + codec.offset]).astype(np.int64)


_LIST: Final = (
    Attack(
        "label flip",
        "trains on labels in reverse order and encodes honestly",
        lambda at: encoded(at.trained, at),
        flips_labels=True,
    ),
    Attack(
        "sign flip",
        "encodes the negative of its honest update",
        lambda at: encoded(-at.honest, at),
    ),
    Attack(
        "times 100",
        "writes -100 times its honest update into the fields, past the clip (the codec would "
        "clip it, and nothing but the sign flip would be left)",
        lambda at: forged(-FACTOR * at.honest, at),
    ),
    Attack(
        "largest fields",
        "writes the largest or the least value of one device's field everywhere, each against "
        "the honest direction",
        _largest,
    ),
    Attack(
        "under the limit",
        "knows the size of groups and the limits, works with the other hostile devices, and moves "
        "a group against the honest direction by nine tenths of the clip",
        _under_the_limit,
    ),
    Attack(
        "garbage",
        "encrypts uniformly random values",
        _garbage,
    ),
)
ATTACKS: Final[Mapping[str, Attack]] = {attack.name: attack for attack in _LIST}
