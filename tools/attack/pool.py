"""The devices that are attacked: people as they are, or shares of everybody's rows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from vitalring.files import write_atomic
from vitalring.models.dataset import (
    DatasetInfo,
    Records,
    devices,
    holds_tables,
    load_dataset,
    load_device,
    load_table,
    pooled,
    require_test,
    split,
)
from vitalring.models.dataset.load import encode
from vitalring.models.dataset.split import S
from vitalring.models.dataset.statistics import agreed
from vitalring.tools.data.partition import at_random, dirichlet

_MOST_HELD_OUT: Final = 1000
"""Rows that measure a model: it is measured so that an attack on one that learnt nothing shows."""


@dataclass(frozen=True)
class Pool:
    """A data set in memory: who trains, one `Records` each, and held-out rows."""

    info: DatasetInfo
    people: tuple[Records, ...] = field(repr=False)
    held_out: Records = field(repr=False)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one row: (time, channels) or (inputs,)."""
        return self.held_out.x.shape[1:]


def load_people(
    folder: Path, most_rows: int, wanted: int
) -> tuple[DatasetInfo, tuple[Records, ...]]:
    """Return a data set's people, of each `most_rows` rows at random. Raises DataError.

    Where those who train have fewer rows than `wanted` together, whole people that are held out
    of training take part too.
    """
    pool = load_pool(folder, most_rows)
    people, info = pool.people, pool.info
    if sum(map(len, people)) < wanted and not holds_tables(folder, info):
        train, test = devices(folder, info)
        generator = np.random.default_rng(1)
        more = [load_device(folder, name, info) for name in test if name not in train]
        people += tuple(_some(records, most_rows, generator) for records in more)
    return info, people


def load_pool(folder: Path, most_rows: int) -> Pool:
    """Read a data set, of each person `most_rows` rows at random. Raises DataError.

    Tables without declared features are encoded by those that their sites would agree on.
    """
    info = load_dataset(folder)
    require_test(folder, info)
    train, test = devices(folder, info)
    generator = np.random.default_rng(0)
    if holds_tables(folder, info):
        parts = {name: split(load_table(folder, name, info), info) for name in {*train, *test}}
        tables = [_some(parts[name].train, most_rows, generator) for name in train]
        aside = [_some(parts[name].test, _MOST_HELD_OUT, generator) for name in test]
        schema = info.features or agreed(info, tables)
        people = tuple(encode(table, schema) for table in tables)
        held_out = [encode(table, schema) for table in aside]
    else:
        rows = {name: split(load_device(folder, name, info), info) for name in {*train, *test}}
        people = tuple(_some(rows[name].train, most_rows, generator) for name in train)
        held_out = [rows[name].test for name in test]
    whole = pooled("held-out", held_out)
    return Pool(info, people, _some(whole, _MOST_HELD_OUT, generator))


def deal(
    people: Sequence[Records],
    alpha: float | None,
    count: int,
    rows: int,
    generator: np.random.Generator,
) -> tuple[Records, ...]:
    """Return `count` devices of at most `rows` rows.

    With None they are people, chosen at random; where there are too few, rows of all of them
    are dealt at random. Else the label skew of `alpha`. Raises ConfigError.
    """
    if alpha is None and len(people) >= count:
        chosen = generator.permutation(len(people))[:count]
        made = [_some(people[place], rows, generator) for place in chosen]
    else:
        whole = pooled("pool", people)
        whole = _some(whole, count * rows, generator)
        if alpha is None:
            parts = at_random(len(whole), count, generator)
        else:
            parts = dirichlet(whole.y, count, alpha, generator)
        made = [whole.take(part) for part in parts]
    return tuple(
        Records(f"d{number:02}", each.x, each.y) for number, each in enumerate(made, start=1)
    )


def case_name(alpha: float | None, people: int, count: int) -> str:
    """Return how a division of the rows is called."""
    if alpha is not None:
        return f"Dirichlet {alpha:g}"
    return "by person" if people >= count else "dealt at random"


def write_folder(folder: Path, pool: Pool, made: Sequence[Records]) -> None:
    """Write devices, and the held-out rows as one more, as a data set's folder of arrays."""
    (folder / "devices").mkdir(parents=True)
    for each in (*made, replace(pool.held_out, device="test")):
        np.savez(folder / "devices" / f"{each.device}.npz", x=each.x, y=each.y)
    info = pool.info
    lines = [f'name = "attacked"\nkind = "{info.kind}"', f"classes = {json.dumps(info.classes)}"]
    lines += [f"sampling_hz = {info.sampling_hz:g}"] if info.kind == "windows" else []
    lines += [f'data_class = "{info.data_class}"'] if info.data_class else []
    lines += ['test_devices = ["test"]', ""]
    write_atomic(folder / "dataset.toml", "\n".join(lines).encode())


def described(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return what makes records (n, ...) comparable without a model, standardised (n, f).

    Rows are taken as they are, windows by each channel's mean, deviation and spectrum: two
    windows of one movement or heartbeat are rarely in step.
    """
    values = x.astype(np.float64)
    if values.ndim == 3:
        spectrum = np.log1p(np.abs(np.fft.rfft(values, axis=1))[:, 1:33])
        parts = (values.mean(axis=1), values.std(axis=1), spectrum.reshape(len(x), -1))
        values = np.concatenate(parts, axis=1)
    spread = values.std(axis=0)
    described: npt.NDArray[np.float64] = (values - values.mean(axis=0)) / np.where(
        spread > 0, spread, 1.0
    )
    return described


def _some(records: S, most: int, generator: np.random.Generator) -> S:
    """Return at most `most` rows, in their order."""
    if len(records) <= most:
        return records
    return records.take(np.sort(generator.choice(len(records), most, replace=False)))
