"""`vitalring federation office`: the host enrols devices before there is a roster (SPEC 13.2)."""

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from vitalring.config import load_config
from vitalring.errors import ConfigError
from vitalring.files import read_file, read_secret
from vitalring.gateway import enrolment, office_service, store
from vitalring.gateway.config import GatewayKeys
from vitalring.gateway.log import LogKey
from vitalring.gateway.mosquitto import GATEWAY
from vitalring.gateway.office import Office
from vitalring.mqtt import BrokerConfig, Link
from vitalring.protocol import sealing, topics
from vitalring.tools import founding, roles
from vitalring.tools.commands.enrolment import add_days, days_ms
from vitalring.tools.commands.founding import authority_key
from vitalring.tools.commands.services import add_parent_option, stop_on_signals
from vitalring.tools.federation import FIRST_EPOCH
from vitalring.tools.settings import StudySettings
from vitalring.tools.tickets import LIST_FILE

BrokerOf = Callable[[argparse.Namespace, Sequence[str]], roles.Broker]
"""From the options and the users that come to it to the broker."""


def add_arguments(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> argparse.ArgumentParser:
    """Describe the command, as one of `vitalring federation`."""
    office = actions.add_parser(
        "office", help="as the host: enrol devices that draw their own keys, before the roster"
    )
    office.add_argument("folder", type=Path)
    office.add_argument("--config", type=Path, required=True, help="study.toml")
    office.add_argument("--authority", required=True, help="its public key, 64 hex digits")
    office.add_argument(
        "--tickets", type=Path, help="lines NAME SHA256; those in its folder if not given"
    )
    add_days(office)
    add_parent_option(office)
    return office


def run(options: argparse.Namespace, broker_of: BrokerOf) -> int:
    """Run the office until it is stopped, or until its days are over."""
    open_ms = days_ms(options.days)
    key, folder = authority_key(options.authority), options.folder
    federation, home = founding.host_of(folder, key)
    if founding.is_founded(folder):
        raise ConfigError(
            f"{folder} has a roster: devices join it by `vitalring gateway enrolment open`"
        )
    cohort = load_config(StudySettings, options.config).cohort
    keys = GatewayKeys(
        LogKey(federation.log_origin, read_secret(home / "log.seed", 32)),
        sealing.load_secret(read_secret(home / "sealing.key", 32)),
    )
    config = _config(broker_of(options, [GATEWAY]))
    listed = options.tickets or home / LIST_FILE
    tickets = enrolment.parse_tickets(read_file(listed).decode(errors="replace"))
    stop = stop_on_signals(options)
    with closing(store.open_store(home / founding.OFFICE)) as db:
        enrolment.import_tickets(db, tickets)
        closes_ms = _now_ms() + open_ms
        enrolment.open_first_call(db, keys.log, federation, cohort, FIRST_EPOCH, closes_ms)
        office = Office(db, federation, keys.sealing)
        enrol, call = (
            topic(federation.name, cohort) for topic in (topics.enrol_topic, topics.call_topic)
        )
        print(f"devices of {cohort} are called for their first keys; stop it when all have come")
        try:
            with Link(config, [enrol]) as link:
                office_service.serve(db, office, link, call, stop, _now_ms)
        finally:
            enrolment.close_call(db)
        here = {each.name for each in enrolment.enrolled(db)}
        missing = sorted(set(tickets.values()) - here)
    print(f"{len(here)} devices enrolled; missing: {', '.join(missing) or 'nobody'}")
    return 0


def _config(broker: roles.Broker) -> BrokerConfig:
    shown = broker.credentials.get(GATEWAY)
    if shown is None:
        return BrokerConfig(broker.url)
    return BrokerConfig(
        broker.url,
        ca_file=shown.ca_file,
        certificate_file=shown.certificate_file,
        key_file=shown.key_file,
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
