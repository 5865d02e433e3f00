"""Disjoint sub-cohorts of a round's updates, whose sums are opened one by one (SPEC 11.12).

Each update is in exactly one group, so each is opened once, inside a sum of at least
`min_cohort`. Who is with whom follows from a seed that nobody knows before the set of updates is
fixed: a device cannot choose its group, nor a hospital a device's neighbours.
"""

import hashlib
from collections.abc import Sequence
from typing import Final

from vitalring.errors import ConfigError, RecordError

_DOMAIN: Final = b"vitalring/group/1\x00"
_SEED_BYTES: Final = 32


def count_of(updates: int, groups: int, min_cohort: int) -> int:
    """Return how many groups a round of so many updates has: `groups`, or as many as it fills."""
    return max(1, min(groups, updates // min_cohort))


def assign(tags: Sequence[bytes], seed: bytes, groups: int, min_cohort: int) -> list[list[int]]:
    """Return the groups of a round's updates, each a list of places in `tags`.

    Updates are ordered by SHA-256(domain, seed, tag) and cut into runs whose lengths differ by
    one at most: `groups` of them, or as many as have `min_cohort` updates each, one at least.
    The order of `tags` changes the places, not who is with whom. `seed` are 32 bytes, a hash of
    all hospitals' nonces.

    Raises:
        RecordError: there are fewer than `min_cohort` tags, or one occurs twice.
        ConfigError: seed, groups or min_cohort cannot be.
    """
    # 1. Numbers of a study plan.
    if groups < 1 or min_cohort < 1:
        raise ConfigError(f"{groups} groups of at least {min_cohort}: both must be 1 or more")
    if len(seed) != _SEED_BYTES:
        raise ConfigError(f"the seed of groups has {len(seed)} bytes, not {_SEED_BYTES}")
    # 2. A set of updates that may be opened at all.
    if len(tags) < min_cohort:
        raise RecordError(
            f"{len(tags)} updates make no group: none below {min_cohort} is decrypted"
        )
    if len(set(tags)) != len(tags):
        raise RecordError("a tag occurs twice among the updates: no groups are made of them")
    # 3. The seed has a fixed length, so no two tags share a hash input.
    order = sorted(
        range(len(tags)), key=lambda i: hashlib.sha256(_DOMAIN + seed + tags[i]).digest()
    )
    count = count_of(len(tags), groups, min_cohort)
    size, longer = divmod(len(tags), count)
    made, start = [], 0
    for number in range(count):
        end = start + size + (number < longer)
        made.append(order[start:end])
        start = end
    return made
