"""Rounds of a study in one process, with every update kept as its device would send it in clear.

Plan, training, noise, encoding and server are those of the toolkit; what is left out is what
hides an update from an attacker: encryption and signatures.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vitalring.aggregator import optimisers
from vitalring.aggregator.following import factor_of, first_vector, following, weights_of
from vitalring.edge_agent.contribution import learn, protect
from vitalring.edge_agent.dpsgd import TrainableModel
from vitalring.edge_agent.randomness import fresh_generator
from vitalring.models.dataset import Records
from vitalring.protocol.guarantee import at_round
from vitalring.protocol.quantise import decode_sum
from vitalring.protocol.records import StudyPlan
from vitalring.protocol.weights import pack_weights, unpack_weights

Weights = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """What there is to see of a round where nothing is encrypted: device by device, in order."""

    start: Weights = field(repr=False)
    fields: tuple[npt.NDArray[np.uint64], ...] = field(repr=False)
    updates: npt.NDArray[np.float64] = field(repr=False)
    """What the fields of one device decode to (devices, d)."""
    after: Weights = field(repr=False)

    def client_model(self, device: int) -> Weights:
        """Return the weights (d,) that an attacker takes for the device's model."""
        model: Weights = (self.start + self.updates[device]).astype(np.float32)
        return model


def play(
    model: TrainableModel, plan: StudyPlan, devices: Sequence[Records], start: Weights, seed: int
) -> Iterator[Seen]:
    """Yield the rounds of a study from weights `start` (d,).

    With unit none the coins follow from `seed`; noise never does, it would be none.
    Raises VitalRingError as a device or a server would.
    """
    private, size = plan.privacy.unit != "none", plan.vector_size
    optimiser = following(optimisers.build(plan.server), plan.terms)
    state = optimiser.init(first_vector(start.astype(np.float64), plan.terms))
    for number in range(1, plan.training.rounds + 1):
        terms = at_round(plan.terms, number)
        weights = unpack_weights(pack_weights(weights_of(state.weights, terms)), start.size)
        factor = factor_of(state.weights, terms)
        rotation = hashlib.sha256(f"{seed} {number}".encode()).digest()
        fields = []
        for place, records in enumerate(devices):
            coins = np.random.default_rng([seed, number, place])
            secret = fresh_generator() if private else coins
            update = learn(model, weights, records, terms, secret, factor)
            secret = fresh_generator() if private else coins
            fields.append(protect(update, len(records), terms, rotation, secret).fields)
        means = [decode_sum(each, 1, plan.codec, size, rotation).mean for each in fields]
        updates = [factor * weights_of(each, terms) for each in means]
        total: npt.NDArray[np.uint64] = np.sum(np.stack(fields), axis=0, dtype=np.uint64)
        mean = decode_sum(total, len(fields), plan.codec, size, rotation).mean
        state = optimiser.apply(state, mean)
        after = unpack_weights(pack_weights(weights_of(state.weights, terms)), start.size)
        yield Seen(weights, tuple(fields), np.stack(updates), after)
