"""`vitalring federation roster|install`: the rosters that follow on a study's first one."""

import argparse
from pathlib import Path

from vitalring.errors import ConfigError
from vitalring.tools import rosters
from vitalring.tools.commands.founding import add_instead, authority_key

ACTIONS = ("roster", "install")


def add_arguments(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the commands, as some of `vitalring federation`."""
    make = actions.add_parser(
        "roster",
        help="as the host: revoke devices, take in new ones, begin an epoch; or show the roster",
    )
    make.add_argument("folder", type=Path)
    make.add_argument("--authority", required=True, help="its public key, 64 hex digits")
    make.add_argument(
        "--revoke",
        action="append",
        default=[],
        metavar="DEVICE",
        help="leave out this device, by its name or its key; may be given several times",
    )
    make.add_argument(
        "--enrol", action="store_true", help="take in all devices that the office enrolled since"
    )
    make.add_argument(
        "--enrol-from",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="take in the keys of this file too, lines NAME EPOCH KEY",
    )
    make.add_argument(
        "--new-epoch",
        action="store_true",
        help="begin the next epoch, with all devices that enrolled for it",
    )
    make.add_argument(
        "--readmit",
        action="append",
        default=[],
        metavar="DEVICE",
        help="with --new-epoch or --enrol: take in this device's new key though it was revoked "
        "before, or is barred",
    )
    make.add_argument(
        "--ring-size", type=int, default=0, help="most keys in a ring; default: as it is"
    )
    add_instead(make)
    install = actions.add_parser(
        "install", help="put a roster that all hospitals signed where services look"
    )
    install.add_argument("folder", type=Path)
    install.add_argument("--authority", required=True, help="its public key, 64 hex digits")


def run(options: argparse.Namespace) -> int:
    """Run one of the commands."""
    key = authority_key(options.authority)
    if options.action == "install":
        _tell(rosters.install(options.folder, key))
        print("installed: the next round's plan names it; other hospitals learn of it by that plan")
        return 0
    wanted = rosters.Wanted(
        revoke=options.revoke,
        enrol=options.enrol,
        enrol_from=options.enrol_from,
        new_epoch=options.new_epoch,
        readmit=options.readmit,
        ring_size=options.ring_size,
    )
    if wanted.readmit and not (wanted.new_epoch or wanted.enrol or wanted.enrol_from):
        raise ConfigError(
            "--readmit goes with --new-epoch or --enrol: a revoked key itself never comes back"
        )
    if not wanted.anything:
        return _show(options.folder, key)
    change = rosters.draw_up(options.folder, key, wanted, instead=options.instead)
    _tell(change)
    if change.missing:
        print(f"\nsend {options.folder / 'public' / rosters.NEXT_FILE} to")
        print(f"{', '.join(change.missing)}: each puts it into its folder `public`, signs it with")
        print("`federation sign` and sends it on; back here, run `federation install`")
    else:
        print("\nsigned by all hospitals and installed: the next round's plan names it")
    return 0


def _show(folder: Path, key: bytes) -> int:
    roster, name, pending = rosters.shown(folder, key)
    print(f"roster      {roster.serial} of cohort {roster.cohort}, epoch {roster.epoch}")
    print(f"devices     {len(roster.keys)}, rings of {roster.ring_size} keys at most")
    print(f"digest      {name.hex()}")
    if pending is not None:
        print("\nbeing signed:")
        _tell(pending)
        print(f"missing     {', '.join(pending.missing) or 'nobody: install it'}")
    return 0


def _tell(change: rosters.Change) -> None:
    for line in rosters.describe(change):
        print(line)
