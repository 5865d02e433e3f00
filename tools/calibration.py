"""Choose the noise that a claim takes, and the fields that carry it (SPEC 7.12 to 7.15)."""

import math
from dataclasses import replace
from typing import Final

from vitalring.edge_agent.accountant import RISK_SHARE, calibrate, epsilon
from vitalring.errors import ConfigError
from vitalring.protocol.adaptive_clip import count_unit
from vitalring.protocol.guarantee import (
    Terms,
    adds_integer_noise,
    check_terms,
    noise_of,
    sensitivity,
    stretches,
    study_spend,
)
from vitalring.protocol.integer_noise import MIN_DEVIATION, MIN_TOTAL, width_for
from vitalring.protocol.privacy import (
    MIN_NOISE_MULTIPLIER,
    Spend,
    check_privacy,
    follows_quantile,
)
from vitalring.protocol.quantise import grid_step, kept_count

_MOST_BITS: Final = 20
_COARSE: Final = 1.015
"""A grid is fine enough where rounding makes the sensitivity no more than this times the clip."""
_STEADY: Final = 0.2
"""Error of the share of what is within a clip, averaged over rounds, that the clip may follow."""

_COARSEST: Final = 1.25
"""The finest grid is taken up to here: a record is small beside sums of many thousands."""


def with_noise(terms: Terms) -> Terms:
    """Return terms whose noise gives their epsilon, whose multiplier and width were left open.

    `codec.bits` is the least number of bits; more are taken where the noise needs a finer grid.
    Raises ConfigError.
    """
    privacy = terms.privacy
    if privacy.unit == "none":
        check_terms(terms)
        return terms
    # Any noise will do here: all else is checked before a search for the right one.
    check_privacy(replace(privacy, noise_multiplier=1.0), terms.training)
    if not adds_integer_noise(privacy):
        found = calibrate(
            privacy.epsilon,
            privacy.delta,
            lambda each: study_spend(_multiplied(terms, each)),
            least=_least(terms),
        )
        return _multiplied(terms, found)
    if privacy.noise == "distributed" and privacy.colluders >= terms.min_cohort:
        raise ConfigError(
            f"{privacy.colluders} colluders of the {terms.min_cohort} devices of the smallest sum "
            "leave nobody whose noise counts: raise min_cohort, or assume fewer colluders"
        )
    rate = terms.training.sampling_rate if privacy.unit == "record" else 1.0
    ideal = calibrate(
        privacy.epsilon,
        privacy.delta,
        lambda each: _ideal(terms, rate, each),
        least=_least(terms),
    )
    largest = privacy.epsilon
    if privacy.unit == "device":
        # What is charged has to fit into the budget's delta too, where a record spends more.
        largest = epsilon(_ideal(terms, 1.0, ideal / 2.0), privacy.delta)
    fine = _on_fine_grid(terms, ideal, largest)
    found = calibrate(
        privacy.epsilon,
        privacy.delta,
        lambda each: study_spend(_with_fields(fine, each)),
        # The ideal multiplier is a little too small for a sum that is rounded.
        least=0.999 * ideal,
    )
    return _with_fields(fine, found)


def too_small(terms: Terms, devices: int) -> str | None:
    """Say with the arithmetic that a fleet is too small for its unit, None where it is not.

    In R rounds updates that all point one way add up to R clips, noise to sqrt(R) times its
    length on one mean update, by a schedule its root mean square. Where the latter is longer,
    little is learnt.
    """
    privacy, training = terms.privacy, terms.training
    if privacy.unit == "none":
        return None
    by_rounds = adds_integer_noise(privacy)
    steps = training.rounds * (1 if by_rounds else training.steps)
    squares = sum(
        (stretch.last - stretch.first + 1) * stretch.terms.privacy.noise_multiplier**2
        for stretch in stretches(terms)
    )
    each = math.sqrt(squares / training.rounds * terms.dimension)
    if privacy.unit == "record":
        each /= training.batch
    # How many devices' noise there is on the mean for each whose noise was asked for.
    shares = noise_of(terms).shares if privacy.noise == "distributed" else 1
    length = each / math.sqrt(devices * shares)
    reach = math.sqrt(steps)
    if length <= reach:
        return None
    share = shares / devices if privacy.noise == "distributed" else 1.0
    enough = each / reach / math.sqrt(share)
    enough = math.ceil(enough if privacy.noise == "distributed" else enough**2)
    return (
        f"over {steps} {'rounds' if by_rounds else 'steps'} the noise on the mean of {devices} "
        f"devices adds up to {length * reach:.3g} clips in length, updates to {steps} at most: "
        f"unit {privacy.unit} with noise {privacy.noise} takes about {enough:,} devices at "
        f"epsilon {privacy.epsilon:g}"
    )


