"""What a plan says of its clip and its noise, in words: the same wherever a person reads of it."""

from vitalring.protocol.guarantee import Terms, stretches
from vitalring.protocol.records import StudyPlan


def clip_line(plan: StudyPlan) -> str:
    """Say which quantile the clip of a plan's unit follows, and how (SPEC 7.17)."""
    privacy = plan.privacy
    name, start = "update_clip", plan.codec.clip
    if privacy.unit == "record":
        name, start = "clip", privacy.clip
    return (
        f"{name} follows the {privacy.clip_quantile:g} quantile from {start:g} on, at rate "
        f"{privacy.clip_rate:g}; its count takes a share of {privacy.clip_share:g}"
    )


def schedule_in_words(terms: Terms) -> str:
    """Say by what the noise of each stretch of rounds is multiplied (SPEC 7.18)."""
    # Without one there is a stretch all the same.
    parts = zip(terms.privacy.schedule, stretches(terms), strict=False)
    return ", ".join(
        f"{factor:g} in rounds {stretch.first} to {stretch.last}" for factor, stretch in parts
    )
