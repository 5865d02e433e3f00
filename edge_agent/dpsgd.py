"""Local training with per-example clipping and noise: DP-SGD (SPEC 7.3 to 7.6, 7.12).

Abadi et al., "Deep Learning with Differential Privacy", 2016. Rules kept here:

- Every record enters a step by its own coin. A batch that does not fit the
  model's physical batch is worked off in chunks, never truncated, and an empty
  batch gets its noise too: the accountant's theorem is about these batches.
- With a guarantee for records, one record more changes one chunk: chunks are cut
  by coins too, and their sums added as whole numbers, in no order's favour.
- Sensitivity comes from the enforced clip. The model's word for a norm counts
  for nothing; a record whose gradient is too long, or no number, counts as zero.
- What a device does with a guarantee for records is a function of each record by
  itself: an error because of one would tell of it by the device's silence.
- Only the noisy sum touches the weights, so the weights are what may leave. What
  `gradient_update` and unit device's `train` return has no noise yet: `contribution` adds it.
  The count in a result is not private and is for no wire.
- FedProx (Li et al., "Federated Optimization in Heterogeneous Networks", 2020)
  pulls the weights back to where the round began. The pull is computed after
  the noise, from weights that are private already, the round's public start and
  public numbers: it reads no record, and SPEC 7.5 holds as it stands.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from vitalring.edge_agent.randomness import SecureGenerator, integer_gaussian
from vitalring.errors import ConfigError, DataError, DivergenceError, ModelError, PrivacyError
from vitalring.models.dataset import oversample
from vitalring.protocol.adaptive_clip import counted, update_clip
from vitalring.protocol.guarantee import gradient_scale
from vitalring.protocol.privacy import (
    CLIP_SLACK,
    LATTICE_BITS,
    MAX_CHUNK,
    MAX_SAMPLED,
    SUM_BITS,
    Privacy,
    Training,
    check_of_round,
    check_privacy,
    follows_quantile,
    is_gradient_sum,
    sensitivity_factor,
)
from vitalring.protocol.weights import MAX_WEIGHT, are_weights

_log = logging.getLogger(__name__)

NO_CLIP: Final = 1e18
"""Stands for no clip: a longer gradient is none that a model clips, and training has diverged."""

Weights = NDArray[np.float32]
Array = NDArray[Any]


class TrainableModel(Protocol):
    """What training asks of a model."""

    @property
    def physical_batch(self) -> int:
        """Most records that `gradient_sum` takes at once."""

    def gradient_sum(
        self, weights: Weights, x: Array, y: Array, clip: float
    ) -> tuple[Weights, float, NDArray[np.float32]]:
        """Sum over n records of the gradients, each clipped to the L2 norm `clip`.

        Returns the sum (d,), the sum of losses and the unclipped norms (n,).
        """


@dataclass(frozen=True)
class LocalResult:
    """What a round of local training leaves.

    `weights` (d,) are private as the plan says. `examples_seen` counts the records of all steps
    exactly: never for the wire.
    """

    weights: Weights = field(repr=False)
    examples_seen: int


def train(
    model: TrainableModel,
    weights: Weights,
    x: Array,
    y: Array,
    training: Training,
    privacy: Privacy,
    generator: np.random.Generator,
) -> LocalResult:
    """Train one round from `weights` (d,) on records `x` (n, ...) and `y` (n, ...).

    For unit record `generator` is a SecureGenerator made for this call alone,
    and the result is private; for the other units any generator serves, and
    the result is not. The budget must be charged before.

    Raises ConfigError (a plan this version cannot guarantee), DataError (records
    that cannot be used), PrivacyError (the guarantee would break), ModelError (the
    model cannot be run on this) and DivergenceError. After any of them nothing may leave.
    """
    # 1. The plan, the generator and the records, before any is used.
    check_privacy(privacy, training)
    if is_gradient_sum(privacy):
        raise ConfigError("noise distributed trains no weights for records: use gradient_update")
    private = privacy.unit == "record"
    if private:
        check_generator(generator)
    _check_records(x, y, training)
    start = weights
    weights = np.array(start, np.float32)
    if weights.ndim != 1:
        raise ModelError(f"weights have shape {weights.shape}, must be one row of parameters")
    _check_weights(weights)
    sensitivity_factor(weights.size)  # refuses dimensions that the claim does not cover
    rows = _rows(y, training, generator)
    # 2. The steps.
    seen = 0
    for _ in range(training.steps):
        chosen = rows[_sample(rows.size, training.sampling_rate, generator)]
        seen += chosen.size
        if private:
            total = _private_sum(model, weights, x, y, chosen, training, privacy, generator)
            update = privatise(total, privacy, generator) / training.batch
        else:
            clip = privacy.clip or NO_CLIP
            total = np.zeros(weights.size, np.float64)
            for weight, part in _by_class(chosen, y, training):
                for chunk in _in_order(part, model.physical_batch):
                    total += weight * _chunk_sum(model, weights, x, y, chunk, clip)[0]
            update = total / max(1, chosen.size)
        if training.proximal:
            update = update + training.proximal * (weights - start)
        weights -= (training.learning_rate * update).astype(np.float32)
        # With a guarantee for records these are private already, and so is this error.
        _check_weights(weights)
    return LocalResult(weights, seen)


def gradient_update(
    model: TrainableModel,
    weights: Weights,
    x: Array,
    y: Array,
    training: Training,
    privacy: Privacy,
    generator: np.random.Generator,
    factor: float = 1.0,
) -> NDArray[np.float64]:
    """Return what a device adds to a round's one sum of gradients, before its noise: for no wire.

    For unit record, noise distributed. It is (d,): the sum of the clipped gradients of the sampled
    records at `weights` (d,) times -learning_rate / batch, in units of the round's `factor`, which
    its clip is multiplied with. One record more moves it by clip * learning_rate / batch at most.
    Where the clip follows a quantile it is (1 + d,), with the count of the records first (SPEC
    7.17). `generator`, a SecureGenerator, tosses the coins of the records. Raises as `train`.
    """
    # 1. The plan, the generator and the records, before any is used.
    check_privacy(privacy, training)
    if not is_gradient_sum(privacy):
        raise ConfigError(f"unit {privacy.unit} with noise {privacy.noise} trains weights")
    check_generator(generator)
    _check_records(x, y, training)
    _check_weights(weights)
    # 2. One step, as of `train`, without its noise.
    chosen = _sample(len(x), training.sampling_rate, generator)
    clipped = replace(privacy, clip=factor * privacy.clip)
    total = _private_sum(model, weights, x, y, chosen, training, clipped, generator)
    return -gradient_scale(training) / factor * total


def privatise(
    total: NDArray[np.float64], privacy: Privacy, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Add the noise of one step to a sum of clipped gradients `total` (d,) (SPEC 7.5).

    The sum is snapped to a lattice of spacing clip / 2^20 and the noise is an
    integer number of steps, so the result is a function of a whole number plus
    a rounded Gaussian, whatever float64 does. `privacy` is that of a round.
    Raises PrivacyError, and ConfigError where the round is not named.
    """
    check_of_round(privacy)
    step = privacy.clip / 2.0**LATTICE_BITS
    snapped = np.rint(total / step).astype(np.int64)
    scale = privacy.noise_multiplier * 2.0**LATTICE_BITS
    released: NDArray[np.float64] = (
        snapped + integer_gaussian(generator, scale, snapped.size)
    ) * step
    return released


