"""Draw up a study's plan from its settings, checked as every device will check it."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from vitalring.edge_agent.accountant import calibrate
from vitalring.errors import ConfigError
from vitalring.models.artefact import Artefact
from vitalring.models.dataset.statistics import Question
from vitalring.protocol.cbor import digest
from vitalring.protocol.limbs import LIMB_BITS
from vitalring.protocol.limits import DECRYPTION_FLOOR
from vitalring.protocol.privacy import Privacy, Training, check_privacy
from vitalring.protocol.quantise import Codec, check_codec
from vitalring.protocol.records import Model, ServerOptimiser, StudyPlan
from vitalring.protocol.secure_sum import check_mode
from vitalring.tools.settings import (
    StudySettings,
    hospitals_of,
    least_ring,
    numbers_of,
    rings_of,
)

MIN_COHORT = 10
"""Fewest updates in a sum where a study does not say; a smaller fleet sums all its updates."""

_NAME_CHARACTERS = 32
_STATISTICS = "-statistics"


def training_of(settings: StudySettings, records: int) -> Training:
    """Return the training a device with `records` records does in a round. Raises ConfigError."""
    if records < 1:
        raise ConfigError("records is 0: say how many records every device has at least")
    numbers = numbers_of(settings, records)
    rate = min(1.0, numbers.batch / records)
    return Training(
        sampling_rate=rate,
        steps=max(1, round(numbers.local_epochs / rate)),
        rounds=settings.rounds,
        learning_rate=numbers.lr,
        batch=max(1, min(numbers.batch, records)),
        records=records,
        proximal=settings.proximal,
        balance=settings.balance,
    )


def privacy_of(settings: StudySettings, training: Training, dimension: int) -> Privacy:
    """Return the guarantee with the noise that it takes. Raises ConfigError."""
    numbers = numbers_of(settings, training.records)
    if settings.unit == "none":
        return Privacy(clip=numbers.clip)
    # Any noise will do here: all else is checked before `calibrate` searches for the right one.
    probe = Privacy(
        settings.unit, numbers.noise, settings.epsilon, settings.delta, numbers.clip, 1.0
    )
    check_privacy(probe, training)
    multiplier = calibrate(
        settings.epsilon,
        settings.delta,
        training.sampling_rate,
        training.steps * training.rounds,
        dimension,
    )
    return replace(probe, noise_multiplier=multiplier)


def plan_of(
    settings: StudySettings,
    artefact: Artefact,
    devices: int,
    records: int,
    features: bytes = b"",
    most_records: int = 0,
) -> StudyPlan:
    """Return the study's plan, checked as every device will check it.

    `features` is the text of the agreed feature schema, where records are rows of tables.
    `records` are those of the smallest device, `most_records` of the largest; 0 is unknown.
    Raises ConfigError.
    """
    info = artefact.info
    training, numbers = training_of(settings, records), numbers_of(settings, records)
    codec = Codec(
        n_max=settings.n_max or devices,
        clip=numbers.update_clip,
        weight_cap=_weight_cap(settings, records, most_records),
        bits=settings.bits,
        reach=settings.reach,
        keep=settings.keep,
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
    privacy = privacy_of(settings, training, info.dimension)
    return _plan(settings, settings.study, model, training, privacy, codec, numbers.server, devices)


def _weight_cap(settings: StudySettings, records: int, most_records: int) -> int:
    """Return the records above which a device weighs no more (SPEC 4.2).

    A cap far above every device would scale all updates down into the rounding of the quantiser.
    """
    if settings.unit == "record":
        # With a guarantee for records every device weighs alike: its count would be a record's
        # trace (SPEC 7.11). The plan's floor of records makes the capped weight the same for all.
        return records
    return settings.weight_cap or most_records or records


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
    return _plan(settings, name, model, training, Privacy(), codec, server, devices, "statistics")


def _plan(
    settings: StudySettings,
    study: str,
    model: Model,
    training: Training,
    privacy: Privacy,
    codec: Codec,
    server: ServerOptimiser,
    devices: int,
    task: str = "train",
) -> StudyPlan:
    check_mode(settings.secure_sum)
    check_codec(codec)
    min_cohort = settings.min_cohort or max(DECRYPTION_FLOOR, min(MIN_COHORT, devices))
    if devices < min_cohort:
        raise ConfigError(
            f"{devices} devices cannot make a sum of min_cohort = {min_cohort} updates"
        )
    _, threshold = hospitals_of(settings)
    suite, _ = rings_of(settings, devices)
    return StudyPlan(
        federation=settings.federation,
        study=study,
        model=model,
        training=training,
        privacy=privacy,
        codec=codec,
        server=server,
        secure_sum=settings.secure_sum,
        min_cohort=min_cohort,
        min_ring=least_ring(settings, devices),
        # What fewer than the threshold sign, they could not decrypt: a quorum is no smaller.
        quorum=threshold or 1,
        threshold=threshold,
        groups=settings.groups,
        combine=settings.combine,
        task=task,
        ring_suite=suite,
    )
