"""From records to the fields of one update, for every unit and place of the noise (SPEC 7.12).

Rules kept here: what `learn` returns has noise only where the local training adds it; what
`protect` returns may be summed and opened as the plan says. Both are functions of their
arguments and of secret coins, so one call of each is one trial of a mechanism.
"""

import numpy as np
from numpy.typing import NDArray

from vitalring.edge_agent.dpsgd import (
    TrainableModel,
    Weights,
    check_generator,
    gradient_update,
    train,
)
from vitalring.edge_agent.randomness import noise_share
from vitalring.models.dataset import Records
from vitalring.protocol.guarantee import (
    Terms,
    adds_integer_noise,
    check_terms,
    noise_of,
    weight_samples,
)
from vitalring.protocol.privacy import check_of_round, is_gradient_sum
from vitalring.protocol.quantise import EncodedUpdate, encode_update


def learn(
    model: TrainableModel,
    start: Weights,
    records: Records,
    terms: Terms,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """Return what a device learns in a round from weights `start` (d,), as an update (d,).

    `terms` are those of the round (`guarantee.at_round`). With unit record and noise local the
    update is private already, otherwise it is for `protect` alone. Raises as `dpsgd.train`.
    """
    training, privacy = terms.training, terms.privacy
    if is_gradient_sum(privacy):
        step = gradient_update(model, start, records.x, records.y, training, privacy, generator)
        return step.update
    result = train(model, start, records.x, records.y, training, privacy, generator)
    return result.weights.astype(np.float64) - start


def protect(
    update: NDArray[np.float64],
    records: int,
    terms: Terms,
    seed: bytes,
    generator: np.random.Generator,
) -> EncodedUpdate:
    """Encode an update (d,) with the integer noise that a round asks of one device.

    `terms` are those of the round (`guarantee.at_round`). `seed` is the round's, public;
    `generator` a SecureGenerator made for this call alone, where there is a guarantee. Raises
    ConfigError for terms that give none or are not a round's, PrivacyError for a generator that
    keeps no secret, EncodingRangeError as `encode_update`.
    """
    check_terms(terms)
    check_of_round(terms.privacy)
    noise = None
    if terms.privacy.unit != "none":
        check_generator(generator)
    if adds_integer_noise(terms.privacy):
        noise = noise_share(generator, noise_of(terms))
    samples = weight_samples(terms, records)
    return encode_update(update, samples, terms.codec, seed, rng=generator, noise=noise)
