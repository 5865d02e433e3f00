"""The devices of `vitalring bench robust`: parts of people's rows, and what they train."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from vitalring.edge_agent.dpsgd import train
from vitalring.edge_agent.personal import macro_f1_of_own_classes
from vitalring.models import metrics
from vitalring.models.dataset import Records
from vitalring.models.runtime import TrainableModel
from vitalring.protocol.privacy import Training
from vitalring.protocol.quantise import Codec
from vitalring.tools.bench.learning import NO_PRIVACY
from vitalring.tools.bench.robust_attacks import turn_labels

Vector = npt.NDArray[np.float64]

LEARNING_RATE: Final = 0.3
UPDATE_CLIP: Final = 0.5
"""About the median norm of honest updates here: a wide clip is room for hostile ones."""

BITS: Final = 8


@dataclass(frozen=True)
class Fleet:
    """Virtual devices, the weights that they start from, and rows that measure a model."""

    model: TrainableModel
    classes: int
    devices: tuple[Records, ...] = field(repr=False)
    held_out: Records = field(repr=False)
    start: npt.NDArray[np.float32] = field(repr=False)
    rounds: int
    seed: int
    known: dict[tuple[bytes, int, bool], Vector] = field(default_factory=dict, repr=False)
    """Updates of the weights last asked for: they are asked again after a round that was lost."""

    @property
    def codec(self) -> Codec:
        """Return the codec of the study: every device has as many rows, so all weigh alike."""
        rows = max(map(len, self.devices))
        return Codec(n_max=len(self.devices), clip=UPDATE_CLIP, weight_cap=rows, bits=BITS)

    def updates(self, weights: npt.NDArray[np.float32], flipped: frozenset[int]) -> list[Vector]:
        """Return what training on each device adds to `weights` (d,); no coin is tossed in it."""
        state = weights.tobytes()
        if any(of != state for of, *_ in self.known):
            self.known.clear()
        places = range(len(self.devices))
        return [self._update(weights, state, place, place in flipped) for place in places]

    def _update(
        self, weights: npt.NDArray[np.float32], state: bytes, device: int, flipped: bool
    ) -> Vector:
        key = (state, device, flipped)
        if key not in self.known:
            records = self.devices[device]
            rows = turn_labels(records, self.classes) if flipped else records
            plan = Training(1.0, 1, self.rounds, LEARNING_RATE, 1, 1)
            coins = np.random.default_rng(0)
            result = train(self.model, weights, rows.x, rows.y, plan, NO_PRIVACY, coins)
            self.known[key] = result.weights.astype(np.float64) - weights
        return self.known[key]

    def score(self, weights: npt.NDArray[np.float32]) -> dict[str, float]:
        """Return accuracy and macro-F1 of weights (d,) on the held-out rows."""
        probabilities = self.model.probabilities(weights, self.held_out.x)
        counts = metrics.confusion_matrix(
            self.held_out.y, probabilities.argmax(axis=1), probabilities.shape[1]
        )
        return {
            "accuracy": metrics.accuracy(counts),
            "macro_f1": macro_f1_of_own_classes(counts),
        }


def virtual_devices(
    people: Sequence[Records], count: int, size: int, generator: np.random.Generator
) -> tuple[Records, ...]:
    """Divide each person's rows at random among `count` devices in all of `size` rows each.

    Where a person has too few rows, some are on more than one of the person's devices.
    """
    made = []
    for number, share in enumerate(np.array_split(np.arange(count), len(people))):
        records = people[number]
        order = np.concatenate(
            [
                generator.permutation(len(records))
                for _ in range(1 + len(share) * size // len(records))
            ]
        )
        for place in range(len(share)):
            rows = np.unique(order[place * size : (place + 1) * size])
            made.append(records.take(rows))
    return tuple(made)