def _rows(
    y: Array, training: Training, generator: np.random.Generator
) -> NDArray[np.intp] | NDArray[np.int64]:
    """Return the indices of the records that coins are tossed for.

    Oversampling names records of rare classes more than once. With a guarantee for records that
    would break the sensitivity, so `check_privacy` has refused it by now.
    """
    if training.balance == "oversample":
        return oversample(y, int(y.max()) + 1, generator)
    return np.arange(len(y))


def _sample(count: int, rate: float, generator: np.random.Generator) -> NDArray[np.intp]:
    """Poisson sampling: each of `count` records with probability `rate` (SPEC 7.3)."""
    if rate == 1.0:
        return np.arange(count)
    return np.flatnonzero(generator.random(count) < rate)


def _by_class(
    chosen: NDArray[np.intp], y: Array, training: Training
) -> Iterator[tuple[float, NDArray[np.intp]]]:
    """Tell records of classes apart that have weights of their own: each weight and its records."""
    if not training.class_weights:
        yield 1.0, chosen
    for label, weight in enumerate(training.class_weights):
        yield weight, chosen[y[chosen] == label]


def _in_order(chosen: NDArray[np.intp], size: int) -> Iterator[NDArray[np.intp]]:
    """Cut a batch into pieces of at most `size`; every record comes in exactly one."""
    for start in range(0, chosen.size, size):
        yield chosen[start : start + size]


def _chunks(
    chosen: NDArray[np.intp], size: int, generator: np.random.Generator
) -> Iterator[NDArray[np.intp]]:
    """Cut a batch into pieces of at most `size`, such that one record more changes one (SPEC 7.4).

    Every record draws a number of its own in [0, 1), and an interval with more than `size` records
    is halved. One record more adds to one piece, or halves it: all others stay as they are.
    """
    coins = generator.random(chosen.size)
    order = np.argsort(coins)
    yield from _halved(chosen[order], coins[order], size, (0.0, 1.0))


def _halved(
    rows: NDArray[np.intp], coins: NDArray[np.float64], size: int, interval: tuple[float, float]
) -> Iterator[NDArray[np.intp]]:
    if rows.size <= size:
        if rows.size:
            yield rows
        return
    low, high = interval
    middle = (low + high) / 2
    if not low < middle < high:
        raise PrivacyError(f"{rows.size} coins are the same: the generator is broken")
    place = int(np.searchsorted(coins, middle))
    yield from _halved(rows[:place], coins[:place], size, (low, middle))
    yield from _halved(rows[place:], coins[place:], size, (middle, high))


