"""`vitalring federation keys`: hospitals make a study's joint key by exchanging files."""

import argparse
import getpass
from pathlib import Path

from vitalring.errors import ConfigError
from vitalring.files import read_file
from vitalring.tools import key_ceremony


def add_arguments(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command, as one of `vitalring federation`."""
    text = "make the joint key of a study with other hospitals, by files"
    keys = actions.add_parser("keys", help=text, description=text)
    steps = keys.add_subparsers(dest="step", required=True)

    start = steps.add_parser("start", help="begin: draw what is secret, write the first file")
    start.add_argument("folder", type=Path, help="a new folder for all of it")
    start.add_argument("--study", type=Path, help="folder with federation.cbor and study.cbor")
    start.add_argument("--identity", type=Path, help="this hospital's identity.seed")
    start.add_argument("--authority", help="the authority's public key, 64 hex digits")
    start.add_argument("--again", action="store_true", help="begin anew after an attempt ended")

    for name, help_text in (
        ("next", "do what can be done with the files that are there"),
        ("status", "say what to do next, and for whom one waits"),
        ("fingerprint", "show the key's fingerprint, or note what the others read"),
        ("backup", "write an encrypted copy of this hospital's key share"),
        ("restore", "take a key share from its backup, and check it"),
    ):
        step = steps.add_parser(name, help=help_text)
        step.add_argument("folder", type=Path, help="the folder that `keys start` made")
        if name == "fingerprint":
            step.add_argument("--heard", help="the fingerprint as the other hospitals read it")
        if name in ("backup", "restore"):
            step.add_argument("--out", type=Path, required=True, help="a new file")
            step.add_argument(
                "--passphrase-file", type=Path, help="its first line; asked for if not given"
            )
        if name == "restore":
            step.add_argument("--backup", type=Path, required=True, help="what `keys backup` wrote")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    if options.step == "start":
        return _start(options)
    if options.step == "restore":
        return _restore(options)
    setting = key_ceremony.open_folder(options.folder)
    if options.step == "backup":
        return _backup(setting, options)
    if options.step == "fingerprint":
        return _fingerprint(setting, options.heard)
    return _show(setting, act=options.step == "next")


def _start(options: argparse.Namespace) -> int:
    if options.again:
        return _show(key_ceremony.start_again(options.folder), act=True)
    if not (options.study and options.identity and options.authority):
        raise ConfigError("a new folder needs --study, --identity and --authority")
    setting = key_ceremony.start(options.folder, options.study, options.identity, options.authority)
    print(setting.agreed.params)
    return _show(setting, act=True)


def _show(setting: key_ceremony.Setting, *, act: bool) -> int:
    """Print where we are; exit code 1 says that the attempt is over."""
    status = setting.ceremony.advance() if act else setting.ceremony.status()
    for line in key_ceremony.tell(setting, status):
        print(line)
    return 1 if status.ended else 0


def _fingerprint(setting: key_ceremony.Setting, heard: str | None) -> int:
    if heard is not None:
        setting.ceremony.confirm(heard)
        print("the same: run `vitalring federation keys next`, which signs the key")
        return 0
    shown = setting.ceremony.status().fingerprint
    if not shown:
        raise ConfigError("there is no key yet: see `keys status`")
    print(shown)
    return 0


def _backup(setting: key_ceremony.Setting, options: argparse.Namespace) -> int:
    key_ceremony.backup(setting, options.out, _passphrase(options.passphrase_file, twice=True))
    print(f"{options.out}: keep it apart from its passphrase, and with it a copy of all of")
    print(f"{setting.folder} but private/, which is not secret and is needed to restore it")
    return 0


def _restore(options: argparse.Namespace) -> int:
    data = read_file(options.backup)
    passphrase = _passphrase(options.passphrase_file, twice=False)
    name, pieces = key_ceremony.restore(options.folder, data, options.out, passphrase)
    print(f"{options.out}: {pieces} pieces of hospital {name}, all of which fit the study's key")
    return 0


def _passphrase(path: Path | None, *, twice: bool) -> str:
    """Take a passphrase from a file or from the terminal, never from the command line."""
    if path is not None:
        lines = read_file(path).decode(errors="replace").splitlines()
        return lines[0] if lines else ""
    passphrase = getpass.getpass("passphrase: ")
    if twice and getpass.getpass("once more: ") != passphrase:
        raise ConfigError("the two passphrases differ")
    return passphrase
