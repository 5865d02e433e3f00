"""What a study's sums become: weights of a network, or a feature schema.

The steps of a round are the same for both (`rounds.py`). They differ in what a sum means, how it
moves the state, what is published of the state, and what it is measured on.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitalring.aggregator import optimisers
from vitalring.aggregator.following import first_vector, following, weights_of
from vitalring.aggregator.optimisers import Optimiser, Vector
from vitalring.aggregator.robust import combine_groups, decode_group
from vitalring.models.artefact import Artefact, artefact_from_bytes, initial_weights
from vitalring.models.dataset import FeatureSchema
from vitalring.models.dataset.statistics import Question, answer
from vitalring.protocol import trust
from vitalring.protocol.limbs import answer_limbs, from_limbs
from vitalring.protocol.records import Evaluation, StudyPlan
from vitalring.protocol.update import rotation_seed
from vitalring.protocol.weights import pack_weights

_log = logging.getLogger(__name__)

Fields = npt.NDArray[np.uint64]
OpenFields = tuple[Callable[[], Fields], int]
"""A group's sum of so many updates, as fields; the call raises EncodingRangeError."""

Evaluate = Callable[[Vector], Evaluation | None]


@dataclass(frozen=True)
class Goal:
    """A study's goal.

    start: the first state's vector (v,), the weights, after a factor where the clip moves
    decode(sums of groups, plan digest) -> the mean update (v,) that they stand for
    optimiser: from a state and a mean update to the next state
    content(vector) -> what is published of a state; both raise VitalRingError for what cannot be
    evaluate(vector) -> how good it is on held-out records, or None
    """

    start: Vector
    decode: Callable[[Sequence[OpenFields], bytes], Vector]
    optimiser: Optimiser
    content: Callable[[Vector], bytes]
    evaluate: Evaluate


def open_artefact(files: trust.StudyFiles) -> tuple[Artefact, FeatureSchema | None]:
    """Return a study's network and, for tables, its features, from its public files."""
    model, objects = files.study.plan.model, files.objects
    artefact = artefact_from_bytes(
        objects[trust.INFO_FILE],
        objects[trust.ARTEFACT_FILE],
        tuple(objects[trust.companion_file(name)] for name in model.companions),
        model.info,
    )
    if not model.features:
        return artefact, None
    return artefact, FeatureSchema.from_json(objects[trust.FEATURES_FILE])


def training(plan: StudyPlan, artefact: Artefact, evaluate: Evaluate) -> Goal:
    """Return the goal of a study that trains a network."""
    terms = plan.terms

    def decode(groups: Sequence[OpenFields], plan_digest: bytes) -> Vector:
        seed = rotation_seed(plan_digest)
        opens = [
            lambda fields=fields, count=count: decode_group(
                fields(), count, plan.codec, plan.vector_size, seed
            )
            for fields, count in groups
        ]
        combined = combine_groups(plan.combine, opens)
        for number, fault in combined.left_out:
            _log.warning("group %d is left out: %s", number, fault)
        return combined.mean

    weights = initial_weights(artefact, plan.model.initial_seed).astype(np.float64)
    return Goal(
        first_vector(weights, terms),
        decode,
        following(optimisers.build(plan.server), terms),
        lambda vector: pack_weights(weights_of(vector, terms)),
        lambda vector: evaluate(weights_of(vector, terms)),
    )


def statistics(plan: StudyPlan, question: Question) -> Goal:
    """Return the goal of a study that agrees on features (SPEC 4.10). Nothing is published before.

    The state is the sums of limbs, whole numbers that float64 holds exactly.
    """

    def decode(groups: Sequence[OpenFields], _plan_digest: bytes) -> Vector:
        ((fields, count),) = groups
        return answer_limbs(fields(), count).astype(np.float64)

    def content(limbs: Vector) -> bytes:
        if not limbs.any():
            return b""
        totals = from_limbs(limbs.astype(np.uint64), question.widths, plan.codec.n_max)
        return answer(question, totals).to_json()

    start = np.zeros(plan.model.dimension)
    return Goal(start, decode, optimisers.build(plan.server), content, lambda _: None)
