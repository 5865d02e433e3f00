"""What a round of a plan spends: the derivation of each unit's guarantee (SPEC 7.12 to 7.16, 7.18).

Rules kept here: sensitivity comes from what the device enforces, and from nowhere else; the
noise that counts is that of the honest devices in the smallest sum; a plan whose numbers do not
fit one another is refused by name before a device acts on it; where the noise has a schedule, what
a round uses follows from its number alone (`at_round`).
"""

import math
from collections.abc import Callable
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


@dataclass(frozen=True)
class Stretch:
    """Rounds `first` to `last` of a study; each uses `terms`, without a schedule."""

    first: int
    last: int
    terms: Terms


@dataclass(frozen=True)
class Allowance:
    """So many rounds of a study, each of which spends as much."""

    spend: Spend
    rounds: int

    @property
    def whole(self) -> Spend:
        """What the rounds spend together."""
        return replace(self.spend, steps=self.spend.steps * self.rounds)


def stretches(terms: Terms) -> tuple[Stretch, ...]:
    """Return the stretches of a study in the order of its rounds (SPEC 7.18).

    Round t of R has factor number floor((t - 1) * k / R) of the k that the schedule names.
    Raises ConfigError for more factors than rounds.
    """
    privacy, rounds = terms.privacy, terms.training.rounds
    factors = privacy.schedule or (1.0,)
    count = len(factors)
    if count > rounds:
        raise ConfigError(
            f"privacy.schedule has {count} factors for {rounds} rounds: a factor needs a round"
        )
    # The first round whose number, from 0 on, is at least place * R / k.
    starts = [-(-place * rounds // count) for place in range(count + 1)]
    return tuple(
        Stretch(
            starts[place] + 1,
            starts[place + 1],
            replace(
                terms,
                privacy=replace(
                    privacy, noise_multiplier=privacy.noise_multiplier * factor, schedule=()
                ),
            ),
        )
        for place, factor in enumerate(factors)
    )


def at_round(terms: Terms, number: int) -> Terms:
    """Return what a round of a study uses: its terms, with the noise of its stretch (SPEC 7.18).

    Raises ConfigError for a round that the study does not have.
    """
    for stretch in stretches(terms):
        if stretch.first <= number <= stretch.last:
            return stretch.terms
    raise ConfigError(f"round {number} is none of the study's {terms.training.rounds}")


def adds_integer_noise(privacy: Privacy) -> bool:
    """Tell whether noise is added to the rounded update, not within the local training."""
    return privacy.unit == "device" or is_gradient_sum(privacy)


def check_terms(terms: Terms) -> None:
    """Refuse a plan whose numbers give no guarantee (SPEC 7.12), in each stretch of its rounds.

    Raises ConfigError.
    """
    check_privacy(terms.privacy, terms.training)
    for stretch in stretches(terms):
        _check_stretch(stretch.terms)


def _check_stretch(terms: Terms) -> None:
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
    """Return the integer noise of terms that `adds_integer_noise` (SPEC 7.14).

    That of a round follows from the terms of `at_round`; the number of shares from any.
    """
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


def round_spend(terms: Terms, number: int) -> Spend | None:
    """Return what a round spends of a unit's privacy; None for unit none (no guarantee).

    Raises ConfigError where `check_terms` or `at_round` does.
    """
    check_terms(terms)
    return _spend(at_round(terms, number))


def study_spend(terms: Terms, rounds: int | None = None) -> tuple[Spend, ...]:
    """Return what the first `rounds` rounds of a study spend of a unit's privacy, or all of them.

    One for each different spend; none for unit none. Raises ConfigError.
    """
    return tuple(allowance.whole for allowance in _allowances(terms, rounds, _spend))


def budget_spend(terms: Terms, number: int) -> Spend | None:
    """Return what a round spends of a record's privacy, for the device's budget (SPEC 7.16).

    A budget adds up studies of all units, so it has one kind of neighbours: data sets with and
    without a record. With unit device a record may change the whole update, from one vector
    within the bound to another, twice as far apart as a vector and zero.
    """
    check_terms(terms)
    return _record_spend(at_round(terms, number))


def budget_allowances(terms: Terms, rounds: int | None = None) -> tuple[Allowance, ...]:
    """Return what the first `rounds` rounds of a study, or all, spend of a record's privacy.

    One for each different spend of `budget_spend`, in the order of the rounds. Raises ConfigError.
    """
    return _allowances(terms, rounds, _record_spend)


def _allowances(
    terms: Terms, rounds: int | None, spend_of: Callable[[Terms], Spend | None]
) -> tuple[Allowance, ...]:
    check_terms(terms)
    end = terms.training.rounds if rounds is None else rounds
    counts: dict[Spend, int] = {}
    for stretch in stretches(terms):
        spend, within = spend_of(stretch.terms), min(end, stretch.last) - stretch.first + 1
        if spend is not None and within > 0:
            counts[spend] = counts.get(spend, 0) + within
    return tuple(Allowance(spend, count) for spend, count in counts.items())


def _spend(terms: Terms) -> Spend | None:
    """Return what each round of a stretch spends of a unit's privacy."""
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


def _record_spend(terms: Terms) -> Spend | None:
    spend = _spend(terms)
    if spend is None or terms.privacy.unit == "record":
        return spend
    return replace(spend, noise_multiplier=spend.noise_multiplier / 2.0)


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
