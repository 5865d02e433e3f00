"""What a study is made of, as its TOML file and the command line say it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated

from vitalring.errors import ConfigError
from vitalring.protocol import limits, ring_suite
from vitalring.protocol.privacy import MIN_DELTA, is_gradient_sum
from vitalring.protocol.records import DataClass, Name, ServerOptimiser
from vitalring.schema import OneOf, Range, Size

SERVERS: Mapping[str, ServerOptimiser] = {
    "fedavg": ServerOptimiser(name="fedavg", learning_rate=1.0, momentum=0.0),
    "momentum": ServerOptimiser(name="momentum", learning_rate=1.0, momentum=0.9),
    "adam": ServerOptimiser(name="adam", learning_rate=0.03, momentum=0.9),
    "yogi": ServerOptimiser(name="yogi", learning_rate=0.03, momentum=0.9),
}
"""The server optimisers with their default settings."""


_GATEWAYS = 2
"""Gateways that shares of an update go to."""

_HOSPITALS = 3
"""Hospitals of a joint key where a study does not say: one may be away, and none decrypts alone."""


@dataclass(frozen=True)
class StudySettings:
    """A study's numbers, from which its signed plan is made.

    `batch` is the expected batch on a device with `records` records; `bits` are the fewest of a
    field, noise may take more. `update_clip` bounds the L2 norm of an update, `clip` that of one
    record's gradient. What is None has a default that depends on the unit: `numbers_of`.
    """

    federation: Name = "demo"
    study: Name = "arrhythmia"
    cohort: Name = "ward-1"
    model: str = ""
    """Name of a network, or path of an artefact's JSON; a simulation chooses one for its data."""
    features: Path | None = None
    """Feature schema that a study of statistics left, for tables; a simulation agrees on one."""
    classes: tuple[str, ...] = ()
    """For networks that take any classes; a simulation takes those of its data."""
    input: tuple[int, ...] = ()
    """For networks that take any input: [time, channels]; a simulation takes that of its data."""
    rounds: Annotated[int, Range(1, limits.MAX_ROUNDS)] = 20
    local_epochs: Annotated[float | None, Range(0.001, 1000.0)] = None
    batch: Annotated[int | None, Range(1, 1_000_000)] = None
    lr: Annotated[float | None, Range(1e-6, 100.0)] = None
    proximal: Annotated[float, Range(0.0, 100.0)] = 0.0
    """FedProx's mu: how strongly a device is held at the weights that a round starts from."""
    balance: Annotated[str, OneOf(("none", "oversample"))] = "none"
    """Whether records of rare classes are repeated in training; only with unit none."""
    class_weights: Annotated[tuple[Annotated[float, Range(0.0, 1.0)], ...], Size(0, 100)] = ()
    """What a record of each class counts, in the order of the classes; () is 1 for all."""
    unit: Annotated[str, OneOf(("none", "record", "device"))] = "record"
    noise: Annotated[str | None, OneOf(("none", "local", "distributed"))] = None
    epsilon: Annotated[float, Range(0.001, 100.0)] = 1.0
    delta: Annotated[float, Range(MIN_DELTA, 0.01)] = 1e-5
    clip: Annotated[float | None, Range(1e-6, 1e6)] = None
    noise_schedule: Annotated[tuple[Annotated[float, Range(0.1, 10.0)], ...], Size(0, 16)] = ()
    """Factors of the noise in as many equal stretches of the rounds; () is the same in all."""
    clip_quantile: Annotated[float, Range(0.0, 0.99)] = 0.0
    """Quantile that the clip of the unit follows from round to round; 0 keeps it fixed."""
    clip_rate: Annotated[float, Range(0.001, 1.0)] = 0.2
    """How fast it follows: by a factor exp(clip_rate) a round at most."""
    clip_share: Annotated[float, Range(0.01, 0.125)] = 0.1
    """Share of the clip that the count of what is within it may take."""
    bits: Annotated[int, Range(2, 20)] = 8
    update_clip: Annotated[float | None, Range(1e-9, 1e9)] = None
    reach: Annotated[float, Range(0.1, 100.0)] = 6.0
    keep: Annotated[float, Range(1e-6, 1.0)] = 0.9998
    """Share of the coordinates sent in a round. Of ecg_cnn's 4,096 it leaves out one, so that
    the weight fits into the same ciphertexts: a quarter fewer bytes."""
    secure_sum: str = "threshold-he"
    hospitals: Annotated[int, Range(0, 64)] = 0
    """How many hospitals there are; 0 is 3 with threshold-he, 2 with two-server, and else 1."""
    threshold: Annotated[int, Range(0, 64)] = 0
    """How many of them decrypt together; 0 is a majority."""
    groups: Annotated[int, Range(1, 64)] = 1
    """Sub-cohorts that a round's updates are cut into, to bound what one bad device can do."""
    combine: Annotated[str, OneOf(("mean", "median", "trimmed-mean"))] = "mean"
    """How the means of several groups become one."""
    min_cohort: Annotated[int, Range(0, limits.MAX_DEVICES)] = 0
    """Fewest updates in a sum; 0 is 10, or all devices where there are fewer. With noise
    distributed, whose shares add up in the smallest sum, 0 is all devices but the `spare` ones."""
    spare: Annotated[float, Range(0.0, 0.9)] = 0.2
    """Share of the devices that may be missing from a sum, where min_cohort is 0 and noise
    distributed."""
    colluders: Annotated[float, Range(0.0, 0.9)] = 0.1
    """Share of the devices of the smallest sum whose noise the guarantee does not count on."""
    ring_size: Annotated[int, Range(0, limits.MAX_DEVICES)] = 0
    """Most keys in a ring; 0 is the whole cohort in one: no update tells which part it is from."""
    min_ring: Annotated[int, Range(0, limits.MAX_DEVICES)] = 0
    """Fewest keys in a ring, whatever roster follows; 0 is three quarters of the first roster's
    smallest ring, so that devices can be revoked."""
    ring_suite: Annotated[int, Range(0, 2)] = 0
    """How devices sign: 1 by LSAG, 2 by one-of-many proofs; 0 chooses by the size of a ring."""
    server: ServerOptimiser | None = None
    records: Annotated[int, Range(0, 100_000_000)] = 0
    """Public floor of records on a device; 0 lets a simulation take its smallest device."""
    weight_cap: Annotated[int, Range(0, 1 << 40)] = 0
    """Records above which a device weighs no more, with unit none; with unit record all weigh
    alike. 0 lets a simulation take its largest device, and is `records` elsewhere."""
    n_max: Annotated[int, Range(0, limits.MAX_DEVICES)] = 0
    """Devices that a sum has room for; 0 is the size of the roster."""
    data_class: DataClass = ""
    """Kind of data that the study trains on; a simulation takes what its data set says."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    patience: Annotated[int, Range(0, limits.MAX_ROUNDS)] = 0


def rings_of(settings: StudySettings, devices: int) -> tuple[int, int]:
    """Return the suite of signatures and the most keys in a ring, for a cohort of so many devices.

    Raises ConfigError for numbers that do not go together.
    """
    if devices < 2:
        raise ConfigError(
            f"{devices} devices make no ring, in which a device hides among others: name 2 or "
            "more, or wait until as many have enrolled"
        )
    size = settings.ring_size or devices
    if size < 2:
        raise ConfigError(f"ring_size {size} hides nobody: use 2 or more, or 0 for the cohort")
    largest = math.ceil(devices / math.ceil(devices / size))
    suite = settings.ring_suite or ring_suite.for_size(largest)
    if size > ring_suite.most_keys(suite):
        raise ConfigError(
            f"rings of {size} keys do not go with ring_suite {suite}, whose rings have "
            f"{ring_suite.most_keys(suite)} at most: use a smaller ring_size, or ring_suite 2"
        )
    return suite, size


def least_ring(settings: StudySettings, devices: int) -> int:
    """Return the fewest keys in a ring that a study of so many devices allows.

    Raises ConfigError for more than there are.
    """
    smallest = ring_suite.smallest(devices, rings_of(settings, devices)[1])
    if settings.min_ring > smallest:
        raise ConfigError(
            f"min_ring is {settings.min_ring}, and {devices} devices cut at ring_size make rings "
            f"of {smallest} keys: use {smallest} at most"
        )
    return settings.min_ring or max(2, math.ceil(0.75 * smallest))


def hospitals_of(settings: StudySettings) -> tuple[int, int]:
    """Return how many hospitals there are, and how many decrypt together: 0 without a joint key.

    Raises ConfigError for numbers that do not go together.
    """
    joint = settings.secure_sum == "threshold-he"
    if settings.secure_sum == "two-server":
        if settings.hospitals not in (0, _GATEWAYS) or settings.threshold:
            raise ConfigError(
                f"{settings.hospitals} hospitals and a threshold of {settings.threshold} do not go "
                f"with two-server: its shares go to the gateways of {_GATEWAYS} hospitals"
            )
        return _GATEWAYS, 0
    hospitals = settings.hospitals or (_HOSPITALS if joint else 1)
    if not joint:
        if hospitals > 1 or settings.threshold:
            raise ConfigError(
                f"{hospitals} hospitals and a threshold of {settings.threshold} need a joint key: "
                f"use secure_sum threshold-he, or one hospital with {settings.secure_sum}"
            )
        return 1, 0
    threshold = settings.threshold or hospitals // 2 + 1
    if not 2 <= threshold <= hospitals:
        raise ConfigError(
            f"{threshold} of {hospitals} hospitals cannot hold a joint key: it takes at least 2 "
            "hospitals, of whom 2 or more decrypt together; with one, use secure_sum single-he"
        )
    return hospitals, threshold


@dataclass(frozen=True)
class Numbers:
    """The numbers of a study that want other values for each unit and place of the noise.

    Fields are those of `StudySettings`. A `batch` of 0 is all records, or 20,000 of the largest
    device, an `update_clip` of 0 as long as a sum of clipped gradients is likely to be.
    """

    local_epochs: float
    batch: int
    lr: float
    noise: str
    clip: float
    update_clip: float
    server: ServerOptimiser


WITH_NOISE = Numbers(
    local_epochs=1.0,
    batch=300,
    lr=1.0,
    noise="local",
    clip=1.0,
    update_clip=1.2,
    server=SERVERS["momentum"],
)
"""Chosen for the shipped electrocardiograms with `ecg_cnn` and its noise at epsilon 8."""

ONE_SUM = Numbers(
    local_epochs=1.0,
    batch=0,
    lr=1.0,
    noise="distributed",
    clip=1.0,
    update_clip=0.0,
    server=SERVERS["momentum"],
)
"""One sum of clipped gradients a round: larger batches lose nothing to noise.

