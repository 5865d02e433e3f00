"""Devices that are more or less alike: one for each person, or by Dirichlet label skew."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitalring.edge_agent.personal import keep_back
from vitalring.errors import ConfigError
from vitalring.models.dataset import (
    DatasetInfo,
    Records,
    devices,
    input_shape,
    load_dataset,
    load_device,
    pooled,
    require_test,
    split,
)
from vitalring.tools.data.partition import dirichlet

LEAST_RECORDS = 10
"""A device with fewer records to train on takes no part."""


@dataclass(frozen=True)
class People:
    """A data set in memory: those who train, one `Records` each, and the held-out rows."""

    info: DatasetInfo
    input_shape: tuple[int, ...]
    train: tuple[Records, ...] = field(repr=False)
    held_out: Records = field(repr=False)


@dataclass(frozen=True)
class Device:
    """A device's rows: `fit` train the global model, `records` are all that the device has.

    `unseen` measure what the device's owner gets: the device has never had them.
    """

    fit: Records = field(repr=False)
    records: Records = field(repr=False)
    unseen: Records = field(repr=False)


def load_people(folder: Path) -> People:
    """Load a data set's folder. Raises DataError."""
    info = load_dataset(folder)
    require_test(folder, info)
    train, test = devices(folder, info)
    rows = {name: split(load_device(folder, name, info), info) for name in {*train, *test}}
    return People(
        info,
        input_shape(folder, info),
        tuple(rows[name].train for name in train),
        pooled("held-out", [rows[name].test for name in test]),
    )


def redistribute(
    people: Sequence[Records], alpha: float | None, count: int, generator: np.random.Generator
) -> tuple[Records, ...]:
    """Return `count` devices with Dirichlet label skew `alpha`; with None the people as they are.

    The smaller alpha, the fewer classes a device has; at 100 all devices are nearly alike. Rows
    keep their order. Raises ConfigError.
    """
    if alpha is None:
        return tuple(people)
    pool = pooled("pool", people)
    parts = dirichlet(pool.y, count, alpha, generator)
    return tuple(pool.take(rows) for rows in parts)


def make_devices(records: Sequence[Records]) -> tuple[Device, ...]:
    """Divide each device's rows: a fifth of each class is unseen, the rest is the device's.

    Of its own rows the device keeps a fifth back from the training of the global model, as it
    does where heads are personal. Raises ConfigError if too few devices have rows enough.
    """
    made = []
    for each in records:
        parts = keep_back(each, "order")
        fit = keep_back(parts.train, "order").train
        if len(fit) >= LEAST_RECORDS and len(parts.judge):
            made.append(Device(fit, parts.train, pooled(each.device, [parts.choose, parts.judge])))
    if len(made) < 2:
        raise ConfigError(
            f"{len(made)} of {len(records)} devices have {LEAST_RECORDS} records to train on: "
            "use fewer devices"
        )
    return tuple(made)


def mixes(made: Sequence[Device], classes: int) -> npt.NDArray[np.float64]:
    """Return each device's shares of the classes (devices, classes)."""
    counts = [np.bincount(device.records.y, minlength=classes) for device in made]
    shares: npt.NDArray[np.float64] = np.stack(counts) / np.sum(counts, axis=1, keepdims=True)
    return shares


def validation_split(
    people: Sequence[Records], generator: np.random.Generator
) -> tuple[tuple[Records, ...], tuple[Records, ...]]:
    """Return the training people without a fifth of them, and that fifth. Raises ConfigError."""
    if len(people) < 3:
        raise ConfigError(f"{len(people)} training devices are too few to set some aside: use 3")
    order = generator.permutation(len(people))
    aside = set(order[: max(1, len(people) // 5)].tolist())
    return (
        tuple(each for i, each in enumerate(people) if i not in aside),
        tuple(each for i, each in enumerate(people) if i in aside),
    )
