"""From two gateways' sums to one that can be opened (SPEC 11.16).

The aggregator of the first hospital gets the sum of masked vectors from its own gateway and the
sum of masks from the other one. Neither is opened before both are of the one set that both
gateways signed; with one alone a round has no sum.
"""

from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from vitalring.errors import CiphertextError, RecordError
from vitalring.protocol import two_server
from vitalring.protocol.agreement import Closing, check_sums, open_agreed, open_share_report
from vitalring.protocol.cbor import decode, digest
from vitalring.protocol.records import Bundle, EncryptedSum, RoundPlan, RoundReport
from vitalring.protocol.secure_sum import Decrypt
from vitalring.protocol.trust import Study
from vitalring.protocol.two_server import ROLES, SEED, VECTOR


@dataclass(frozen=True)
class TwoSums:
    """A closed round as both gateways reported it."""

    bundle: Bundle
    """The first gateway's report, with its sum if there is one."""
    decrypt: Decrypt
    """Takes the masks off; raises CiphertextError where the other gateway gave no sum of them."""
    reports: tuple[bytes, bytes]


def join(study: Study, plan: RoundPlan, name: bytes, bundles: tuple[Bundle, Bundle]) -> TwoSums:
    """Put the two gateways' bundles of the round with plan digest `name` together.

    Raises SignatureError or RecordError for bundles that are not of this round, or sums that
    are not of one agreed set.
    """
    federation, closing = study.federation, Closing(plan, name)
    first, second = (open_share_report(bundles[r].record, federation, r) for r in ROLES)
    for report in (first, second):
        if (report.plan, report.round) != (name, plan.round):
            raise RecordError(f"a report of round {report.round} came, which is not the latest")
    reports = (bundles[VECTOR].record, bundles[SEED].record)
    if first.status != "summed":
        return TwoSums(Bundle(reports[VECTOR], ()), _no_masks, reports)
    if second.status != "summed":
        return TwoSums(Bundle(reports[VECTOR], bundles[VECTOR].objects[:1]), _no_masks, reports)
    vectors, masks = (_sum_of(bundles[r], report) for r, report in enumerate((first, second)))
    if bundles[VECTOR].objects[1] != bundles[SEED].objects[1]:
        raise RecordError(f"the gateways show different agreed sets of round {plan.round}")
    check_sums(
        open_agreed(bundles[VECTOR].objects[1], federation),
        closing,
        (first, second),
        (vectors, masks),
        (first.sum, second.sum),
    )
    params = two_server.share_params(study.plan.codec, study.plan.vector_size)
    scheme = two_server.share_sum(SEED, params)
    unmask = two_server.Unmask(scheme.decode_sum(masks.ciphertexts), params)
    return TwoSums(Bundle(reports[VECTOR], bundles[VECTOR].objects[:1]), unmask, reports)


def _sum_of(bundle: Bundle, report: RoundReport) -> EncryptedSum:
    if len(bundle.objects) != len(ROLES) or digest(bundle.objects[0]) != report.sum:
        raise RecordError(
            f"round {report.round} came without the sum that its report names, or without its set"
        )
    return decode(EncryptedSum, bundle.objects[0])


def _no_masks(_: npt.NDArray[np.uint64]) -> NoReturn:
    raise CiphertextError("the second gateway gave no sum of masks for this round")