Chosen on 6 of the shipped electrocardiograms' training patients at epsilon 1, of rates from 0.25
to 2 and clips of 0.5 and 1.
"""

DEVICE = Numbers(
    local_epochs=1.0,
    batch=64,
    lr=0.1,
    noise="distributed",
    clip=1e6,
    update_clip=0.5,
    server=SERVERS["momentum"],
)
"""For whole devices: few steps, whose update is clipped; `clip` is as good as none."""

WITHOUT_NOISE = Numbers(
    local_epochs=2.0,
    batch=64,
    lr=0.1,
    noise="none",
    clip=1e6,
    update_clip=4.0,
    server=SERVERS["adam"],
)
"""Starting points that learnt on windows and tables alike; `clip` is as good as none."""

_FEWEST_STEPS, _MOST_STEPS = 4, 64
"""Without noise: fewest steps of a pass over the smallest device, and most steps of a round."""


def numbers_of(settings: StudySettings, records: int) -> Numbers:
    """Return the numbers that a study trains with: those it says, for others its unit's.

    `records`, 1 or more, are those of the smallest device. Without noise few of them make
    batches smaller: a step over all of them, once a pass, would hardly move a device. Many
    of them make a round less than its passes: sites with whole archives of patients would
    drift apart, and be late, where a few dozen steps teach enough.
    """
    start = DEVICE if settings.unit == "device" else WITH_NOISE
    if is_gradient_sum(settings):
        start = ONE_SUM
    if settings.unit == "none":
        batch = max(1, min(WITHOUT_NOISE.batch, records // _FEWEST_STEPS))
        share = (settings.batch or batch) / records
        passes = min(WITHOUT_NOISE.local_epochs, _MOST_STEPS * share)
        start = replace(WITHOUT_NOISE, batch=batch, local_epochs=passes)
    said = {each.name: getattr(settings, each.name) for each in fields(Numbers)}
    given = {name: value for name, value in said.items() if value is not None}
    return replace(start, **given)


@dataclass(frozen=True)
class SimulationSettings:
    """A simulation: a study, the data it runs on and how the fleet behaves."""

    data: Path | None = None
    """Folder of a data set; none takes the electrocardiograms shipped with the project."""
    devices: Annotated[int, Range(0, limits.MAX_DEVICES)] = 0
    """How many of the data set's training devices take part; 0 is all."""
    dropout: Annotated[float, Range(0.0, 0.99)] = 0.0
    broker: str | None = None
    out: Path | None = None
    """Output folder; none takes `vitalring-run`, or the next free number after it."""
    window_s: Annotated[float, Range(0.0, 1e8)] = 0.2
    """Devices submit at a random time within this window."""
    timeout_s: Annotated[float, Range(0.1, 1e8)] = 60.0
    """A round that still lacks updates ends after this time."""
    workers: Annotated[int, Range(0, 256)] = 0
    """Processes that share the devices; 0 is one a core."""
    alone: bool = True
    """Also train each device alone, to compare."""
    centralised: bool = False
    """Also train on the records of all devices together, to compare."""
    personalise: Annotated[str, OneOf(("none", "head"))] = "none"
    """Whether each device fits the head of the final model to its own records, and keeps it."""
    explain: bool = False
    """Also show what the final model looks at, on held-out records."""
    study: StudySettings = field(default_factory=StudySettings)
