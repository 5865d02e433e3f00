"""`vitalring federation`: make keys, roster, plan and configuration files of a study."""

import argparse
from pathlib import Path

from vitalring.aggregator.rounds import Schedule
from vitalring.config import load_config
from vitalring.edge_agent.config import AgentConfig
from vitalring.errors import ConfigError
from vitalring.models.artefact import load_artefact
from vitalring.tools import federation, roles
from vitalring.tools.settings import StudySettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    actions = parser.add_subparsers(dest="action", required=True)
    make = actions.add_parser("init", help="write a new federation with one hospital")
    make.add_argument("folder", type=Path, help="a new folder")
    make.add_argument("--config", type=Path, help="study.toml; default: the built-in settings")
    make.add_argument(
        "--devices",
        required=True,
        help="how many devices to enrol, or a file with one device name a line",
    )
    make.add_argument("--broker-url", required=True, help="such as mqtts://server:8883")
    make.add_argument("--broker-folder", type=Path, help="what `vitalring gateway init` wrote")
    make.add_argument("--held-out", type=Path, help="data set on which models are evaluated")
    make.add_argument("--data", type=Path, help="folder of the devices' data; default: data/")
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
    """Run the command."""
    if not 0 <= options.window <= options.timeout or options.timeout <= 0:
        raise ConfigError(
            f"--window {options.window:g} --timeout {options.timeout:g}: "
            "use 0 <= window <= timeout, both in seconds"
        )
    settings = load_config(StudySettings, options.config) if options.config else StudySettings()
    artefact = load_artefact(settings.model)
    names = _names(options.devices)
    plan = federation.plan_of(
        settings, artefact, artefact.info.classes, len(names), settings.records
    )
    folder = options.folder
    keys = [federation.enrol(folder / "devices" / name / "ring.key", settings) for name in names]
    made = federation.init(folder, settings, artefact, plan, keys)
    reconnect_s = roles.reconnect_s(options.timeout)
    broker = roles.Broker(options.broker_url, roles.MAX_PAYLOAD_BYTES, {}, reconnect_s)
    if options.broker_folder:
        broker = roles.broker_of_folder(
            options.broker_folder,
            options.broker_url,
            settings.cohort,
            roles.MAX_PAYLOAD_BYTES,
            reconnect_s,
        )
    schedule = {
        "window_ms": round(options.window * 1000),
        "timeout_ms": round(options.timeout * 1000),
        "patience": settings.patience,
    }
    roles.write_gateway(made, broker)
    roles.write_aggregator(made, broker, schedule, options.held_out)
    for name in names:
        data = options.data or folder / "devices" / name / "data"
        more = {"retry_s": options.retry, "floors": roles.floors_of(made)}
        roles.write_agent(made, broker, name, data, more)
    for line in federation.describe(made):
        print(line)
    print(f"\nkeep {made.layout.authority_seed.parent} offline; copy each folder of")
    print(f"{folder / 'devices'} to its device and {made.layout.hospital_folder} with")
    print(f"{made.layout.public} to the hospital's server")
    return 0


def _names(devices: str) -> list[str]:
    if devices.isdecimal():
        width = len(devices)
        return [f"device-{number:0{width}}" for number in range(1, int(devices) + 1)]
    return Path(devices).read_text().split()
