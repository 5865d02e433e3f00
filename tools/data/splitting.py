"""`vitalring data split`: make devices of a pooled table, or deal a data set's rows anew."""

import csv
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from vitalring.errors import ConfigError, DataError
from vitalring.models.dataset import DatasetInfo, devices, load_dataset
from vitalring.tools.data.folder import NewFolder, slug
from vitalring.tools.data.partition import Rows, at_random, by_value, dirichlet
from vitalring.tools.data.pool import TRAIN, Pool, pool_of_folder, pool_of_table
from vitalring.tools.data.provenance import provenance, rows_by_class

REST = "rest"
_MAX_LABELS = 1000


@dataclass(frozen=True)
class SplitOptions:
    """How rows become devices.

    Either `by`, a column of a table (a value with fewer than `min_rows` rows goes to the device
    "rest"), or `devices`, so many: at random, or with label skew `alpha` (see
    `partition.dirichlet`). `hold_out`: so many of a folder's devices, drawn at random, test
    instead of those that its `dataset.toml` holds out.
    """

    by: str | None = None
    devices: int | None = None
    alpha: float | None = None
    min_rows: int = 10
    hold_out: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.by is None) == (self.devices is None):
            raise ConfigError("give either --by COLUMN or --devices N")
        if self.alpha is not None and self.devices is None:
            raise ConfigError("--alpha needs --devices")
        if self.min_rows < 1 or self.seed < 0:
            raise ConfigError("--min-rows must be at least 1, --seed at least 0")


@dataclass(frozen=True)
class TableOptions:
    """What a csv file by itself does not say. `group` is the column that names persons."""

    label: str
    group: str | None = None
    missing: tuple[str, ...] = ("?",)
    ignore: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    test_fraction: float = 0.2
    validation_fraction: float = 0.0


def split_data(
    source: Path, target: Path, options: SplitOptions, about: TableOptions | None
) -> list[str]:
    """Make the folder `target`; return lines that count its rows.

    `source` is a data set's folder, or one csv file that `about` describes. What is held out is
    decided before rows are dealt, as `pool` says.

    Raises:
        ConfigError: an option does not fit, or `target` is in use.
        DataError: the source is broken, or a device would have fewer than `min_rows` rows.
        StorageError: the folder cannot be written.
    """
    with NewFolder(target) as folder:
        room = folder.partial / "spool"
        if source.is_dir():
            if about is not None:
                raise ConfigError("--label and what goes with it are for a csv file, not a folder")
            info = _held_out(source, load_dataset(source), options)
            pool = pool_of_folder(source, info, room, options.by)
        else:
            info, table = _describe(source, about, options)
            pool = pool_of_table(source, info, table, room, options.by)
        steps = _deal(pool, folder, options)
        held_out = pool.write_held_out(folder)
        steps.append(_set_aside(source, info, held_out))
        return _finish(pool, folder, options, held_out, steps)


def _deal(pool: Pool, folder: NewFolder, options: SplitOptions) -> list[str]:
    """Write the devices that train; return what was done."""
    rows = pool.rows(TRAIN)
    if options.by is not None:
        own, rest = by_value(pool.value[rows], options.min_rows)
        parts = {_name(pool.values[value]): mine for value, mine in own.items()}
        if len(parts) != len(own):
            raise DataError(f"two values of {options.by} make one device's name; rename one")
        if len(rest):
            if REST in parts:
                raise DataError(f"{options.by} has a value {REST!r} beside values with few rows")
            parts[REST] = rest
        steps = [f"one device for each value of {options.by}"]
        if len(rest):
            steps.append(f"values with fewer than {options.min_rows} rows make {REST!r}")
    else:
        dealt, step = _in_parts(pool, rows, options)
        width = len(str(len(dealt)))
        parts = {f"device-{i:0{width}d}": mine for i, mine in enumerate(dealt, 1)}
        steps = [step]
    for name, mine in parts.items():
        if len(mine) < options.min_rows:
            raise DataError(
                f"device {name!r} would have {len(mine)} rows, fewer than {options.min_rows}: ask "
                "for fewer devices, or lower --min-rows"
            )
        pool.write(folder, name, rows[mine])
    return steps


def _in_parts(pool: Pool, rows: Rows, options: SplitOptions) -> tuple[list[Rows], str]:
    generator = np.random.default_rng(options.seed)
    count = options.devices or 0
    if options.alpha is None:
        return at_random(len(rows), count, generator), "rows dealt at random"
    dealt = dirichlet(pool.label[rows], count, options.alpha, generator)
    return dealt, (
        "label skew of Hsu, Qi and Brown (arXiv:1909.06335): each device draws its class shares "
        f"from Dir({options.alpha:g} · p), p the shares among all rows that train, and as many "
        "rows as the others, without replacement"
    )