def _least(terms: Terms) -> float:
    """Return the smallest multiplier that leaves every stretch what a plan may name."""
    return MIN_NOISE_MULTIPLIER / min((1.0, *terms.privacy.schedule))


def _ideal(terms: Terms, rate: float, multiplier: float) -> tuple[Spend, ...]:
    """Return what the rounds would spend without rounding, each with this multiplier's share."""
    return tuple(
        Spend(
            rate,
            stretch.terms.privacy.noise_multiplier,
            stretch.last - stretch.first + 1,
            epsilon=0.0,
        )
        for stretch in stretches(_multiplied(terms, multiplier))
    )


def unsteady_clip(terms: Terms, devices: int) -> str | None:
    """Say with the arithmetic that a clip's count is too noisy to follow, None where it is not.

    The factor moves by `clip_rate` times what a round's count is off, so that it goes by the last
    1 / clip_rate rounds, about (SPEC 7.17).
    """
    privacy = terms.privacy
    if not follows_quantile(privacy):
        return None
    kept = kept_count(terms.codec, terms.dimension) / terms.dimension
    step = grid_step(terms.codec, terms.dimension)
    # On a mean of the devices, from all whose coordinates are sent, in the loudest stretch.
    noise = _loudest(terms) * step / math.sqrt(devices * kept) / abs(count_unit(terms))
    # All leave out the same coordinates: what a mean of one clip's length misses, on each.
    missed = math.sqrt((1.0 / kept - 1.0) / terms.dimension) / privacy.clip_share
    each = math.hypot(noise, missed)
    rounds = max(1.0, min(terms.training.rounds, 1.0 / privacy.clip_rate))
    left = each / math.sqrt(rounds)
    if left <= _STEADY:
        return None
    cure = "have more devices" if noise > missed else "raise keep"
    return (
        f"the noise on the share of {devices} devices that are within the clip is {each:.2g} a "
        f"round and {left:.2g} over the {rounds:.3g} rounds that the clip goes by, where "
        f"{_STEADY:g} could be followed: raise clip_share, lower clip_rate, {cure}, or keep the "
        "clip fixed"
    )


def _multiplied(terms: Terms, multiplier: float) -> Terms:
    return replace(terms, privacy=replace(terms.privacy, noise_multiplier=multiplier))


def _with_fields(terms: Terms, multiplier: float) -> Terms:
    """Return terms with this noise and fields that it fits in every stretch."""
    terms = _multiplied(terms, multiplier)
    return replace(terms, codec=replace(terms.codec, noise_width=width_for(_loudest(terms))))


def _loudest(terms: Terms) -> float:
    """Return the deviation of a device's noise where the schedule has most, in grid steps."""
    return max(noise_of(each.terms).deviation for each in stretches(terms))


def _on_fine_grid(terms: Terms, multiplier: float, largest: float) -> Terms:
    """Return terms with as few bits as rounding and the shape of the noise allow.

    `largest` is the greatest epsilon that the shape's distance from a Gaussian is charged at.
    """
    privacy, rounds = terms.privacy, terms.training.rounds
    risk = privacy.delta * RISK_SHARE / (1.0 + math.exp(min(largest, 700.0))) / rounds / 2.0
    for bits in range(terms.codec.bits, _MOST_BITS + 1):
        tried = _with_fields(replace(terms, codec=replace(terms.codec, bits=bits)), multiplier)
        noise = noise_of(tried)
        # The multiplier is in clips: what they make of the sensitivity is its overhead.
        clip = noise.deviation * math.sqrt(noise.shares) / multiplier
        most = _COARSE if bits < _MOST_BITS else _COARSEST
        parts = [noise_of(each.terms) for each in stretches(tried)]
        if sensitivity(tried) > most * clip or max(part.delta for part in parts) > risk:
            continue
        if any(part.deviation < MIN_DEVIATION or part.total < MIN_TOTAL for part in parts):
            continue
        check_terms(tried)
        return tried
    raise ConfigError(
        f"no grid of up to {_MOST_BITS} bits is fine enough for unit {privacy.unit} at epsilon "
        f"{privacy.epsilon:g}: lower epsilon, codec.reach, update_clip or the batch"
    )
