"""`vitalring federation`: make keys, roster, plan and configuration files of a study."""

import argparse
import re
import shutil
from pathlib import Path

from vitalring.aggregator.rounds import Schedule
from vitalring.config import load_config
from vitalring.edge_agent.config import DEVICE_ID, AgentConfig
from vitalring.errors import ConfigError
from vitalring.files import read_file
from vitalring.models.artefact import load_artefact
from vitalring.mqtt import BrokerConfig
from vitalring.tools import federation, roles
from vitalring.tools.settings import StudySettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    actions = parser.add_subparsers(dest="action", required=True)
    make = actions.add_parser("init", help="write a new federation with one hospital")
    make.add_argument("folder", type=Path, help="a new folder")
    make.add_argument("--config", type=Path, required=True, help="study.toml")
    make.add_argument(
        "--devices",
        required=True,
        help="how many devices to enrol, or a file with one device name a line",
    )
    make.add_argument("--broker-url", required=True, help="such as mqtts://server:8883")
    make.add_argument("--broker-folder", type=Path, help="what `vitalring gateway init` wrote")
    make.add_argument("--held-out", type=Path, help="data set on which models are evaluated")
    make.add_argument(
        "--data",
        default="data",
        help="folder of a device's data, as its agent sees it: absolute, or from agent.toml's "
        "folder; default: data",
    )
    for name, default_s, text in (
        ("window", Schedule.window_ms / 1000, "devices submit at a random time within it"),
        ("timeout", Schedule.timeout_ms / 1000, "a round that lacks updates ends after it"),
        ("retry", AgentConfig.retry_s, "a device without a receipt submits again after it"),
    ):
        make.add_argument(
            f"--{name}",
            type=float,
            default=default_s,
            metavar="SECONDS",
            help=f"{text}; default: {default_s:g}",
        )


def run(options: argparse.Namespace) -> int:
    """Run the command. A folder is made whole or not at all."""
    settings = load_config(StudySettings, options.config)
    names = _names(options.devices)
    broker = _broker(options, settings.cohort)
    folder: Path = options.folder
    if folder.exists():
        raise ConfigError(f"{folder} exists already: name a new folder")
    artefact = load_artefact(settings.model)
    plan = federation.plan_of(
        settings, artefact, artefact.info.classes, len(names), settings.records
    )
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        keys = federation.enrol(partial, settings, names)
        made = federation.init(partial, settings, artefact, plan, keys)
        _write_roles(options, settings, made, broker, names)
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for line in federation.describe(made):
        print(line)
    print(f"\nkeep {folder / 'authority'} offline; copy each folder of {folder / 'devices'}")
    print(f"to its device, and {folder / 'hospitals' / federation.HOSPITAL} with")
    print(f"{folder / 'public'} to the hospital's server")
    return 0


def _write_roles(
    options: argparse.Namespace,
    settings: StudySettings,
    made: federation.Made,
    broker: roles.Broker,
    names: list[str],
) -> None:
    schedule = roles.schedule(options.window, options.timeout, settings.patience)
    roles.write_gateway(made, broker)
    roles.write_aggregator(made, broker, schedule, options.held_out)
    more = {"retry_s": options.retry, "floors": roles.floors_of(made)}
    for name in names:
        roles.write_agent(made, broker, name, options.data, more)


def _broker(options: argparse.Namespace, cohort: str) -> roles.Broker:
    """Return the broker that the options describe, checked before anything is written."""
    if not 0 <= options.window <= options.timeout or options.timeout <= 0:
        raise ConfigError(
            f"--window {options.window:g} --timeout {options.timeout:g}: "
            "use 0 <= window <= timeout, both in seconds"
        )
    url, reconnect_s = options.broker_url, roles.reconnect_s(options.timeout)
    BrokerConfig(url=url)  # refuses an address that no party could use
    if not options.broker_folder:
        return roles.Broker(url, reconnect_s)
    broker = roles.broker_of_folder(options.broker_folder, url, cohort, reconnect_s)
    for shown in broker.credentials.values():
        for path in (shown.ca_file, shown.certificate_file, shown.key_file):
            if not path.is_file():
                raise ConfigError(
                    f"{path} is missing: make it with `vitalring gateway init` for this cohort"
                )
    return broker


def _names(devices: str) -> list[str]:
    if devices.isdecimal():
        width = len(devices)
        return [f"device-{number:0{width}}" for number in range(1, int(devices) + 1)]
    names = read_file(Path(devices)).decode(errors="replace").split()
    for name in names:
        if re.fullmatch(DEVICE_ID, name) is None:
            raise ConfigError(f"{devices}: device name {name!r} must match {DEVICE_ID}")
    if len(set(names)) != len(names):
        raise ConfigError(f"{devices} names a device twice")
    return names
