"""`vitalring data`: make data sets of published files, pooled tables or real fleets; check them."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from vitalring.errors import ConfigError
from vitalring.models.dataset import Checked, check_dataset
from vitalring.tools.data.dealing import DealOptions, deal_data
from vitalring.tools.data.importing import ARRAYS, KINDS, import_data
from vitalring.tools.data.origins import DIABETES, HAPT, MITBIH, UCI_HAR
from vitalring.tools.data.splitting import SplitOptions, TableOptions, split_data
from vitalring.tools.data.synthesis import SynthOptions, synth_data
from vitalring.tools.report_text import plural

_MANY = 100  # devices that are no longer listed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    actions = parser.add_subparsers(dest="action", required=True)
    for name, describe, text in (
        ("import", _import_arguments, "make a data set of published files"),
        ("split", _split_arguments, "make devices of a pooled table, or deal rows anew"),
        ("synth", _synth_arguments, "make a fleet of any size by resampling real devices"),
        ("deal", _deal_arguments, "make a fleet of virtual devices of real devices' records"),
        ("check", _check_arguments, "say all that is wrong with a data set, or what it holds"),
    ):
        describe(actions.add_parser(name, help=text, description=text))


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    code: int = options.run(options)
    return code


def _out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a file, a folder or a zip, as published")
    parser.add_argument("--as", dest="kind", choices=(*KINDS, ARRAYS), required=True)
    _out(parser)
    beats = parser.add_argument_group("mitbih", MITBIH.where)
    beats.add_argument("--classes", type=int, help="3 (N, S, V) or 5; default: 3")
    beats.add_argument("--beats", type=int, help="at most so many of a record")
    beats.add_argument("--records", type=_numbers, help="only these, such as 101,100")
    beats.add_argument("--paced", action="store_true", default=None, help="keep paced records")
    beats.add_argument(
        "--with-202", action="store_true", default=None, help="test on 202, the person of 201"
    )
    people = parser.add_argument_group("uci-har, hapt", f"{UCI_HAR.where}; {HAPT.where}")
    people.add_argument("--use", choices=("windows", "features"))
    people.add_argument("--first", type=int, help="so many features, such as 265")
    people.add_argument("--activities", type=int, help="6, or 12 with transitions")
    table = parser.add_argument_group("diabetes130", DIABETES.where)
    table.add_argument("--label", help="any, within30 or three; default: any")
    table.add_argument("--site-column", help="default: admission_source_id")
    table.add_argument("--sites", type=_names, help="values with a site each, as 1,7")
    table.add_argument("--min-rows", type=int, help="of a site; default: 100")
    table.add_argument("--drop", type=_names, help="columns to leave out, as weight,race")
    parser.set_defaults(run=_import)


def _import(options: argparse.Namespace) -> int:
    names = {field.name for kind in KINDS.values() for field in fields(kind.options)}
    given = _given(options, sorted(names))
    return _made(import_data(options.source, options.kind, options.out, given), options.out)


def _split_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a data set's folder, or one csv file")
    _out(parser)
    parser.add_argument("--by", metavar="COLUMN", help="one device for each value of a column")
    parser.add_argument("--devices", type=int, metavar="N", help="so many devices, at random")
    parser.add_argument(
        "--alpha", type=float, help="with label skew of this concentration (Hsu et al. 2019)"
    )
    parser.add_argument("--min-rows", type=int, default=10, help="of each device; default: 10")
    parser.add_argument("--hold-out", type=int, metavar="N", help="test on N devices of the folder")
    parser.add_argument("--seed", type=int, default=0)
    table = parser.add_argument_group("for a csv file")
    table.add_argument("--label", metavar="COLUMN", help="the column of the classes")
    table.add_argument("--group", metavar="COLUMN", help="the column that names persons")
    table.add_argument("--missing", type=_names, help="texts of unknown cells; default: ?")
    table.add_argument("--ignore", type=_names, help="columns that are no features")
    table.add_argument("--categories", type=_names, help="columns whose numbers are codes")
    table.add_argument("--test-fraction", type=float, help="default: 0.2")
    table.add_argument("--validation-fraction", type=float, help="default: none")
    parser.set_defaults(run=_split)


def _split(options: argparse.Namespace) -> int:
    names = ("label", "group", "missing", "ignore", "categories")
    given = _given(options, (*names, "test_fraction", "validation_fraction"))
    if given and "label" not in given:
        raise ConfigError(
            f"--{next(iter(given)).replace('_', '-')} is for a csv file: name its --label too"
        )
    how = SplitOptions(
        **{name: getattr(options, name) for name in ("by", "devices", "alpha", "min_rows")},
        hold_out=options.hold_out,
        seed=options.seed,
    )
    about = TableOptions(**given) if given else None
    return _made(split_data(options.source, options.out, how, about), options.out)


def _synth_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a data set's folder")
    _out(parser)
    parser.add_argument("--devices", type=int, required=True, metavar="N")
    parser.add_argument("--rows", type=int, help="of each device; default: as its source has")
    parser.add_argument(
        "--jitter", type=float, default=0.0, help="noise, in standard deviations; default: none"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=_synth)


def _synth(options: argparse.Namespace) -> int:
    how = SynthOptions(options.devices, options.rows, options.jitter, options.seed)
    return _made(synth_data(options.source, options.out, how, print), options.out)


def _deal_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a data set's folder")
    _out(parser)
    parser.add_argument("--devices", type=int, required=True, metavar="N", help="of all people")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=_deal)


def _deal(options: argparse.Namespace) -> int:
    how = DealOptions(options.devices, options.seed)
    return _made(deal_data(options.source, options.out, how), options.out)


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a data set's folder")
    parser.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    """Print every complaint and return 1, or a summary and 0."""
    found = check_dataset(options.folder)
    if not found.good:
        for complaint in found.complaints:
            print(complaint)
        faults = plural(len(found.complaints), "fault")
        print(f"\n{faults}: {options.folder} cannot be trained on")
        return 1
    for line in (*_summary(found), *(f"note: {note}" for note in found.notes)):
        print(line)
    return 0


def _summary(found: Checked) -> list[str]:
    info = found.info
    if info is None:
        raise AssertionError("a folder without a complaint has been read")
    shape = " x ".join(map(str, found.shape or ()))
    lines = [f"{info.name}: {info.kind}, each row {shape}, classes {', '.join(info.classes)}"]
    if found.features is not None:
        where = "declared" if info.features is not None else "as all devices would agree"
        columns = len(found.features.columns)
        lines.append(f"{columns} columns make {found.features.inputs} inputs, {where}")
    if info.channels:
        units = info.units or ("",) * len(info.channels)
        named = (f"{n} ({u})" if u else n for n, u in zip(info.channels, units, strict=True))
        lines.append(f"channels: {', '.join(named)}")
    for part in ("train", "validation", "test"):
        counts = [getattr(device, part) for device in found.devices]
        lines.append(f"{part}: {sum(counts)} rows on {sum(map(bool, counts))} devices")
    total = [sum(counts) for counts in zip(*(d.classes for d in found.devices), strict=True)]
    lines.append(f"{len(found.devices)} devices: {_rows(total, info.classes)}")
    if len(found.devices) <= _MANY:
        lines += [f"{d.device}: {_rows(d.classes, info.classes)}" for d in found.devices]
    return [*lines, "nothing to complain about"]


def _rows(counts: Sequence[int], names: Sequence[str]) -> str:
    shares = ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))
    return f"{sum(counts)} rows ({shares})"


def _made(lines: Sequence[str], folder: Path) -> int:
    for line in lines:
        print(line)
    print(f"\n{folder} is ready; see {folder / 'PROVENANCE.txt'}")
    return 0


def _given(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Return the options that the user set."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(name) for name in _names(text))
