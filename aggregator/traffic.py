"""What recomputing and decrypting a round's sum costs one hospital in bytes (SPEC 11.6).

Computed from a study alone, so that it can be said when a plan is made.
"""

from dataclasses import dataclass
from math import comb

from vitalring.aggregator.groups import count_of
from vitalring.aggregator.recompute import encoded_update_bytes
from vitalring.errors import ConfigError
from vitalring.protocol import limits, trust
from vitalring.protocol.secure_sum import threshold_params

_RECORD_BYTES = 1024
"""A signed commitment, nonce or promise, with its envelope; each is smaller."""


@dataclass(frozen=True)
class Traffic:
    """Bytes of one hospital in one round, besides what MQTT and TLS add.

    `set_down` are the updates. A release has one session where all hospitals answer: `up` and
    `down` are those of one of its members, and of the hospital that reads most. With silent
    hospitals other sets of members follow, `up_most` and `down_most` in all.
    """

    updates: int
    set_down: int
    up: int
    down: int
    up_most: int
    down_most: int

    def __str__(self) -> str:
        """Say it in one line, for people."""
        return (
            f"{self.updates} updates cost each hospital {_text(self.set_down)} down to recompute "
            f"their sum; to decrypt it, {_text(self.up)} up and {_text(self.down)} down, "
            f"with silent hospitals at most {_text(self.up_most)} and {_text(self.down_most)}"
        )


def round_traffic(study: trust.Study, updates: int) -> Traffic:
    """Return what a round of so many updates costs a hospital.

    Raises ConfigError for a study whose sums have no joint key.
    """
    if study.joint is None:
        raise ConfigError(f"nobody recomputes the sums of study {study.plan.study}: no joint key")
    plan = study.plan
    params = threshold_params(plan.codec, plan.vector_size, study.joint)
    access = study.joint.access
    hospitals, members = access.hospitals, access.threshold
    # Each group of at least min_cohort updates is decrypted by itself.
    groups = count_of(updates, plan.groups, plan.min_cohort)
    widths = sum(prime.bit_length() for prime in params.bfv.data_primes)
    check = -(-params.bfv.reserved * widths // 8)
    shown = groups * (check + params.partial_bytes)
    words = 2 * _RECORD_BYTES  # commitment and nonce
    session = shown + _RECORD_BYTES
    sessions, own = comb(hospitals, members), comb(hospitals - 1, members - 1)
    return Traffic(
        updates=updates,
        set_down=updates * encoded_update_bytes(study),
        up=words + session,
        # Whoever is no member reads what all members show.
        down=(hospitals - 1) * words + min(members, hospitals - 1) * session,
        up_most=words + own * session,
        down_most=(hospitals - 1) * words + (sessions * members - own) * session,
    )


def _text(count: int) -> str:
    if count < limits.MIB:
        return f"{count / limits.KIB:.0f} KiB"
    return f"{count / limits.MIB:.1f} MiB"
