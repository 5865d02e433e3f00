"""`vitalring data`: make data sets of published files, pooled tables or real fleets; check them."""

import argparse
from pathlib import Path

from vitalring.tools.data.importing import ARRAYS, KINDS, import_data


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    actions = parser.add_subparsers(dest="action", required=True)
    _import_arguments(actions.add_parser("import", help="make a data set of published files"))


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
    beats = parser.add_argument_group("mitbih")
    beats.add_argument("--classes", type=int, help="3 (N, S, V) or 5; default: 3")
    beats.add_argument("--beats", type=int, help="at most so many of a record")
    beats.add_argument("--records", type=_numbers, help="only these, such as 101,100")
    beats.add_argument("--paced", action="store_true", default=None, help="keep paced records")
    beats.add_argument(
        "--with-202", action="store_true", default=None, help="test on 202, the person of 201"
    )
    people = parser.add_argument_group("uci-har, hapt")
    people.add_argument("--use", choices=("windows", "features"))
    people.add_argument("--first", type=int, help="so many features, such as 265")
    people.add_argument("--activities", type=int, help="6, or 12 with transitions")
    table = parser.add_argument_group("diabetes130")
    table.add_argument("--label", help="any, within30 or three; default: any")
    table.add_argument("--site-column", help="default: admission_source_id")
    table.add_argument("--sites", type=_names, help="values with a site each, as 1,7")
    table.add_argument("--min-rows", type=int, help="of a site; default: 100")
    table.add_argument("--drop", type=_names, help="columns to leave out, as weight,race")
    parser.set_defaults(run=_import)


def _import(options: argparse.Namespace) -> int:
    own = {"command", "action", "run", "source", "kind", "out"}
    given = {
        name: value
        for name, value in vars(options).items()
        if name not in own and value is not None
    }
    for line in import_data(options.source, options.kind, options.out, given):
        print(line)
    print(f"\n{options.out} is ready; see {options.out / 'PROVENANCE.txt'}")
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(name) for name in _names(text))
