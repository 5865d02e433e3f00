"""`vitalring data deal`: a fleet of virtual devices, each with some records of one real device.

Every record that trains is on exactly one virtual device, so nothing is made up: the fleet holds
the same records of the same people, on more and smaller devices. Held-out records are copied as
they are.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from vitalring.errors import ConfigError, DataError
from vitalring.models.dataset import holds_tables, load_dataset
from vitalring.tools.data.folder import NewFolder
from vitalring.tools.data.partition import within_people
from vitalring.tools.data.pool import TRAIN, Pool, pool_of_folder
from vitalring.tools.data.provenance import provenance, rows_by_class
from vitalring.tools.data.synthesis import MAX_DEVICES


@dataclass(frozen=True)
class DealOptions:
    """The fleet: so many virtual devices in all."""

    devices: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.devices <= MAX_DEVICES:
            raise ConfigError(f"--devices {self.devices}: use 1 to {MAX_DEVICES}")
        if self.seed < 0:
            raise ConfigError(f"--seed {self.seed}: give at least 0")


def deal_data(source: Path, target: Path, options: DealOptions) -> list[str]:
    """Make the folder `target`; return lines that count its rows.

    Raises:
        ConfigError: an option does not fit, or `target` is in use.
        DataError: the source is broken, holds tables or nothing out, or has too few records.
        StorageError: the folder cannot be written.
    """
    with NewFolder(target) as folder:
        info = load_dataset(source)
        if holds_tables(source, info):
            raise DataError(
                f"{source} holds tables by site, whose rows are of many people: no device of one "
                "person can be dealt from them. `vitalring data split` divides tables"
            )
        pool = pool_of_folder(source, info, folder.partial / "spool")
        held_out = pool.write_held_out(folder)
        dealt = _deal(pool, folder, options)
        pool.close()
        lines = rows_by_class(folder.tally, pool.keys, pool.info.classes)
        people = len({origin for _, origin in dealt})
        steps = [
            f"the records that train on {people} devices are dealt at random to {options.devices} "
            "virtual devices, each with records of one of them",
            "a device of the source has virtual ones in proportion to its records, which differ in "
            "size by at most one record",
            "held-out records are copied as they are",
        ]
        text = provenance("vitalring data deal", None, pool.used, asdict(options), steps, lines)
        table = "".join(f"  {name}  {origin}\n" for name, origin in dealt)
        head = (
            f"Dealt: {options.devices} virtual devices with the records of {people} devices of "
            f"{source.name}.",
            "Made by `vitalring data deal`; PROVENANCE.txt names each device's source.",
        )
        folder.finish(
            {**pool.table, **held_out}, head, f"{text}\nVirtual devices (device, source)\n{table}"
        )
        return lines


def _deal(pool: Pool, folder: NewFolder, options: DealOptions) -> list[tuple[str, str]]:
    """Write the virtual devices; return each one's source."""
    able = [i for i in range(len(pool.names)) if len(pool.rows(TRAIN, i))]
    if not able:
        raise DataError("no device of the source has rows to train on")
    rows = [pool.rows(TRAIN, i) for i in able]
    generator = np.random.default_rng(options.seed)
    dealt = within_people([len(mine) for mine in rows], options.devices, generator)
    width = len(str(options.devices))
    named: list[tuple[str, str]] = []
    for source, mine, parts in zip(able, rows, dealt, strict=True):
        for part in parts:
            name = f"virtual-{len(named) + 1:0{width}d}"
            pool.write(folder, name, mine[part])
            named.append((name, pool.names[source]))
    return named