def _private_sum(
    model: TrainableModel,
    weights: Weights,
    x: Array,
    y: Array,
    chosen: NDArray[np.intp],
    training: Training,
    privacy: Privacy,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """Sum the clipped gradients of the records `chosen`, for a guarantee for each (SPEC 7.4).

    Returns the sum (d,), or (1 + d,) with the records' count first where the clip follows a
    quantile: a record's gradient and count together are within the clip (SPEC 7.17).
    """
    if chosen.size > MAX_SAMPLED:
        raise PrivacyError(
            f"a step sampled {chosen.size} records, the sensitivity is argued for "
            f"{MAX_SAMPLED} (SPEC 7.4): lower training.sampling_rate"
        )
    step = privacy.clip / 2.0**SUM_BITS
    counts = follows_quantile(privacy)
    clip = update_clip(privacy.clip, privacy.clip_share)
    # Whole numbers below 2^53: their sums are exact.
    steps = np.zeros(counts + weights.size, np.float64)
    for weight, part in _by_class(chosen, y, training):
        for chunk in _chunks(part, min(model.physical_batch, MAX_CHUNK), generator):
            total, norms = _clipped_sum(model, weights, x, y, chunk, clip)
            steps[counts:] += np.rint(weight * total / step)
            if counts:
                steps[0] += np.rint(_count(norms, chunk.size, privacy) / step)
    return steps * step


def _count(norms: NDArray[np.float32], records: int, privacy: Privacy) -> float:
    """Return what a chunk adds to the count. No record adds more than its share (SPEC 7.17)."""
    if norms.shape != (records,):
        raise PrivacyError(
            f"{records} records have norms of shape {norms.shape}: they cannot be counted; nothing "
            "may leave"
        )
    # What is no number is within no clip.
    norms = np.where(np.isnan(norms), np.inf, norms)
    return float(counted(norms, privacy.clip, privacy).sum())


def _clipped_sum(
    model: TrainableModel,
    weights: Weights,
    x: Array,
    y: Array,
    chunk: NDArray[np.intp],
    clip: float,
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Sum the clipped gradients of one chunk; what cannot be clipped is zero (SPEC 7.4).

    A sum that is too long or no number has such a record in it. Each is then tried by itself, so
    that none decides what becomes of another. Returns the sum (d,) and the norms (n,).
    """
    try:
        return _chunk_sum(model, weights, x, y, chunk, clip)
    except DivergenceError:
        if chunk.size == 1:
            _log.warning("the gradient of a record cannot be clipped: it counts as nothing")
            return np.zeros(weights.size, np.float64), np.full(1, np.inf, np.float32)
    alone = [_clipped_sum(model, weights, x, y, one, clip) for one in chunk[:, None]]
    total: NDArray[np.float64] = np.sum([each for each, _ in alone], axis=0)
    return total, np.concatenate([norms for _, norms in alone])


def _chunk_sum(
    model: TrainableModel,
    weights: Weights,
    x: Array,
    y: Array,
    chunk: NDArray[np.intp],
    clip: float,
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Sum the clipped gradients of one chunk, and check how long the sum is (SPEC 7.4).

    Returns the sum (d,) and the unclipped norms (n,), which are the model's word. Raises
    DivergenceError for a sum that is too long or no number.
    """
    gradient, _, norms = model.gradient_sum(weights, x[chunk], y[chunk], clip)
    if gradient.shape != weights.shape:
        raise ModelError(f"gradient has shape {gradient.shape}, weights {weights.shape}")
    exact = gradient.astype(np.float64)
    norm = math.sqrt(float(exact @ exact))
    # What is no number is not short either.
    short = norm <= chunk.size * clip * (1.0 + CLIP_SLACK)
    if clip == NO_CLIP and not (short and (norms <= NO_CLIP).all()):
        raise DivergenceError(
            f"{chunk.size} gradients sum to norm {norm:g}, the longest has {norms.max():g}: lower "
            "training.learning_rate"
        )
    if not short:
        raise DivergenceError(
            f"{chunk.size} gradients clipped at {clip:g} sum to norm {norm:g}: the model does not "
            "clip, or a gradient is not finite"
        )
    return exact, norms


def check_generator(generator: np.random.Generator) -> None:
    """Raise PrivacyError unless noise and coins from `generator` keep a secret (SPEC 7.6)."""
    if not isinstance(generator, SecureGenerator):
        raise PrivacyError(
            f"noise from {type(generator).__name__} is not private: "
            "use randomness.fresh_generator()"
        )
    generator.check_process()


def _check_weights(weights: Weights) -> None:
    if not are_weights(weights):
        raise DivergenceError(
            f"training diverged, weights are beyond {MAX_WEIGHT:g}: lower training.learning_rate"
        )


def _check_records(x: Array, y: Array, training: Training) -> None:
    if len(x) != len(y):
        raise DataError(f"{len(x)} records have {len(y)} labels")
    if len(x) < training.records:
        raise DataError(
            f"the device has {len(x)} records, the plan wants at least {training.records}"
        )
    for name, values in (("x", x), ("y", y)):
        bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
        if bad.size:
            raise DataError(f"{name} of record {int(bad[0])} is not finite: leave the record out")
