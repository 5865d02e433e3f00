"""How an audit judges trials, and the terms and devices of a sum that is audited.

A trial is one release of a mechanism, with or without what a neighbour differs in. The audit
bounds from below how well the best threshold on a statistic tells both apart. A bound above the
claim shows that the mechanism is broken; one far below it that the attack is weak.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from vitalring.edge_agent import contribution
from vitalring.edge_agent.contribution import protect
from vitalring.edge_agent.randomness import fresh_generator
from vitalring.protocol.guarantee import Terms, noise_of, round_spend
from vitalring.protocol.integer_noise import width_for
from vitalring.protocol.privacy import Privacy, Training
from vitalring.protocol.quantise import Codec, decode_sum

RISK = 1e-6
"""Chance that an honest mechanism fails an audit."""


def error_bounds(without, with_record, threshold) -> tuple[np.ndarray, np.ndarray]:
    """Upper confidence bounds of false alarms and misses (Clopper and Pearson 1934)."""
    alarms = np.sum(without[:, None] > threshold, axis=0)
    missed = np.sum(with_record[:, None] <= threshold, axis=0)
    return (
        stats.beta.isf(RISK, alarms + 1, np.maximum(len(without) - alarms, 0.5)),
        stats.beta.isf(RISK, missed + 1, np.maximum(len(with_record) - missed, 0.5)),
    )


def strongest(without, with_record, bound) -> float:
    """Choose the threshold on one half of the trials, judge it on the other.

    So that the choice does not bias the bound.
    """
    first, second = len(without) // 2, len(with_record) // 2
    seen = np.r_[without[:first], with_record[:second]]
    between = (np.max(without[:first]) + np.min(with_record[:second])) / 2
    thresholds = np.r_[np.quantile(seen, np.linspace(0.05, 0.95, 37)), between]
    best = np.argmax(bound(*error_bounds(without[:first], with_record[:second], thresholds)))
    judged = error_bounds(without[first:], with_record[second:], thresholds[[best]])
    return float(bound(*judged)[0])


def audited_mu(without, with_record) -> float:
    """Lower confidence bound of mu in Gaussian DP (Nasr et al. 2023, section 4)."""
    return strongest(
        without, with_record, lambda alarms, misses: stats.norm.isf(alarms) - stats.norm.ppf(misses)
    )


def audited_epsilon(without, with_record, delta) -> float:
    """Lower confidence bound of epsilon at delta (Kairouz, Oh, Viswanath 2015)."""
    return strongest(
        without,
        with_record,
        lambda alarms, misses: np.log(np.maximum(1e-9, 1 - delta - misses) / alarms),
    )


@dataclass(frozen=True)
class Linear:
    """A model whose gradient is the record itself, clipped or not."""

    physical_batch: int = 2048
    clips: bool = True

    def gradient_sum(self, weights, x, y, clip):
        norms = np.linalg.norm(x, axis=1)
        scale = np.minimum(1.0, clip / np.maximum(norms, 1e-12)) if self.clips else 1.0
        return (x * np.reshape(scale, (-1, 1))).sum(0).astype(np.float32), 0.0, norms


def terms_of(
    unit, noise, dimension, *, shares=9, sigma=1.0, rate=1.0, quantile=0.0, **codec
) -> Terms:
    """Terms whose noise comes from `shares` honest devices and one that gives its own away.

    The plan's clip of a record is 1, and one moves the update by 1 / 32. With a `quantile` the
    clip follows it, and the vector has a count before its `dimension` coordinates.
    """
    shared = noise == "distributed"
    one_sum = unit == "record" and shared
    given = Codec(
        n_max=20,
        clip=0.5,
        weight_cap=1,
        bits=14,
        rounding="plain" if one_sum else "bounded",
    )
    terms = Terms(
        Privacy(
            unit,
            noise,
            100.0,
            1e-5,
            1.0,
            sigma,
            colluders=1 if shared else 0,
            clip_quantile=quantile,
            clip_rate=0.2 if quantile else 0.0,
            clip_share=0.125 if quantile else 0.0,
        ),
        Training(sampling_rate=rate, steps=1, rounds=1, learning_rate=1.0, batch=32, records=1),
        replace(given, **codec),
        dimension + bool(quantile),
        shares + 1,
    )
    width = width_for(noise_of(terms).deviation)
    return replace(terms, codec=replace(terms.codec, noise_width=width))


def claimed_mu(terms) -> float:
    """What the accountant is told: one release is so much Gaussian DP (SPEC 7.13, 7.14)."""
    return 1.0 / round_spend(terms, 1).noise_multiplier


def opened(terms, updates, seed, *, records=1) -> tuple[np.ndarray, int]:
    """Sum of the updates (d,) of the honest devices and its weight, as opened and decoded.

    The first device has `records` records, the others one. What colluders sent is known to
    those who look, who take it off first.
    """
    fields = sum(
        protect(update, 1 if place else records, terms, seed, fresh_generator()).fields
        for place, update in enumerate(updates)
    )
    decoded = decode_sum(fields, len(updates), terms.codec, terms.dimension, seed)
    return decoded.mean * decoded.weight / terms.codec.levels, decoded.weight


def halve_noise(monkeypatch):
    """Break every device: its share of the noise is half as wide as the plan asks."""
    real = contribution.noise_share
    monkeypatch.setattr(
        contribution,
        "noise_share",
        lambda secret, noise: real(secret, replace(noise, deviation=noise.deviation / 2)),
    )
