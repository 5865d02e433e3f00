"""From records to the fields of one update, for every unit and place of the noise (SPEC 7.12).

Rules kept here: what `learn` returns has noise only where the local training adds it; what
`protect` returns may be summed and opened as the plan says. Both are functions of their
arguments and of secret coins, so one call of each is one trial of a mechanism.
"""

import logging

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
from vitalring.errors import DivergenceError
from vitalring.models.dataset import Records
from vitalring.protocol.adaptive_clip import counted, update_clip
from vitalring.protocol.guarantee import (
    Terms,
    adds_integer_noise,
    check_terms,
    noise_of,
    weight_samples,
)
from vitalring.protocol.privacy import check_of_round, follows_quantile, is_gradient_sum
from vitalring.protocol.quantise import EncodedUpdate, encode_update

_log = logging.getLogger(__name__)


def learn(
    model: TrainableModel,
    start: Weights,
    records: Records,
    terms: Terms,
    generator: np.random.Generator,
    factor: float = 1.0,
) -> NDArray[np.float64]:
    """Return what a device learns in a round from weights `start` (d,), as an update (d,).

    `terms` are those of the round (`guarantee.at_round`). Where the clip follows a quantile it is
    (1 + d,), with a count first, and all of it divided by the round's `factor`: within the study's
    own clip (SPEC 7.17). With unit record and noise local the update is private already, otherwise
    it is for `protect` alone. With unit device a training that diverges is an update of zeros.
    Raises as `dpsgd.train`.
    """
    training, privacy = terms.training, terms.privacy
    if is_gradient_sum(privacy):
        return gradient_update(
            model, start, records.x, records.y, training, privacy, generator, factor
        )
    try:
        result = train(model, start, records.x, records.y, training, privacy, generator)
        update = result.weights.astype(np.float64) - start
    except DivergenceError:
        if privacy.unit != "device":
            raise
        # Silence would tell of the device; zero with its noise is an update like any other.
        _log.warning("training diverged: the update of this round is zero")
        update = np.zeros(start.size)
    return with_count(update, terms, factor) if follows_quantile(privacy) else update


def with_count(update: NDArray[np.float64], terms: Terms, factor: float) -> NDArray[np.float64]:
    """Return a device's update (d,) clipped and with its count, (1 + d,), for unit device.

    Together they are within the codec's clip, which `protect` enforces (SPEC 7.17).
    """
    update = update / factor
    clip, norm = terms.codec.clip, float(np.linalg.norm(update))
    scale = min(1.0, update_clip(clip, terms.privacy.clip_share) / max(norm, 1e-300))
    return np.concatenate([counted(np.array([norm]), clip, terms.privacy), scale * update])


def protect(
    update: NDArray[np.float64],
    records: int,
    terms: Terms,
    seed: bytes,
    generator: np.random.Generator,
) -> EncodedUpdate:
    """Encode an update (terms.dimension,) with the integer noise a round asks of one device.

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
