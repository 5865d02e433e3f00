"""`vitalring data synth`: a fleet of any size, by resampling the rows of real devices.

Each synthetic device is a bootstrap sample (rows drawn with replacement) of the rows that train
on one real device, its source. Held-out rows are copied as they are and only test. A resampled
fleet shows how the system behaves at a size; it holds no more people than its source.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from vitalring.errors import ConfigError, DataError
from vitalring.models.dataset import load_dataset
from vitalring.tools.data.folder import NewFolder
from vitalring.tools.data.pool import TRAIN, Pool, pool_of_folder
from vitalring.tools.data.provenance import provenance, rows_by_class
from vitalring.tools.data.spool import Array, ArraySpool

MAX_DEVICES = 1_000_000
Noise = Callable[[np.random.Generator, Array], Array]
_REPORTED = 1000  # devices between two lines of progress


@dataclass(frozen=True)
class SynthOptions:
    """The fleet.

    `rows`: of each device (None: as many as its source has). `jitter`: Gaussian noise added to x,
    in standard deviations of each channel or feature of the source; arrays only. A channel that
    is constant over every window stays so.
    """

    devices: int
    rows: int | None = None
    jitter: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.devices <= MAX_DEVICES:
            raise ConfigError(f"--devices {self.devices}: use 1 to {MAX_DEVICES}")
        if self.rows is not None and self.rows < 1:
            raise ConfigError(f"--rows {self.rows}: give at least 1")
        if not 0 <= self.jitter <= 10:
            raise ConfigError(f"--jitter {self.jitter:g}: use 0 to 10 standard deviations")
        if self.seed < 0:
            raise ConfigError(f"--seed {self.seed}: give at least 0")


def synth_data(
    source: Path, target: Path, options: SynthOptions, report: Callable[[str], None]
) -> list[str]:
    """Make the folder `target`; return lines that count its rows.

    Raises:
        ConfigError: an option does not fit, or `target` is in use.
        DataError: the source is broken, or holds nothing out.
        StorageError: the folder cannot be written.
    """
    with NewFolder(target) as folder:
        pool = pool_of_folder(source, load_dataset(source), folder.partial / "spool")
        if options.jitter and not isinstance(pool.spool, ArraySpool):
            raise ConfigError("--jitter is for arrays; cells of a table are kept as they are")
        held_out = pool.write_held_out(folder)
        sources = _fleet(pool, folder, options, report)
        pool.close()
        lines = rows_by_class(folder.tally, pool.keys, pool.info.classes)
        steps = [
            "each synthetic device is a bootstrap sample of the rows that train on one device of "
            "the source",
            "held-out rows are copied as they are",
        ]
        if pool.dropped:
            steps.append(f"{pool.dropped} rows left out: their person is held out elsewhere")
        text = provenance("vitalring data synth", None, pool.used, asdict(options), steps, lines)
        table = "".join(f"  {name}  {origin}\n" for name, origin in sources)
        note = _note(source.name, options, len({origin for _, origin in sources}))
        folder.note("README.txt", "\n".join(note) + "\n")
        folder.finish(
            {**pool.table, **held_out},
            note,
            f"{text}\nSynthetic devices (device, source)\n{table}",
        )
        return lines


def _fleet(
    pool: Pool, folder: NewFolder, options: SynthOptions, report: Callable[[str], None]
) -> list[tuple[str, str]]:
    """Write the synthetic devices; return each one's source."""
    able = [i for i in range(len(pool.names)) if len(pool.rows(TRAIN, i))]
    if not able:
        raise DataError("no device of the source has rows to train on")
    # Sources in turn, so that none serves two devices more than another.
    order = np.random.default_rng([options.seed, 0]).permutation(len(able))
    turns = [able[order[i % len(able)]] for i in range(options.devices)]
    width = len(str(options.devices))
    named = [(f"synth-{i:0{width}d}", pool.names[s]) for i, s in enumerate(turns, 1)]
    made = 0
    for source in able:
        rows = pool.rows(TRAIN, source)
        noise = None
        if options.jitter and isinstance(pool.spool, ArraySpool):
            noise = _jitter(pool.spool.read(rows), options.jitter)
        for i in (i for i, turn in enumerate(turns) if turn == source):
            # A generator of its own: a device is the same whatever the fleet's order.
            generator = np.random.default_rng([options.seed, 1, i])
            drawn = np.sort(generator.choice(rows, options.rows or len(rows)))
            change = None if noise is None else partial(noise, generator)
            pool.write(folder, named[i][0], drawn, change)
            made += 1
            if made % _REPORTED == 0:
                report(f"{made} of {options.devices} devices")
    return named


def _jitter(x: Array, sigmas: float) -> Noise:
    """Return a function that adds noise to rows of a device whose rows are x.

    It keeps the array's type, and channels that are constant over every window as they are.
    """
    spread = x.std(axis=tuple(range(x.ndim - 1)), dtype=np.float64)
    # A constant channel is a number beside the signal: it gets one draw a window.
    steady = np.ptp(x, axis=1).max(axis=0) == 0 if x.ndim == 3 else np.zeros_like(spread, bool)

    def noise(generator: np.random.Generator, rows: Array) -> Array:
        drawn = generator.normal(size=rows.shape)
        if rows.ndim == 3:
            drawn = np.where(steady, drawn[:, :1], drawn)
        noisy = rows + sigmas * spread * drawn
        if rows.dtype.kind in "iu":
            limits = np.iinfo(rows.dtype)
            noisy = np.clip(np.rint(noisy), limits.min, limits.max)
        changed: Array = noisy.astype(rows.dtype)
        return changed

    return noise


def _note(source: str, options: SynthOptions, people: int) -> tuple[str, ...]:
    return (
        f"Resampled: {options.devices} synthetic devices made of the rows of {people} devices of "
        f"{source}.",
        "Made by `vitalring data synth`; PROVENANCE.txt names each device's source.",
        "It serves to try a system at this size. It holds no more people than its source: what is",
        "measured on it (accuracy, intervals, privacy) says nothing about so many people.",
    )
