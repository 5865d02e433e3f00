"""Which rosters a hospital has signed: of each number one, ever (SPEC 9.14)."""

from pathlib import Path

from vitalring.errors import ConfigError
from vitalring.files import read_file, write_atomic
from vitalring.protocol.cbor import digest, encode
from vitalring.protocol.records import Roster

SIGNED_FILE = "signed-rosters.txt"
"""File of a hospital, beside its identity key: lines `COHORT SERIAL SHA256`."""


def note(home: Path, roster: Roster, *, instead: bool = False) -> None:
    """Note that the hospital whose secrets are in `home` signs a roster, before it does.

    Two rosters of one number, each with all signatures, would let a gateway show some devices
    one and some the other; a hospital that signs one alone prevents it. `instead` is the
    operator's word that the other one was withdrawn before all hospitals had signed it.
    Raises ConfigError where another one of this number was signed, StorageError.
    """
    path = home / SIGNED_FILE
    lines = read_file(path).decode().splitlines() if path.exists() else []
    number, name = f"{roster.cohort} {roster.serial} ", digest(encode(roster)).hex()
    before = [line for line in lines if line.startswith(number)]
    if number + name in before:
        return
    if before and not instead:
        raise ConfigError(
            f"{home.name} has signed another roster {roster.serial} of {roster.cohort} before "
            f"({path}); two would let a gateway deceive devices. If that one was withdrawn, and "
            "not every hospital has signed it, give --instead; otherwise install it first"
        )
    write_atomic(path, "".join(f"{line}\n" for line in [*lines, number + name]).encode(), 0o600)
