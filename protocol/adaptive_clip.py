"""A clip that follows a quantile of what it clips (SPEC 7.17).

Andrew, Thakkar, McMahan and Ramaswamy, "Differentially Private Learning with Adaptive Clipping",
NeurIPS 2021 (arXiv 1905.03871). Rules kept here: the count of what was within the clip is one more
coordinate of the vector that is clipped, before the others, so that it has no noise and no
guarantee of its own; only a factor on the study's clips moves, and what moves it is public.
"""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vitalring.protocol.guarantee import Terms
from vitalring.protocol.privacy import MAX_FACTOR, MIN_FACTOR, Privacy

RAMP: Final = 1.0 / 16.0
"""Share of the clip below and above it in which a norm counts in part."""

FACTOR_TOLERANCE: Final = 1.1e-5
"""By how much, relatively, two machines may differ in a factor: by the last of its six digits."""


def update_clip(clip: float, share: float) -> float:
    """Return the clip of what is counted, such that with its count it is within `clip`."""
    return clip * math.sqrt(1.0 - share * share)


def within(norms: NDArray[np.floating[Any]], clip: float) -> NDArray[np.float64]:
    """Tell how much each of `norms` (n,) is within `clip`, 0 to 1 (n,).

    A step at the clip would let a norm's last bit move a count by 1: see SPEC 7.17 on records.
    """
    relative = np.minimum(np.asarray(norms, np.float64), 2.0 * clip) / clip
    return np.clip((1.0 + RAMP - relative) / (2.0 * RAMP), 0.0, 1.0)


def counted(norms: NDArray[np.floating[Any]], clip: float, privacy: Privacy) -> NDArray[np.float64]:
    """Return what `norms` (n,) add to the count's coordinate at the joint clip `clip` (n,).

    None is longer than clip_share * `clip`, whatever the norms are.
    """
    part = within(norms, update_clip(clip, privacy.clip_share)) - privacy.clip_quantile
    counts: NDArray[np.float64] = privacy.clip_share * clip * part
    return counts


def count_unit(terms: Terms) -> float:
    """Return what the count's coordinate of a mean update changes by for a share of 1.

    Sums of gradients are sent times -learning_rate / batch, and their counts with them; a share is
    one of `batch` records.
    """
    privacy = terms.privacy
    if privacy.unit == "device":
        return privacy.clip_share * terms.codec.clip
    return -terms.training.learning_rate * privacy.clip_share * privacy.clip


def unclipped(count: float, terms: Terms) -> float:
    """Return the share that was within the clip, as a decoded count tells it with its noise.

    Not further from the quantile than 1, and of six decimals: what is published, and followed.
    """
    quantile = terms.privacy.clip_quantile
    error = min(1.0, max(-1.0, count / count_unit(terms)))
    # Adding zero makes a negative zero, which records do not have, a zero.
    return round(quantile + error, 6) + 0.0


def next_factor(factor: float, share: float, privacy: Privacy) -> float:
    """Return the factor of the next round after one with `factor` (Algorithm 1 of the paper).

    `share` is what `unclipped` gave. Of six digits, so that machines agree.
    """
    error = min(1.0, max(-1.0, share - privacy.clip_quantile))
    moved = float(f"{factor * math.exp(-privacy.clip_rate * error):.6g}")
    return min(MAX_FACTOR, max(MIN_FACTOR, moved))
