"""`vitalring gateway`: a hospital server's part."""

import argparse
import datetime
from pathlib import Path

from vitalring.config import load_config
from vitalring.gateway import mosquitto
from vitalring.gateway.config import GatewayConfig
from vitalring.gateway.main import export, run_gateway, status_text
from vitalring.tools.commands import enrolment
from vitalring.tools.commands.services import add_parent_option, stop_on_signals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    actions = parser.add_subparsers(dest="action", required=True)
    init = actions.add_parser("init", help="write a Mosquitto configuration with certificates")
    init.add_argument("folder", type=Path, help="where configuration and certificates go")
    init.add_argument("--federation", required=True, help="name of the federation")
    init.add_argument("--cohort", action="append", required=True, help="name; may be repeated")
    init.add_argument(
        "--hospital",
        action="append",
        default=[],
        help="name of a hospital with an aggregator here; repeat it for a federation of several",
    )
    init.add_argument(
        "--second-gateway",
        default="",
        metavar="NAME",
        help="name of the hospital whose gateway holds shares, with secure_sum two-server",
    )
    init.add_argument(
        "--host", action="append", required=True, help="name or address of the broker; repeatable"
    )
    init.add_argument("--port", type=int, default=8883)
    init.add_argument("--bind", default="0.0.0.0", help="address to listen on")  # noqa: S104
    enrolment.add_arguments(
        actions.add_parser("enrolment", help="the office where devices enrol ring keys")
    )
    run_parser = actions.add_parser("run", help="admit updates until stopped")
    add_parent_option(run_parser)
    status_parser = actions.add_parser("status", help="say how the gateway is doing")
    export_parser = actions.add_parser("export", help="write the log as a folder to serve")
    export_parser.add_argument("folder", type=Path)
    for each in (run_parser, status_parser, export_parser):
        each.add_argument("--config", type=Path, required=True, help="gateway.toml")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    if options.action == "init":
        return _init(options)
    if options.action == "enrolment":
        return enrolment.run(options)
    config = load_config(GatewayConfig, options.config)
    if options.action == "run":
        run_gateway(config, stop_on_signals(options))
    elif options.action == "status":
        print(status_text(config))
    else:
        export(config, options.folder)
        print(f"log written to {options.folder}")
    return 0


def _init(options: argparse.Namespace) -> int:
    files = mosquitto.write(
        options.folder,
        options.federation,
        options.cohort,
        options.host,
        hospitals=options.hospital,
        second_gateway=options.second_gateway,
        port=options.port,
        bind=options.bind,
        now=datetime.datetime.now(datetime.UTC),
    )
    print(f"start the broker: mosquitto -c {files.configuration}")
    print(f"then: vitalring federation init FOLDER --broker-folder {options.folder} \\")
    print(f"          --broker-url mqtts://{options.host[0]}:{options.port} ...")
    return 0
