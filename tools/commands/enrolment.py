"""`vitalring gateway enrolment`: the host's office, where devices enrol ring keys (SPEC 13)."""

import argparse
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from vitalring.config import load_config
from vitalring.errors import ConfigError
from vitalring.files import read_file
from vitalring.gateway import enrolment, rosters, store
from vitalring.gateway.config import GatewayConfig, load_keys, load_study
from vitalring.protocol.enrolment import open_call
from vitalring.tools.enrolments import read_enrolments, read_keys, write_keys

_DAY_MS = 86_400_000
_MOST_DAYS = 366


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    actions = parser.add_subparsers(dest="enrolment", required=True)
    tickets = actions.add_parser("tickets", help="take up tickets: lines NAME SHA256 in a file")
    tickets.add_argument("file", type=Path)
    call = actions.add_parser("open", help="call for ring keys of an epoch")
    call.add_argument("--epoch", type=int, required=True, help="the roster's, or the next one")
    add_days(call)
    close = actions.add_parser("close", help="end the call")
    shown = actions.add_parser("list", help="say who is enrolled, in which roster, and who is not")
    export = actions.add_parser("export", help="write lines NAME EPOCH KEY of all enrolled keys")
    export.add_argument("file", type=Path)
    bar = actions.add_parser("bar", help="take no key from a device any more")
    bar.add_argument("device")
    bar.add_argument("--lift", action="store_true", help="take keys from it again")
    for each in (tickets, call, close, shown, export, bar):
        each.add_argument("--config", type=Path, required=True, help="gateway.toml of the host")


def add_days(parser: argparse.ArgumentParser) -> None:
    """Describe how long a call for keys is open, which `days_ms` checks."""
    parser.add_argument("--days", type=float, default=7.0, help="how long; default: 7")


def days_ms(days: float) -> int:
    """Return the milliseconds of so many days of a call. Raises ConfigError."""
    if not 0 < days <= _MOST_DAYS:
        raise ConfigError(f"--days {days:g}: use more than 0 and at most {_MOST_DAYS}")
    return int(days * _DAY_MS)


def run(options: argparse.Namespace) -> int:
    """Run the command, beside the gateway, which looks at what changed."""
    config = load_config(GatewayConfig, options.config)
    match options.enrolment:
        case "tickets":
            _tickets(config, options.file)
        case "open":
            _open(config, options.epoch, days_ms(options.days))
        case "close":
            with closing(store.write_store(config.state_dir)) as db:
                enrolment.close_call(db)
            print("closed: no key is taken any more")
        case "list":
            print("\n".join(_list(config)))
        case "export":
            keys = read_enrolments(config)
            write_keys(options.file, keys)
            print(
                f"{options.file}: {len(keys)} keys; it tells which device has which: keep it here"
            )
        case _:
            with closing(store.write_store(config.state_dir)) as db:
                enrolment.bar(db, options.device, lift=options.lift)
            taken = "are taken again" if options.lift else "are taken no more"
            print(f"keys of {options.device} {taken}; a key in a roster stays there")
    return 0


def _tickets(config: GatewayConfig, path: Path) -> None:
    try:
        tickets = enrolment.parse_tickets(read_file(path).decode())
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    with closing(store.write_store(config.state_dir)) as db:
        new = enrolment.import_tickets(db, tickets)
    print(f"{new} new tickets, {len(tickets) - new} known before")


def _open(config: GatewayConfig, epoch: int, open_ms: int) -> None:
    with closing(store.write_store(config.state_dir)) as db:
        study = load_study(config, rosters.newest(db)).study
        if config.enrolled is not None:
            enrolment.import_keys(db, read_keys(config.enrolled))
        closes_ms = time.time_ns() // 1_000_000 + open_ms
        key = load_keys(config, study).log
        enrolment.open_call(db, key, study, epoch, closes_ms)
    print(f"devices of {study.roster.cohort} are called for keys of epoch {epoch}, "
          f"until {_time(closes_ms)}")  # fmt: skip
    print("see who has answered with `enrolment list`; then make the roster")


def _list(config: GatewayConfig) -> list[str]:
    with closing(store.read_store(config.state_dir)) as db:
        study = load_study(config, rosters.newest(db)).study
        said = enrolment.standing(db)
        record, refused = enrolment.current_call(db), enrolment.refused(db)
        tickets = enrolment.tickets(db)
        barred = enrolment.barred(db, said.revoked)
    call = open_call(record, study.federation) if record else None
    if call is None:
        lines = ["no call is open"]
    else:
        over = call.closes_ms < time.time_ns() // 1_000_000
        lines = [f"call for epoch {call.epoch}, {'ran out' if over else 'until'} "
                 f"{_time(call.closes_ms)}"]  # fmt: skip
    lines += [f"refused {count} times: {reason}" for reason, count in refused.items()]
    keys = read_enrolments(config)
    for each in keys:
        where = "revoked" if each.key in said.revoked else "waits for a roster"
        if each.key in said.kept:
            where = "in the roster" if said.kept[each.key] == study.roster.epoch else "in a roster"
        lines.append(f"epoch {each.epoch}  {each.name:32} {each.key.hex()[:16]}  {where}")
    wanted = call.epoch if call is not None else study.roster.epoch
    here = {each.name for each in keys if each.epoch == wanted}
    missing = sorted(({each.name for each in keys} | tickets) - here - barred)
    lines += [f"epoch {wanted}  {name:32} no key yet" for name in missing]
    return lines + [f"barred   {name}" for name in sorted(barred)]


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="minutes")
