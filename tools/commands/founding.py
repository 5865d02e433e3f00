"""`vitalring federation hospital|assemble|enrol|sign`: hospitals on machines of their own."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from vitalring.aggregator.ceremony import SUM_KEY
from vitalring.config import load_config
from vitalring.errors import ConfigError
from vitalring.protocol.records import StudyPlan
from vitalring.protocol.secure_sum import KEYLESS
from vitalring.tools import founding, rosters
from vitalring.tools.settings import StudySettings, hospitals_of
from vitalring.tools.verify import fingerprint

ACTIONS = ("hospital", "assemble", "enrol", "sign")

Draw = Callable[[StudySettings, int, Path | None], tuple[StudyPlan, Mapping[str, bytes]]]
"""From settings and the number of devices to a plan and the objects that it names."""

Names = Callable[[str], list[str]]
"""From what `--devices` says to the names of devices."""


def add_arguments(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the commands, as some of `vitalring federation`."""
    hospital = actions.add_parser("hospital", help="draw a hospital's keys and write its card")
    hospital.add_argument("folder", type=Path)
    hospital.add_argument("--name", required=True, help="1 to 32 of a-z, 0-9 and -")

    assemble = actions.add_parser("assemble", help="as the authority: sign hospitals and study")
    assemble.add_argument("folder", type=Path)
    assemble.add_argument("--config", type=Path, required=True, help="study.toml")
    assemble.add_argument(
        "--devices", required=True, help="how many devices there will be, or a file of names"
    )
    assemble.add_argument(
        "--card",
        type=Path,
        action="append",
        required=True,
        help="a hospital's card; once for each, the host's first",
    )

    enrol = actions.add_parser("enrol", help="as the host: draw devices' keys, write the roster")
    enrol.add_argument("folder", type=Path)
    enrol.add_argument("--config", type=Path, required=True, help="study.toml")
    whose = enrol.add_mutually_exclusive_group(required=True)
    whose.add_argument("--devices", help="draw their keys: how many, or a file of names")
    whose.add_argument(
        "--enrolled", action="store_true", help="those that enrolled with `federation office`"
    )
    enrol.add_argument("--authority", required=True, help="its public key, 64 hex digits")

    sign = actions.add_parser("sign", help="add this hospital's signature to the roster")
    sign.add_argument("folder", type=Path)
    sign.add_argument("--authority", required=True, help="its public key, 64 hex digits")
    for each in (enrol, sign):
        add_instead(each)


def add_instead(parser: argparse.ArgumentParser) -> None:
    """Describe the operator's word on which `tools.signed_rosters` relies."""
    parser.add_argument(
        "--instead",
        action="store_true",
        help="sign though this hospital signed another roster of this number, which was withdrawn "
        "before all hospitals had signed it",
    )


def run(options: argparse.Namespace, draw: Draw, names: Names) -> int:
    """Run one of the commands."""
    folder: Path = options.folder
    if options.action == "hospital":
        card = founding.make_hospital(folder, options.name)
        print(f"{card}: send it to the authority, and read it over the telephone:")
        print(founding.card_fingerprint(founding.read_card(card)))
    elif options.action == "assemble":
        _assemble(options, draw, names)
    elif options.action == "enrol":
        settings = load_config(StudySettings, options.config)
        ids = None if options.enrolled else names(options.devices)
        key = authority_key(options.authority)
        path, count = founding.enrol(folder, settings, key, ids, instead=options.instead)
        print(f"{path}: {count} devices, signed by this hospital; send it to the next one,")
        print("which signs it and sends it on, until all have signed")
        if settings.secure_sum in KEYLESS:
            print(f"send {path.with_name(SUM_KEY)} with it: it is signed along")
    elif not _countersigned(folder, authority_key(options.authority), instead=options.instead):
        key = authority_key(options.authority)
        roster, missing = founding.sign_roster(folder, key, instead=options.instead)
        print(f"cohort {roster.cohort}, epoch {roster.epoch}: {len(roster.keys)} devices")
        print(f"send it on to {', '.join(missing)}" if missing else "signed by all hospitals")
    return 0


def _countersigned(folder: Path, key: bytes, *, instead: bool) -> bool:
    """Sign the roster that is to come, if there is one; say what changes with it."""
    if not (folder / "public" / rosters.NEXT_FILE).exists():
        return False
    change = rosters.countersign(folder, key, instead=instead)
    for line in rosters.describe(change):
        print(line)
    if change.missing:
        print(f"send {rosters.NEXT_FILE} on to {', '.join(change.missing)}")
    else:
        print("signed by all hospitals: send it back to the host, which installs it")
    return True


def _assemble(options: argparse.Namespace, draw: Draw, names: Names) -> None:
    settings = load_config(StudySettings, options.config)
    cards = [founding.read_card(path) for path in options.card]
    if len(cards) != hospitals_of(settings)[0]:
        raise ConfigError(
            f"{len(cards)} cards, where {options.config} speaks of {hospitals_of(settings)[0]} "
            "hospitals: give a --card for each, or change `hospitals`"
        )
    plan, objects = draw(settings, len(names(options.devices)), None)
    made = founding.found(options.folder, settings, plan, objects, cards)
    print(f"federation   {made.name}, study {plan.study}")
    print(f"authority    {made.authority_key.hex()}")
    print(f"             fingerprint {fingerprint(made.authority_key)}")
    for hospital in made.hospitals:
        print(f"hospital     {hospital.name}: {founding.card_fingerprint(hospital)}")
    print("\ncompare each line with the hospital over the telephone; send the folder")
    print(f"{options.folder / 'public'} to all; keep {options.folder / 'authority'} offline")


def authority_key(text: str) -> bytes:
    """Return a public key from its hexadecimal digits. Raises ConfigError."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ConfigError(f"--authority {text}: a public key has 64 hexadecimal digits")
    return key
