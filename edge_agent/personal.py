"""Personal heads: the global network, with its last layer fitted to one wearer.

Rules kept here:

- The head never leaves the device. It is fitted to the device's own records without
  noise, so it has no differential privacy and would tell about them if it were sent.
  So would the counts in the result, which are for the device's own screen. Both are
  kept by `personal_files`, for their owner alone.
- What judges has trained nothing. A fifth of the records is kept back (`keep_back`), from
  the head and, where heads are personal, from the federated training too. One half of it
  chooses how long the head is trained; the other half takes part in no choice and compares
  the two heads once.
- The personal head must be better to be used: on the records that judge, neither its
  accuracy nor its macro-F1 is lower than the global head's, and one of them is higher.
- A head belongs to the global weights it was fitted on, and to no others.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from vitalring.edge_agent.dpsgd import NO_CLIP, TrainableModel, Weights
from vitalring.errors import DataError, ModelError
from vitalring.models import metrics
from vitalring.models.dataset import Records
from vitalring.models.dataset.lots import draw
from vitalring.protocol.cbor import digest
from vitalring.protocol.weights import pack_weights
from vitalring.schema import Range

KEPT_ONE_IN: Final = 5
"""One record in so many of each class is kept back."""

_LOT_LABEL: Final = b"vitalring records kept back 1\0"

KeepRule = Literal["order", "lot"]

Rows = npt.NDArray[np.int64]


class PersonalModel(TrainableModel, Protocol):
    """What personalisation asks of a model: training's part, and predictions."""

    def probabilities(self, weights: Weights, x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return class probabilities (n, classes) of x (n, ...)."""


@dataclass(frozen=True)
class PersonalSettings:
    """How a head is fitted: plain gradient descent over shuffled batches of its records."""

    epochs: Annotated[int, Range(1, 1000)] = 30  # passes at most; the best one is kept
    learning_rate: Annotated[float, Range(1e-6, 100.0)] = 0.1
    batch: Annotated[int, Range(1, 1_000_000)] = 32
    least_records: Annotated[int, Range(1, 1_000_000)] = 20
    """Records that must judge; with fewer, chance would decide, and the global head stays."""


class KeptBack(NamedTuple):
    """One device's labelled records: those that train, those that choose, those that judge."""

    train: Records
    choose: Records
    judge: Records


@dataclass(frozen=True)
class Scores:
    """How one head does on the records that judge, counted as (true class, predicted class).

    The macro-F1 is over the classes that these records hold: a device may never see the others.
    """

    accuracy: Annotated[float, Range(0.0, 1.0)]
    macro_f1: Annotated[float, Range(0.0, 1.0)]
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class PersonalResult:
    """Global and personal head side by side, on `rows` records that neither has seen.

    `unseen` are the classes without a labelled record here. How a personal head does on them
    nobody can measure on this device, and it may have forgotten them.
    """

    rows: int
    global_head: Scores
    personal_head: Scores
    used: bool
    reason: str
    epochs: int
    unseen: tuple[int, ...]


@dataclass(frozen=True)
class Personal:
    """A personal head (head,), the digest of the global weights it belongs to, and its result."""

    head: Weights = field(repr=False)
    base: bytes
    result: PersonalResult


def keep_rule(unit: str) -> KeepRule:
    """Return how records are kept back where this is the unit of the plan's guarantee."""
    return "lot" if unit == "record" else "order"


def keep_back(records: Records, rule: KeepRule) -> KeptBack:
    """Divide a device's labelled records by `rule`.

    `lot`: by a hash of each record's own samples, or of its group. Whether a record trains then
    hangs on no other record, so two data sets that differ in one record train on such two; a
    border that a further record moves would make them differ in more (SPEC 7.2). Windows that
    overlap may lie on both sides, which flatters a personal head.

    `order`: class by class and in their order. Of n records of a class the last n // 5 are kept
    back, and the later half of these judges. Records that came before in time train, so that no
    window that overlaps another is on both sides, but at the border. Where records have groups,
    such as patients, whole groups are divided in the same way, by their first record, whatever
    their classes.

    While records are only added at the end and dropped at the front, one that has trained is
    never kept back later: what judges today has judged, or was not there, in every round before.
    """
    if rule == "lot":
        return _by_lot(records)
    if records.group is None:
        names, which = np.unique(records.y, return_inverse=True)
        divided = [_divide(np.flatnonzero(which == label)) for label in range(names.size)]
    else:
        _, first, which = np.unique(records.group, return_index=True, return_inverse=True)
        divided = [
            tuple(np.flatnonzero(np.isin(which, part)) for part in _divide(np.argsort(first)))
        ]
    return KeptBack(
        *(records.take(np.sort(np.concatenate(part))) for part in zip(*divided, strict=True))
    )


def _by_lot(records: Records) -> KeptBack:
    """Keep one record, or group, in five back; every second of these judges."""
    rows = records.x if records.group is None else records.group
    lots = draw(_LOT_LABEL, (row.tobytes() for row in rows)) % (2 * KEPT_ONE_IN)
    sides = lots < 2 * (KEPT_ONE_IN - 1), lots == 2 * KEPT_ONE_IN - 2, lots == 2 * KEPT_ONE_IN - 1
    return KeptBack(*(records.take(np.flatnonzero(side)) for side in sides))


def _divide(ordered: Rows) -> tuple[Rows, ...]:
    """Cut a sequence (n,) into those that train, choose and judge."""
    kept = ordered.size // KEPT_ONE_IN
    border = ordered.size - kept
    return tuple(np.split(ordered, [border, border + kept // 2]))


def personalise(
    model: PersonalModel,
    weights: Weights,
    head: int,
    records: Records,
    rule: KeepRule,
    settings: PersonalSettings,
    generator: np.random.Generator,
) -> Personal:
    """Fit the last `head` of the global `weights` (d,) to a device's labelled records.

    The other weights stay as they are. `records` are all of the device's, before `keep_back`;
    the federated training must have seen no more than `keep_back(records, rule).train`.

    Raises DataError (no records) and ModelError (a head of another size than the network's, or
    training that leaves the finite numbers).
    """
    if not 1 <= head <= weights.size:
        raise ModelError(f"a head of {head} weights does not fit a network of {weights.size}")
    if not len(records):
        raise DataError("a device without labelled records has nothing to personalise with")
    parts = keep_back(records, rule)
    fitted, epochs = weights, 0
    reason = _too_little(parts, settings)
    if not reason:
        fitted, epochs = _fit(model, weights, head, parts, settings, generator)
    shared, personal = (_scores(model, each, parts.judge) for each in (weights, fitted))
    if not reason:
        reason = _verdict(shared, personal, epochs)
    classes = len(shared.confusion)
    result = PersonalResult(
        rows=len(parts.judge),
        global_head=shared,
        personal_head=personal,
        used=reason == _BETTER,
        reason=reason,
        epochs=epochs,
        unseen=tuple(c for c in range(classes) if not np.any(records.y == c)),
    )
    return Personal(fitted[-head:].copy(), digest(pack_weights(weights)), result)


def with_head(weights: Weights, head: Weights) -> Weights:
    """Return global weights (d,) with their last ones replaced by a personal head (head,)."""
    return np.concatenate([weights[: weights.size - head.size], head])


_BETTER: Final = "better than the global head"


def _too_little(parts: KeptBack, settings: PersonalSettings) -> str:
    if len(np.unique(parts.train.y)) < 2:
        # Such a head would learn to always say the one thing, and nothing here could tell.
        return "the records that train hold one class only"
    if len(parts.judge) < settings.least_records:
        return f"{len(parts.judge)} records can judge, {settings.least_records} are needed"
    return ""


def _verdict(shared: Scores, personal: Scores, epochs: int) -> str:
    if not epochs:
        return "no training improved the global head on the records that choose"
    if personal.accuracy < shared.accuracy or personal.macro_f1 < shared.macro_f1:
        return "worse than the global head"
    if personal.accuracy == shared.accuracy and personal.macro_f1 == shared.macro_f1:
        return "no better than the global head"
    return _BETTER


def _fit(
    model: PersonalModel,
    weights: Weights,
    head: int,
    parts: KeptBack,
    settings: PersonalSettings,
    generator: np.random.Generator,
) -> tuple[Weights, int]:
    """Return the weights with the least log-loss on the records that choose, and their epoch."""
    x, y = parts.train.x, parts.train.y
    current, best, chosen = weights.copy(), weights, 0
    least = _loss(model, weights, parts.choose)
    size = min(settings.batch, model.physical_batch)
    for epoch in range(1, settings.epochs + 1):
        order = generator.permutation(len(y))
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            gradient, _, _ = model.gradient_sum(current, x[rows], y[rows], NO_CLIP)
            current[-head:] -= np.float32(settings.learning_rate / len(rows)) * gradient[-head:]
        loss = _loss(model, current, parts.choose)
        if loss < least:
            best, chosen, least = current.copy(), epoch, loss
    return best, chosen


def _loss(model: PersonalModel, weights: Weights, records: Records) -> float:
    return metrics.log_loss(records.y, model.probabilities(weights, records.x))


def _scores(model: PersonalModel, weights: Weights, records: Records) -> Scores:
    probabilities = model.probabilities(weights, records.x)
    counts = metrics.confusion_matrix(
        records.y, probabilities.argmax(axis=1), probabilities.shape[1]
    )
    return Scores(
        accuracy=metrics.accuracy(counts),
        macro_f1=macro_f1_of_own_classes(counts),
        confusion=tuple(tuple(int(n) for n in row) for row in counts),
    )


def macro_f1_of_own_classes(confusion: npt.NDArray[np.int64]) -> float:
    """Return the mean F1 of the classes that occur; 0 where there are no records at all."""
    own = confusion.sum(axis=1) > 0
    return float(metrics.f1(confusion)[own].mean()) if own.any() else 0.0
