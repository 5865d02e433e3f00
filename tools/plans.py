"""Draw up a study's plan from its settings, checked as every device will check it."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vitalring.errors import ConfigError
from vitalring.models.artefact import Artefact
from vitalring.models.dataset.statistics import Question
from vitalring.protocol.cbor import digest
from vitalring.protocol.guarantee import Terms
from vitalring.protocol.limbs import LIMB_BITS
from vitalring.protocol.limits import DECRYPTION_FLOOR
from vitalring.protocol.privacy import Privacy, Training, follows_quantile, is_gradient_sum
from vitalring.protocol.quantise import Codec, check_codec
from vitalring.protocol.records import Model, ServerOptimiser, StudyPlan
from vitalring.protocol.secure_sum import check_mode
from vitalring.tools.calibration import with_noise
from vitalring.tools.settings import (
    Numbers,
    StudySettings,
    hospitals_of,
    least_ring,
    numbers_of,
    rings_of,
)

MIN_COHORT = 10
"""Fewest updates in a sum where a study does not say; a smaller fleet sums all its updates."""

_ALIGNED = 0.5
"""Length of a sum of clipped gradients, as a share of what they reach where all point one way."""

_MOST_IN_A_SUM = 20_000
"""Most records of a device in one sum, unless a study says: of more, one is lost in the grid."""

_NAME_CHARACTERS = 32
_STATISTICS = "-statistics"


@dataclass(frozen=True)
class Sizes:
    """How many records devices have: the smallest, the largest and on average."""

    least: int
    most: int
    mean: float

    @classmethod
    def of(cls, least: int, most: int = 0, mean: float = 0.0) -> "Sizes":
        """Take what is unknown, written 0, for equal devices. Raises ConfigError."""
        if least < 1:
            raise ConfigError("records is 0: say how many records every device has at least")
        return cls(least, max(least, most), max(least, mean))

    @classmethod
    def counted(cls, sizes: Sequence[int], least: int = 0) -> "Sizes":
        """Take the records of each device, and a floor for `least` where it is given."""
        return cls.of(least or min(sizes), max(sizes), sum(sizes) / len(sizes))


def training_of(settings: StudySettings, records: int | Sizes) -> Training:
    """Return the training a device with `records` records does in a round. Raises ConfigError."""
    sizes = records if isinstance(records, Sizes) else Sizes.of(records)
    numbers = numbers_of(settings, sizes.least)
    rate = min(1.0, numbers.batch / sizes.least) if numbers.batch else _largest_rate(sizes.most)
    one_sum = is_gradient_sum(settings)
    # Gradients of all devices are added up, and divided by how many there are on average.
    batch = rate * (sizes.mean if one_sum else sizes.least)
    return Training(
        sampling_rate=rate,
        steps=1 if one_sum else max(1, round(numbers.local_epochs / rate)),
        rounds=settings.rounds,
        learning_rate=numbers.lr,
        batch=max(1, round(batch)),
        records=sizes.least,
        proximal=settings.proximal,
        balance=settings.balance,
        class_weights=settings.class_weights,
    )


def _largest_rate(most: int) -> float:
    """Return the rate of the largest steps that serve a device of `most` records."""
    return max(0.001, math.floor(1000 * min(1.0, _MOST_IN_A_SUM / most)) / 1000)


def privacy_of(settings: StudySettings, numbers: Numbers, min_cohort: int) -> Privacy:
    """Return the guarantee that the settings claim, its noise yet to be found."""
    if settings.unit == "none":
        if settings.clip_quantile:
            raise ConfigError(
                f"clip_quantile is {settings.clip_quantile:g} with unit none: a clip follows a "
                "noisy count; use 0, or unit record or device with noise distributed"
            )
        return Privacy(clip=numbers.clip, schedule=settings.noise_schedule)
    distributed = numbers.noise == "distributed"
    return Privacy(
        settings.unit,
        numbers.noise,
        settings.epsilon,
        settings.delta,
        numbers.clip,
        colluders=math.ceil(settings.colluders * min_cohort) if distributed else 0,
        schedule=settings.noise_schedule,
        clip_quantile=settings.clip_quantile,
        clip_rate=settings.clip_rate if settings.clip_quantile else 0.0,
        clip_share=settings.clip_share if settings.clip_quantile else 0.0,
    )


def min_cohort_of(settings: StudySettings, devices: int) -> int:
    """Return the fewest updates of a sum. Raises ConfigError where there are fewer devices.

    The shares of distributed noise add up in the smallest sum: a plan that asks for nearly all
    devices needs less noise of each, and one that leaves room loses fewer rounds.
    """
    usual = MIN_COHORT
    if numbers_of(settings, 1).noise == "distributed":
        usual = max(MIN_COHORT, math.floor(devices * (1.0 - settings.spare)))
    chosen = settings.min_cohort or max(DECRYPTION_FLOOR, min(usual, devices))
    if devices < chosen:
        raise ConfigError(f"{devices} devices cannot make a sum of min_cohort = {chosen} updates")
    return chosen


def plan_of(
    settings: StudySettings,
    artefact: Artefact,
    devices: int,
    records: int | Sizes,
    features: bytes = b"",
) -> StudyPlan:
    """Return the study's plan, checked as every device will check it.

    `features` is the text of the agreed feature schema, where records are rows of tables.
    Raises ConfigError.
    """
    info = artefact.info
    sizes = records if isinstance(records, Sizes) else Sizes.of(records)
    training, numbers = training_of(settings, sizes), numbers_of(settings, sizes.least)
    min_cohort = min_cohort_of(settings, devices)
    privacy = privacy_of(settings, numbers, min_cohort)
    one_sum = is_gradient_sum(privacy)
    size = info.dimension + follows_quantile(privacy)
    codec = Codec(
        n_max=settings.n_max or devices,
        clip=numbers.update_clip or _ALIGNED * numbers.clip * numbers.lr * sizes.most / sizes.mean,
        weight_cap=_weight_cap(settings, sizes),
        bits=settings.bits,
        reach=settings.reach,
        # A count among the coordinates takes no more bytes, where fewer than all are sent.
        keep=settings.keep if settings.keep == 1.0 else settings.keep * info.dimension / size,
        rounding="plain" if one_sum else "bounded",
    )
    model = Model(
        name=info.name,
        artefact=digest(artefact.model),
        info=artefact.digest,
        dimension=info.dimension,
        classes=info.classes,
        initial_seed=hashlib.sha256(
            b"vitalring/initial-weights/1\x00" + settings.seed.to_bytes(8, "big")
        ).digest(),
        companions=tuple(digest(content) for content in artefact.companions),
        features=digest(features) if features else b"",
    )
    terms = with_noise(Terms(privacy, training, codec, size, min_cohort))
    return _plan(settings, settings.study, model, terms, numbers.server, devices)


def _weight_cap(settings: StudySettings, sizes: Sizes) -> int:
    """Return the records above which a device weighs no more (SPEC 4.2).

    A cap far above every device would scale all updates down into the rounding of the quantiser.
    """
    if settings.unit == "device":
        return 1
    if settings.unit == "record":
        # With a guarantee for records every device weighs alike: its count would be a record's
        # trace (SPEC 7.11). The plan's floor of records makes the capped weight the same for all.
        return sizes.least
    return settings.weight_cap or sizes.most


def statistics_plan_of(
    settings: StudySettings, question: Question, classes: Sequence[str], devices: int
) -> StudyPlan:
    """Return the plan of the study that agrees on features (SPEC 4.10). Raises ConfigError."""
    text = question.to_json()
    model = Model(
        name="statistics",
        artefact=digest(b""),
        info=digest(text),
        dimension=sum(question.widths),
        classes=tuple(classes),
        initial_seed=bytes(32),
    )
    training = Training(sampling_rate=1.0, steps=1, rounds=1, learning_rate=1.0, batch=1, records=1)
    codec = Codec(n_max=settings.n_max or devices, clip=1.0, weight_cap=1, bits=LIMB_BITS)
    server = ServerOptimiser(name="fedavg", learning_rate=1.0, momentum=0.0)
    settings = replace(settings, groups=1, combine="mean")  # exact sums are of all sites at once
    name = f"{settings.study[: _NAME_CHARACTERS - len(_STATISTICS)]}{_STATISTICS}"
    terms = Terms(Privacy(), training, codec, model.dimension, min_cohort_of(settings, devices))
    return _plan(settings, name, model, terms, server, devices, "statistics")


def _plan(
    settings: StudySettings,
    study: str,
    model: Model,
    terms: Terms,
    server: ServerOptimiser,
    devices: int,
    task: str = "train",
) -> StudyPlan:
    check_mode(settings.secure_sum)
    check_codec(terms.codec)
    if settings.secure_sum == "plain" and terms.privacy.noise == "distributed":
        raise ConfigError(
            "noise distributed protects sums, and secure_sum plain shows every update by itself: "
            "use an encrypted sum, or noise local"
        )
    _, threshold = hospitals_of(settings)
    suite, _ = rings_of(settings, devices)
    return StudyPlan(
        federation=settings.federation,
        study=study,
        model=model,
        training=terms.training,
        privacy=terms.privacy,
        codec=terms.codec,
        server=server,
        secure_sum=settings.secure_sum,
        min_cohort=terms.min_cohort,
        min_ring=least_ring(settings, devices),
        # What fewer than the threshold sign, they could not decrypt: a quorum is no smaller.
        quorum=threshold or 1,
        threshold=threshold,
        groups=settings.groups,
        combine=settings.combine,
        task=task,
        ring_suite=suite,
        data_class=settings.data_class,
    )
