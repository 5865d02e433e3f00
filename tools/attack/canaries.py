"""Canaries: records that an auditor puts into a training to find them again.

Two kinds, of Steinke, Nasr and Jagielski (2023, section 6): a held-out record with a false label,
which anybody who owns a device can plant; and a gradient of the length of the clip along one
parameter of its own, the worst that one record can be, which only an altered device could plant.
Clip, sampling, noise and encoding of both are the device's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vitalring.errors import ConfigError
from vitalring.models.dataset import Records
from vitalring.models.runtime import TrainableModel

Weights = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

_MARK: Final = 1e6
"""First number of a row that stands for a gradient; the second is the canary's place."""


@dataclass(frozen=True)
class GradientCanaries:
    """A network that, for rows that are marked, answers with a gradient of the canary's own.

    `places` (m,) are the parameters along which the canaries lie, each `length` long.
    """

    model: TrainableModel
    places: npt.NDArray[np.int64] = field(repr=False)
    length: float

    @property
    def physical_batch(self) -> int:
        """Most records at once, as of the network."""
        return self.model.physical_batch

    def gradient_sum(
        self, weights: Weights, x: npt.NDArray[Any], y: npt.NDArray[Any], clip: float
    ) -> tuple[Weights, float, npt.NDArray[np.float32]]:
        """Return the sum of clipped gradients (d,), of losses, and the norms (n,)."""
        rows = x.reshape(len(x), -1)
        marked = rows[:, 0] == _MARK
        total, loss = np.zeros(weights.size, np.float32), 0.0
        length = np.float32(min(self.length, clip))
        norms = np.full(len(x), length, np.float32)
        if not marked.all():
            total, loss, real = self.model.gradient_sum(weights, x[~marked], y[~marked], clip)
            norms[~marked] = real
        # Up, so that descent lowers the parameter.
        np.add.at(total, self.places[rows[marked, 1].astype(np.int64)], length)
        return total, loss, norms


def gradient_canaries(
    model: TrainableModel,
    start: Weights,
    quiet: Records,
    count: int,
    shape: tuple[int, ...],
    length: float,
) -> tuple[GradientCanaries, Records]:
    """Return a network that knows `count` canaries, and the rows (count, *shape) that mean them.

    They are as long as `length`, or as the clip where that is shorter. They lie along the
    parameters that the gradients of the records `quiet` move least, so that ordinary records hide
    them least. Raises ConfigError where there are too few parameters.
    """
    size = int(np.prod(shape))
    if count > start.size // 2 or size < 2:
        raise ConfigError(
            f"{count} canaries along parameters of their own take {2 * count} parameters and rows "
            f"of 2 numbers, the network has {start.size} and {size}"
        )
    moved = np.zeros(start.size)
    for at in range(0, len(quiet), model.physical_batch):
        part = slice(at, at + model.physical_batch)
        moved += np.abs(model.gradient_sum(start, quiet.x[part], quiet.y[part], 1.0)[0])
    places = np.argsort(moved, kind="stable")[:count].astype(np.int64)
    x = np.zeros((count, size), np.float32)
    x[:, 0], x[:, 1] = _MARK, np.arange(count)
    rows = Records("canaries", x.reshape(count, *shape), np.zeros(count, np.int64))
    return GradientCanaries(model, places, length), rows


def mislabelled(
    held_out: Records, classes: int, count: int, generator: np.random.Generator
) -> Records:
    """Return `count` held-out records, each with a label that is not its own.

    Raises ConfigError where there are too few.
    """
    if count > len(held_out):
        raise ConfigError(
            f"{count} canaries with false labels take as many held-out records, there are "
            f"{len(held_out)}"
        )
    chosen = held_out.take(generator.permutation(len(held_out))[:count])
    false = (chosen.y + generator.integers(1, classes, count)) % classes
    return Records("canaries", chosen.x, false.astype(chosen.y.dtype))


def planted(
    people: Sequence[Records], canaries: Records, included: npt.NDArray[np.bool_]
) -> list[Records]:
    """Return the devices with the canaries that are in: canary k goes to device k modulo n."""
    owners = np.arange(len(canaries)) % len(people)
    made = []
    for number, person in enumerate(people):
        own = canaries.take(np.flatnonzero(included & (owners == number)))
        made.append(
            Records(
                person.device,
                np.concatenate([person.x, own.x.astype(person.x.dtype)]),
                np.concatenate([person.y, own.y.astype(person.y.dtype)]),
            )
        )
    return made
