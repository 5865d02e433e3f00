"""Federated learning in one process, by the functions that devices and servers run.

A device's training and encoding are there, and a server's decoding and optimiser. What is left
out is the encryption, the signatures and the log between them. The decrypted sum of
a round is the sum of its fields, exactly (SPEC 5), so the weights are those of the whole path;
a test compares them for a round of real ciphertexts.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vitalring.aggregator import optimisers
from vitalring.aggregator.optimisers import Vector
from vitalring.edge_agent.dpsgd import TrainableModel, train
from vitalring.models.dataset import Records
from vitalring.protocol.privacy import Privacy, Training
from vitalring.protocol.quantise import Codec, decode_sum, encode_update
from vitalring.protocol.records import ServerOptimiser
from vitalring.protocol.weights import pack_weights, unpack_weights

Fields = npt.NDArray[np.uint64]
AddUp = Callable[[Sequence[Fields]], Fields]

NO_PRIVACY = Privacy()


@dataclass(frozen=True)
class Work:
    """One study without privacy: its devices, the weights (d,) it starts from, and its plan."""

    devices: tuple[Records, ...] = field(repr=False)
    start: npt.NDArray[np.float32] = field(repr=False)
    training: Training
    codec: Codec
    server: ServerOptimiser
    seed: int


def in_clear(fields: Sequence[Fields]) -> Fields:
    """Return the sum of the devices' fields."""
    total: Fields = np.sum(np.stack(fields), axis=0, dtype=np.uint64)
    return total


def learn(model: TrainableModel, work: Work, add_up: AddUp = in_clear) -> Iterator[Vector]:
    """Yield the weights (d,) after each round of `work.training.rounds`.

    Coins come from generators that are seeded by the work, round and device, so that all sides
    of a comparison sample the same records. Raises VitalRingError as a device or a server would.
    """
    optimiser = optimisers.build(work.server)
    state = optimiser.init(work.start.astype(np.float64))
    for number in range(1, work.training.rounds + 1):
        start = unpack_weights(pack_weights(state.weights), work.start.size)
        seed = hashlib.sha256(f"{work.seed} {number}".encode()).digest()
        total = add_up(
            [
                device_fields(
                    model, start, records, work, seed, np.random.default_rng([work.seed, number, i])
                )
                for i, records in enumerate(work.devices)
            ]
        )
        mean = decode_sum(total, len(work.devices), work.codec, start.size, seed).mean
        state = optimiser.apply(state, mean)
        yield state.weights


def device_fields(
    model: TrainableModel,
    start: npt.NDArray[np.float32],
    records: Records,
    work: Work,
    seed: bytes,
    generator: np.random.Generator,
) -> Fields:
    """Return what a device with `records` would encrypt in a round from weights `start` (d,)."""
    result = train(model, start, records.x, records.y, work.training, NO_PRIVACY, generator)
    update = result.weights.astype(np.float64) - start
    return encode_update(update, len(records), work.codec, seed, rng=generator).fields
