"""What hospitals say of a closed round for the log: who commits to its set, who refuses.

A gateway logs these words after the round's report and before its model; a model that
applies a sum needs enough commitments to one and the same set (SPEC 8.17, 9.8).
"""

from collections.abc import Collection
from dataclasses import dataclass

from vitalring.errors import RecordError
from vitalring.protocol.cbor import decode
from vitalring.protocol.records import GlobalModel
from vitalring.protocol.release import ReleaseRefusal, SetCommitment, commitments_needed
from vitalring.protocol.signing import Signed, verify
from vitalring.protocol.trust import Study

COMMITMENT = "set-commitment"
REFUSAL = "release-refusal"
KINDS = (COMMITMENT, REFUSAL)
"""Kinds of log entries that may stand between a round's report and its model."""

Word = SetCommitment | ReleaseRefusal


@dataclass(frozen=True)
class ClosedRound:
    """A round that its gateway closed: its number, and the digests of signed plan and report."""

    number: int
    plan: bytes
    report: bytes


def open_word(kind: str, data: bytes, study: Study, closed: ClosedRound) -> tuple[int, Word]:
    """Return the index of the hospital whose aggregator signed `data`, and what it says.

    `kind` is one of `KINDS`. Raises SignatureError or RecordError.
    """
    hospitals = study.federation.hospitals
    # 1. Hospitals decrypt the sums of this study together.
    if study.joint is None:
        raise RecordError(
            f"a {kind} came, but the sums of study {study.plan.study} have no joint key"
        )
    # 2. One aggregator of the federation signed it, and nobody else.
    signatures = decode(Signed, data).signatures
    keys = [hospital.aggregator_key for hospital in hospitals]
    if len(signatures) != 1 or signatures[0].key not in keys:
        raise RecordError(f"a {kind} is signed by one aggregator of the federation alone")
    signer = keys.index(signatures[0].key)
    cls: type[Word] = SetCommitment if kind == COMMITMENT else ReleaseRefusal
    word: Word = verify(cls, data, {keys[signer]}, 1)
    # 3. It speaks of this round, as its gateway closed it.
    about = (word.plan, word.report) == (closed.plan, closed.report)
    if isinstance(word, SetCommitment):
        about &= (word.sum_key, word.round) == (study.sum_key_digest, closed.number)
    if not about:
        raise RecordError(
            f"the {kind} of {hospitals[signer].name} is about another round or report"
        )
    return signer, word


def slot(word: Word) -> str:
    """Return what a log holds one of for each hospital and round: a commitment, each refusal.

    A hospital that signs a second commitment has no second vote, and nobody can make a log
    grow without end.
    """
    return word.reason if isinstance(word, ReleaseRefusal) else COMMITMENT


def check_committed(
    model: GlobalModel, commitments: Collection[tuple[int, SetCommitment]], study: Study
) -> None:
    """SPEC 9.8: a sum is applied only if enough hospitals committed to one and the same set.

    `commitments` are those that the log holds for the round, with the index of each hospital.
    Raises RecordError.
    """
    if study.joint is None or not model.applied:
        return
    hospitals: dict[bytes, set[int]] = {}
    for hospital, commitment in commitments:
        hospitals.setdefault(commitment.set, set()).add(hospital)
    most = max(map(len, hospitals.values()), default=0)
    access = study.joint.access
    needed = commitments_needed(access, study.plan.groups)
    if most < needed:
        raise RecordError(
            f"the model of round {model.round} applies a sum that {most} hospitals committed to; "
            f"of {access.hospitals} hospitals {needed} must"
        )