def _finish(
    pool: Pool,
    folder: NewFolder,
    options: SplitOptions,
    held_out: dict[str, list[str]],
    steps: list[str],
) -> list[str]:
    lines = rows_by_class(folder.tally, pool.keys, pool.info.classes)
    if pool.info.test_fraction and pool.info.kind == "windows":
        steps.append(
            "held-out rows are the last of each source device, whose other rows train; --hold-out "
            "keeps whole devices apart"
        )
    if pool.dropped:
        steps.append(f"{pool.dropped} rows left out: their person is held out elsewhere")
    text = provenance("vitalring data split", None, pool.used, asdict(options), steps, lines)
    pool.close()
    head = ("Made by `vitalring data split`; see PROVENANCE.txt.",)
    folder.finish({**pool.table, **held_out}, head, text)
    return lines


def _set_aside(source: Path, info: DatasetInfo, held_out: dict[str, list[str]]) -> str:
    """Say where the rows went that do not train."""
    if source.is_dir():
        return "held-out rows were set aside first, and stay with their source device"
    sides = "a person's rows on one side, " if info.group is not None else ""
    names = ", ".join(repr(name) for names in held_out.values() for name in names)
    return f"held-out rows of the whole file were set aside first, {sides}as {names}"


def _held_out(source: Path, info: DatasetInfo, options: SplitOptions) -> DatasetInfo:
    """Return the data set with the devices held out that the options ask for."""
    if options.hold_out is None:
        return info
    train, test = devices(source, info)
    names = sorted({*train, *test} - set(info.validation_devices))
    if not 0 < options.hold_out < len(names):
        raise ConfigError(
            f"--hold-out {options.hold_out}: {source} has {len(names)} devices, of which some must "
            "train"
        )
    # Not the generator that deals rows: the same devices are held out whatever is dealt.
    generator = np.random.default_rng([options.seed, 1])
    chosen = generator.choice(len(names), options.hold_out, replace=False)
    return replace(
        info, test_devices=tuple(names[i] for i in sorted(chosen.tolist())), test_fraction=None
    )


def _describe(
    source: Path, about: TableOptions | None, options: SplitOptions
) -> tuple[DatasetInfo, dict[str, object]]:
    """Return what a csv file's `dataset.toml` would say, and its table."""
    if about is None:
        raise ConfigError(f"{source} is a file: name the column of its label with --label")
    if options.hold_out is not None:
        raise ConfigError("--hold-out is for a folder's devices; use --test-fraction")
    if source.suffix != ".csv":
        raise ConfigError(f"{source}: must be a data set's folder or a .csv file")
    for name, share in (("test", about.test_fraction), ("validation", about.validation_fraction)):
        if not 0 <= share < 1 or (name == "test" and not share):
            raise ConfigError(f"--{name}-fraction {share:g}: use a number in (0, 1)")
    classes = _classes(source, about)
    table: dict[str, object] = {
        "name": slug(source.stem),
        "kind": "tabular",
        "classes": classes,
        "label": about.label,
        "missing": about.missing,
    }
    if about.group is not None:
        table["group"] = about.group
    if about.ignore:
        table["ignore"] = about.ignore
    if about.categories:
        table["categories"] = about.categories
    info = DatasetInfo(
        slug(source.stem),
        "tabular",
        classes,
        0.0,
        None,
        about.test_fraction,
        None,
        validation_fraction=about.validation_fraction,
        label=about.label,
        missing=about.missing,
        ignore=about.ignore,
        group=about.group,
        categories=about.categories,
    )
    return info, table


def _classes(source: Path, about: TableOptions) -> tuple[str, ...]:
    """Return the label's different texts, sorted."""
    counts: Counter[str] = Counter()
    try:
        with source.open(encoding="utf-8-sig", newline="") as stream:
            rows = (row for row in csv.reader(stream, strict=True) if row)
            header = [cell.strip() for cell in next(rows, [])]
            if about.label not in header:
                raise DataError(
                    f"{source}: has no column {about.label!r}; it has {', '.join(header)[:300]}"
                )
            place = header.index(about.label)
            for row in rows:
                # A row that is too short is complained of when the table is read.
                counts[row[place].strip() if place < len(row) else ""] += 1
                if len(counts) > _MAX_LABELS:
                    raise DataError(
                        f"{source}: column {about.label!r} has more than {_MAX_LABELS} different "
                        "texts; name the column of the classes"
                    )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{source}: cannot be read as csv ({error})") from error
    unlabelled = sum(counts[text] for text in {"", *about.missing})
    if unlabelled:
        raise DataError(
            f"{source}: {unlabelled} rows have no label in column {about.label!r}; remove them"
        )
    return tuple(sorted(counts))


def _name(value: str) -> str:
    return "unknown" if value in ("", "?") else slug(value)
