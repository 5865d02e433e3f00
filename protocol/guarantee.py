"""What a round of a plan spends: the derivation of each unit's guarantee (SPEC 7.12 to 7.16).

Rules kept here: sensitivity comes from what the device enforces, and from nowhere else; the
noise that counts is that of the honest devices in the smallest sum; a plan whose numbers do not
fit one another is refused by name before a device acts on it.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

from vitalring.errors import ConfigError
from vitalring.protocol.integer_noise import SharedNoise, check_noise
from vitalring.protocol.privacy import (
    CLIP_SLACK,
    Privacy,
    Spend,
    Training,
    check_privacy,
    effective_noise_multiplier,
    is_gradient_sum,
)
from vitalring.protocol.quantise import (
    ROUNDING_RISK,
    Codec,
    check_codec,
    distance_bound,
    grid_step,
    kept_count,
    norm_bound,
)

ENCODING_SLACK: Final = 2.0**-20
"""Share of the clip that float64 may add between a sum of gradients and the grid (SPEC 7.13)."""


@dataclass(frozen=True)
class Terms:
    """The numbers of a plan from which its guarantee follows (SPEC 7.1).

    `dimension` is that of the vector that a device sends: of the model, and one more for the
    count of a clip that follows a quantile. `min_cohort` is the fewest updates in a sum that is
    opened.
    """

    privacy: Privacy
    training: Training
    codec: Codec
    dimension: int
    min_cohort: int


def adds_integer_noise(privacy: Privacy) -> bool:
    """Tell whether noise is added to the rounded update, not within the local training."""
    return privacy.unit == "device" or is_gradient_sum(privacy)


def check_terms(terms: Terms) -> None:
    """Refuse a plan whose numbers give no guarantee (SPEC 7.12). Raises ConfigError."""
    privacy, training, codec = terms.privacy, terms.training, terms.codec
    # 1. Each part by itself.
    check_privacy(privacy, training)
    check_codec(codec)
    # 2. Noise has room in the fields where it is added to them, and there alone.
    if not adds_integer_noise(privacy):
        if (codec.noise_width, codec.rounding) != (0, "bounded"):
            raise ConfigError(
                f"codec.noise_width is {codec.noise_width} with codec.rounding {codec.rounding}: "
                f"unit {privacy.unit} with noise {privacy.noise} takes 0 and bounded"
            )
        return
    check_noise(noise_of(terms))
    # 3. Rounding is the one that the sensitivity was derived for.
    rounding = "plain" if is_gradient_sum(privacy) else "bounded"
    if codec.rounding != rounding:
        raise ConfigError(
            f"codec.rounding is {codec.rounding}: unit {privacy.unit} takes {rounding}"
        )
    # 4. The weight says nothing: every device has the largest one.
    most = training.records if privacy.unit == "record" else 1
    if codec.weight_cap > most:
        raise ConfigError(
            f"codec.weight_cap is {codec.weight_cap}: with unit {privacy.unit} and noise in the "
            f"sum all devices weigh alike, by a cap of {most}"
        )
    # 5. A delta of one device in the cohort permits publishing one device.
    if privacy.unit == "device" and privacy.delta * codec.n_max >= 1.0:
        raise ConfigError(
            f"privacy.delta is {privacy.delta:g}, must lie below 1 / codec.n_max = "
            f"{1.0 / codec.n_max:g}"
        )


def noise_of(terms: Terms) -> SharedNoise:
    """Return the integer noise of a plan that `adds_integer_noise` (SPEC 7.14)."""
    privacy, codec = terms.privacy, terms.codec
    shares = terms.min_cohort - privacy.colluders if privacy.noise == "distributed" else 1
    total = privacy.noise_multiplier * _clip_steps(terms)
    return SharedNoise(
        deviation=total / math.sqrt(max(1, shares)),
        shares=shares,
        coordinates=kept_count(codec, terms.dimension),
        width=codec.noise_width,
    )


def sensitivity(terms: Terms) -> float:
    """Return by how much a unit moves the sum of rounded updates, L2 in grid steps (SPEC 7.13).

    Unit device: the norm that is enforced after rounding. Unit record: the clip of one gradient,
    as it is left by float arithmetic, clip, rotation, mask, clamp and rounding, none of which
    moves two vectors apart but rounding.
    """
    if terms.privacy.unit == "device":
        return norm_bound(terms.codec, terms.dimension)
    moved = _clip_steps(terms) * (1.0 + CLIP_SLACK + ENCODING_SLACK)
    return distance_bound(moved, kept_count(terms.codec, terms.dimension))


def round_spend(terms: Terms) -> Spend | None:
    """Return what one round spends of a unit's privacy; None for unit none (no guarantee).

    Raises ConfigError where `check_terms` does.
    """
    check_terms(terms)
    privacy, training = terms.privacy, terms.training
    if privacy.unit == "none":
        return None
    if not adds_integer_noise(privacy):
        multiplier = effective_noise_multiplier(privacy, terms.dimension)
        return Spend(training.sampling_rate, multiplier, training.steps)
    noise = noise_of(terms)
    by_record = privacy.unit == "record"
    return Spend(
        # That a device took part is no secret of its own: only coins for records amplify.
        sampling_rate=training.sampling_rate if by_record else 1.0,
        noise_multiplier=noise.total / sensitivity(terms),
        steps=1,
        epsilon=noise.epsilon,
        delta=noise.delta + (ROUNDING_RISK if by_record else 0.0),
    )


def study_spend(terms: Terms) -> Spend | None:
    """Return what all rounds of a study spend together; None for unit none. Raises ConfigError."""
    return spend_of_rounds(round_spend(terms), terms.training.rounds)


def budget_spend(terms: Terms) -> Spend | None:
    """Return what one round spends of a record's privacy, for the device's budget (SPEC 7.16).

    A budget adds up studies of all units, so it has one kind of neighbours: data sets with and
    without a record. With unit device a record may change the whole update, from one vector
    within the bound to another, twice as far apart as a vector and zero.
    """
    spend = round_spend(terms)
    if spend is None or terms.privacy.unit == "record":
        return spend
    return replace(spend, noise_multiplier=spend.noise_multiplier / 2.0)


def spend_of_rounds(spend: Spend | None, rounds: int) -> Spend | None:
    """Return the spend of so many equal rounds."""
    return None if spend is None else replace(spend, steps=spend.steps * rounds)


def weight_samples(terms: Terms, records: int) -> int:
    """Return the sample count that a device with `records` records gives for its weight.

    With a guarantee the true count must not leave, not even as a weight (SPEC 7.11).
    """
    if terms.privacy.unit == "none":
        return records
    return terms.training.records if terms.privacy.unit == "record" else terms.codec.weight_cap


def _clip_steps(terms: Terms) -> float:
    """Return the clip that the noise multiplier counts in, in grid steps."""
    codec, training = terms.codec, terms.training
    length = codec.clip
    if terms.privacy.unit == "record":
        length = terms.privacy.clip * gradient_scale(training)
    return length / grid_step(codec, terms.dimension)


def gradient_scale(training: Training) -> float:
    """Return what a sum of gradients is multiplied with to be an update; public (SPEC 7.12)."""
    return training.learning_rate / training.batch
